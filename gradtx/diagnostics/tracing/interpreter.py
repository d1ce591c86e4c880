"""An interpreter of traced functions that finds their layers and measures them.

It evaluates a jaxpr on `TracedValue`s, equation by equation, and enters the functions that it
calls. It runs inside `jax.jit`, so that the measurements are arrays of that computation. Loops and
branches are rebuilt with bodies that also return the measurements.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from gradtx.diagnostics.tracing import following, primitives
from gradtx.diagnostics.tracing.found import Arrays, Found, Nesting
from gradtx.diagnostics.tracing.provenance import Layer, Loop, TracedValue, constant_value, mixture


class Interpreter:
    """Evaluates a traced function, and collects what is found.

    Args:
        measure: returns the measurements of a layer, once its nonlinearity is known.
        probes: an array for each layer, in the order of `found`, whose gradient will be the
            measurement in the backward pass; None: nothing is measured there.
        attach: attaches a probe to a layer's output.
        watch: returns the measurements of an equation, from the equation, its inputs and its
            results, or None if it is of no interest; None: no equation is measured.
    """

    def __init__(
        self,
        measure: Callable[[Layer], Arrays] | None,
        probes: Sequence[jax.Array] | None = None,
        attach: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        watch: Callable[[Any, Sequence[Any], Sequence[Any]], Arrays | None] | None = None,
    ) -> None:
        self.measure, self.attach, self.watch = measure, attach, watch
        self.probes = None if probes is None else list(probes)
        self.found: list[Found] = []
        self.is_inside = False
        self._equations = 0

    def run(
        self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[TracedValue]
    ) -> list[TracedValue]:
        """Evaluate a whole function, and measure its layers."""
        outputs = self._evaluate(jaxpr, [constant_value(array) for array in constants], inputs)
        if self.is_inside:
            # A layer may receive the outputs of a loop's body in the next iteration.
            for value in outputs:
                if np.ndim(value.array) > 0:
                    following.received(value)
        if self.measure is not None:
            self.found = [
                found
                if found.arrays or not isinstance(found.what, Layer)
                else replace(found, arrays=self.measure(found.what))
                for found in self.found
            ]
        for found in self.found:
            if isinstance(found.what, Layer):
                found.what.forget_arrays()
        return outputs

    def _evaluate(
        self, jaxpr: Any, constants: Sequence[TracedValue], inputs: Sequence[TracedValue]
    ) -> list[TracedValue]:
        known: dict[Any, TracedValue] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True)
        )

        def read(variable: Any) -> TracedValue:
            if isinstance(variable, Literal):
                return constant_value(
                    np.asarray(variable.val, getattr(variable.aval, "dtype", None))
                )
            return known[variable]

        for equation in jaxpr.eqns:
            self._equations += 1
            values = [read(variable) for variable in equation.invars]
            results = self._equation(equation, values)
            self._watch(equation, values, results)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[TracedValue]) -> list[TracedValue]:
        name = equation.primitive.name
        body = primitives.body_of(equation)
        if body is not None:
            return self._call(equation, *body, values)
        if name == "scan":
            return self._scan(equation, values)
        if name == "cond":
            return self._cond(equation, values)
        arrays = primitives.bind(equation, *(value.array for value in values))
        if name == "unstack":
            return following.unstacked(equation, values[0], arrays)
        if equation.primitive.multiple_results:
            following.consumed(equation, values)
            return [mixture(array, values) for array in arrays]
        (array,) = arrays
        weight = following.find_layer(equation, values)
        if weight is not None:
            if self.probes is not None and self.attach is not None:
                array = self.attach(array, self.probes.pop(0))
            value = following.start_layer(equation, values, weight, array)
            (layer,) = value.sources
            self.found.append(Found(layer, {}, (self._equations,)))
            return [value]
        if name in primitives.ELEMENTWISE:
            return [self._elementwise(equation, values, array, name, frozenset({name}))]
        if name == "concatenate":
            return [following.concatenated(equation, values, array)]
        if name in primitives.REARRANGING | primitives.CUTTING:
            return [following.rearranged(equation, values, array)]
        following.consumed(equation, values)
        return [mixture(array, values)]

    def _elementwise(
        self,
        equation: Any,
        values: Sequence[TracedValue],
        array: jax.Array,
        name: str,
        parts: frozenset[str],
    ) -> TracedValue:
        def call(*arrays: Any) -> Any:
            return primitives.bind(equation, *arrays)[0]

        primitive = equation.primitive.name
        return following.elementwise(
            following.Operation(primitive, values, array, call, name, parts)
        )

    def _watch(
        self, equation: Any, values: Sequence[TracedValue], results: Sequence[TracedValue]
    ) -> None:
        is_entered = primitives.body_of(equation) or equation.primitive.name in ("scan", "cond")
        if self.watch is not None and not is_entered:
            arrays = [v.array for v in values], [v.array for v in results]
            measured = self.watch(equation, *arrays)
            if measured is None:
                return
            sources = frozenset().union(*(value.sources for value in results))
            self.found.append(Found((equation, sources), measured, (self._equations,)))

    def _call(
        self, equation: Any, jaxpr: Any, constants: Sequence[Any], values: list[TracedValue]
    ) -> list[TracedValue]:
        """Enter a called function, unless it is a nonlinearity or has a custom derivative."""
        has_own_derivative = equation.primitive.name in primitives.WITH_OWN_DERIVATIVE
        if self.watch is not None:
            return self._evaluate(jaxpr, [constant_value(array) for array in constants], values)
        parts = frozenset(primitives.primitives_of(jaxpr))
        if primitives.is_elementwise(jaxpr) and not parts <= primitives.STRAIGHT:
            (array,) = primitives.bind(equation, *(value.array for value in values))
            name = jaxpr.debug_info.func_name.lstrip("_")
            return [self._elementwise(equation, values, array, name, parts)]
        if not has_own_derivative:
            return self._evaluate(jaxpr, [constant_value(array) for array in constants], values)
        # The layers inside are measured, and so are their gradients, but the gradient that reaches
        # the arguments is that of the custom derivative.
        arrays = primitives.bind(equation, *(value.array for value in values))
        blocked = [replace(v, array=lax.stop_gradient(v.array)) for v in values]
        inside = self._evaluate(jaxpr, [constant_value(array) for array in constants], blocked)
        return [
            following.replaced(value, _joined(array, value.array))
            for array, value in zip(arrays, inside, strict=True)
        ]

    def _scan(self, equation: Any, values: list[TracedValue]) -> list[TracedValue]:
        parameters = equation.params
        loop = Loop(parameters["reverse"])
        constants, carried, sliced = _inputs_of_body(equation, values, loop)
        first, number_carried = primitives.numbers_of_scan(equation)
        inside: list[tuple[list[Found], list[TracedValue]]] = []

        def body(carry: Any, slices: Any) -> Any:
            arrays, probes = slices
            inputs = [*constants, *_with_arrays(carried, carry), *_with_arrays(sliced, arrays)]
            child, outputs = self._enter(parameters["jaxpr"], inputs, probes)
            inside[:] = [_without_arrays(child.found, outputs)]
            results = [value.array for value in outputs]
            measured = [found.arrays for found in child.found]
            return results[:number_carried], (results[number_carried:], measured)

        def whole(probes: Any) -> Any:
            arrays = [value.array for value in values[first:]]
            return lax.scan(
                body,
                arrays[:number_carried],
                (arrays[number_carried:], probes),
                length=parameters["length"],
                reverse=parameters["reverse"],
                unroll=parameters["unroll"],
            )

        probes = None
        if self.probes is not None:
            # A first tracing without probes tells how many the body needs.
            jax.eval_shape(whole, None)
            probes = self._take(len(inside[0][0]))
        last, (stacked, measured) = whole(probes)
        things, outputs = inside[0]
        for found, arrays in zip(things, measured, strict=True):
            is_sliced = isinstance(found.what, Layer) and loop in found.what.origin.views
            self._record(found, arrays, Nesting(loop, is_sliced))
        return [
            TracedValue(array, is_signal=inner.is_signal, sources=inner.sources)
            for array, inner in zip([*last, *stacked], outputs, strict=True)
        ]

    def _cond(self, equation: Any, values: list[TracedValue]) -> list[TracedValue]:
        index, *operands = values
        arguments = [replace(value, images={}) for value in operands]
        branches = equation.params["branches"]
        inside: dict[int, tuple[list[Found], list[TracedValue]]] = {}

        def run(number: int, probes: Any, arrays: Any) -> Any:
            child, outputs = self._enter(branches[number], _with_arrays(arguments, arrays), probes)
            inside[number] = _without_arrays(child.found, outputs)
            return [value.array for value in outputs], [found.arrays for found in child.found]

        arrays = [value.array for value in operands]
        numbers = range(len(branches))
        types = [jax.eval_shape(functools.partial(run, i, None), arrays)[1] for i in numbers]
        probes = [None if self.probes is None else self._take(len(types[i])) for i in numbers]

        def branch(number: int) -> Callable[[Any], Any]:
            def complete(arrays: Any) -> Any:
                results, measured = run(number, probes[number], arrays)
                everything = [
                    measured if i == number else jax.tree.map(_zeros, types[i]) for i in numbers
                ]
                return results, everything

            return complete

        results, measured = lax.switch(index.array, [branch(i) for i in numbers], arrays)
        for i in numbers:
            for found, arrays_of in zip(inside[i][0], measured[i], strict=True):
                self._record(found, arrays_of, Nesting())
        return [
            mixture(array, [index, *(inside[i][1][position] for i in numbers)])
            for position, array in enumerate(results)
        ]

    def _enter(
        self, closed: Any, inputs: Sequence[TracedValue], probes: Sequence[jax.Array] | None
    ) -> tuple["Interpreter", list[TracedValue]]:
        """Evaluate the body of a loop or a branch with an interpreter of its own."""
        child = Interpreter(self.measure, probes, self.attach, self.watch)
        child.is_inside = True
        return child, child.run(closed.jaxpr, closed.consts, inputs)

    def _take(self, number: int) -> list[jax.Array]:
        taken, self.probes = (self.probes or [])[:number], (self.probes or [])[number:]
        return taken

    def _record(self, found: Found, arrays: Arrays, nesting: Nesting) -> None:
        """Record what was found inside a loop or a branch."""
        place = (self._equations, *found.place)
        self.found.append(Found(found.what, arrays, place, (nesting, *found.nesting)))


def _inputs_of_body(
    equation: Any, values: Sequence[TracedValue], loop: Loop
) -> tuple[list[TracedValue], list[TracedValue], list[TracedValue]]:
    """The constants, carried values and slices of a scan, as its body sees them.

    Layers outside are not followed elementwise into the body.
    """
    closed = equation.params["jaxpr"]
    first, number_carried = primitives.numbers_of_scan(equation)
    second = first + number_carried
    unchanged, carried, sliced = values[:first], values[first:second], values[second:]
    passed_on = [
        variable is closed.jaxpr.outvars[i]
        for i, variable in enumerate(closed.jaxpr.invars[first:second])
    ]
    constants = [replace(value, images={}) for value in unchanged]
    # What a loop carries may become data in a later iteration.
    carries = [
        replace(value if same else _as_data(value), images={})
        for value, same in zip(carried, passed_on, strict=True)
    ]
    slices = [
        replace(value, origin=value.origin and value.origin.seen_through(loop), images={})
        for value in sliced
    ]
    return constants, carries, slices


def _as_data(value: TracedValue) -> TracedValue:
    return replace(value, origin=None, is_signal=True, is_uniform=False, is_carried=True)


def _with_arrays(values: Sequence[TracedValue], arrays: Sequence[Any]) -> list[TracedValue]:
    return [replace(value, array=array) for value, array in zip(values, arrays, strict=True)]


def _without_arrays(
    things: Sequence[Found], values: Sequence[TracedValue]
) -> tuple[list[Found], list[TracedValue]]:
    """What is known about a body, without its arrays, which must not leave it."""
    return (
        [replace(found, arrays={}) for found in things],
        [replace(value, array=None, images={}) for value in values],
    )


def _zeros(type_: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(type_.shape, type_.dtype)


@jax.custom_vjp
def _joined(result: Any, twin: Any) -> Any:
    """The result. The gradient flows back to both arguments."""
    del twin
    return result


_joined.defvjp(lambda result, twin: (result, None), lambda _, gradient: (gradient, gradient))
