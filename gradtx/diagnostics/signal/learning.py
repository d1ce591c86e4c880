"""Which parameters of a traced loss have no gradient, and why; and which cannot be followed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gradtx.diagnostics.tracing import flow, lines, primitives
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
    found = [IdleParameter(name, "integer_parameter") for name in loss.integers]
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
    learning = flow.learning(graph)
    # All layers that receive data are cut off: the others have nothing to learn from it.
    is_severed = bool(first) and all(
        i in idle and graph.arguments[i] not in learning for i in first
    )
    for i in idle:
        value, name = graph.arguments[i], loss.names[i] or "params"
        if value not in reaching:
            yield IdleParameter(name, "unused")
        elif value in learning:
            yield IdleParameter(name, "zero_gradient")
        else:
            cuts = _Cuts(graph, value, reaching, learning, number=len(loss.params))
            is_wanted = learns and cuts.are_wanted(is_severed=is_severed)
            cut = cuts.most_telling
            yield IdleParameter(name, "frozen" if is_wanted else "blocked", called(cut), cut.line)


class _Cuts:
    """The operations that cut a parameter off from the gradient.

    Args:
        graph: the graph of the loss.
        parameter: the parameter.
        reaching: the values that the loss depends on.
        learning: those that it depends on differentiably.
        number: the number of parameters, which are the first arguments.
    """

    def __init__(
        self,
        graph: Graph,
        parameter: Value,
        reaching: Collection[Value],
        learning: Collection[Value],
        number: int,
    ) -> None:
        self.graph, self.parameter, self.number = graph, parameter, number
        self.cuts = flow.cuts_after(graph, parameter, reaching)
        # Some make a number of which the loss is a differentiable function, the others an index, a
        # label or a mask.
        self.of_numbers = [
            cut for cut in self.cuts if any(output in learning for output in cut.outputs)
        ]
        self.stops = [cut for cut in self.of_numbers if cut.name == "stop_gradient"]

    @property
    def most_telling(self) -> Node:
        """The one to name."""
        # Beside the nearest code stands what pulls it, behind a stop_gradient.
        nearest = [cut for cut in self.cuts if cut.name == "argmin" and self._feeds_a_layer(cut)]
        others = [cut for cut in self.cuts if cut.name != "stop_gradient"]
        return (nearest or self.stops or others or self.cuts)[0]

    def are_wanted(self, *, is_severed: bool) -> bool:
        """Whether the parameter seems to be cut off on purpose.

        A `stop_gradient` keeps a teacher, a target or a frozen weight from learning. It is a
        mistake if it cuts off everything that receives the data. A rounding is not there to keep
        something from learning. A choice, such as an argmax, may make labels for the loss; what
        chooses the inputs or the weights of a layer should learn to. A single number may be a
        count.
        """
        if not self.parameter.shape:
            return True
        if self.stops:
            return not is_severed or all(self._is_view(cut.inputs[0]) for cut in self.stops)
        return not self.of_numbers and not any(map(self._feeds_a_layer, self.cuts))

    def _is_view(self, value: Value) -> bool:
        """Whether a value is the parameter in another shape or dtype."""
        while value is not self.parameter:
            node = value.producer
            if node is None or node.name not in primitives.STRAIGHT | primitives.REARRANGING:
                return False
            (value, *others) = node.inputs
            if others or math.prod(value.shape) != self.parameter.size:
                return False
        return True

    def _feeds_a_layer(self, cut: Node) -> bool:
        """Whether what an operation chooses goes into a layer, as its input or its weight."""
        after = {value for output in cut.outputs for value in self.graph.downstream(output)}
        for node in self.graph.named(*primitives.PRODUCTS):
            first, second = node.inputs[:2]
            for one, other in ((first, second), (second, first)):
                if one in after and (self._is_weight(other) or self._is_chosen_weight(one)):
                    return True
        return False

    def _is_weight(self, value: Value) -> bool:
        return value.depends != 0 and value.depends >> self.number == 0

    def _is_chosen_weight(self, value: Value) -> bool:
        """Whether a value is a part of a parameter, taken at an index."""
        while value.producer is not None:
            if value.producer.name in ("gather", "dynamic_slice"):
                return self._is_weight(value.producer.inputs[0])
            if value.producer.name not in primitives.STRAIGHT | primitives.REARRANGING:
                return False
            value = value.producer.inputs[0]
        return False


def called(cut: Node) -> str:
    """What a user calls an operation."""
    if cut.name == "convert_element_type":
        return f"astype({cut.output.dtype})"
    return _FAMILIAR.get(cut.name, cut.name)


_FAMILIAR = {
    **{"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="},
    "loop_carry": "while_loop",
    # What passes no gradient on is the order and not the sorted numbers.
    "sort": "argsort",
}
