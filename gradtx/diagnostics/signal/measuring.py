"""Measures all layers of a traced loss, and its gradient, in one compiled evaluation."""

import math
from collections.abc import Sequence
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

    def forward(params: Any, slots: Any, data: Any) -> tuple[jax.Array, list[Arrays]]:
        interpreter = Interpreter(
            _statistics, Probes(slots, range(len(slots))), _probe, merge=_merged
        )
        (value,) = interpreter.run(
            loss.closed_jaxpr.jaxpr, loss.closed_jaxpr.consts, loss.values(params, data)
        )
        found[:] = [replace(one, arrays={}) for one in interpreter.found]
        hidden[:] = interpreter.hidden.values()
        return value.array, [one.arrays for one in interpreter.found]

    @jax.jit
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
            arrays["weight_grad_rms"] = _rms(jnp.concatenate(parts, -1), [-1])
        return value, measured, [jnp.any(gradient != 0) for gradient in gradients]

    value, measured, has_gradient = jax.device_get(whole(loss.params, loss.data))
    return Measurements(
        loss=float(value),
        layers=layer_signals(found, measured, loss.names),
        found=[one.what for one in found],
        hidden=hidden,
        has_gradient=[bool(one) for one in has_gradient],
    )


@jax.custom_vjp
def _probe(output: jax.Array, slot: jax.Array) -> jax.Array:
    """A layer's output. The gradient of `slot` is the RMS of the gradient of the output."""
    del slot
    return output


def _probe_backward(slot: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The slot is zero. On a mesh it may differ between devices, where the gradient does not.
    return gradient, _rms(gradient).astype(slot.dtype) + slot


_probe.defvjp(lambda output, slot: (output, slot), _probe_backward)


def _statistics(layer: Layer) -> Arrays:
    """The measurements of a layer in the forward pass, in at least float32."""
    image = _wide(lax.stop_gradient(layer.image))
    slope = lax.stop_gradient(layer.slope)
    if not has_activation(layer):
        # The loss follows: this is an output layer, which is linear.
        image, slope = _wide(lax.stop_gradient(layer.output)), 1.0
        is_saturated = is_zero = jnp.zeros(image.shape, bool)
    else:
        # A unit that is zero but has a slope, such as a gelu of zero, still learns.
        is_zero = (image == 0) & (slope == 0)
        levels_off = not layer.parts.isdisjoint(LEVELLING)
        is_flat = jnp.abs(slope) < SATURATED_SLOPE if levels_off else (slope == 0) & ~is_zero
        is_saturated = jnp.broadcast_to(is_flat, image.shape)
    others = tuple(axis for axis in range(image.ndim) if axis not in layer.units)
    dtype = trees.real_dtype(image.dtype)
    return {
        "reached": jnp.ones([], dtype),
        "mean": jnp.mean(image).real,
        "rms": _rms(image),
        "zero_fraction": jnp.mean(image == 0, dtype=dtype),
        "saturated_fraction": jnp.mean(is_saturated, dtype=dtype),
        "is_alive": ~jnp.all(is_zero, axis=others),
        "output_mean": jnp.mean(_wide(lax.stop_gradient(layer.output))).real,
        "output_rms": _rms(lax.stop_gradient(layer.output)).astype(dtype),
        "input_mean": jnp.mean(_wide(lax.stop_gradient(layer.inputs))).real,
        "input_rms": _rms(lax.stop_gradient(layer.inputs)).astype(dtype),
        "weight_rms": _rms(lax.stop_gradient(layer.weights)).astype(dtype),
    }


def _wide(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(jnp.float32)
    return array.astype(np.promote_types(array.dtype, np.float32))


def _rms(array: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """The root of the mean square over some axes, which does not overflow."""
    array = _wide(array)
    axes = tuple(range(array.ndim)) if axes is None else tuple(axes)
    number = max(math.prod(array.shape[axis] for axis in axes), 1)
    return jnp.squeeze(norms.norm(array / math.sqrt(number), axis=axes), axes)


def _merged(key: str, old: jax.Array, new: jax.Array) -> jax.Array:
    """The measurements of two iterations: sums, whose number of terms is `reached`."""
    if key == "is_alive":
        return old | new
    return jnp.hypot(old, new) if key in ROOT_MEAN_SQUARES else old + new
