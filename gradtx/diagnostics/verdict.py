"""From the measurements of the layers to a sentence: what is wrong, where, and what to do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradtx.diagnostics import trends
from gradtx.diagnostics.layer_signal import LayerSignal
from gradtx.diagnostics.nonfinite import Culprit

# A layer is saturated if more than this share of its units is.
SATURATED_SHARE = 0.4
# Inputs beyond this make the gradients of the first layer too large for usual learning rates.
LARGEST_INPUT = 10.0

# The initializers that keep the signal, with their variance times fan_in, by nonlinearity.
_LINEAR = ("lecun_normal()", 1.0)
_RECTIFIED = ("he_normal()", 2.0)
_INITIALIZERS = {
    "tanh": ("glorot_normal()", 1.0),
    **dict.fromkeys(("max", "relu", "leaky_relu", "prelu", "relu6", "elu", "gelu"), _RECTIFIED),
    **dict.fromkeys(("silu", "swish", "softplus", "mish", "hard_swish", "hard_silu"), _RECTIFIED),
}

_CURES = {
    "log": "keep its argument away from zero, or use a log_softmax or log_sigmoid of the logits",
    "div": "add a small epsilon to the denominator",
    "rsqrt": "add a small epsilon under the root",
    "sqrt": "add a small epsilon under the root; where its argument may be negative, choose the "
    "argument with jnp.where before the root, not the result after it",
    "exp": "subtract the largest exponent first, as logsumexp and softmax do",
    "pow": "keep its base away from zero",
    "dot_general": "make the weights or the inputs smaller, or calculate in a wider dtype",
}


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a network.

    Attributes:
        kind: "healthy", "vanishing", "exploding", "dead", "saturated" or "nan".
        layers: the names of the layers where it happens.
        factor: by how much the signal (or the gradient, on its way back) changes per layer, or per
            step of a recurrence; 1 where that is not what is wrong.
        sentence: all of it, with the advice.
    """

    kind: str
    layers: tuple[str, ...]
    factor: float
    sentence: str


def diagnose(layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float) -> Diagnosis:
    """The first disease that the measurements show, in the order of how much it explains."""
    for disease in (_not_finite, _dead, _saturated, _changing):
        diagnosis = disease(layers, culprit, loss)
        if diagnosis is not None:
            return diagnosis
    forward, backward = (
        trends.trend_of(trends.signals(layers)),
        trends.trend_of(trends.gradients_backwards(layers)),
    )
    remark = ""
    inputs = max(layer.input_rms for layer in layers if layer.depth == 1)
    if inputs > LARGEST_INPUT:
        remark = f" But the inputs are large, with an RMS of {inputs:.3g}: standardize them."
    return Diagnosis(
        "healthy",
        (),
        1.0,
        f"healthy: from layer to layer the signal changes by a factor of {forward.factor:.3g}, and "
        f"the gradient on its way back by {backward.factor:.3g}.{remark}",
    )


