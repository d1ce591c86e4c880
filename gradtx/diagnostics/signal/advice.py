"""The advice in a finding: which weights to use instead, or how to rewrite an operation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradtx.diagnostics.signal import trends
from gradtx.diagnostics.signal.layer_signal import LayerSignal

# The initializers that preserve the signal, with their variance times fan_in, by nonlinearity.
_LINEAR = ("lecun_normal()", 1.0)
_RECTIFIED = ("he_normal()", 2.0)
_INITIALIZERS = {
    "tanh": ("glorot_normal()", 1.0),
    **dict.fromkeys(("max", "relu", "leaky_relu", "prelu", "relu6", "elu", "gelu"), _RECTIFIED),
    **dict.fromkeys(("silu", "swish", "softplus", "mish", "hard_swish", "hard_silu"), _RECTIFIED),
}

# Weights of a larger variance, relative to that of their initializer, are why a sum grows.
_LARGE_EXCESS = 3.0

# Inputs with a larger RMS saturate or kill units whose weights are as they should be.
_LARGE_INPUT = 3.0

# How to rewrite an operation that made NaN or an infinity.
FIXES = {
    "log": "keep its argument away from zero, or use a log_softmax or log_sigmoid of the logits",
    "div": "add a small epsilon to the denominator",
    "rsqrt": "add a small epsilon under the root",
    "sqrt": "add a small epsilon under the root; if its argument may be negative, select a valid "
    "argument with jnp.where before the root instead of selecting the result after it",
    "exp": "subtract the largest exponent first, as logsumexp and softmax do",
    "pow": "keep its base away from zero",
    **dict.fromkeys(("acos", "asin"), "clip its argument to -1 + 1e-6 and 1 - 1e-6"),
    "dot_general": "make the weights or the inputs smaller, or compute in a wider dtype",
}


def against_change(what: str, layers: Sequence[LayerSignal], factor: float) -> str:
    """The advice for layers that change the signal or the gradient by a factor."""
    typical = _typical(layers)
    if what == "gradient" and typical.activation and typical.activation not in _INITIALIZERS:
        # The signal is preserved, and no weights help against a slope that is small everywhere.
        return f"replace the {typical.activation} with a relu and use {_RECTIFIED[0]} weights"
    return rescaling(layers, factor)


def rescaling(layers: Sequence[LayerSignal], factor: float) -> str:
    """The advice for weights that are too large or too small."""
    typical = _typical(layers)
    initializer, scale = initializer_for(typical)
    present = scale_of(typical)
    these, their = pronouns(layers)
    multiply = f"multiply {their} weights by {1 / factor:.3g}" if factor else ""
    if multiply and _is_near(present, scale, trends.FACTOR_PER_LAYER):
        return (
            f"{multiply} (which already have the variance of {initializer}, {present:.3g} / "
            "fan_in, but do not preserve this signal)"
        )
    if multiply and (scale > present) != (factor < 1):
        # That initializer would make it worse.
        return multiply
    initialize = (
        f"initialize {these} with {initializer} (variance {scale:.3g} / fan_in; currently "
        f"{present:.3g} / fan_in)"
    )
    return f"{initialize}, or {multiply}" if multiply else initialize


def against_idleness(worst: LayerSignal, layers: Sequence[LayerSignal]) -> str:
    """The advice for dead or saturated units, by what the worst layer's measurements show."""
    initializer, scale = initializer_for(worst)
    present = scale_of(worst)
    these, their = pronouns(layers)
    cures = []
    if not _is_near(present, scale, 2.0):
        cures.append(
            f"initialize {these} with {initializer} (variance {scale:.3g} / fan_in; currently "
            f"{present:.3g} / fan_in) and {their} biases with zeros"
        )
    elif worst.output_rms > 2 * math.sqrt(present) * worst.input_rms:
        # More than independent weights make of these inputs.
        cures.append(
            f"initialize {their} biases with zeros (the outputs have an RMS of "
            f"{worst.output_rms:.3g}, although the weights have the variance of {initializer} and "
            f"the inputs an RMS of {worst.input_rms:.3g})"
        )
    if any(layer.depth == 1 and layer.input_rms > _LARGE_INPUT for layer in layers):
        largest = max(layer.input_rms for layer in layers if layer.depth == 1)
        cures.append(f"standardize the inputs (RMS {largest:.3g})")
    if not cures:
        cures = [f"initialize {these} with {initializer}, and {their} biases with zeros"]
    return ", and ".join(cures)


def against_change_by_step(factor: float, *, is_gated: bool) -> str:
    """The advice for a recurrence whose signal or gradient changes by a factor per step."""
    if is_gated and factor < 1:
        return (
            "raise the bias of the forget gate (in a GRU, of the update gate) to 1, or to the "
            "logarithm of the number of steps to remember"
        )
    multiply = f", or multiply its weights by {1 / factor:.3g}" if factor else ""
    gates = "" if is_gated else ", or use gates (a GRU or LSTM)"
    clip = ", and add clip_by_global_norm(1.0)" if factor > 1 else ""
    return f"initialize the layer with orthogonal(){multiply}{gates}{clip}"


def against_silence(operation: str) -> str:
    """The advice for an operation that makes zeros of all numbers."""
    if operation == "parameter":
        return "initialize it with random numbers; only the last layer of a branch may be zero"
    if operation == "argument":
        return "look at where it comes from"
    if operation == "sub":
        return (
            "look for a normalization over a single number there: a batch_norm of one example has "
            "to use more examples or the averages of the training; a layer_norm does not need them"
        )
    if operation in ("mul", "select_n", "div"):
        return "look at the mask or the dropout there, which keeps nothing"
    return "look at its operands there"


def against_sums(layers: Sequence[LayerSignal], factor: float, blocks: int) -> str:
    """The advice for residual blocks whose sums change the signal or the gradient."""
    excess = sorted(scale_of(layer) / initializer_for(layer)[1] for layer in layers)
    if factor < 1 or excess[len(excess) // 2] > _LARGE_EXCESS:
        return rescaling(layers, factor)
    return (
        f"multiply each branch by {blocks**-0.5:.2g} (1 / sqrt({blocks}), the number of blocks) "
        "before it is added, begin with zeros in its last layer, or put a layer_norm or batch_norm "
        "at its start"
    )


def against_pooling(factor: float) -> str:
    """The advice for a sum or a mean over places that changes the signal or the gradient."""
    if factor > 1:
        return "take the mean instead of the sum"
    return (
        "put a layer_norm after it, or a relu before it, because numbers of both signs cancel in a "
        "mean"
    )


def against_scaling(factor: float) -> str:
    """The advice for a multiplication that changes the signal or the gradient."""
    multiply = f": multiply by {1 / factor:.3g} there" if factor else ""
    return f"change its factor{multiply}"


def _is_near(value: float, other: float, factor: float) -> bool:
    return other / factor < value < other * factor


def pronouns(layers: Sequence[LayerSignal]) -> tuple[str, str]:
    """What to call layers that were named before, and what belongs to them."""
    return ("this layer", "its") if len(layers) == 1 else ("these layers", "their")


def initializer_for(layer: LayerSignal) -> tuple[str, float]:
    """The initializer that preserves a layer's signal, and its variance times fan_in."""
    return _INITIALIZERS.get(layer.activation, _LINEAR)


def scale_of(layer: LayerSignal) -> float:
    """The variance of a layer's weights times fan_in."""
    return layer.weight_rms**2 * layer.fan_in


def _typical(layers: Sequence[LayerSignal]) -> LayerSignal:
    """The layer with the median variance, which represents all of them."""
    return sorted(layers, key=scale_of)[len(layers) // 2]
