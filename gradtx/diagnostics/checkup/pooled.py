"""What the examples of a batch have in common, and each of them gets back."""

from __future__ import annotations

from collections.abc import Iterator

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.norms import is_batch_norm, mixed
from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS

_POINTWISE = primitives.ELEMENTWISE | VIEWS
_MEETINGS = ("add", "sub", "mul", "div", "max", "min", "concatenate")
_CALLED = {
    **dict.fromkeys(("reduce_sum", "psum"), "a mean or a sum"),
    **dict.fromkeys(("reduce_max", "pmax"), "a maximum"),
    **dict.fromkeys(("reduce_min", "pmin"), "a minimum"),
}
# Sums of these are variances, norms and softmaxes.
_OF_STATISTICS = frozenset({"square", "integer_pow", "abs", "exp", "exp2"})


def pooled_back(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    """A mean, a sum or a maximum of hidden features over the examples that each of them gets.

    Not so in a batch norm, which also scales by the batch, in a loss that compares the examples,
    and where the examples of a task are there to describe it.
    """
    axes = subject.axes
    if axes.is_sequence(subject.is_given):
        return
    for node in subject.graph.named(*_MEETINGS):
        if len(axes.rows_of(node.output)) != 1 or not subject.is_trained(node.output):
            continue
        for value in node.inputs:
            pooling = _pooling(subject, value)
            if pooling is None or not _is_of_inputs(subject, node, pooling):
                continue
            if is_batch_norm(node) or _is_norm(subject, node):
                continue
            if not _is_read(subject, node, value in learning):
                continue
            yield _finding(subject, node, pooling)
            return


def _finding(subject: Subject, node: Node, pooling: Node) -> Finding:
    signal = pooling.inputs[0]
    (rows,) = subject.axes.rows_of(signal)
    is_sure = len(signal.shape) > 2
    where = f" (`{node.name}` at {node.line})" if node.line != pooling.line else ""
    return mixed(
        subject,
        "error" if is_sure else "warning",
        pooling,
        f"{_CALLED[pooling.name]} of an array of shape {signal.shape} over axis {rows}, that of "
        f"the examples, goes back into each of them{where}: the outputs of an example depend on "
        "all others.",
        f"reduce over the parts of an example, axis={(rows + 1) % len(signal.shape)}, or leave it "
        "out."
        if is_sure
        else "reduce over the features, axis=-1, or leave it out; use a batch norm, or the average "
        "over the training data, if the features are to be centered.",
        signal,
    )


def _pooling(subject: Subject, value: Value) -> Node | None:
    """The reduction over examples that a value without examples is made of.

    None: there is none, or it is part of a variance, a softmax or a gradient.
    """
    axes = subject.axes
    if axes.rows_of(value) or not (subject.is_trained(value) and subject.is_given(value)):
        return None
    found = None
    for one in subject.graph.upstream(value, lambda node, i: _is_crossed(subject, node, i)):
        node = one.producer
        if node is None or node.name not in _CALLED:
            continue
        rows = axes.rows_of(node.inputs[0])
        if len(rows) != 1 or rows[0] not in node.equation.params["axes"]:
            continue
        if _is_of_statistics(node.inputs[0]):
            return None
        if node.output.size > 1 and "transpose(" not in primitives.transformations([node.equation]):
            found = found or node
    return found


def _is_crossed(subject: Subject, node: Node, i: int) -> bool:
    """Whether to look further before an operation: the features of the batch may pass layers."""
    if subject.axes.rows_of(node.inputs[i]):
        return False
    is_layer = node.name in PLAIN_PRODUCTS and not subject.is_given(node.inputs[1 - i])
    return is_layer or node.name in _POINTWISE


def _is_of_statistics(value: Value) -> bool:
    """Whether what is added up are squares, absolute values or exponentials."""
    names = VIEWS | {"neg"}
    node = source_of(value, names).producer
    while node is not None and node.name in ("mul", "div", "select_n", "reduce_sum"):
        rest = [one for one in node.inputs if one.depends]
        if len(rest) != 1:
            return len(rest) == 2 and _are_same(rest[0], rest[1])
        if node.equation.params.get("axes"):
            return False
        node = source_of(rest[0], names).producer
    return node is not None and node.name in _OF_STATISTICS


def _are_same(one: Value, other: Value, depth: int = 3) -> bool:
    """Whether two values are computed in the same way from the same."""
    one, other = source_of(one), source_of(other)
    if one is other:
        return True
    first, second = one.producer, other.producer
    if first is None or second is None or first.name != second.name or not depth:
        return False
    pairs = zip(first.inputs, second.inputs, strict=False)
    return all(_are_same(a, b, depth - 1) for a, b in pairs if a.depends or b.depends)


def _is_of_inputs(subject: Subject, node: Node, pooling: Node) -> bool:
    """Whether examples get something of their inputs, and have targets beside them.

    What is made of other inputs, or of the targets, describes a task, as in a neural process.
    """
    first = len(subject.traced.params)
    pooled = pooling.output.depends >> first
    signals = [value for value in node.inputs if subject.axes.rows_of(value)]
    targets = [
        value
        for value in subject.data
        if value.shape[:1] == (subject.axes.number,)
        and value.users
        and not pooling.output.depends >> (value.argument or 0) & 1
    ]
    return bool(targets) and any(pooled & ~(one.depends >> first) == 0 for one in signals)


def _is_norm(subject: Subject, node: Node) -> bool:
    """Whether the result is scaled by the batch as well, or shifted by parameters instead."""
    if node.name != "sub":
        return False
    linear = ("add", "sub", "mul", "div")
    crossed = VIEWS | {*linear}
    for value in subject.graph.downstream(node.output, lambda user, i: user.name in crossed):
        for user, i in value.users:
            if user.name not in (*linear, *PLAIN_PRODUCTS):
                continue
            other = user.inputs[1 - i]
            has_rows = bool(subject.axes.rows_of(other))
            if subject.is_trained(other) and subject.is_given(other) and not has_rows:
                return True
            if user.name in ("add", "sub") and not subject.is_given(other) and other.depends:
                return True
    return False


def _is_read(subject: Subject, node: Node, learns: bool) -> bool:
    """Whether a layer, or the softmax of a classifier, takes what the examples got, as examples."""
    exponents = {id(one.softmax.shifted) for one in subject.cross_entropies}
    for value in subject.graph.downstream(
        node.output, lambda user, i: len(subject.axes.rows_of(user.output)) == 1
    ):
        if len(subject.axes.rows_of(value)) != 1:
            continue
        if id(value) in exponents:
            return True
        for user, i in value.users:
            if learns and user.name in PLAIN_PRODUCTS:
                weight = user.inputs[1 - i]
                if subject.is_trained(weight) and not subject.is_given(weight):
                    return True
    return False
