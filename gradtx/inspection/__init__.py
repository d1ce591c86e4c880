"""What a transformation does to each parameter, and which part of its state belongs to it."""

from __future__ import annotations

from gradtx.inspection.explain import Explanation, LeafPlan, explain
from gradtx.inspection.migrate import Migration, migrate
from gradtx.inspection.rates import WeightDecay
from gradtx.inspection.values import Value

__all__ = ["Explanation", "LeafPlan", "Migration", "Value", "WeightDecay", "explain", "migrate"]
