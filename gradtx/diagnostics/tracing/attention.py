"""Attention, as it is recognized in a graph: a softmax of scores that weights the sum of values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, Softmax, source_of, uses_of

# Operations that the weights pass before they meet the values, dropout among them.
_BEFORE_VALUES = VIEWS | {"mul", "div", "select_n", "add"}
# Operations between the scores and the softmax, and between a projection and the scores.
_BEFORE_SOFTMAX = VIEWS | {"select_n", "add", "sub", "mul", "div", "tanh", "max", "clamp"}
_BEFORE_SCORES = _BEFORE_SOFTMAX | {"neg", "concatenate", "slice", "split", "rev", "pad", "gather"}
_OF_NUMBERS = {
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "neg": np.negative,
}


@dataclass(eq=False)
class Attention:
    """A softmax whose result weights a sum.

    Attributes:
        softmax: the softmax over the keys.
        scores: the product of queries and keys.
        values: the product of weights and values.
        masks: the operations that mask scores, each with the position of the mask.
        factor: what the scores are multiplied by, as far as it consists of constants.
        is_scaled: whether they are scaled, or queries or keys are normalized, by the program.
    """

    softmax: Softmax
    scores: Node
    values: Node
    masks: list[tuple[Node, int]] = field(default_factory=list)
    factor: float = 1.0
    is_scaled: bool = False

    @property
    def axis(self) -> int:
        """The axis of the logits over which it is a softmax: that of the keys."""
        return self.softmax.axes[0]

    @property
    def width(self) -> int:
        """How many products a score sums up."""
        (axes, _), _ = self.scores.equation.params["dimension_numbers"]
        return int(np.prod([self.scores.inputs[0].shape[axis] for axis in axes]))


def attentions(graph: Graph, among: list[Softmax]) -> list[Attention]:
    """The attentions among some softmaxes, in the order of evaluation."""
    found = []
    for softmax in among:
        if softmax.probabilities is None or len(softmax.axes) != 1:
            continue
        values = _product_with_values(softmax)
        scores = _product_before(graph, softmax.logits) if values is not None else None
        if values is not None and scores is not None:
            one = Attention(softmax, scores, values)
            _follow(graph, one)
            found.append(one)
    return found


def _product_with_values(softmax: Softmax) -> Node | None:
    size = softmax.number
    for node, i in uses_of(softmax.probabilities or softmax.logits, _BEFORE_VALUES):
        if node.name != "dot_general":
            continue
        contracted, _ = node.equation.params["dimension_numbers"]
        other = node.inputs[1 - i]
        if other.depends and any(node.inputs[i].shape[axis] == size for axis in contracted[i]):
            return node
    return None


def _product_before(graph: Graph, logits: Value) -> Node | None:
    """The nearest product of two values that depend on something."""
    for value in graph.upstream(logits, lambda node, i: node.name in _BEFORE_SOFTMAX):
        node = value.producer
        if node is not None and node.name == "dot_general" and all(v.depends for v in node.inputs):
            return node
    return None


def _follow(graph: Graph, one: Attention) -> None:
    """Find the masks and the scale on the way from queries and keys to the softmax."""
    after = set(graph.downstream(one.scores.output, lambda node, i: node.name in _BEFORE_SOFTMAX))
    way = graph.upstream(one.softmax.logits, lambda node, i: node.name in _BEFORE_SOFTMAX)
    for value in way:
        node = value.producer
        if node is None or value not in after or value is one.scores.output:
            continue
        if node.name == "select_n" and node.inputs[0] not in after:
            one.masks.append((node, 0))
        elif node.name in ("add", "sub"):
            others = [i for i, v in enumerate(node.inputs) if v not in after]
            one.masks += [(node, i) for i in others if source_of(node.inputs[i]).size > 1]
        elif node.name in ("mul", "div"):
            _scale(one, node, after)
    for side in one.scores.inputs:
        own = list(graph.upstream(side, lambda node, i: node.name in _BEFORE_SCORES))
        for value in own:
            if value.producer is not None and value.producer.name in ("mul", "div"):
                _scale(one, value.producer, set(own))


def _scale(one: Attention, node: Node, mine: set[Value]) -> None:
    """Take a factor of the scores into account."""
    for i, value in enumerate(node.inputs):
        number = number_of(value)
        if number is not None:
            one.factor *= number if node.name == "mul" else 1 / number if number and i else 1.0
            one.is_scaled = one.is_scaled or number != 1
        elif (source_of(value).size == 1 and value.depends) or _is_norm(value, mine):
            one.is_scaled = True


def _is_norm(value: Value, mine: set[Value]) -> bool:
    """Whether a factor is computed by a norm or a standard deviation."""
    producer = source_of(value).producer
    return (
        value.depends != 0
        and producer is not None
        and producer.name in ("rsqrt", "sqrt", "max", "add", "div", "reduce_sum", "pow")
        and any(size == 1 for size in value.shape[-1:])
        and bool(mine)
    )


def number_of(value: Value) -> float | None:
    """The number that a value consists of, if it is computed from constants; else None."""
    value = source_of(value)
    if value.constant is not None:
        return float(np.real(np.asarray(value.constant)).item()) if value.size == 1 else None
    node = value.producer
    if node is None or value.depends or node.name not in {*_OF_NUMBERS, "integer_pow"}:
        return None
    numbers = [number_of(one) for one in node.inputs]
    known = [one for one in numbers if one is not None]
    if len(known) < len(numbers):
        return None
    with np.errstate(all="ignore"):
        if node.name == "integer_pow":
            return float(known[0] ** node.equation.params["y"])
        return float(_OF_NUMBERS[node.name](*known))


def projections(graph: Graph, one: Attention) -> Iterator[Node]:
    """The products from which queries and keys come directly."""
    for side in one.scores.inputs:
        for value in graph.upstream(side, lambda node, i: node.name != "dot_general"):
            node = value.producer
            if node is not None and node.name == "dot_general":
                yield node
                break
