"""Finds the operation that made the first NaN or infinity of a loss or of its gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from gradtx.diagnostics.signal.evidence import Evidence, evidence_of
from gradtx.diagnostics.tracing.found import Arrays, Found
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.interpreter import Interpreter
from gradtx.diagnostics.tracing.lines import line_of
from gradtx.diagnostics.tracing.provenance import Layer
from gradtx.diagnostics.tracing.traced import TracedLoss

# Operations whose derivative is infinite somewhere.
_STEEP = ("sqrt", "rsqrt", "log", "pow", "div", "cbrt", "atan2", "acos", "asin", "log1p")

# Whether the result of an operation has an infinity, wherever that comes from.
_INFINITE = "infinite"


@dataclass(frozen=True)
class Culprit:
    """The operation that made the first non-finite number.

    Attributes:
        made: "NaN" or "infinity".
        operation: the name of the primitive; "argument" if an argument already contained it.
        layer: the layer that the operation belongs to, the last one whose output it depends on; or
            that parameter or argument. Empty: the operation precedes all layers.
        source: the line of the program, as `file.py:12 (function)`; empty: unknown.
        in_gradient: whether it happened in the backward pass, while the loss is finite.
        infinity: the earlier operation that made an infinity out of finite numbers, if the NaN
            comes from that infinity.
        is_from_infinity: whether an operand of the operation was infinite.
        derivative_of: in a gradient, the operation on that line whose derivative is not finite.
        evidence: the range of its operands, or of those of `derivative_of`, and what it shows.
    """

    made: str
    operation: str
    layer: str
    source: str
    in_gradient: bool
    infinity: Culprit | None = None
    derivative_of: str = ""
    is_from_infinity: bool = False
    evidence: Evidence = field(default_factory=Evidence)


def find_culprit(loss: TracedLoss) -> Culprit | None:
    """Evaluate a loss again, and its gradient if the loss is finite, and check every operation.

    Returns:
        The culprit; None if everything is finite, or if it was made where operations are not seen.
    """
    for name, array in zip(loss.all_names, [*loss.params, *loss.data], strict=True):
        if _any(jnp.isnan, [array]):
            return Culprit("NaN", "argument", name, "", in_gradient=False)
    culprit = _first(loss, in_gradient=False)
    if culprit is None:
        culprit = _first(loss.gradient(), in_gradient=True)
        if culprit is not None:
            culprit = _with_derivative(loss, culprit)
    if culprit is not None and culprit.is_from_infinity and culprit.infinity is None:
        # No operation made that infinity, so an argument contained it.
        for name, array in zip(loss.all_names, [*loss.params, *loss.data], strict=True):
            if _any(jnp.isinf, [array]):
                given = Culprit("infinity", "argument", name, "", in_gradient=False)
                return replace(culprit, infinity=given)
    return culprit


def _with_derivative(loss: TracedLoss, culprit: Culprit) -> Culprit:
    """The culprit of a backward pass, with the operation whose derivative it is."""
    forward = _operations_at(culprit.source, loss.closed_jaxpr.jaxpr)
    derivative_of = next((name for name in _STEEP if name in forward), "")
    graph = Graph(loss.closed_jaxpr)
    nodes = [node for node in graph.named(derivative_of) if node.line == culprit.source]
    if not nodes:
        return replace(culprit, derivative_of=derivative_of)
    evidence = evidence_of(loss, nodes[0], "NaN")
    return replace(culprit, derivative_of=derivative_of, evidence=evidence)


def _first(loss: TracedLoss, *, in_gradient: bool) -> Culprit | None:
    found: list[Found] = []

    @jax.jit
    def watched(params: Any, data: Any) -> list[Arrays]:
        interpreter = Interpreter(None, watch=_watch, merge=lambda _, old, new: old | new)
        jaxpr = loss.closed_jaxpr
        interpreter.run(jaxpr.jaxpr, jaxpr.consts, loss.values(params, data))
        found[:] = [replace(one, arrays={}) for one in interpreter.found]
        return [one.arrays for one in interpreter.found]

    flags = jax.device_get(watched(loss.params, loss.data))
    measured = [
        one.over_devices(arrays, lambda _, made, axis, name: np.any(made, axis))
        for one, arrays in zip(found, flags, strict=True)
    ]
    events = [
        event
        for number, (one, arrays) in enumerate(measured)
        for kind, made in arrays.items()
        if kind != _INFINITE
        for event in _events(number, one, kind, made)
    ]
    nans = [event for event in events if event.kind != "infinity"]
    infinities = [event for event in events if event.kind == "infinity"]
    if not nans and not infinities:
        return None
    first = min(nans or infinities, key=lambda event: event.time)
    earlier = [event for event in infinities if event.time < first.time]
    nodes = _nodes(loss, found)

    def culprit_of(event: _Event) -> Culprit:
        culprit, node = event.culprit(loss.names, in_gradient), nodes.get(event.number)
        if node is None:
            return culprit
        # The backward pass of a loop has other iterations.
        iterations = () if in_gradient else event.of_loops
        evidence = evidence_of(loss, node, culprit.made, iterations)
        return replace(culprit, source=node.line or culprit.source, evidence=evidence)

    culprit = culprit_of(first)
    if first.kind == "NaN from infinity" and earlier:
        infinite = {
            i for i, (_, arrays) in enumerate(measured) if np.any(arrays.get(_INFINITE, False))
        }
        reaching = _reaching(nodes, first.number, infinite)
        causes = [event for event in earlier if event.number in reaching] or earlier
        cause = min(causes, key=lambda event: event.time)
        culprit = replace(culprit, infinity=culprit_of(cause))
    return culprit


def _reaching(nodes: dict[int, Node], number: int, infinite: Collection[int]) -> set[int]:
    """The operations whose infinities reach another one, without becoming finite in between.

    An exp that overflows does no harm where 1 / (1 + exp(x)) makes zero of it.
    """
    if number not in nodes:
        return set()
    numbers = {node: i for i, node in nodes.items()}
    # What is no operation, as the edge of a loop, passes infinities on.
    values = _upstream(nodes[number], lambda node: numbers.get(node) in {None, *infinite})
    makers = [value.producer for value in values]
    return {numbers[maker] for maker in makers if maker in numbers} & set(infinite)


def _upstream(node: Node, crosses: Callable[[Node], bool]) -> list[Value]:
    """The values that an operation takes, and those that these are made of."""
    seen, waiting = set(map(id, node.inputs)), list(node.inputs)
    for value in waiting:
        maker = value.producer
        for source in maker.inputs if maker is not None and crosses(maker) else ():
            if id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)
    return waiting


def _nodes(loss: TracedLoss, found: Sequence[Found]) -> dict[int, Node]:
    """The operation of the loss's graph that each thing found is, by its number."""
    graph = Graph(loss.closed_jaxpr)
    nodes = {(id(node.equation), node.occurrence): node for node in reversed(graph.nodes)}
    seen: Counter[int] = Counter()
    result = {}
    for number, one in enumerate(found):
        equation = id(one.what[0]) if isinstance(one.what, tuple) else 0
        if (equation, seen[equation]) in nodes:
            result[number] = nodes[equation, seen[equation]]
        seen[equation] += 1
    return result


