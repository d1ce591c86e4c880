"""The findings for units that pass no gradient on: dead and saturated ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradtx.diagnostics.signal import advice
from gradtx.diagnostics.signal.diagnosis import Diagnosis, listing, share
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.silence import Silence

# A layer is saturated if more than this share of its units is.
SATURATED_SHARE = 0.4


def dead_units(layers: Sequence[LayerSignal], silence: Silence | None) -> Diagnosis | None:
    """Units that are zero for the whole batch."""
    dead = [layer for layer in layers if layer.dead_fraction > _chance_of_death(layer)]
    # A layer that receives only zeros is a victim of what precedes it.
    dead = [layer for layer in dead if layer.input_rms] or dead
    if not dead:
        return None
    if silence is not None:
        return Diagnosis("dead", (silence.layer,), 1.0, f"dead: {_silenced(silence)}")
    worst = max(dead, key=lambda layer: layer.dead_fraction)
    sentence = (
        f"dead: in {listing(dead)}, {share(len(dead), worst.dead_fraction)} of the units are "
        "zero for the whole batch, and no gradient flows through them."
    )
    if all(not layer.is_hidden for layer in dead):
        fix = (
            f"The {worst.activation} follows the last layer, whose outputs cannot learn once they "
            f"are negative: drop the {worst.activation} at the output, or use a softplus if the "
            "outputs must be positive."
        )
    else:
        fix = (
            f"To fix it, {advice.against_idleness(worst, dead)}; if this happens during training, "
            "lower the learning rate, clip the gradient, or use a leaky_relu."
        )
    names = tuple(layer.name for layer in dead)
    return Diagnosis("dead", names, 1.0, f"{sentence} {fix}")


def _silenced(silence: Silence) -> str:
    """What makes zeros of a layer's units, and how to prevent it."""
    victim = f"all units of layer '{silence.layer}' are zero and no gradient flows through them"
    fix = advice.against_silence(silence.operation)
    if silence.operation == "argument":
        return f"the {silence.name} is zero, so that {victim}. To fix it, {fix}."
    if silence.operation == "parameter":
        return f"the parameter '{silence.name}' is zero, so that {victim}. To fix it, {fix}."
    at = f" at {silence.line}" if silence.line else ""
    return (
        f"`{silence.operation}`{at} makes zeros of numbers that are not zero, so that {victim}. "
        f"To fix it, {fix}."
    )


def _chance_of_death(layer: LayerSignal) -> float:
    # Deep in a network all samples look alike, so that half of a layer's units may be zero for all
    # of them; a share more than three standard deviations above that is not chance.
    return min(0.5 + 3 * 0.5 / math.sqrt(max(layer.units, 1)), 0.95)


def saturated_units(layers: Sequence[LayerSignal]) -> Diagnosis | None:
    """Units that are where their nonlinearity is flat."""
    # A gate is open or closed on purpose, and an output has to approach its targets.
    saturated = [
        layer
        for layer in layers
        if layer.saturated_fraction > SATURATED_SHARE and layer.is_hidden and not layer.is_gate
    ]
    if not saturated:
        return None
    worst = max(saturated, key=lambda layer: layer.saturated_fraction)
    return Diagnosis(
        "saturated",
        tuple(layer.name for layer in saturated),
        1.0,
        f"saturated: in {listing(saturated)}, the {worst.activation} is flat at "
        f"{share(len(saturated), worst.saturated_fraction)} of the outputs, and hardly any "
        f"gradient flows through them. To fix it, {advice.against_idleness(worst, saturated)}, or "
        "put a batch_norm or layer_norm before the nonlinearity.",
    )
