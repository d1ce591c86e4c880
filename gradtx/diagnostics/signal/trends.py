"""How signals and gradients change from layer to layer, and from step to step of a recurrence."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradtx.diagnostics.signal.layer_signal import LayerSignal

# A signal or gradient that changes by less than these factors is considered healthy, unless the
# total change exceeds the square of the second. In a few layers, the usual initializers of other
# frameworks, with a third of the variance, stay below that and train.
# `tests/diagnostics/calibration.py` measures how often random healthy networks go beyond them: 2 of
# 315, both convolutional without normalization, with silu or gelu.
FACTOR_PER_LAYER = 1.25
FACTOR_IN_ALL = 15.0
FEW_LAYERS = 4
# In a recurrence a gradient may shrink more per step, and even more where gates are meant to
# forget: a gate without a bias passes half of it on.
FACTOR_PER_STEP = 1.8
FACTOR_PER_GATED_STEP = 2.5

# Narrow networks change a signal by chance, but by no more than this.
_MOST_BY_CHANCE = 1000.0

_SHRINKAGE = {
    "layer": FACTOR_PER_LAYER,
    "step": FACTOR_PER_STEP,
    "gated step": FACTOR_PER_GATED_STEP,
}


@dataclass(frozen=True)
class Trend:
    """How a positive quantity changes along a sequence, fitted to its logarithm.

    Attributes:
        factor: the best-fitting factor from each element to the next.
        in_all: the factor from the first element to the last one.
        length: the number of elements.
        chance: a factor in all that random weights of this network may make by chance.
    """

    factor: float
    in_all: float
    length: int
    chance: float = 1.0

    def is_notable(self, unit: str = "layer") -> bool:
        """Whether it is a problem, per "layer", or per "step" or "gated step" of a recurrence."""
        shrinkage = _SHRINKAGE[unit]
        is_steep = not 1 / shrinkage <= self.factor <= FACTOR_PER_LAYER
        far, very_far = max(FACTOR_IN_ALL, self.chance), max(FACTOR_IN_ALL**2, self.chance)
        is_far = not 1 / far <= self.in_all <= far
        is_very_far = not 1 / very_far <= self.in_all <= very_far
        if unit == "layer" and is_very_far:
            return True
        fewest = FEW_LAYERS if unit == "layer" else 2
        return self.length > fewest and is_steep and is_far


def trend_of(sequence: Sequence[float], chance: float = 1.0) -> Trend:
    """The trend of a sequence, see `Trend`."""
    values = np.asarray(sequence, float)
    if not np.isfinite(values).all():
        # The values before the overflow show how it came about.
        values = values[: int(np.argmin(np.isfinite(values)))]
    if len(values) < 2 or not values[0]:
        return Trend(1.0, 1.0, len(values))
    if not values.all():
        return Trend(0.0, 0.0, len(values))
    logarithms = np.log(values)
    slope = np.polyfit(np.arange(len(values)), logarithms, 1)[0]
    in_all = np.exp(logarithms[-1] - logarithms[0])
    return Trend(float(np.exp(slope)), float(in_all), len(values), chance)


def chance_of(layers: Sequence[LayerSignal]) -> float:
    """The factor by which random weights may change the norm of a signal by chance.

    After L layers of n relus with weights of variance 2 / n, the logarithm of the norm is normal
    with the mean -v and the variance v = 5 L / (4 n), whatever the batch: narrow networks shrink
    a signal more often than not. This is three standard deviations away from zero, or 1000 if that
    is less.

    Source:
        Hanin & Nica 2020, "Products of many large random matrices and gradients in deep neural
        networks", theorem 1.
    """
    widths: dict[int, int] = {}
    for layer in layers:
        # The places of a convolution share their weights, and average over what these do.
        width = max(layer.units, layer.fan_in, 1)
        widths[layer.depth] = max(widths.get(layer.depth, 0), width)
    variance = 1.25 * sum(1 / width for width in widths.values())
    return min(math.exp(min(variance + 3 * math.sqrt(variance), 100.0)), _MOST_BY_CHANCE)


def gradients_backwards(layers: Sequence[LayerSignal]) -> list[float]:
    """The norms of the gradients that arrive at each depth, from the last to the first."""
    # The last layer's weights scale all gradients equally, and may be small on purpose.
    norms = gradients(hidden(layers))[::-1]
    # No gradient flows through weights that are initialized with zeros on purpose, until the first
    # step changes them.
    if any(layer.weight_rms == 0 for layer in layers):
        norms = [norm for norm in norms if norm]
    return norms


def over_layers(layers: Sequence[LayerSignal]) -> dict[str, Trend]:
    """How the "signal" and its "gradient" change from depth to depth."""
    return {
        "signal": trend_of(signals(layers), chance_of(layers)),
        "gradient": trend_of(gradients_backwards(layers), chance_of(layers)),
    }


def notable_over_layers(layers: Sequence[LayerSignal]) -> dict[str, Trend]:
    """Those of these trends that are a problem."""
    return {what: trend for what, trend in over_layers(layers).items() if trend.is_notable()}


def hidden(layers: Sequence[LayerSignal]) -> list[LayerSignal]:
    """The layers whose signal another layer receives; all layers if there are none."""
    return [layer for layer in layers if layer.is_hidden] or list(layers)


def reached_steps(steps: Sequence[float]) -> list[float]:
    """The steps of a recurrence, without steps at its ends where the value is zero."""
    reached = np.flatnonzero(steps)
    return list(steps[reached[0] : reached[-1] + 1]) if reached.size else []


def signals(layers: Sequence[LayerSignal]) -> list[float]:
    """What the layers of each depth receive, from the first to the last."""
    return _by_depth(layers, lambda layer: layer.input_rms, np.median)


def gradients(layers: Sequence[LayerSignal]) -> list[float]:
    """The norms of the gradients that arrive at each depth, from the first to the last."""

    # Norms and not means, because pooling spreads a gradient over many positions.
    def norm(layer: LayerSignal) -> float:
        steps = max(len(layer.grad_rms_by_step), 1)
        return layer.grad_rms * math.sqrt(math.prod(layer.shape) * steps)

    return _by_depth(layers, norm, np.max)


def _by_depth(
    layers: Sequence[LayerSignal],
    quantity: Callable[[LayerSignal], float],
    together: Callable[[list[float]], float],
) -> list[float]:
    depths = sorted({layer.depth for layer in layers})
    return [
        float(together([quantity(layer) for layer in layers if layer.depth == depth]))
        for depth in depths
    ]


def signal_changes(layers: Sequence[LayerSignal]) -> list[float]:
    """The logarithm of the factor by which each layer changes the signal."""
    return [_logarithm(layer.rms) - _logarithm(layer.input_rms) for layer in layers]


def gradient_changes(layers: Sequence[LayerSignal]) -> list[float]:
    """The logarithm of the factor by which the gradient changes from the next layers to each."""
    depths = sorted({layer.depth for layer in layers})
    norms = dict(zip(depths, map(_logarithm, gradients(layers)), strict=True))
    following = dict(itertools.pairwise(depths))
    return [norms[layer.depth] - norms[following.get(layer.depth, layer.depth)] for layer in layers]


def _logarithm(value: float) -> float:
    return math.log(max(value, sys.float_info.min))
