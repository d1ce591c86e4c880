"""Functions that are recognized in a graph by what they consist of: softmax and sigmoid.

A softmax is an exponential that is divided by its own sum, whoever wrote it. What is recognized is
described by the values that go in and out, so that an examination can follow them further.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Graph, Node, Value

# Operations that keep the numbers, and where an element belongs.
VIEWS = (primitives.REARRANGING - {"rev"}) | {
    *("convert_element_type", "copy", "copy_p", "name", "optimization_barrier"),
    *("reduce_precision", "sharding_constraint", "stop_gradient"),
}

# A maximum that is subtracted for safety may be replaced where it is infinite.
_SAFEGUARDS = VIEWS | {"max", "select_n", "is_finite", "pmax"}
_STEADYING = VIEWS | {"add", "max", "abs", "select_n", "clamp"}


def source_of(value: Value, names: frozenset[str] = VIEWS) -> Value:
    """The value that this one is a view of: without the operations of these names before it."""
    while value.producer is not None and value.producer.name in names and value.producer.inputs:
        value = value.producer.inputs[0]
    return value


def uses_of(value: Value, names: frozenset[str] = VIEWS) -> Iterator[tuple[Node, int]]:
    """The operations that take a value or a view of it, with the position at which they do."""
    seen, waiting = {id(value)}, [value]
    for view in waiting:
        for node, i in view.users:
            if node.name not in names:
                yield node, i
                continue
            waiting += [result for result in node.outputs if id(result) not in seen]
            seen.update(map(id, node.outputs))


def made_by(graph: Graph, value: Value, name: str, through: frozenset[str]) -> Node | None:
    """The nearest operation called `name` that a value comes from through some others."""
    for one in graph.upstream(value, lambda node, i: node.name in through):
        if one.producer is not None and one.producer.name == name:
            return one.producer
    return None


# Softmax.


@dataclass(eq=False)
class Softmax:
    """A softmax, a log-softmax or a logsumexp.

    Attributes:
        logits: what it is taken of.
        axes: over which axes of the logits.
        entry: the operation whose first input are the logits.
        probabilities: the softmax; None: it is not computed.
        normalizer: the logarithm of the sum of exponentials; None: it is not computed.
        log_probabilities: the log-softmax; None: it is not computed.
        shifted: the logits, as they enter the exponential.
    """

    logits: Value
    axes: tuple[int, ...]
    entry: Node
    shifted: Value
    probabilities: Value | None = None
    normalizer: Value | None = None
    log_probabilities: Value | None = None

    @property
    def number(self) -> int:
        """How many alternatives it has."""
        return int(np.prod([self.logits.shape[axis] for axis in self.axes]))


def softmaxes(graph: Graph) -> list[Softmax]:
    """All softmaxes, log-softmaxes and logsumexps, in the order of evaluation."""
    found = []
    for total in graph.named("reduce_sum"):
        exponential = made_by(graph, total.inputs[0], "exp", VIEWS | {"select_n", "mul"})
        if exponential is None or exponential.output.shape != total.inputs[0].shape:
            continue
        shifted = exponential.inputs[0]
        logits, entry = _without_maximum(graph, exponential)
        axes = tuple(int(axis) for axis in total.equation.params["axes"])
        softmax = Softmax(logits, axes, entry, shifted)
        _complete(graph, softmax, total)
        if softmax.probabilities or softmax.normalizer or softmax.log_probabilities:
            found.append(softmax)
    return found


def _without_maximum(graph: Graph, exponential: Node) -> tuple[Value, Node]:
    """The logits before their maximum was subtracted, and the operation that takes them."""
    node = exponential.inputs[0].producer
    if node is None or node.name != "sub":
        return exponential.inputs[0], exponential
    first, second = node.inputs
    maximum = made_by(graph, second, "reduce_max", _SAFEGUARDS)
    if maximum is None:
        return exponential.inputs[0], exponential
    # Both may be masked, each in its own way.
    of_both = (
        {one for one in graph.upstream(value, _is_view_or_mask) if one.depends}
        for value in (first, maximum.inputs[0])
    )
    is_its_own = set.intersection(*of_both)
    return (first, node) if is_its_own else (exponential.inputs[0], exponential)


def _is_view_or_mask(node: Node, i: int) -> bool:
    return node.name in VIEWS or (node.name == "select_n" and i > 0)


def _complete(graph: Graph, softmax: Softmax, total: Node) -> None:
    """Find what is computed of the sum of the exponentials."""
    for node, i in uses_of(total.output, _STEADYING):
        if node.name == "div" and i == 1:
            if source_of(node.inputs[0]).depends == 0:
                products = [use for use, _ in uses_of(node.output) if use.name == "mul"]
                shares = [p for p in products if _is_exponential(graph, p, softmax)]
            else:
                shares = [node] if _is_exponential(graph, node, softmax) else []
            softmax.probabilities = shares[0].output if shares else softmax.probabilities
        elif node.name == "log":
            _complete_logarithm(softmax, node)


def _is_exponential(graph: Graph, node: Node, softmax: Softmax) -> bool:
    """Whether an operation takes the exponentials of a softmax."""
    through = VIEWS | {"select_n", "mul"}
    exponentials = (made_by(graph, value, "exp", through) for value in node.inputs)
    shifted = source_of(softmax.shifted)
    return any(one is not None and source_of(one.inputs[0]) is shifted for one in exponentials)


def _complete_logarithm(softmax: Softmax, logarithm: Node) -> None:
    softmax.normalizer = logarithm.output
    is_shifted = softmax.shifted is not softmax.logits
    for node, i in list(uses_of(logarithm.output)):
        if node.name == "sub" and i == 1 and _is_view(node.inputs[0], softmax.shifted):
            softmax.log_probabilities = node.output
        elif node.name == "add" and is_shifted:
            softmax.normalizer = node.output
    for node, i in uses_of(softmax.normalizer):
        if node.name == "sub" and i == 1 and _is_view(node.inputs[0], softmax.logits):
            softmax.log_probabilities = node.output


def _is_view(value: Value, of: Value) -> bool:
    return source_of(value) is source_of(of)


# Sigmoid.


@dataclass(eq=False)
class Sigmoid:
    """A sigmoid, or the softplus that is the logarithm of one.

    Attributes:
        logits: what it is taken of, up to the sign.
        node: the operation that makes it; for a softplus, its `log1p`.
        is_logarithm: whether it is a softplus.
    """

    logits: Value
    node: Node
    is_logarithm: bool = False


def sigmoids(graph: Graph) -> list[Sigmoid]:
    """All sigmoids and softplus functions, in the order of evaluation."""
    found = [Sigmoid(node.inputs[0], node) for node in graph.named("logistic")]
    for node in graph.named("div", "integer_pow", "log1p", "log"):
        logits = _logits_of_sigmoid(node)
        if logits is not None:
            found.append(Sigmoid(logits, node, node.name.startswith("log")))
    order = {id(node): i for i, node in enumerate(graph.nodes)}
    return sorted(found, key=lambda one: order[id(one.node)])


def _logits_of_sigmoid(node: Node) -> Value | None:
    """The x of 1 / (1 + exp(-x)), log(1 + exp(x)) or log1p(exp(-|x|)); None: it is none of them."""
    if node.name == "div":
        argument = node.inputs[1] if is_number(node.inputs[0], 1) else None
    elif node.name == "integer_pow":
        argument = node.inputs[0] if node.equation.params["y"] == -1 else None
    else:
        argument = node.inputs[0]
    exponential = argument.producer if argument is not None else None
    if exponential is not None and node.name != "log1p":
        if exponential.name != "add":
            return None
        ones = [is_number(value, 1) for value in exponential.inputs]
        exponential = exponential.inputs[ones.index(False)].producer if any(ones) else None
    if exponential is None or exponential.name != "exp":
        return None
    return source_of(_without_zero(source_of(exponential.inputs[0], VIEWS | {"neg", "abs"})))


def _without_zero(value: Value) -> Value:
    """The value without a zero that was added or subtracted, and without its sign."""
    while value.producer is not None and value.producer.name in ("add", "sub", "neg"):
        inputs = value.producer.inputs
        zeros = [is_number(one, 0) for one in inputs]
        if value.producer.name != "neg" and not any(zeros):
            break
        value = inputs[zeros.index(False)]
    return value


def is_number(value: Value, number: float) -> bool:
    """Whether a value is a constant with this number everywhere."""
    value = source_of(value)
    return value.constant is not None and bool(np.all(np.asarray(value.constant) == number))
