"""Turns what was measured where a layer was found into the measurements of layers.

A layer that is found once may be many: one for each iteration of a loop over stacked parameters. Or
it was evaluated many times: in each step of a recurrence, and on each device of a mesh.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.tracing.found import Found, Measured
from gradtx.diagnostics.tracing.primitives import SQUASHING
from gradtx.diagnostics.tracing.provenance import Layer

# The measurements that are root mean squares.
ROOT_MEAN_SQUARES = frozenset({"grad_rms", "input_rms", "output_rms", "rms", "weight_rms"})


def layer_signals(
    found: Iterable[Found], measured: Iterable[Measured], names: Sequence[str]
) -> list[LayerSignal]:
    """The measurements of all layers, in the order of evaluation."""
    signals = [
        signal
        for one, arrays in zip(found, measured, strict=True)
        for signal in _signals(one, arrays, names)
    ]
    signals.sort(key=lambda signal: signal.place)
    return _with_depths(signals)


def has_activation(layer: Layer) -> bool:
    """Whether the operations that follow a layer are its nonlinearity, and not the loss."""
    if layer.is_hidden or not layer.activation:
        return bool(layer.activation)
    return not layer.parts.isdisjoint(SQUASHING) or "relu" in layer.activation


def _combined(layer: Layer, key: str, array: np.ndarray, axis: int, name: str) -> np.ndarray:
    """The measurements of all devices of a mesh together."""
    if key == "is_alive":
        # Devices that share a layer's weights have other units, whose order does not matter.
        is_split = name in layer.origin.split_over
        return np.moveaxis(array, axis, -1) if is_split else np.any(array, axis)
    if key == "reached":
        return np.max(array, axis)
    if key in ROOT_MEAN_SQUARES:
        return np.linalg.norm(array, axis=axis) / math.sqrt(array.shape[axis])
    return np.mean(array, axis)


class _Placed(NamedTuple):
    """A layer's measurements, and what is needed to sort them."""

    place: tuple[int, ...]
    layer: Layer
    index: tuple[int, ...]
    signal: LayerSignal


def _signals(found: Found, arrays: Measured, names: Sequence[str]) -> list[_Placed]:
    """The layers found in one place: several if a loop iterates over a stack of them."""
    layer: Layer = found.what
    weight_grad_rms = arrays.pop("weight_grad_rms")
    found, arrays = found.over_devices(arrays, functools.partial(_combined, layer))
    is_repeated = [not nesting.is_sliced for nesting in found.nesting if nesting.loop]
    sizes = zip(arrays["rms"].shape, is_repeated, strict=True)
    signals = []
    for index in np.ndindex(tuple(size for size, same in sizes if not same)):
        # All iterations of the loops that repeat the layer, one of those that iterate over a stack.
        places = iter(index)
        chosen = tuple(slice(None) if same else next(places) for same in is_repeated)
        mine = {key: value[chosen] for key, value in arrays.items()}
        times = np.asarray(mine.pop("reached"))
        was_reached = times > 0
        if was_reached.any():
            slices = iter(index)
            when = [next(slices) if nesting.is_sliced else 0 for nesting in found.nesting]
            name = layer.origin.name(names) + "".join(f"[{i}]" for i in index)
            signal = _signal(
                layer,
                name or "params",
                {
                    key: _mean_over(key, np.asarray(value)[was_reached], times[was_reached])
                    for key, value in mine.items()
                },
                float(weight_grad_rms[index]),
            )
            signals.append(_Placed(found.when(when), layer, index, signal))
    return signals


def _mean_over(key: str, sums: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The mean over how many times a layer was evaluated in each step, from `_merged` sums."""
    if key in ("is_alive", "grad_rms"):
        return sums
    return sums / (np.sqrt(times) if key in ROOT_MEAN_SQUARES else times)


def _with_depths(placed: Sequence[_Placed]) -> list[LayerSignal]:
    """The measurements with the number of layers on the longest path to each."""
    depths: dict[Layer, dict[tuple[int, ...], int]] = defaultdict(dict)
    signals = []
    for one in placed:
        # A layer's inputs come from outside its loops, from the same iteration or an earlier one.
        above = [
            depth
            for source in one.layer.sources
            for index, depth in depths[source].items()
            if _shares_iteration(index, one.index)
        ]
        above += [
            depth
            for layer, of_layer in depths.items()
            if layer.origin.loops[:1] == one.layer.origin.loops[:1] != ()
            for index, depth in of_layer.items()
            if not _shares_iteration(index, one.index)
        ]
        depths[one.layer][one.index] = 1 + max(above, default=0)
        signals.append(replace(one.signal, depth=depths[one.layer][one.index]))
    return signals


def _shares_iteration(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(i == j for i, j in zip(one, other, strict=False))


def _signal(
    layer: Layer, name: str, steps: dict[str, np.ndarray], weight_grad_rms: float
) -> LayerSignal:
    """One layer's measurements, over the steps in which it was evaluated."""

    def mean(key: str) -> float:
        return float(np.mean(steps[key]))

    def root_mean_square(key: str) -> float:
        largest = np.max(steps[key])
        unit = largest if 0 < largest < np.inf else 1.0
        return float(np.sqrt(np.mean((steps[key] / unit) ** 2)) * unit)

    is_alive = steps["is_alive"].any(axis=0)
    is_recurrent = len(steps["rms"]) > 1
    return LayerSignal(
        name=name,
        shape=tuple(layer.output.shape),
        weight_shape=tuple(layer.weights.shape),
        fan_in=layer.fan_in,
        activation=layer.activation if has_activation(layer) else "",
        depth=0,
        is_hidden=layer.is_hidden,
        is_recurrent=layer.is_recurrent,
        is_gate=layer.is_gate,
        input_mean=mean("input_mean"),
        input_rms=root_mean_square("input_rms"),
        output_mean=mean("output_mean"),
        output_rms=root_mean_square("output_rms"),
        mean=mean("mean"),
        rms=root_mean_square("rms"),
        zero_fraction=mean("zero_fraction"),
        dead_fraction=1 - float(np.mean(is_alive)),
        units=is_alive.size,
        saturated_fraction=mean("saturated_fraction"),
        grad_rms=root_mean_square("grad_rms"),
        weight_rms=root_mean_square("weight_rms"),
        weight_grad_rms=weight_grad_rms,
        rms_by_step=tuple(map(float, steps["rms"])) if is_recurrent else (),
        grad_rms_by_step=tuple(map(float, steps["grad_rms"])) if is_recurrent else (),
        receives_raw_data=layer.receives_raw_data,
    )
