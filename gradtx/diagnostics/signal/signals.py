"""`signal_report`: measures the signal of each layer, and the backpropagated gradient."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import norms, trees
from gradtx.diagnostics.signal import nonfinite, trends
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.learning import idle_parameters, unseen
from gradtx.diagnostics.signal.passage import passages
from gradtx.diagnostics.signal.report import SignalReport
from gradtx.diagnostics.signal.silence import find_silence
from gradtx.diagnostics.tracing.found import Arrays, Found
from gradtx.diagnostics.tracing.interpreter import Hidden, Interpreter, Probes
from gradtx.diagnostics.tracing.primitives import LEVELLING, SQUASHING
from gradtx.diagnostics.tracing.provenance import Layer
from gradtx.diagnostics.tracing.slots import slots_of
from gradtx.diagnostics.tracing.traced import TracedLoss, trace_loss

# A unit hardly learns where the slope of its smooth nonlinearity is below this.
SATURATED_SLOPE = 0.05


def signal_report(
    loss_fn: Callable[..., Any], params: Any, *args: Any, has_aux: bool = False
) -> SignalReport:
    """Measure the signal in each layer of a network, and diagnose what is wrong.

    For a layer with weights W, inputs x, output z = W x + b and nonlinearity f, over all samples,
    positions and units of the batch:

        rms = sqrt(mean f(z)^2),    grad_rms = sqrt(mean (d loss / d z)^2)

    The loss may be any pure function of parameters: plain JAX, flax, equinox, haiku. It is traced,
    so the network does not have to be modified: a layer is a matrix product or a convolution of
    data with a parameter. Layers are found inside `jit`, `scan`, `cond`, `checkpoint`,
    `shard_map` and functions with custom derivatives. In a scan, a layer that takes slices of
    stacked parameters counts as many layers; one that uses the same parameter in each iteration (a
    recurrent network) is one layer, measured over all iterations. A product of two signals, as in
    attention, is not a layer.

    In a `shard_map`, measurements are taken over all devices, and shapes are those on one device.
    In a `while_loop`, only the signal is measured, over all iterations, because no gradient passes
    back through it. Operations that cannot be looked into, such as calls out of JAX and solvers,
    are listed as `unseen` if they take parameters, and "healthy" is said of the rest only.
    Parameters without a gradient are listed as `idle_parameters`.

    A layer's output is followed through its bias, normalization and sums to the first nonlinearity,
    as long as the operations are elementwise: it is not followed through pooling.

    A recurrence is judged by how the gradient changes from step to step in a layer that receives
    the state of the previous step. This is meaningful only if the loss depends on the last steps
    alone: a loss at every step contributes a gradient of its own at every step.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *args)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays (the functions
            and numbers in an equinox module) are left alone.
        *args: further arguments of the loss function, such as a batch. Arrays are treated as data;
            anything else is passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.

    Returns:
        A `SignalReport`: `verdict` says what is wrong and how to fix it, `layers` has a
        `LayerSignal` for each layer in the order of evaluation, `table()` and `plot()` show them.

    Raises:
        ValueError: if `loss_fn` is not callable, does not return a real scalar, or has no layer
            although its parameters learn and nothing is hidden.

    Source:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", section 4; He et al. 2015, "Delving deep into rectifiers", section 2.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics, initializers
        >>> keys = jax.random.split(jax.random.key(0), 20)
        >>> too_large = initializers.variance_scaling(8.0, "fan_in", "normal")
        >>> params = [too_large(key, (64, 64)) for key in keys]
        >>> def loss_fn(params, x):
        ...     for kernel in params:
        ...         x = jax.nn.relu(x @ kernel)
        ...     return jnp.mean(x)
        >>> report = diagnostics.signal_report(loss_fn, params, jnp.ones((8, 64)))
        >>> print(report.kind, len(report.layers), report.layers[0].activation)
        exploding 20 relu
    """
    loss = trace_loss("signal_report", loss_fn, params, args, has_aux=has_aux)
    report = report_of(loss)
    if report is None:
        raise ValueError(
            "signal_report: loss_fn must have a layer, a matrix product or a convolution of data "
            f"with a parameter; none was found for {len(loss.params)} parameters"
        )
    return report


def report_of(loss: TracedLoss) -> SignalReport | None:
    """The report on a traced loss; None: it has no layer."""
    measured = _measure_loss(loss)
    layers, found = measured.layers, measured.found
    learns = any(measured.has_gradient)
    if not layers and not measured.hidden and learns:
        return None
    finite = np.isfinite([measured.loss, *(layer.weight_grad_rms for layer in layers)])
    culprit = None if finite.all() else nonfinite.find_culprit(loss)
    trunk = ()
    if finite.all() and trends.notable_over_layers(layers):
        trunk = passages(loss, layers)
    leaves = {part.leaf for layer in found for part in layer.origin.parts}
    first = {part.leaf for layer in found if layer.receives_data for part in layer.origin.parts}
    return SignalReport(
        loss=measured.loss,
        layers=tuple(layers),
        culprit=culprit,
        idle_parameters=idle_parameters(loss, measured.has_gradient, first),
        unseen=unseen(measured.hidden, loss.names),
        coverage=(
            sum(loss.params[leaf].size for leaf in leaves),
            sum(array.size for array in loss.params),
        ),
        learns=learns,
        trunk=trunk,
        silence=find_silence(loss, layers) if finite.all() else None,
    )


class _Measured(NamedTuple):
    """The loss, what was measured of each layer, and what is known about the parameters."""

    loss: float
    layers: list[LayerSignal]
    found: list[Layer]
    hidden: list[Hidden]
    has_gradient: list[bool]


def _measure_loss(loss: TracedLoss) -> _Measured:
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
    signals = [
        signal
        for one, arrays in zip(found, measured, strict=True)
        for signal in _signals(one, arrays, loss.names)
    ]
    signals.sort(key=lambda signal: signal.place)
    return _Measured(
        loss=float(value),
        layers=_with_depths(signals),
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
    if not _has_activation(layer):
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


def _has_activation(layer: Layer) -> bool:
    """Whether the operations that follow a layer are its nonlinearity, and not the loss."""
    if layer.is_hidden or not layer.activation:
        return bool(layer.activation)
    return not layer.parts.isdisjoint(SQUASHING) or "relu" in layer.activation


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


# The measurements that are root mean squares, and those that are means, or sums before `_signal`.
_ROOT_MEAN_SQUARES = frozenset({"grad_rms", "input_rms", "output_rms", "rms", "weight_rms"})


def _merged(key: str, old: jax.Array, new: jax.Array) -> jax.Array:
    """The measurements of two iterations: sums, whose number of terms is `reached`."""
    if key == "is_alive":
        return old | new
    return jnp.hypot(old, new) if key in _ROOT_MEAN_SQUARES else old + new


def _combined(layer: Layer, key: str, array: np.ndarray, axis: int, name: str) -> np.ndarray:
    """The measurements of all devices of a mesh together."""
    if key == "is_alive":
        # Devices that share a layer's weights have other units, whose order does not matter.
        is_split = name in layer.origin.split_over
        return np.moveaxis(array, axis, -1) if is_split else np.any(array, axis)
    if key == "reached":
        return np.max(array, axis)
    if key in _ROOT_MEAN_SQUARES:
        return np.linalg.norm(array, axis=axis) / math.sqrt(array.shape[axis])
    return np.mean(array, axis)


class _Placed(NamedTuple):
    """A layer's measurements, and what is needed to sort them."""

    place: tuple[int, ...]
    layer: Layer
    index: tuple[int, ...]
    signal: LayerSignal


def _signals(found: Found, arrays: dict[str, np.ndarray], names: Sequence[str]) -> list[_Placed]:
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
    return sums / (np.sqrt(times) if key in _ROOT_MEAN_SQUARES else times)


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
        activation=layer.activation if _has_activation(layer) else "",
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