def _not_finite(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
    gradients = [layer.weight_grad_rms for layer in layers]
    if np.isfinite([loss, *gradients]).all():
        return None
    if culprit is None:
        return Diagnosis(
            "nan",
            (),
            1.0,
            "nan: the loss or its gradient is not finite, but where this begins was not found.",
        )
    if culprit.operation == "argument":
        return Diagnosis(
            "nan",
            (),
            1.0,
            f"nan: the {culprit.layer} already contains NaN. If it comes from training, restart "
            "from an earlier state with a smaller learning rate, and clip_by_global_norm(1.0).",
        )
    affected = [culprit.layer] if culprit.layer else []
    if culprit.in_gradient:
        # The gradient is not finite from here on to the first layer.
        affected = [layer.name for layer in layers if not math.isfinite(layer.grad_rms)][-1:]
    where = f" in layer '{affected[0]}'" if affected else " before the first layer"
    way = " on the way back" if culprit.in_gradient else ""
    line = f", at {culprit.source}" if culprit.source else ""
    cause, cure = "", _CURES.get(culprit.derivative_of or culprit.operation)
    if culprit.derivative_of:
        where += f", the derivative of `{culprit.derivative_of}`"
    if culprit.infinity is not None:
        infinity = culprit.infinity
        if infinity.operation == "argument":
            cause, cure = f" Its infinity is in the {infinity.layer} already.", None
        else:
            layer_of = f" in layer '{infinity.layer}'" if infinity.layer else ""
            line_of = f", at {infinity.source}" if infinity.source else ""
            cause = f" Its infinity comes from `{infinity.operation}`{layer_of}{line_of}."
            cure = _CURES.get(infinity.operation, cure) if not culprit.derivative_of else cure
            if infinity.layer and infinity.layer not in affected and not culprit.in_gradient:
                affected.insert(0, infinity.layer)
    growth = trends.trend_of(trends.signals(layers))
    if growth.is_notable() and growth.factor > 1:
        cause += (
            f" Up to there the signal grows by a factor of {growth.factor:.3g} per layer: "
            f"{_rescaling(layers, growth.factor)}."
        )
    advice = f" To fix it, {cure}." if cure else ""
    return Diagnosis(
        "nan",
        tuple(affected),
        growth.factor if growth.is_notable() else 1.0,
        f"nan: the first {culprit.made}{way} is made by `{culprit.operation}`{where}{line}."
        f"{cause}{advice}",
    )


def _dead(layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float) -> Diagnosis | None:
    dead = [layer for layer in layers if layer.dead_fraction > _chance_of_death(layer)]
    if not dead:
        return None
    worst = max(dead, key=lambda layer: layer.dead_fraction)
    return Diagnosis(
        "dead",
        tuple(layer.name for layer in dead),
        1.0,
        f"dead: in {_listing(dead)} {_share(len(dead), worst.dead_fraction)} of the units are zero "
        f"for the whole batch, and no gradient comes through them. Initialize these layers with "
        f"{_initializer(worst)[0]} and their biases with zeros; if it happens during training, "
        f"make the learning rate smaller, clip the gradient, or use a leaky_relu.",
    )


def _chance_of_death(layer: LayerSignal) -> float:
    # In a deep network all samples look alike to a layer, and half of its units are zero for all of
    # them; more than three standard deviations above that is not chance.
    return min(0.5 + 3 * 0.5 / math.sqrt(max(layer.units, 1)), 0.95)


def _saturated(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
    saturated = [layer for layer in layers if layer.saturated_fraction > SATURATED_SHARE]
    if not saturated:
        return None
    worst = max(saturated, key=lambda layer: layer.saturated_fraction)
    initializer, scale = _initializer(worst)
    return Diagnosis(
        "saturated",
        tuple(layer.name for layer in saturated),
        1.0,
        f"saturated: in {_listing(saturated)} the {worst.activation} of "
        f"{_share(len(saturated), worst.saturated_fraction)} of the outputs is flat, and hardly "
        f"any gradient comes through. Initialize these layers with {initializer} (a variance of "
        f"{scale:.3g} / fan_in; it is {_scale_of(worst):.3g} / fan_in now) and their biases with "
        f"zeros, standardize the inputs (their RMS is {worst.input_rms:.3g}), or put a batch_norm "
        f"or layer_norm before the nonlinearity.",
    )


def _changing(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
    """An exploding or vanishing signal, gradient, or signal through the steps of a recurrence."""
    if loss and not any(layer.weight_grad_rms for layer in layers):
        return Diagnosis(
            "vanishing",
            tuple(layer.name for layer in layers),
            0.0,
            "vanishing: no gradient reaches any layer. The loss does not depend on them in a way "
            "that has a slope: look for a stop_gradient, an argmax, a comparison or a rounding.",
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
    clip = ", and clip_by_global_norm(1.0)" if trend.factor > 1 else ""
    return Diagnosis(
        kind,
        (layer.name,),
        trend.factor,
        f"{kind}: the {_on_its_way(what)} {verb} by a factor of {trend.factor:.3g} per step of the "
        f"recurrence ({trend.in_all:.2g} in all), in layer '{layer.name}'. To fix it, initialize "
        f"it with orthogonal(){multiply}, or use gates (a GRU or LSTM){clip}.",
    )


def _change_by_layer(what: str, trend: trends.Trend, layers: Sequence[LayerSignal]) -> Diagnosis:
    grows = trend.factor > 1
    kind, verb = ("exploding", "grows") if grows else ("vanishing", "shrinks")
    hidden = trends.hidden(layers)
    changes = trends.signal_changes(hidden) if what == "signal" else trends.gradient_changes(hidden)
    # The layers with at least half of the average share.
    share = math.log(trend.factor) / 2 if trend.factor else -math.inf
    found = [
        (layer, change)
        for layer, change in zip(hidden, changes, strict=True)
        if (change >= share if grows else change <= share)
    ]
    affected = [layer for layer, _ in found] or hidden
    factor = trend.factor
    if factor and found and 2 * len(found) < len(hidden):
        # Few layers: their own change, not the average over all.
        factor = math.exp(sum(change for _, change in found) / len(found))
    sentence = (
        f"{kind}: the {_on_its_way(what)} {verb} by a factor of {factor:.3g} per layer "
        f"({trend.in_all:.2g} in all), in {_listing(affected)}. To fix it, "
        f"{_advice(what, affected, factor)}, or put a batch_norm or layer_norm before the "
        "nonlinearities."
    )
    if grows:
        sentence += " Until then, clip_by_global_norm(1.0)."
    return Diagnosis(kind, tuple(layer.name for layer in affected), factor, sentence)


def _on_its_way(what: str) -> str:
    return "gradient on its way back" if what == "gradient" else what


def _advice(what: str, layers: Sequence[LayerSignal], factor: float) -> str:
    typical = _typical(layers)
    if what == "gradient" and typical.activation and typical.activation not in _INITIALIZERS:
        # The signal is kept: no other weights will help against a slope that is small everywhere.
        return f"replace the {typical.activation} by a relu, with {_RECTIFIED[0]} for the weights"
    return _rescaling(layers, factor)


def _typical(layers: Sequence[LayerSignal]) -> LayerSignal:
    """The layer in the middle, which stands for all of them."""
    return sorted(layers, key=_scale_of)[len(layers) // 2]


def _rescaling(layers: Sequence[LayerSignal], factor: float) -> str:
    """The advice for weights that are too large or too small."""
    typical = _typical(layers)
    initializer, scale = _initializer(typical)
    present = _scale_of(typical)
    multiply = f"multiply their weights by {1 / factor:.3g}" if factor else ""
    if multiply and 1 / trends.FACTOR_PER_LAYER < present / scale < trends.FACTOR_PER_LAYER:
        return (
            f"{multiply} (they have the variance of {initializer}, {present:.3g} / fan_in, and "
            "still do not keep this signal)"
        )
    advice = (
        f"initialize these layers with {initializer} (a variance of {scale:.3g} / fan_in; it is "
        f"{present:.3g} / fan_in now)"
    )
    return f"{advice}, or {multiply}" if multiply else advice


def _initializer(layer: LayerSignal) -> tuple[str, float]:
    """The initializer that keeps a layer's signal, and its variance times fan_in."""
    return _INITIALIZERS.get(layer.activation, _LINEAR)


def _scale_of(layer: LayerSignal) -> float:
    return layer.weight_rms**2 * layer.fan_in


def _share(number: int, largest: float) -> str:
    return f"{'up to ' if number > 1 and largest < 1 else ''}{largest:.0%}"


def _listing(layers: Sequence[LayerSignal]) -> str:
    """The names of layers; of many the first and the last."""
    names = [f"'{layer.name}'" for layer in layers]
    if len(names) > 4:
        return f"{len(names)} layers from {names[0]} to {names[-1]}"
    return ("layer " if len(names) == 1 else "layers ") + ", ".join(names)
