"""Calls that keep nothing for the backward pass, and calculate it again there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
from jax.core import Tracer

from gradtx.diagnostics.tracing.found import Found
from gradtx.diagnostics.tracing.provenance import Layer, TracedValue

if TYPE_CHECKING:
    from gradtx.diagnostics.tracing.interpreter import Interpreter

# Attributes of a `Layer` that are arrays.
_ARRAYS = ("inputs", "weights", "output", "image", "slope")


def rematerialized(
    interpreter: Interpreter,
    equation: Any,
    evaluate: Callable[[], list[TracedValue]],
    values: Sequence[TracedValue],
) -> list[TracedValue]:
    """Evaluate a call of `jax.checkpoint` as one.

    What is known about the layers in it refers to arrays inside. They become results of the call,
    since a nonlinearity may go on behind it.

    Args:
        interpreter: the interpreter that evaluates it.
        equation: the call.
        evaluate: evaluates what is called.
        values: the arguments.
    """
    first = len(interpreter.found)
    outside = {id(array): array for array in _arrays(values, ())}
    results: list[TracedValue] = []

    def put(twins: dict[int, Any]) -> None:
        """Put other objects in the place of arrays, given their ids."""
        found = interpreter.found[first:]
        for layer in _layers([*values, *results], found):
            _put_into(layer, twins)
        interpreter.found[first:] = [
            replace(one, arrays={key: twins.get(id(a), a) for key, a in one.arrays.items()})
            for one in found
        ]
        results[:] = [_value_with(value, twins) for value in results]

    places: list[object] = []

    def whole() -> list[Any]:
        results[:] = evaluate()
        held = {id(a): a for a in _arrays([*values, *results], interpreter.found[first:])}
        inside = {key: array for key, array in held.items() if key not in outside}
        # No array of the call may leave it in another way than as its result.
        places[:] = [object() for _ in inside]
        put(dict(zip(inside, places, strict=True)))
        return list(inside.values())

    parameters = equation.params
    prevent_cse = parameters["prevent_cse"]
    if isinstance(prevent_cse, tuple):
        # One for each argument; here the arguments are those of a closure.
        prevent_cse = any(prevent_cse)
    arrays = jax.checkpoint(whole, prevent_cse=prevent_cse, policy=parameters["policy"])()
    put({id(place): array for place, array in zip(places, arrays, strict=True)})
    return results


def _put_into(layer: Layer, twins: dict[int, Any]) -> None:
    for name in _ARRAYS:
        array = getattr(layer, name)
        setattr(layer, name, twins.get(id(array), array))
    layer.before = tuple(twins.get(id(one), one) for one in layer.before)


def _value_with(value: TracedValue, twins: dict[int, Any]) -> TracedValue:
    images = {
        layer: replace(image, slope=twins.get(id(image.slope), image.slope))
        for layer, image in value.images.items()
    }
    return replace(value, array=twins.get(id(value.array), value.array), images=images)


def _layers(values: Sequence[TracedValue], found: Sequence[Found]) -> set[Layer]:
    """The layers that values depend on, and those that were found."""
    return {
        *(layer for value in values for layer in (*value.images, *value.sources)),
        *(one.what for one in found if isinstance(one.what, Layer)),
    }


def _arrays(values: Sequence[TracedValue], found: Sequence[Found]) -> Iterator[Tracer]:
    """The arrays that values, their layers and the measurements refer to."""
    held = [
        *(value.array for value in values),
        *(image.slope for value in values for image in value.images.values()),
        *(array for one in found for array in one.arrays.values()),
    ]
    for layer in _layers(values, found):
        held += [*(getattr(layer, name) for name in _ARRAYS), *layer.before]
    return (array for array in held if isinstance(array, Tracer))
