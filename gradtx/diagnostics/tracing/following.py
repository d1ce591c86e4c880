"""Rules for single operations: what is a layer, and how far its output can be followed.

A layer's output is followed through elementwise operations. Those before the first nonlinear one (a
bias, a normalization, a sum with other signals) are affine; then the nonlinearity begins. It may
fork and join again, as in x * sigmoid(x), and ends where other signals or other elements take part.
Its slope is computed along the way, by reverse differentiation of each operation, which respects
custom derivatives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from gradtx.diagnostics.tracing import gates, primitives
from gradtx.diagnostics.tracing.provenance import (
    Image,
    Last,
    Layer,
    Origin,
    TracedValue,
    mixture,
    moved_axes,
)


@dataclass(frozen=True)
class Operation:
    """An elementwise operation, or a function that consists of such operations.

    Attributes:
        primitive: the name of the primitive, or of the call.
        inputs: the operands.
        result: the result.
        call: the operation as a function of arrays, for its derivative.
        name: its name if it turns out to be the nonlinearity.
        parts: the names of its primitives.
    """

    primitive: str
    inputs: Sequence[TracedValue]
    result: jax.Array
    call: Callable[..., Any]
    name: str
    parts: frozenset[str]


def find_layer(equation: Any, inputs: Sequence[TracedValue]) -> int | None:
    """Which operand of a product is the parameter of a layer; None: it is not a layer.

    A product of a parameter with data is a layer. If both operands are parameters, the one without
    data is the weight: the other may be an input to which a parameter was added.
    """
    if equation.primitive.name not in primitives.PRODUCTS:
        return None
    eligible = [
        i
        for i, value in enumerate(inputs[:2])
        if value.origin is not None and inputs[1 - i].is_data
    ]
    without_data = [i for i in eligible if not inputs[i].is_signal]
    return (without_data or eligible or [None])[-1]


def start_layer(
    equation: Any, inputs: Sequence[TracedValue], weight: int, output: jax.Array
) -> TracedValue:
    """The output of a product with a parameter, as the image of a new `Layer`."""
    weights, others = inputs[weight], inputs[1 - weight]
    units, fan_in = _layout(equation, weights.array.shape, weight, output.ndim)
    received(others)
    layer = Layer(
        origin=cast(Origin, weights.origin),
        operation=equation.primitive.name,
        inputs=others.array,
        weights=weights.array,
        output=output,
        image=output,
        units=units,
        fan_in=fan_in,
        sources=others.sources,
        is_recurrent=others.is_carried,
        receives_data=others.is_signal,
        receives_raw_data=others.is_signal and not others.depends_on_parameters,
    )
    return TracedValue(
        output, is_learned=True, sources=frozenset({layer}), images={layer: Image(units)}
    )


def _layout(
    equation: Any, shape: tuple[int, ...], weight: int, rank: int
) -> tuple[tuple[int, ...], int]:
    """The axes of units in a product's output, and the number of products summed for one output."""
    if equation.primitive.name == "ragged_dot_general":
        return (rank - 1,), shape[-2]
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "conv_general_dilated":
        outputs = shape[numbers.rhs_spec[0]]
        return (numbers.out_spec[1],), math.prod(shape) // max(outputs, 1)
    contracted, batch = (sides[weight] for sides in numbers)
    free = len(shape) - len(contracted) - len(batch)
    first = len(batch) if weight == 0 else rank - free
    units = (*range(len(batch)), *range(first, first + free))
    return units, math.prod(shape[axis] for axis in contracted)


def rearranged(equation: Any, inputs: Sequence[TracedValue], array: jax.Array) -> TracedValue:
    """The result of an operation that moves or drops elements."""
    value, *indices = inputs
    result = mixture(array, inputs)
    grows = array.size > value.array.size
    origin, images = value.origin, {}
    if origin is not None and not grows:
        if indices:
            origin = replace(origin, is_traced_to_its_end=True)
        else:
            slices = origin.slices + _slice_name(equation, value)
            origin = replace(origin.seen_through(_replay(equation)), slices=slices)
    for layer, image in following(value).items():
        if array.size == value.array.size and image.stage == 0:
            units = _moved(equation, image.units, value.array.shape, array.shape)
            images[layer] = Image(units, base=_new_base(layer))
            if layer.image is value.array:
                layer.image, layer.output, layer.units = array, array, units
    consumed(equation, inputs)
    return replace(
        result,
        origin=None if grows else origin,
        is_uniform=value.is_uniform,
        images=images,
        gate=value.gate,
    )


