"""Looking into a transformation and its state: who updates what, and what belongs to whom."""

from gradtx.inspection.explain import Explanation, LeafPlan, explain
from gradtx.inspection.migrate import Migration, migrate
from gradtx.inspection.rates import WeightDecay
from gradtx.inspection.values import Value

__all__ = ["Explanation", "LeafPlan", "Migration", "Value", "WeightDecay", "explain", "migrate"]
