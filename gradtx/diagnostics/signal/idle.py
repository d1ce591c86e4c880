"""The findings for units that pass no gradient on: dead and saturated ones."""

import math
from collections.abc import Sequence

from gradtx.diagnostics.signal import advice
from gradtx.diagnostics.signal.diagnosis import Diagnosis, listing, share
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.nonfinite import Culprit

# A layer is saturated if more than this share of its units is.
SATURATED_SHARE = 0.4


def dead_units(
    layers: Sequence[LayerSignal], culprit: Culprit | None, loss: float
) -> Diagnosis | None:
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
        f"dead: in {listing(dead)}, {share(len(dead), worst.dead_fraction)} of the units are "
        f"zero for the whole batch, and no gradient flows through them. Initialize {these} with "
        f"{initializer} and {their} biases with zeros; if this happens during training, lower "
        f"the learning rate, clip the gradient, or use a leaky_relu.",
    )


def _chance_of_death(layer: LayerSignal) -> float:
    # Deep in a network all samples look alike, so that half of a layer's units may be zero for all
    # of them; a share more than three standard deviations above that is not chance.
    return min(0.5 + 3 * 0.5 / math.sqrt(max(layer.units, 1)), 0.95)


def saturated_units(
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
        f"saturated: in {listing(saturated)}, the {worst.activation} is flat at "
        f"{share(len(saturated), worst.saturated_fraction)} of the outputs, and hardly any "
        f"gradient flows through them. Initialize {these} with {initializer} (variance "
        f"{scale:.3g} / fan_in; currently {present:.3g} / fan_in) and {their} biases with "
        f"zeros, standardize the inputs (RMS {worst.input_rms:.3g}), or put a batch_norm or "
        f"layer_norm before the nonlinearity.",
    )
