"""Turns the measurements of the layers into a finding: what is wrong, where, and what to do."""

from collections.abc import Sequence

from gradtx.diagnostics.signal import trends
from gradtx.diagnostics.signal.changes import changing
from gradtx.diagnostics.signal.diagnosis import Diagnosis
from gradtx.diagnostics.signal.idle import dead_units, saturated_units
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.nonfinite import Culprit
from gradtx.diagnostics.signal.not_finite import not_finite

# Inputs with an RMS above this make the first layer's gradients too large for usual learning rates.
LARGEST_INPUT = 10.0


def diagnose(layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float) -> Diagnosis:
    """The first problem that the measurements show; those that explain most are tried first."""
    for problem in (not_finite, dead_units, saturated_units, changing):
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
