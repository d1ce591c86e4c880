"""Turns the measurements of the layers into a finding: what is wrong, where, and what to do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradtx.diagnostics import advice, trends
from gradtx.diagnostics.layer_signal import LayerSignal
from gradtx.diagnostics.nonfinite import Culprit

# A layer is saturated if more than this share of its units is.
SATURATED_SHARE = 0.4
# Inputs with an RMS above this make the first layer's gradients too large for usual learning rates.
LARGEST_INPUT = 10.0


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a network.

    Attributes:
        kind: "healthy", "vanishing", "exploding", "dead", "saturated" or "nan".
        layers: the names of the affected layers.
        factor: the factor by which the signal (or the backpropagated gradient) changes per layer,
            or per step of a recurrence; 1 if that is not what is wrong.
        sentence: the finding in words, with advice.
    """

    kind: str
    layers: tuple[str, ...]
    factor: float
    sentence: str


def diagnose(layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float) -> Diagnosis:
    """The first problem that the measurements show; those that explain most are tried first."""
    for problem in (_not_finite, _dead, _saturated, _changing):
        diagnosis = problem(layers, culprit, loss)
        if diagnosis is not None:
            return diagnosis
    forward, backward = (
        trends.trend_of(trends.signals(layers)),
        trends.trend_of(trends.gradients_backwards(layers)),
    )
    remark = ""
    inputs = max(layer.input_rms for layer in layers if layer.depth == 1)
    if inputs > LARGEST_INPUT:
        remark = f" However, the inputs are large (RMS {inputs:.3g}): standardize them."
    return Diagnosis(
        "healthy",
        (),
        1.0,
        f"healthy: the signal changes by a factor of {forward.factor:.3g} per layer, and the "
        f"backpropagated gradient by {backward.factor:.3g}.{remark}",
    )


