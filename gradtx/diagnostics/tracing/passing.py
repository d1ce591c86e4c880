"""Measures a signal and its gradient where it passes chosen values of a traced loss."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from gradtx import norms, trees
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.traced import TracedLoss

# Where a value is made: the equation, how many times it occurred before, and which result.
_Key = tuple[int, int, int]


def measure(
    loss: TracedLoss, graph: Graph, values: Iterable[Value]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The root mean square of some values, and the norm of the gradient that arrives there.

    Args:
        loss: the loss.
        graph: its graph.
        values: the values to measure. Of those in the bodies of loops, only what a loop carries
            from one iteration to the next can be measured.

    Returns:
        The measurements by `id(value)`, in a loop with an axis for its iterations. Values that
        cannot be measured are left out.
    """
    chosen = {id(value): i for i, value in enumerate(values)}
    sizes: dict[int, tuple[int, ...]] = {}

    def forward(slots: Any, params: Any, data: Any) -> tuple[jax.Array, dict[int, jax.Array]]:
        evaluation = _Evaluation(graph, chosen, slots)
        closed = loss.closed_jaxpr
        (value,) = evaluation.run(closed.jaxpr, closed.consts, [*params, *data])
        sizes.update({i: array.shape for i, array in evaluation.rms.items()})
        return value, evaluation.rms

    @jax.jit
    def whole(params: Any, data: Any) -> Any:
        jax.eval_shape(forward, None, params, data)
        slots = {i: jnp.zeros(shape, jnp.float32) for i, shape in sizes.items()}
        (_, rms), gradients = jax.value_and_grad(forward, has_aux=True)(slots, params, data)
        return rms, gradients

    rms, gradients = jax.device_get(whole(loss.params, loss.data))
    return {key: (rms[i], gradients[i]) for key, i in chosen.items() if i in rms}


@jax.custom_vjp
def _probe(array: jax.Array, slot: jax.Array) -> jax.Array:
    """The array. The gradient of the slot is the norm of the gradient of the array."""
    del slot
    return array


_probe.defvjp(lambda array, slot: (array, None), lambda _, g: (g, _norm(g)))


@jax.jit
def _norm(array: jax.Array) -> jax.Array:
    wide = array.astype(trees.compute_dtype(array.dtype))
    return norms.norm(wide).reshape(()).astype(jnp.float32)


class _Evaluation:
    """One evaluation of a loss, which notes the values on the way."""

    def __init__(
        self, graph: Graph, chosen: dict[int, int], slots: dict[int, jax.Array] | None
    ) -> None:
        self.chosen, self.slots = chosen, slots
        self.rms: dict[int, jax.Array] = {}
        self._nodes: dict[tuple[int, int], Node] = {}
        self._carries: dict[int, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            if node.name == node.equation.primitive.name:
                self._nodes[id(node.equation), node.occurrence] = node
            elif node.name == "loop_carry":
                self._carries[id(node.equation)].append(node)
        self._occurrences: Counter[int] = Counter()

    def run(self, jaxpr: Any, constants: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arrays], strict=True))

        def read(variable: Any) -> Any:
            if isinstance(variable, Literal):
                return np.asarray(variable.val, getattr(variable.aval, "dtype", None))
            return known[variable]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(v) for v in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, arrays: list[Any]) -> list[Any]:
        name = equation.primitive.name
        body = primitives.body_of(equation)
        if body is not None and name not in primitives.WITH_OWN_DERIVATIVE:
            return self.run(*body, arrays)
        if name == "scan":
            return self._scan(equation, arrays)
        keys = self._passed(equation)
        results = primitives.bind(equation, *arrays)
        return [self._noted(a, key) for a, key in zip(results, keys, strict=True)]

    def _noted(self, array: Any, key: _Key | None) -> Any:
        """The result of an equation, measured if it is one of the chosen values."""
        node = None if key is None else self._nodes.get(key[:2])
        if key is None or node is None:
            return array
        return self._measured(array, node.outputs[key[2]])

    def _measured(self, array: Any, value: Value) -> Any:
        number = self.chosen.get(id(value))
        if number is None or not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        self.rms[number] = _norm(lax.stop_gradient(array)) / max(array.size, 1) ** 0.5
        return array if self.slots is None else _probe(array, self.slots[number])

    def _passed(self, equation: Any) -> list[_Key | None]:
        """Count an equation and all that it contains, as the graph does; which makes its results.

        What the bodies of loops and branches make is not known by one name outside of them.
        """
        body = primitives.body_of(equation)
        if body is not None:
            return self._passed_by(body[0])
        name, parameters = equation.primitive.name, equation.params
        for key in {
            "scan": ["jaxpr"],
            "while": ["cond_jaxpr", "body_jaxpr"],
        }.get(name, []):
            self._passed_by(parameters[key].jaxpr)
        for branch in parameters["branches"] if name == "cond" else ():
            self._passed_by(branch.jaxpr)
        if name in ("scan", "while", "cond"):
            return [None] * len(equation.outvars)
        occurrence = self._occurrences[id(equation)]
        self._occurrences[id(equation)] += 1
        return [(id(equation), occurrence, i) for i in range(len(equation.outvars))]

    def _passed_by(self, jaxpr: Any) -> list[_Key | None]:
        made: dict[Any, _Key | None] = {}
        for equation in jaxpr.eqns:
            made.update(zip(equation.outvars, self._passed(equation), strict=True))
        return [None if isinstance(v, Literal) else made.get(v) for v in jaxpr.outvars]

    def _scan(self, equation: Any, arrays: list[Any]) -> list[Any]:
        """A loop, with measurements of what it carries in each iteration and at its end."""
        parameters, closed = equation.params, equation.params["jaxpr"]
        first, number = primitives.numbers_of_scan(equation)
        waiting = self._carries[id(equation)]
        carries, self._carries[id(equation)] = waiting[:number], waiting[number:]
        keys = self._passed_by(closed.jaxpr)[:number]
        mine = [self.chosen.get(id(node.output)) for node in carries]
        slots = {} if self.slots is None else {i: self.slots[i] for i in mine if i is not None}

        def body(carry: Any, slices: Any) -> Any:
            slices, slots = slices
            child = _Evaluation.__new__(_Evaluation)
            child.chosen, child.rms = self.chosen, {}
            child.slots = slots if self.slots is not None else None
            carry = [
                child._measured(a, node.output) for a, node in zip(carry, carries, strict=True)
            ]
            results = primitives.evaluate(closed, [*arrays[:first], *carry, *slices])
            return results[:number], (results[number:], child.rms)

        last, (stacked, rms) = lax.scan(
            body,
            arrays[first : first + number],
            (arrays[first + number :], slots),
            length=parameters["length"],
            reverse=parameters["reverse"],
        )
        self.rms.update(rms)
        return [*(self._noted(a, key) for a, key in zip(last, keys, strict=True)), *stacked]
