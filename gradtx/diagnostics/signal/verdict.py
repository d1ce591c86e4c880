"""Turns the measurements of the layers into a finding: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradtx.diagnostics.signal import advice, along, trends
from gradtx.diagnostics.signal.blocked import blocked, constant, solved, some
from gradtx.diagnostics.signal.changes import changing
from gradtx.diagnostics.signal.diagnosis import Diagnosis, listing
from gradtx.diagnostics.signal.idle import dead_units, saturated_units
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.learning import IdleParameter
from gradtx.diagnostics.signal.nonfinite import Culprit
from gradtx.diagnostics.signal.not_finite import not_finite
from gradtx.diagnostics.signal.passage import Passage
from gradtx.diagnostics.signal.silence import Silence

# Inputs with an RMS above this make the first layer's gradients too large for usual learning rates.
LARGEST_INPUT = 10.0


def diagnose(
    layers: Sequence[LayerSignal],
    culprit: Culprit | None,
    loss: float,
    idle: Sequence[IdleParameter] = (),
    *,
    learns: bool = True,
    not_seen: str = "",
    trunk: Sequence[Passage] = (),
    silence: Silence | None = None,
) -> Diagnosis:
    """The first problem that the measurements show; those that explain most are tried first.

    Args:
        layers: the measurements.
        culprit: the operation that made the first NaN or infinity.
        loss: the loss.
        idle: the parameters without a gradient.
        learns: whether any parameter has a gradient.
        not_seen: a sentence about what was not measured.
        trunk: what all of the signal passes; empty: not known.
        silence: what makes zeros of a layer's units, if it is not the layer itself.
    """
    frozen = {one.name for one in idle if one.reason == "frozen"}
    # Whatever is frozen ends a path of the gradient on purpose.
    taking_part = [layer for layer in layers if layer.name.split("[")[0] not in frozen] or layers
    problems = (
        lambda: not_finite(layers, culprit, loss),
        lambda: blocked(idle, layers),
        lambda: _because_of_inputs(dead_units(layers, silence), layers),
        lambda: _because_of_inputs(saturated_units(layers), layers),
        lambda: solved(loss, learns=learns),
        lambda: constant(idle, learns=learns),
        lambda: unmeasured(layers, not_seen),
        lambda: changing(taking_part, loss, trunk),
        lambda: unstandardized(layers),
    )
    for problem in problems:
        diagnosis = problem()
        if diagnosis is not None:
            return diagnosis
    if along.covers(trunk, taking_part):
        forward, backward = (along.trend_along(what, trunk) for what in ("signal", "gradient"))
    else:
        forward, backward = trends.over_layers(taking_part).values()
    return Diagnosis(
        "healthy",
        (),
        1.0,
        f"healthy: the signal changes by a factor of {forward.factor:.3g} per layer, and the "
        f"backpropagated gradient by {backward.factor:.3g}.{not_seen}{_remark(idle)}",
    )


def unmeasured(layers: Sequence[LayerSignal], not_seen: str) -> Diagnosis | None:
    """A loss whose parameters are all out of sight."""
    if layers:
        return None
    return Diagnosis("unseen", (), 1.0, f"unseen: no layer could be measured.{not_seen}")


def unstandardized(layers: Sequence[LayerSignal]) -> Diagnosis | None:
    """Inputs on a scale such as 0 to 255."""
    large = [
        layer for layer in layers if layer.receives_raw_data and layer.input_rms > LARGEST_INPUT
    ]
    if not large:
        return None
    worst = max(large, key=lambda layer: layer.input_rms)
    return Diagnosis(
        "unstandardized",
        tuple(layer.name for layer in large),
        1.0,
        f"unstandardized: the inputs of {listing(large)} are large (RMS {worst.input_rms:.3g}), "
        "which makes the gradient of its weights as much larger than usual. To fix it, standardize "
        "the inputs: subtract the mean of each feature and divide by its standard deviation, or "
        "divide pixels of 0 to 255 by 255.",
    )


def _because_of_inputs(found: Diagnosis | None, layers: Sequence[LayerSignal]) -> Diagnosis | None:
    """A finding; that of the inputs, if they are large and the weights are as they should be."""
    inputs = unstandardized(layers)
    if found is None or inputs is None:
        return found
    first = [layer for layer in layers if layer.name in {*found.layers} & {*inputs.layers}]
    if not first or not all(_has_usual_weights(layer) for layer in first):
        return found
    cause, _, cure = inputs.sentence.partition(" To fix it, ")
    effect = found.sentence.removeprefix(f"{found.kind}: ").partition(" To fix it, ")[0]
    return replace(inputs, sentence=f"{cause} As a result, {effect} To fix it, {cure}")


def _has_usual_weights(layer: LayerSignal) -> bool:
    _, scale = advice.initializer_for(layer)
    return scale / 2 < advice.scale_of(layer) < 2 * scale


def _remark(idle: Sequence[IdleParameter]) -> str:
    """What a healthy network's parameters without a gradient are."""
    # Integers are counts and indices.
    idle = [one for one in idle if one.reason != "integer_parameter"]
    if not idle:
        return ""
    names = some([one.name for one in idle])
    reasons = ", ".join(dict.fromkeys(one.reason for one in idle))
    return f" No gradient reaches {names} ({reasons})."