def _not_finite(
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
    infinity = culprit.infinity
    if infinity is None:
        return sentence
    if infinity.operation == "argument":
        return f"{sentence} It results from an infinity in the {infinity.layer}."
    layer = f" in layer '{infinity.layer}'" if infinity.layer else ""
    return (
        f"{sentence} It results from an infinity that `{infinity.operation}` produces{layer}"
        f"{_at(infinity)}."
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
    fix = advice.FIXES.get(culprit.derivative_of or culprit.operation)
    infinity = culprit.infinity
    if infinity is not None and infinity.operation == "argument":
        fix = None
    elif infinity is not None and not culprit.derivative_of:
        fix = advice.FIXES.get(infinity.operation, fix)
    return f" To fix it, {fix}." if fix else ""


def _dead(layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float) -> Diagnosis | None:
    dead = [layer for layer in layers if layer.dead_fraction > _chance_of_death(layer)]
    if not dead:
        return None
    worst = max(dead, key=lambda layer: layer.dead_fraction)
    initializer, _ = advice.initializer_for(worst)
    these, their = advice.pronouns(dead)
    return Diagnosis(
        "dead",
        tuple(layer.name for layer in dead),
        1.0,
        f"dead: in {_listing(dead)}, {_share(len(dead), worst.dead_fraction)} of the units are "
        f"zero for the whole batch, and no gradient flows through them. Initialize {these} with "
        f"{initializer} and {their} biases with zeros; if this happens during training, lower "
        f"the learning rate, clip the gradient, or use a leaky_relu.",
    )


def _chance_of_death(layer: LayerSignal) -> float:
    # Deep in a network all samples look alike, so that half of a layer's units may be zero for all
    # of them; a share more than three standard deviations above that is not chance.
    return min(0.5 + 3 * 0.5 / math.sqrt(max(layer.units, 1)), 0.95)


def _saturated(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
    saturated = [layer for layer in layers if layer.saturated_fraction > SATURATED_SHARE]
    if not saturated:
        return None
    worst = max(saturated, key=lambda layer: layer.saturated_fraction)
    initializer, scale = advice.initializer_for(worst)
    present = advice.scale_of(worst)
    these, their = advice.pronouns(saturated)
    return Diagnosis(
        "saturated",
        tuple(layer.name for layer in saturated),
        1.0,
        f"saturated: in {_listing(saturated)}, the {worst.activation} is flat at "
        f"{_share(len(saturated), worst.saturated_fraction)} of the outputs, and hardly any "
        f"gradient flows through them. Initialize {these} with {initializer} (variance "
        f"{scale:.3g} / fan_in; currently {present:.3g} / fan_in) and {their} biases with "
        f"zeros, standardize the inputs (RMS {worst.input_rms:.3g}), or put a batch_norm or "
        f"layer_norm before the nonlinearity.",
    )


def _changing(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
    """A signal or gradient that explodes or vanishes, over layers or steps of a recurrence."""
    if loss and not any(layer.weight_grad_rms for layer in layers):
        return Diagnosis(
            "vanishing",
            tuple(layer.name for layer in layers),
            0.0,
            "vanishing: no gradient reaches any layer, although the loss is not zero. Look for a "
            "stop_gradient, an argmax, a comparison or a rounding between the layers and the loss.",
        )
    for layer in layers:
        if not layer.is_recurrent:
            continue
        for what, steps in (
            ("signal", layer.rms_by_step),
            ("gradient", layer.grad_rms_by_step[::-1]),
        ):
            trend = trends.trend_of(trends.reached_steps(steps))
            if trend.is_notable("step"):
                return _change_by_step(what, trend, layer)
    for what, sequence in (
        ("signal", trends.signals(layers)),
        ("gradient", trends.gradients_backwards(layers)),
    ):
        trend = trends.trend_of(sequence)
        if trend.is_notable():
            return _change_by_layer(what, trend, layers)
    return None


def _change_by_step(what: str, trend: trends.Trend, layer: LayerSignal) -> Diagnosis:
    kind, verb = ("exploding", "grows") if trend.factor > 1 else ("vanishing", "shrinks")
    multiply = f", or multiply its weights by {1 / trend.factor:.3g}" if trend.factor else ""
    clip = ", and add clip_by_global_norm(1.0)" if trend.factor > 1 else ""
    return Diagnosis(
        kind,
        (layer.name,),
        trend.factor,
        f"{kind}: the {_named(what)} {verb} by a factor of {trend.factor:.3g} per step of the "
        f"recurrence ({trend.in_all:.2g} in total), in layer '{layer.name}'. To fix it, initialize "
        f"the layer with orthogonal(){multiply}, or use gates (a GRU or LSTM){clip}.",
    )


def _change_by_layer(what: str, trend: trends.Trend, layers: Sequence[LayerSignal]) -> Diagnosis:
    grows = trend.factor > 1
    kind, verb = ("exploding", "grows") if grows else ("vanishing", "shrinks")
    hidden = trends.hidden(layers)
    changes = trends.signal_changes(hidden) if what == "signal" else trends.gradient_changes(hidden)
    # The layers that change it at least half as much as the average layer.
    share = math.log(trend.factor) / 2 if trend.factor else -math.inf
    found = [
        (layer, change)
        for layer, change in zip(hidden, changes, strict=True)
        if (change >= share if grows else change <= share)
    ]
    affected = [layer for layer, _ in found] or hidden
    factor = trend.factor
    if factor and found and 2 * len(found) < len(hidden):
        # If few layers are affected, report their change and not the average over all.
        factor = math.exp(sum(change for _, change in found) / len(found))
    fix = advice.against_change(what, affected, factor)
    sentence = (
        f"{kind}: the {_named(what)} {verb} by a factor of {factor:.3g} per layer "
        f"({trend.in_all:.2g} in total), in {_listing(affected)}. To fix it, {fix}, or put a "
        "batch_norm or layer_norm before the nonlinearities."
    )
    if grows:
        sentence += " Until then, use clip_by_global_norm(1.0)."
    return Diagnosis(kind, tuple(layer.name for layer in affected), factor, sentence)


def _named(what: str) -> str:
    return "backpropagated gradient" if what == "gradient" else what


def _share(number: int, largest: float) -> str:
    return f"{'up to ' if number > 1 and largest < 1 else ''}{largest:.0%}"


def _listing(layers: Sequence[LayerSignal]) -> str:
    """The names of the layers; if there are many, of the first and the last."""
    names = [f"'{layer.name}'" for layer in layers]
    if len(names) > 4:
        return f"{len(names)} layers from {names[0]} to {names[-1]}"
    return ("layer " if len(names) == 1 else "layers ") + ", ".join(names)