def unstacked(equation: Any, value: TracedValue, arrays: Sequence[jax.Array]) -> list[TracedValue]:
    """The slices of an array along an axis; slices of a stack of parameters are parameters."""
    consumed(equation, [value])
    results = [replace(mixture(array, [value]), gate=value.gate) for array in arrays]
    if value.origin is None:
        return results

    def view(i: int) -> Callable[[jax.Array], jax.Array]:
        return lambda array: primitives.bind(equation, array)[i]

    return [
        replace(
            result,
            origin=replace(
                value.origin.seen_through(view(i)), slices=f"{value.origin.slices}[{i}]"
            ),
        )
        for i, result in enumerate(results)
    ]


def concatenated(equation: Any, inputs: Sequence[TracedValue], array: jax.Array) -> TracedValue:
    """The result of a concatenation; concatenated parameters count as one parameter."""
    consumed(equation, inputs)
    result = mixture(array, inputs)
    origins = [value.origin for value in inputs if value.origin is not None]
    if len(origins) < len(inputs) or any(value.is_data for value in inputs):
        return result
    parts = [part for origin in origins for part in origin.parts]
    others = tuple(replace(part, is_traced_to_its_end=True) for part in parts[1:])
    return replace(result, origin=replace(parts[0], others=others, is_traced_to_its_end=True))


def gathered(equation: Any, value: TracedValue, array: jax.Array) -> TracedValue:
    """What all devices hold together; a parameter whose parts were gathered is whole again."""
    consumed(equation, [value])
    origin = value.origin and replace(
        value.origin, split_over=frozenset(), is_traced_to_its_end=True
    )
    return replace(mixture(array, [value]), origin=origin)


def summed_over_devices(equation: Any, value: TracedValue, array: jax.Array) -> TracedValue:
    """The sum of what devices hold, which completes a product whose terms they share."""
    consumed(equation, [value])
    images = {}
    for layer, image in following(value).items():
        if image.stage == 0 and layer.origin.split_over:
            images[layer] = Image(image.units, base=_new_base(layer))
            if layer.output is value.array:
                layer.output = layer.image = array
                others = layer.origin.split_over - set(equation.params["axes"])
                layer.origin = replace(layer.origin, split_over=others)
    return replace(mixture(array, [value]), images=images)


def replaced(value: TracedValue, twin: jax.Array) -> TracedValue:
    """The value with another array that holds the same numbers."""
    for layer in value.images:
        if layer.output is value.array:
            layer.output = layer.image = twin
    return replace(value, array=twin)


def received(value: TracedValue) -> None:
    """Note that another layer receives a value, which has therefore passed its nonlinearity."""
    for layer in value.sources:
        layer.is_hidden = layer.is_settled = True


def following(value: TracedValue) -> dict[Layer, Image]:
    """The layers whose nonlinearity may still continue with this value."""
    return {
        layer: image
        for layer, image in value.images.items()
        if not layer.is_settled and (image.stage == 0 or image.stage > layer.dismissed)
    }


def consumed(equation: Any, inputs: Sequence[TracedValue]) -> None:
    """Note that an operation that is not elementwise used these values.

    It ends the nonlinearity that a value went through; or, if it sums powers of a layer's output,
    as a variance does, these powers were not a nonlinearity.
    """
    for value in inputs:
        for layer, image in following(value).items():
            if image.stage == 0:
                continue
            if equation.primitive.name in primitives.REDUCTIONS and layer.last is Last.POWER:
                layer.take_back()
            elif image.stage == layer.stage:
                layer.is_settled = True


def _replay(equation: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda array: primitives.bind(equation, array)[0]


def _slice_name(equation: Any, value: TracedValue) -> str:
    """`[2]` if the slice is one index of the first axis."""
    if equation.primitive.name != "slice" or value.array.ndim < 2:
        return ""
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    is_one = ends[0] - starts[0] == 1 and value.array.shape[0] > 1
    return f"[{starts[0]}]" if is_one else ""


def _moved(
    equation: Any, units: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]
) -> tuple[int, ...]:
    if equation.primitive.name == "transpose":
        return tuple(i for i, axis in enumerate(equation.params["permutation"]) if axis in units)
    if equation.primitive.name == "rev":
        return units
    return moved_axes(units, old, new)


def elementwise(operation: Operation) -> TracedValue:
    """The result of an elementwise operation."""
    inputs, array = operation.inputs, operation.result
    result = mixture(array, inputs)
    layers = dict.fromkeys(
        layer for value in inputs if value.array.shape == array.shape for layer in following(value)
    )
    origin = _origin(inputs, array)
    if operation.primitive == "mul":
        gates.note(inputs)
    return replace(
        result,
        gate=gates.gate_of(operation.name, operation.parts, inputs, result),
        origin=origin,
        is_uniform=all(value.is_uniform for value in inputs),
        # A parameter is still one after it is scaled by its norm or by a mask.
        sources=frozenset() if origin else result.sources,
        images={layer: _follow(layer, operation) for layer in layers},
    )


