"""Loops, branches and the programs of single devices, rebuilt to return measurements as well.

Each function takes the interpreter and an equation that the interpreter enters. The body is
evaluated by an interpreter of its own, whose findings are recorded with the loop or branch around
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.found import Found, Nesting
from gradtx.diagnostics.tracing.provenance import Layer, Loop, TracedValue, mixture
from gradtx.diagnostics.tracing.slots import slots_of

if TYPE_CHECKING:
    from gradtx.diagnostics.tracing.interpreter import Interpreter

# What is known about a body after it was evaluated: what was found, and its results.
Inside = tuple[list[Found], list[TracedValue]]


def scan(interpreter: Interpreter, equation: Any, values: list[TracedValue]) -> list[TracedValue]:
    """Evaluate a scan."""
    parameters = equation.params
    loop = Loop(parameters["reverse"])
    closed = parameters["jaxpr"]
    first, number_carried = primitives.numbers_of_scan(equation)
    constants, rest = _unfollowed(values[:first]), values[first:]
    carried = _carried(rest[:number_carried], closed.jaxpr, first)
    sliced = [
        replace(value, origin=value.origin and value.origin.seen_through(loop))
        for value in _unfollowed(rest[number_carried:])
    ]
    probes = interpreter.take(len(slots_of(closed.jaxpr)))
    inside: list[Inside] = []

    def body(carry: Any, slices: Any) -> Any:
        arrays, slots = slices
        inputs = [*constants, *_with_arrays(carried, carry), *_with_arrays(sliced, arrays)]
        child, outputs = interpreter.enter(closed.jaxpr, closed.consts, inputs, probes.of(slots))
        inside[:] = [_without_arrays(child.found, outputs)]
        results = [value.array for value in outputs]
        measured = [found.arrays for found in child.found]
        return results[:number_carried], (results[number_carried:], measured)

    arrays = [value.array for value in rest]
    last, (stacked, measured) = lax.scan(
        body,
        arrays[:number_carried],
        (arrays[number_carried:], probes.arrays),
        length=parameters["length"],
        reverse=parameters["reverse"],
        unroll=parameters["unroll"],
    )
    things, outputs = inside[0]
    for found, arrays_of in zip(things, measured, strict=True):
        is_sliced = isinstance(found.what, Layer) and loop in found.what.origin.views
        interpreter.record(found, arrays_of, Nesting(loop, is_sliced))
    return [_result(array, inner) for array, inner in zip([*last, *stacked], outputs, strict=True)]


def while_loop(
    interpreter: Interpreter, equation: Any, values: list[TracedValue]
) -> list[TracedValue]:
    """Evaluate a while loop, and measure it in the forward direction.

    No gradient passes backwards through it. The measurements of its iterations, whose number is not
    known, are merged.
    """
    parameters = equation.params
    test, closed = parameters["cond_jaxpr"], parameters["body_jaxpr"]
    first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
    values = [replace(value, array=lax.stop_gradient(value.array)) for value in values]
    of_test = [value.array for value in values[:first]]
    constants = _unfollowed(values[first : first + second])
    carried = _carried(values[first + second :], closed.jaxpr, second)
    inside: list[Inside] = []

    def iterate(arrays: Any) -> Any:
        inputs = [*constants, *_with_arrays(carried, arrays)]
        child, outputs = interpreter.enter(closed.jaxpr, closed.consts, inputs, None)
        inside[:] = [_without_arrays(child.found, outputs)]
        return [value.array for value in outputs], [found.arrays for found in child.found]

    def body(carry: Any) -> Any:
        arrays, before = carry
        results, measured = iterate(arrays)
        return results, interpreter.merged(before, measured)

    arrays = [value.array for value in values[first + second :]]
    types = jax.eval_shape(iterate, arrays)[1]
    last, measured = lax.while_loop(
        lambda carry: jaxpr_as_fun(test)(*of_test, *carry[0])[0],
        body,
        (arrays, jax.tree.map(_zeros, types)),
    )
    things, outputs = inside[0]
    for found, arrays_of in zip(things, measured, strict=True):
        interpreter.record(found, arrays_of, Nesting())
    return [_result(array, inner) for array, inner in zip(last, outputs, strict=True)]


def cond(interpreter: Interpreter, equation: Any, values: list[TracedValue]) -> list[TracedValue]:
    """Evaluate a branch."""
    index, *operands = values
    arguments = _unfollowed(operands)
    branches = equation.params["branches"]
    numbers = range(len(branches))
    probes = [interpreter.take(len(slots_of(branch.jaxpr))) for branch in branches]
    inside: dict[int, Inside] = {}

    def run(number: int, arrays: Any, *, measures_gradient: bool) -> Any:
        closed = branches[number]
        child, outputs = interpreter.enter(
            closed.jaxpr,
            closed.consts,
            _with_arrays(arguments, arrays),
            probes[number].of(probes[number].arrays) if measures_gradient else None,
        )
        inside[number] = _without_arrays(child.found, outputs)
        return [value.array for value in outputs], [found.arrays for found in child.found]

    arrays = [value.array for value in operands]
    types = [
        jax.eval_shape(lambda a, i=i: run(i, a, measures_gradient=False), arrays)[1]
        for i in numbers
    ]

    def branch(number: int) -> Callable[[Any], Any]:
        def complete(arrays: Any) -> Any:
            results, measured = run(number, arrays, measures_gradient=True)
            everything = [
                measured if i == number else jax.tree.map(_zeros, types[i]) for i in numbers
            ]
            return results, everything

        return complete

    results, measured = lax.switch(index.array, [branch(i) for i in numbers], arrays)
    for i in numbers:
        for found, arrays_of in zip(inside[i][0], measured[i], strict=True):
            interpreter.record(found, arrays_of, Nesting())
    return [
        mixture(array, [index, *(inside[i][1][position] for i in numbers)])
        for position, array in enumerate(results)
    ]


def shard_map(
    interpreter: Interpreter, equation: Any, values: list[TracedValue]
) -> list[TracedValue]:
    """Evaluate the program of each device of a mesh, and measure what each of them holds."""
    parameters = equation.params
    jaxpr = parameters["jaxpr"]
    axes = tuple(primitives.mesh_of(equation))
    first = (0,) * len(axes)
    arguments = [
        replace(value, origin=value.origin and _on_device(value.origin, spec), images={})
        for value, spec in zip(values, parameters["in_specs"], strict=True)
    ]
    probes = interpreter.take(len(slots_of(jaxpr)))
    inside: list[Inside] = []

    def body(arrays: Any, slots: Any) -> Any:
        slots = jax.tree.map(lambda slot: slot[first], slots)
        child, outputs = interpreter.enter(
            jaxpr, (), _with_arrays(arguments, arrays), probes.of(slots)
        )
        inside[:] = [_without_arrays(child.found, outputs)]
        measured = [
            jax.tree.map(lambda array: jnp.expand_dims(array, range(len(axes))), one.arrays)
            for one in child.found
        ]
        return [value.array for value in outputs], measured

    of_devices = PartitionSpec(*axes)
    run = jax.shard_map(
        body,
        mesh=parameters["mesh"],
        in_specs=(list(parameters["in_specs"]), of_devices),
        out_specs=(list(parameters["out_specs"]), of_devices),
        axis_names=parameters["newly_manual_axes"],
        check_vma=parameters["check_vma"],
    )
    results, measured = run([value.array for value in values], probes.arrays)
    things, outputs = inside[0]
    for found, arrays_of in zip(things, measured, strict=True):
        interpreter.record(found, arrays_of, Nesting(mesh=axes))
    return [_result(array, inner) for array, inner in zip(results, outputs, strict=True)]


def _on_device(origin: Any, spec: Any) -> Any:
    """A parameter as a device sees it: whole, or its share."""
    names = [name for part in spec if part for name in ((part,) if isinstance(part, str) else part)]
    if not names:
        return origin
    return replace(origin, is_traced_to_its_end=True, split_over=frozenset(names))


def _unfollowed(values: Sequence[TracedValue]) -> list[TracedValue]:
    """The values as a body sees them: layers outside are not followed into it."""
    return [replace(value, images={}) for value in values]


def _carried(values: Sequence[TracedValue], jaxpr: Any, first: int) -> list[TracedValue]:
    """The carried values as a loop's body sees them, which may be data in a later iteration."""
    passed_on = [
        variable is jaxpr.outvars[i]
        for i, variable in enumerate(jaxpr.invars[first : first + len(values)])
    ]
    return [
        value if same else _as_data(value)
        for value, same in zip(_unfollowed(values), passed_on, strict=True)
    ]


