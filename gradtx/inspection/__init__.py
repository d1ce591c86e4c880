"""Looking into a transformation and its state: who updates what, and what belongs to whom."""

from gradtx.inspection.explain import Explanation, LeafPlan, explain
from gradtx.inspection.migrate import Migration, migrate
from gradtx.inspection.rates import Value

__all__ = ["Explanation", "LeafPlan", "Migration", "Value", "explain", "migrate"]