def _origin(inputs: Sequence[TracedValue], array: jax.Array) -> Origin | None:
    """The parameter that the result represents: scaled, masked or shifted, but not a signal."""
    for value in inputs:
        others = [other for other in inputs if other is not value]
        if value.origin is None or value.array.size != array.size:
            continue
        if any(other.sources and other.array.size == array.size for other in others):
            return None
        # A vector times data counts as a scaled input, a matrix times data as a masked weight.
        if array.ndim < 2 and any(other.is_data for other in others):
            return None
        return value.origin
    return None


def _follow(layer: Layer, operation: Operation) -> Image:
    """How the result depends on a layer, and what that implies for its nonlinearity."""
    inputs = operation.inputs
    mine = [
        i
        for i, value in enumerate(inputs)
        if layer in following(value) and value.array.shape == operation.result.shape
    ]
    others = [value for i, value in enumerate(inputs) if i not in mine]
    images = [inputs[i].images[layer] for i in mine]
    units = images[0].units
    is_alone = all(other.is_uniform for other in others)
    is_affine = _is_affine(operation.primitive, mine)
    stage = max(image.stage for image in images)
    if operation.primitive == "stop_gradient" or all(image.is_detached for image in images):
        # The nonlinearity is what it was. It may go on where this is added to its other branch.
        base = max(image.base for image in images)
        return Image(units, 0.0, base, stage, is_detached=True)

    if is_affine and stage == 0:
        if is_alone and len(mine) == 1:
            return replace(images[0], slope=_slope(operation, mine, images))
        if layer.output is inputs[mine[0]].array and not any(other.is_data for other in others):
            # A bias that is added directly belongs to the layer's output.
            layer.output = layer.image = operation.result
        return Image(units, base=_new_base(layer))

    base = max(image.base for image in images)
    latest = [i for i, image in zip(mine, images, strict=True) if image.base == base]
    slope = _slope(operation, latest, [inputs[i].images[layer] for i in latest])
    if any(image.stage != layer.stage for image in images) or layer.stage == layer.dismissed:
        # The nonlinearity begins here, or two of its branches join here.
        layer.stage += 1
        if operation.name == "mul":
            gate = primitives.GATES.get(layer.activation, "mul")
            operation = replace(operation, name=gate)
        _extend(layer, operation, Image(units, slope), is_affine)
        return Image(units, slope, base, layer.stage)
    if is_alone:
        _extend(layer, operation, Image(units, slope), is_affine)
    elif any(other.is_data for other in others):
        if "select_n" in operation.parts and layer.last is Last.SCALE:
            # This is dropout, whose scale compensates for the dropped elements.
            layer.take_back()
        layer.is_settled = True
    return Image(units, slope, base, stage)


def _extend(layer: Layer, operation: Operation, image: Image, is_affine: bool) -> None:
    """Add an operation to a layer's nonlinearity."""
    layer.last = Last.OTHER
    if is_affine:
        layer.last = Last.SCALE
    elif operation.parts <= primitives.OF_STATISTICS:
        layer.last = Last.POWER
    layer.before = (layer.image, layer.slope, layer.units, layer.activation, set(layer.parts))
    name = primitives.FAMILIAR.get(operation.name, operation.name)
    if not layer.activation or primitives.rank_of(name) > primitives.rank_of(layer.activation):
        layer.activation = name
    layer.parts |= operation.parts
    if jnp.issubdtype(operation.result.dtype, jnp.inexact):
        layer.image, layer.slope, layer.units = operation.result, image.slope, image.units


def _new_base(layer: Layer) -> int:
    layer.base += 1
    return layer.base


def _is_affine(primitive: str, mine: Sequence[int]) -> bool:
    """Whether an operation is an affine function of these operands."""
    if primitive == "mul":
        return len(mine) == 1
    if primitive == "div":
        return list(mine) == [0]
    if primitive == "select_n":
        return 0 not in mine
    return primitive in primitives.AFFINE


def _slope(operation: Operation, mine: Sequence[int], images: Sequence[Image]) -> Any:
    """The derivative of the result with respect to the base of its images."""
    arrays = [lax.stop_gradient(value.array) for value in operation.inputs]
    chosen = [
        (i, image)
        for i, image in zip(mine, images, strict=True)
        if jnp.issubdtype(arrays[i].dtype, jnp.floating)
    ]

    def result(*varied: jax.Array) -> jax.Array:
        full = list(arrays)
        for (i, _), array in zip(chosen, varied, strict=True):
            full[i] = array
        return operation.call(*full)

    output, pull_back = jax.vjp(result, *(arrays[i] for i, _ in chosen))
    if not chosen or not jnp.issubdtype(output.dtype, jnp.floating):
        return 0.0
    partials = pull_back(jnp.ones_like(output))
    terms = [
        partial * jnp.asarray(image.slope, partial.dtype)
        for partial, (_, image) in zip(partials, chosen, strict=True)
    ]
    return functools.reduce(jnp.add, terms)