def _as_data(value: TracedValue) -> TracedValue:
    return replace(
        value,
        origin=None,
        is_signal=True,
        is_learned=value.depends_on_parameters,
        is_uniform=False,
        is_carried=True,
    )


def _result(array: Any, inner: TracedValue) -> TracedValue:
    """A result of a body, outside of it."""
    return TracedValue(
        array,
        is_signal=inner.is_signal,
        is_learned=inner.depends_on_parameters,
        sources=inner.sources,
    )


def _with_arrays(values: Sequence[TracedValue], arrays: Sequence[Any]) -> list[TracedValue]:
    return [replace(value, array=array) for value, array in zip(values, arrays, strict=True)]


def _without_arrays(things: Sequence[Found], values: Sequence[TracedValue]) -> Inside:
    """What is known about a body, without its arrays, which must not leave it."""
    return (
        [replace(found, arrays={}) for found in things],
        [replace(value, array=None, images={}) for value in values],
    )


def _zeros(type_: Any) -> jax.Array:
    zeros = jnp.zeros(type_.shape, type_.dtype)
    # On a mesh, all branches must say over which of its axes their results differ.
    on_mesh = type_.manual_axis_type
    if on_mesh is None or not on_mesh.varying:
        return zeros
    return lax.pcast(zeros, tuple(on_mesh.varying), to="varying")
