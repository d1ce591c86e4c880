"""Measures all layers of a traced loss, and its gradient, in one compiled evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import norms, trees
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.placing import ROOT_MEAN_SQUARES, has_activation, layer_signals
from gradtx.diagnostics.tracing.found import Arrays, Found
from gradtx.diagnostics.tracing.interpreter import Hidden, Interpreter, Probes
from gradtx.diagnostics.tracing.primitives import LEVELLING
from gradtx.diagnostics.tracing.provenance import Layer
from gradtx.diagnostics.tracing.slots import slots_of
from gradtx.diagnostics.tracing.traced import TracedLoss

# A unit hardly learns where the slope of its smooth nonlinearity is below this.
SATURATED_SLOPE = 0.05


_Product = Callable[..., jax.Array]


class Measurements(NamedTuple):
    """The loss, what was measured of each layer, and what is known about the parameters."""

    loss: float
    layers: list[LayerSignal]
    found: list[Layer]
    hidden: list[Hidden]
    has_gradient: list[bool]


def measure_layers(loss: TracedLoss) -> Measurements:
    """The loss, and the measurements of all layers in the order of evaluation."""
    found: list[Found] = []
    hidden: list[Hidden] = []
    measure = jax.jit(evaluation(loss, found, hidden))
    value, measured, has_gradient = jax.device_get(measure(loss.params, loss.data))
    return Measurements(
        loss=float(value),
        layers=layer_signals(found, measured, loss.names),
        found=[one.what for one in found],
        hidden=hidden,
        has_gradient=[bool(one) for one in has_gradient],
    )


def evaluation(
    loss: TracedLoss, found: list[Found], hidden: list[Hidden]
) -> Callable[[Any, Any], tuple[jax.Array, list[Arrays], list[jax.Array]]]:
    """The function of the parameters and the data that measures everything.

    Args:
        loss: the loss.
        found: becomes a list of the layers, without their measurements, when it is traced.
        hidden: becomes a list of what cannot be looked into.

    Returns:
        A function whose results are the loss, the measurements of each layer, and whether each
        parameter has a gradient.
    """

    def forward(params: Any, slots: Any, data: Any) -> tuple[jax.Array, list[Arrays]]:
        interpreter = Interpreter(
            _statistics, Probes(slots, range(len(slots))), _probed, merge=_merged
        )
        (value,) = interpreter.run(
            loss.closed_jaxpr.jaxpr, loss.closed_jaxpr.consts, loss.values(params, data)
        )
        found[:] = [replace(one, arrays={}) for one in interpreter.found]
        hidden[:] = interpreter.hidden.values()
        return value.array, [one.arrays for one in interpreter.found]

    def whole(params: Any, data: Any) -> tuple[jax.Array, list[Arrays], list[jax.Array]]:
        slots = [jnp.zeros(slot.shape, slot.dtype) for slot in slots_of(loss.closed_jaxpr.jaxpr)]
        differentiated = jax.value_and_grad(forward, argnums=(0, 1), has_aux=True)
        (value, measured), (gradients, grad_rms) = differentiated(params, slots, data)
        for one, arrays in zip(found, measured, strict=True):
            unknown = jnp.full_like(arrays["rms"], jnp.nan)
            arrays["grad_rms"] = unknown if one.slot is None else grad_rms[one.slot]
            parts = []
            for origin in one.what.origin.parts:
                part = origin.slices_of(gradients[origin.leaf])
                loops = len(origin.loops)
                parts.append(_wide(part).reshape(*part.shape[:loops], -1))
            arrays["weight_grad_rms"] = _rms(jnp.concatenate(parts, -1), (-1,))
        return value, measured, [jnp.any(gradient != 0) for gradient in gradients]

    return whole


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _probed(multiply: _Product, slot: jax.Array, *operands: jax.Array) -> jax.Array:
    """A product. The gradient of `slot` is the RMS of the gradient of the product."""
    del slot
    return multiply(*operands)


def _probed_forward(
    multiply: _Product, slot: jax.Array, *operands: jax.Array
) -> tuple[jax.Array, Any]:
    return multiply(*operands), (slot, operands)


def _probed_backward(multiply: _Product, saved: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    slot, operands = saved
    size = _rms(gradient)
    # XLA would transpose the weights of all layers for the backward pass at the very beginning,
    # since they are there, and keep these copies until then. It does not know that this is 1.
    one = jnp.where(size < 0, 2, 1)
    operands = [array * one.astype(array.dtype) for array in operands]
    _, pull_back = jax.vjp(multiply, *operands)
    # The slot is zero. On a mesh it may differ between devices, where the gradient does not.
    return size.astype(slot.dtype) + slot, *pull_back(gradient)


_probed.defvjp(_probed_forward, _probed_backward)


def _statistics(layer: Layer) -> Arrays:
    """The measurements of a layer in the forward pass, in at least float32."""
    detached = lax.stop_gradient
    # The loss follows an output layer, which is linear.
    has_nonlinearity = has_activation(layer)
    return _statistics_of(
        _wide(detached(layer.image if has_nonlinearity else layer.output)),
        detached(layer.slope) if has_nonlinearity else None,
        detached(layer.output),
        detached(layer.inputs),
        detached(layer.weights),
        units=tuple(layer.units),
        levels_off=not layer.parts.isdisjoint(LEVELLING),
    )


# Traced once for all layers of the same shapes.
@functools.partial(jax.jit, static_argnames=("units", "levels_off"))
def _statistics_of(
    image: jax.Array,
    slope: Any,
    output: jax.Array,
    inputs: jax.Array,
    weights: jax.Array,
    *,
    units: tuple[int, ...],
    levels_off: bool,
) -> Arrays:
    """The measurements of a layer; its slope is None if it has no nonlinearity."""
    if slope is None:
        is_saturated = is_zero = jnp.zeros(image.shape, bool)
    else:
        # A unit that is zero but has a slope, such as a gelu of zero, still learns.
        is_zero = (image == 0) & (slope == 0)
        is_flat = jnp.abs(slope) < SATURATED_SLOPE if levels_off else (slope == 0) & ~is_zero
        is_saturated = jnp.broadcast_to(is_flat, image.shape)
    others = tuple(axis for axis in range(image.ndim) if axis not in units)
    dtype = trees.real_dtype(image.dtype)
    return {
        "reached": jnp.ones([], dtype),
        "mean": jnp.mean(image).real,
        "rms": _rms(image),
        "zero_fraction": jnp.mean(image == 0, dtype=dtype),
        "saturated_fraction": jnp.mean(is_saturated, dtype=dtype),
        "is_alive": ~jnp.all(is_zero, axis=others),
        "output_mean": jnp.mean(_wide(output)).real,
        "output_rms": _rms(output).astype(dtype),
        "input_mean": jnp.mean(_wide(inputs)).real,
        "input_rms": _rms(inputs).astype(dtype),
        "weight_rms": _rms(weights).astype(dtype),
    }


def _wide(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(jnp.float32)
    return array.astype(np.promote_types(array.dtype, np.float32))


@functools.partial(jax.jit, static_argnums=1)
def _rms(array: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """The root of the mean square over some axes."""
    return norms.root_mean_square(_wide(array), range(array.ndim) if axes is None else axes)


def _merged(key: str, old: jax.Array, new: jax.Array) -> jax.Array:
    """The measurements of two iterations: sums, whose number of terms is `reached`."""
    if key == "is_alive":
        return old | new
    return jnp.hypot(old, new) if key in ROOT_MEAN_SQUARES else old + new
