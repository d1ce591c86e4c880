"""A finding about the signal of a network, and the words that all findings share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradtx.diagnostics.signal.layer_signal import LayerSignal


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a network.

    Attributes:
        kind: "healthy", "vanishing", "exploding", "dead", "saturated", "nan"; "blocked" (no
            gradient passes through an operation), "zero_loss", "constant_loss" (no gradient at
            all), "unstandardized" (large inputs), or "unseen" (no layer could be measured).
        layers: the names of the affected layers.
        factor: the factor by which the signal (or the backpropagated gradient) changes per layer,
            or per step of a recurrence; 1 if that is not what is wrong.
        sentence: the finding in words, with advice.
    """

    kind: str
    layers: tuple[str, ...]
    factor: float
    sentence: str


def share(number: int, largest: float) -> str:
    return f"{'up to ' if number > 1 and largest < 1 else ''}{largest:.0%}"


def listing(layers: Sequence[LayerSignal]) -> str:
    """The names of the layers; if there are many, of the first and the last."""
    names = [f"'{layer.name}'" for layer in layers]
    if len(names) > 4:
        return f"{len(names)} layers from {names[0]} to {names[-1]}"
    return ("layer " if len(names) == 1 else "layers ") + ", ".join(names)