def _watch(equation: Any, inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
    """Whether an operation made NaN from finite numbers, NaN from infinities, or an infinity."""
    del equation
    has_nan, has_infinity = _any(jnp.isnan, inputs), _any(jnp.isinf, inputs)
    makes_nan, makes_infinity = _any(jnp.isnan, results), _any(jnp.isinf, results)
    return {
        "NaN": makes_nan & ~has_nan & ~has_infinity,
        "NaN from infinity": makes_nan & ~has_nan & has_infinity,
        "infinity": makes_infinity & ~has_nan & ~has_infinity,
        _INFINITE: makes_infinity,
    }


def _any(test: Any, arrays: Sequence[Any]) -> jax.Array:
    inexact = [a for a in arrays if jnp.issubdtype(getattr(a, "dtype", int), jnp.inexact)]
    return jnp.any(jnp.stack([jnp.any(test(a)) for a in inexact] or [jnp.asarray(False)]))


@dataclass(frozen=True)
class _Event:
    """One operation that made a non-finite number in one iteration."""

    number: int
    found: Found
    kind: str
    iterations: tuple[int, ...]

    @property
    def time(self) -> tuple[int, ...]:
        return self.found.when(self.iterations)

    @property
    def of_loops(self) -> tuple[int, ...]:
        """The iteration of each loop around it."""
        pairs = zip(self.found.nesting, self.iterations, strict=True)
        return tuple(i for nesting, i in pairs if nesting.loop)

    def culprit(self, names: Sequence[str], in_gradient: bool) -> Culprit:
        equation, sources = self.found.what
        return Culprit(
            made=self.kind.split()[0],
            operation=equation.primitive.name,
            layer="" if in_gradient else self._layer(names, sources),
            source=line_of(equation),
            in_gradient=in_gradient,
            is_from_infinity=self.kind == "NaN from infinity",
        )

    def _layer(self, names: Sequence[str], sources: frozenset[Layer]) -> str:
        if not sources:
            return ""
        origin = max(sources, key=lambda layer: layer.number).origin
        iteration = dict(
            zip((nesting.loop for nesting in self.found.nesting), self.iterations, strict=True)
        )
        indices = [iteration[loop] for loop in origin.loops if loop in iteration]
        return origin.name(names) + "".join(f"[{i}]" for i in indices)


def _events(number: int, found: Found, kind: str, made: np.ndarray) -> list[_Event]:
    """The event in each iteration in which it happened."""
    events = []
    for index in np.argwhere(made):
        indices = iter(index.tolist())
        iterations = tuple(next(indices) if nesting.loop else 0 for nesting in found.nesting)
        events.append(_Event(number, found, kind, iterations))
    return events


def _operations_at(source: str, jaxpr: Any) -> set[str]:
    """The names of the operations that come from a line."""
    names = set()
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            names |= _operations_at(source, inner)
        if line_of(equation) == source:
            names.add(equation.primitive.name)
    return names
