"""An interpreter of traced functions that finds their layers and measures them.

It evaluates a jaxpr on `TracedValue`s, equation by equation, and enters the functions that it
calls. It runs inside `jax.jit`, so that the measurements are arrays of that computation. Loops,
branches and the programs of single devices are rebuilt with bodies that also return the
measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal

from gradtx.diagnostics.tracing import bodies, following, primitives
from gradtx.diagnostics.tracing.found import Arrays, Found, Nesting
from gradtx.diagnostics.tracing.provenance import (
    Layer,
    Origin,
    TracedValue,
    constant_value,
    mixture,
)
from gradtx.diagnostics.tracing.rematerialized import rematerialized

_BODIES = {
    "scan": bodies.scan,
    "while": bodies.while_loop,
    "cond": bodies.cond,
    "shard_map": bodies.shard_map,
}


@dataclass
class Probes:
    """Arrays whose gradients are measurements of the backward pass, one for each product.

    Attributes:
        arrays: those that are left; None: there is no backward pass.
        numbers: which ones they are, in the whole function.
    """

    arrays: Sequence[jax.Array] | None
    numbers: Sequence[int]

    def take(self, number: int) -> Probes:
        """Remove the next ones."""
        taken = Probes(self.arrays and self.arrays[:number], self.numbers[:number])
        self.arrays, self.numbers = self.arrays and self.arrays[number:], self.numbers[number:]
        return taken

    def of(self, arrays: Sequence[jax.Array] | None) -> Probes | None:
        """The same ones, as a body sees them."""
        return None if arrays is None else Probes(arrays, self.numbers)


@dataclass(frozen=True)
class Hidden:
    """An equation that cannot be looked into.

    Attributes:
        equation: the equation.
        calls: the calls around it, see `lines.line_of`.
        origins: the parameters that it takes.
    """

    equation: Any
    calls: tuple[tuple[Any, Any], ...]
    origins: tuple[Origin, ...]


class Interpreter:
    """Evaluates a traced function, and collects what is found.

    Args:
        measure: returns the measurements of a layer, once its nonlinearity is known.
        probes: an array for each product, see `slots_of`, whose gradient will be the measurement in
            the backward pass; None: nothing is measured there.
        attach: evaluates a layer's product with a probe, given a function that multiplies, the
            array of the probe, and the operands.
        watch: returns the measurements of an equation, from the equation, its inputs and its
            results, or None if it is of no interest; None: no equation is measured.
        merge: makes one measurement of those of two iterations of a `while_loop`, given its name
            and both; None: such loops are not entered.

    Attributes:
        found: what was found.
        hidden: the equations that take parameters and cannot be looked into, each with the calls
            around it and the origins of these parameters.
    """

    def __init__(
        self,
        measure: Callable[[Layer], Arrays] | None,
        probes: Probes | None = None,
        attach: Callable[..., Any] | None = None,
        watch: Callable[[Any, Sequence[Any], Sequence[Any]], Arrays | None] | None = None,
        merge: Callable[[str, jax.Array, jax.Array], jax.Array] | None = None,
    ) -> None:
        self.measure, self.attach, self.watch, self.merge = measure, attach, watch, merge
        self.probes = probes
        self.found: list[Found] = []
        self.hidden: dict[int, Hidden] = {}
        self.calls: tuple[tuple[Any, Any], ...] = ()
        self.is_inside = False
        self._equations = 0
        self._bodies: tuple[Any, ...] = ()
        self._differentiated: dict[tuple[str, int], Any] = {}

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
        if self._enters(name):
            outer, self._bodies = self._bodies, (*self._bodies, equation)
            results = _BODIES[name](self, equation, values)
            self._bodies = outer
            return results
        body = primitives.body_of(equation)
        if body is not None:
            return self._call(equation, *body, values)
        if primitives.hides(equation):
            self._hide(equation, values)
        if name in primitives.PRODUCTS:
            return [self._product(equation, values)]
        arrays = primitives.bind(equation, *(value.array for value in values))
        if name == "unstack":
            return following.unstacked(equation, values[0], arrays)
        if name in primitives.SUMS_OF_DEVICES:
            return [
                following.summed_over_devices(equation, value, array)
                for value, array in zip(values, arrays, strict=True)
            ]
        if equation.primitive.multiple_results:
            following.consumed(equation, values)
            return [mixture(array, values) for array in arrays]
        (array,) = arrays
        if name in primitives.ELEMENTWISE:
            return [self._elementwise(equation, values, array, name, frozenset({name}))]
        if name == "concatenate":
            return [following.concatenated(equation, values, array)]
        if name in primitives.GATHERING:
            return [following.gathered(equation, values[0], array)]
        if name in primitives.REARRANGING | primitives.CUTTING:
            return [following.rearranged(equation, values, array)]
        following.consumed(equation, values)
        return [mixture(array, values)]

    def _product(self, equation: Any, values: list[TracedValue]) -> TracedValue:
        """Evaluate a product, which is a layer if an operand is a parameter."""
        probe = self.take(1)
        arrays = [value.array for value in values]
        weight = following.find_layer(equation, values)

        def multiply(*operands: jax.Array) -> jax.Array:
            return primitives.bind(equation, *operands)[0]

        if weight is None or self._is_derivative(equation, arrays[weight]):
            following.consumed(equation, values)
            return mixture(multiply(*arrays), values)
        if probe.arrays and self.attach is not None:
            array = self.attach(multiply, probe.arrays[0], *arrays)
        else:
            array = multiply(*arrays)
        value = following.start_layer(equation, values, weight, array)
        (layer,) = value.sources
        number = probe.numbers[0] if probe.arrays else None
        self.found.append(Found(layer, {}, (self._equations,), slot=number))
        return value

    def _is_derivative(self, equation: Any, weights: Any) -> bool:
        calls = [call for call, _ in self.calls]
        made_by = primitives.transformations([*self._bodies, *calls, equation])
        return primitives.is_derivative(made_by, weights, self._differentiated)

    def _enters(self, name: str) -> bool:
        return name in _BODIES and (name != "while" or self.merge is not None)

    def _hide(self, equation: Any, values: Sequence[TracedValue]) -> None:
        """Note which parameters an equation takes that cannot be looked into."""
        origins = [value.origin for value in values if value.origin is not None]
        if origins:
            self.hidden[id(equation)] = Hidden(equation, self.calls, tuple(origins))

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
        is_entered = primitives.body_of(equation) or self._enters(equation.primitive.name)
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
        outside, self.calls = self.calls, (*self.calls, (equation, jaxpr))
        try:
            return self._called(equation, jaxpr, constants, values)
        finally:
            self.calls = outside

    def _called(
        self, equation: Any, jaxpr: Any, constants: Sequence[Any], values: list[TracedValue]
    ) -> list[TracedValue]:
        has_own_derivative = equation.primitive.name in primitives.WITH_OWN_DERIVATIVE
        if self.watch is not None:
            return self._evaluate(jaxpr, [constant_value(array) for array in constants], values)
        parts = frozenset(primitives.primitives_of(jaxpr))
        if primitives.is_elementwise(jaxpr) and not parts <= primitives.STRAIGHT:
            (array,) = primitives.bind(equation, *(value.array for value in values))
            name = jaxpr.debug_info.func_name.lstrip("_")
            return [self._elementwise(equation, values, array, name, parts)]
        if not has_own_derivative:

            def evaluate() -> list[TracedValue]:
                return self._evaluate(jaxpr, [constant_value(array) for array in constants], values)

            if equation.primitive.name in primitives.REMATERIALIZED and self.attach is not None:
                return rematerialized(self, equation, evaluate, values)
            return evaluate()
        # The layers inside are measured, and so are their gradients, but the gradient that reaches
        # the arguments is that of the custom derivative.
        arrays = primitives.bind(equation, *(value.array for value in values))
        blocked = [replace(v, array=lax.stop_gradient(v.array)) for v in values]
        inside = self._evaluate(jaxpr, [constant_value(array) for array in constants], blocked)
        return [
            following.replaced(value, _joined(array, value.array))
            for array, value in zip(arrays, inside, strict=True)
        ]

    def enter(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        inputs: Sequence[TracedValue],
        probes: Probes | None,
    ) -> tuple[Interpreter, list[TracedValue]]:
        """Evaluate the body of a loop or a branch with an interpreter of its own."""
        child = Interpreter(self.measure, probes, self.attach, self.watch, self.merge)
        child.is_inside, child.hidden, child.calls = True, self.hidden, self.calls
        child._bodies = self._bodies
        return child, child.run(jaxpr, constants, inputs)

    def take(self, number: int) -> Probes:
        """The next probes, for a body that has so many products."""
        return self.probes.take(number) if self.probes is not None else Probes(None, ())

    def record(self, found: Found, arrays: Arrays, nesting: Nesting) -> None:
        """Record what was found inside a loop or a branch."""
        place = (self._equations, *found.place)
        self.found.append(
            replace(found, arrays=arrays, place=place, nesting=(nesting, *found.nesting))
        )

    def merged(self, before: Sequence[Arrays], now: Sequence[Arrays]) -> list[Arrays]:
        """The measurements of two iterations of a loop together."""
        merge = self.merge
        assert merge is not None
        return [
            {key: merge(key, old[key], new[key]) for key in new}
            for old, new in zip(before, now, strict=True)
        ]


@jax.custom_vjp
def _joined(result: Any, twin: Any) -> Any:
    """The result. The gradient flows back to both arguments."""
    del twin
    return result


_joined.defvjp(lambda result, twin: (result, None), lambda _, gradient: (gradient, gradient))
