"""The finding for a loss or a gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradtx.diagnostics.signal import advice, trends
from gradtx.diagnostics.signal.diagnosis import Diagnosis
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.nonfinite import Culprit


def not_finite(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
    gradients = [layer.weight_grad_rms for layer in layers]
    if np.isfinite([loss, *gradients]).all():
        return None
    if culprit is None:
        sentence = "the loss or its gradient is not finite, but the cause was not found."
        return Diagnosis("nan", (), 1.0, f"nan: {sentence}")
    if culprit.operation == "argument":
        return Diagnosis(
            "nan",
            (),
            1.0,
            f"nan: the {culprit.layer} already contains NaN. If it comes from training, restart "
            "from an earlier state with a smaller learning rate and clip_by_global_norm(1.0).",
        )
    affected = _affected(layers, culprit)
    growth = trends.trend_of(trends.signals(layers))
    return Diagnosis(
        "nan",
        tuple(affected),
        growth.factor if growth.is_notable() else 1.0,
        f"nan: {_cause(layers, culprit)}{_growth_before(layers, growth)}{_fix(culprit)}",
    )


def _origin(layers: Sequence[LayerSignal], culprit: Culprit) -> list[str]:
    """The layer of the operation that made NaN; empty: it precedes all layers."""
    if culprit.in_gradient:
        # The gradient is not finite from here on to the first layer.
        return [layer.name for layer in layers if not math.isfinite(layer.grad_rms)][-1:]
    return [culprit.layer] if culprit.layer else []


def _affected(layers: Sequence[LayerSignal], culprit: Culprit) -> list[str]:
    """The layers to name: that of the NaN, after that of the infinity which caused it."""
    names = _origin(layers, culprit)
    infinity = culprit.infinity
    if infinity and infinity.operation != "argument" and infinity.layer and not culprit.in_gradient:
        names = list(dict.fromkeys([infinity.layer, *names]))
    return names


def _cause(layers: Sequence[LayerSignal], culprit: Culprit) -> str:
    """Which operation made the first NaN, where, and from what."""
    origin = _origin(layers, culprit)
    direction = " in the backward pass" if culprit.in_gradient else ""
    where = f" in layer '{origin[0]}'" if origin else " before the first layer"
    if culprit.derivative_of:
        where += f", the derivative of `{culprit.derivative_of}`"
    sentence = (
        f"the first {culprit.made}{direction} comes from `{culprit.operation}`{where}"
        f"{_at(culprit)}."
    )
    shown = f" {culprit.evidence.sentence}" if culprit.evidence.sentence else ""
    infinity = culprit.infinity
    if infinity is None:
        return f"{sentence}{shown}"
    if infinity.operation == "argument":
        return f"{sentence} It results from an infinity in the {infinity.layer}."
    layer = f" in layer '{infinity.layer}'" if infinity.layer else ""
    # Of a derivative, the argument of the function tells more than what is calculated of it.
    if not culprit.derivative_of and infinity.evidence.sentence:
        shown = f" {infinity.evidence.sentence}"
    return (
        f"{sentence} It results from an infinity that `{infinity.operation}` produces{layer}"
        f"{_at(infinity)}.{shown}"
    )


def _at(culprit: Culprit) -> str:
    return f", at {culprit.source}" if culprit.source else ""


def _growth_before(layers: Sequence[LayerSignal], growth: trends.Trend) -> str:
    """What to do about a signal that grew until it was no longer finite."""
    if not growth.is_notable() or growth.factor <= 1:
        return ""
    return (
        f" Up to there the signal grows by a factor of {growth.factor:.3g} per layer: "
        f"{advice.rescaling(layers, growth.factor)}."
    )


def _fix(culprit: Culprit) -> str:
    """How to rewrite the operation that made the NaN or, where it is known, the infinity."""
    fix = culprit.evidence.fix or advice.FIXES.get(culprit.derivative_of or culprit.operation)
    infinity = culprit.infinity
    if infinity is not None and infinity.operation == "argument":
        fix = None
    elif infinity is not None and not culprit.derivative_of:
        fix = infinity.evidence.fix or advice.FIXES.get(infinity.operation, fix)
    return f" To fix it, {fix}." if fix else ""
