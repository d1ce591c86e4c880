"""Which parameters of a traced loss have no gradient, and why; and which cannot be followed."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from gradtx.diagnostics.tracing import lines, primitives
from gradtx.diagnostics.tracing.flow import cuts_after, is_differentiable
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.interpreter import Hidden
from gradtx.diagnostics.tracing.traced import TracedLoss


@dataclass(frozen=True)
class IdleParameter:
    """A parameter without a gradient.

    Attributes:
        name: its path.
        reason: "integer_parameter"; "unused": the loss does not depend on it; "blocked": it does,
            but only through operations that pass no gradient on; "frozen": the same, and it seems
            to be on purpose; "zero_gradient": its gradient is exactly zero for this batch.
        operation: the first such operation; empty: there is none.
        source: its line of the program, as `file.py:12 (function)`; empty: unknown.
    """

    name: str
    reason: str
    operation: str = ""
    source: str = ""


@dataclass(frozen=True)
class Unseen:
    """An operation that takes parameters and cannot be looked into.

    Attributes:
        operation: the name of the primitive.
        source: its line of the program, as `file.py:12 (function)`; empty: unknown.
        parameters: the paths of the parameters that it takes.
    """

    operation: str
    source: str
    parameters: tuple[str, ...]


def unseen(hidden: Collection[Hidden], names: Sequence[str]) -> tuple[Unseen, ...]:
    """What the interpreter could not look into."""
    return tuple(
        Unseen(
            one.equation.primitive.name,
            lines.line_of(one.equation, one.calls),
            tuple(
                dict.fromkeys(names[part.leaf] for origin in one.origins for part in origin.parts)
            ),
        )
        for one in hidden
    )


def idle_parameters(
    loss: TracedLoss, has_gradient: Sequence[bool], first: Collection[int]
) -> tuple[IdleParameter, ...]:
    """The parameters that have no gradient, and why.

    Args:
        loss: the loss.
        has_gradient: whether the gradient of each parameter has an element that is not zero.
        first: the parameters, by number, of the layers that receive data.
    """
    found = [
        IdleParameter(name.removeprefix("argument params"), "integer_parameter")
        for name, array in zip(loss.data_names, loss.data, strict=True)
        if name.startswith("argument params") and jnp.issubdtype(array.dtype, jnp.integer)
    ]
    idle = [
        i
        for i, (array, has_one) in enumerate(zip(loss.params, has_gradient, strict=True))
        if array.size and not has_one
    ]
    if idle:
        found += _reasons(loss, idle, first, learns=any(has_gradient))
    return tuple(found)


def _reasons(
    loss: TracedLoss, idle: Sequence[int], first: Collection[int], *, learns: bool
) -> Iterator[IdleParameter]:
    graph = Graph(loss.closed_jaxpr)
    reaching = set(graph.upstream(graph.output))
    learning = set(graph.upstream(graph.output, is_differentiable))
    # All layers that receive data are cut off: the others have nothing to learn from it.
    is_severed = all(i in idle and graph.arguments[i] not in learning for i in first)
    for i in idle:
        value, name = graph.arguments[i], loss.names[i] or "params"
        if value not in reaching:
            yield IdleParameter(name, "unused")
        elif value in learning:
            yield IdleParameter(name, "zero_gradient")
        else:
            cuts = cuts_after(graph, value, reaching)
            is_wanted = learns and _is_wanted(value, cuts, is_severed=is_severed)
            yield IdleParameter(
                name,
                "frozen" if is_wanted else "blocked",
                called(cuts[0]) if cuts else "",
                cuts[0].line if cuts else "",
            )


def _is_wanted(parameter: Value, cuts: Sequence[Node], *, is_severed: bool) -> bool:
    """Whether a parameter seems to be cut off on purpose.

    A `stop_gradient` keeps a teacher, a target or a frozen weight from learning. It is a mistake
    if it cuts off everything that receives the data. A rounding, an argmax or a comparison is not
    there to keep something from learning, except for a single number, such as a count.
    """
    if not parameter.shape:
        return True
    stops = [cut for cut in cuts if cut.name == "stop_gradient"]
    if not stops:
        return False
    return not is_severed or all(_is_view(cut.inputs[0], parameter) for cut in stops)


def _is_view(value: Value, parameter: Value) -> bool:
    """Whether a value is a parameter in another shape or dtype."""
    while value is not parameter:
        node = value.producer
        if node is None or node.name not in primitives.STRAIGHT | primitives.REARRANGING:
            return False
        (value, *others) = node.inputs
        if others or math.prod(value.shape) != parameter.size:
            return False
    return True


def called(cut: Node) -> str:
    """What a user calls an operation."""
    if cut.name == "convert_element_type":
        return f"astype({cut.output.dtype})"
    return "while_loop" if cut.name == "loop_carry" else _COMPARISONS.get(cut.name, cut.name)


_COMPARISONS: dict[str, Any] = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
}
