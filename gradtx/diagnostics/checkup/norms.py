"""Norms that go over the examples of a batch, and are no batch norms."""

from __future__ import annotations

from collections.abc import Iterator

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing import lines, primitives
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS

_POINTWISE = primitives.ELEMENTWISE | {"broadcast_in_dim", "reshape", "squeeze"}
# Part of what makes a variance out of a signal, unlike the other nonlinearities.
_OF_VARIANCE = frozenset({"integer_pow", "square", "abs", "pow", "sqrt", "rsqrt"})
_NONLINEARITIES = (primitives.SMOOTH | {"max", "min", "select_n", "clamp"}) - _OF_VARIANCE


def mixed(
    subject: Subject, severity: str, node: Node, sentence: str, cure: str, concerned: Value
) -> Finding:
    """A finding of mixed examples.

    Args:
        subject: what is examined.
        severity: how bad it is.
        node: the operation that mixes them.
        sentence: what is wrong.
        cure: what to do.
        concerned: the value whose parameters are its place.
    """
    return Finding(
        "mixed_examples",
        severity,
        sentence,
        cure,
        place=place_of(nearest(subject, concerned)),
        source=node.line,
        evidence={"examples": subject.axes.number, "operation": node.name},
    )


def nearest(subject: Subject, value: Value) -> list[str]:
    """The parameters that enter a value last, at most two."""
    upstream = subject.graph.upstream(value)
    trained = (v for v in upstream if v.argument is not None and subject.is_trained(v))
    return [subject.name(one) for one, _ in zip(trained, range(2), strict=False)]


def norms_over_examples(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    """A signal that is centered or scaled by a mean over examples, but not by a batch norm."""
    if subject.axes.is_sequence(subject.is_given):
        return
    for node in subject.graph.named("sub", "div", "mul"):
        if node.output not in learning or len(subject.axes.rows_of(node.output)) != 1:
            continue
        reduction = _statistic(subject, node)
        if reduction is None or is_batch_norm(node):
            continue
        signal = reduction.inputs[0]
        if _is_whole(reduction):
            what, cure = "all of a batch", "per example: axis=-1"
        elif _is_per_place(subject, node, reduction) or (
            len(signal.shape) == 2 and _enters_nonlinearity(subject, node)
        ):
            what, cure = "the examples", "along the features, axis=-1, or use a batch norm"
        else:
            continue
        yield mixed(
            subject,
            "warning",
            node,
            f"a signal of shape {node.output.shape} is normalized by a sum over {what} (`"
            f"{node.name}`): the outputs of an example depend on all others.",
            f"normalize {cure}.",
            signal,
        )
        return


def is_batch_norm(node: Node) -> bool:
    """Whether an operation is part of something that is called a batch norm."""
    return any(
        "batchnorm" in name.lower().replace("_", "")
        for equation in (node.equation, *(call for call, _ in node.calls))
        for name in lines.functions_of(equation)
    )


def _statistic(subject: Subject, node: Node) -> Node | None:
    """The sum over examples by which an operation changes the signal that it is a sum of."""
    axes = subject.axes
    for i, value in enumerate(node.inputs):
        other = node.inputs[1 - i]
        if not (subject.is_trained(value) and subject.is_given(value)) or axes.rows_of(value):
            continue
        signals = set(_pointwise(subject, other))
        for one in _pointwise(subject, value):
            total = one.producer
            if total is None or total.name != "reduce_sum":
                continue
            source = total.inputs[0]
            rows = axes.rows_of(source)
            is_over_rows = len(rows) == 1 and rows[0] in total.equation.params["axes"]
            if is_over_rows and signals & _sources(subject, source):
                return total
    return None


def _pointwise(subject: Subject, value: Value) -> Iterator[Value]:
    return subject.graph.upstream(value, lambda node, i: node.name in _POINTWISE)


def _sources(subject: Subject, value: Value) -> set[Value]:
    """The signals that a sum is of, unless they are exponentials, as in a softmax."""
    found = [v for v in _pointwise(subject, value) if subject.is_given(v) and v.shape]
    if any(v.producer is not None and v.producer.name == "exp" for v in found):
        return set()
    return {v for v in found if subject.is_trained(v)}


def _is_whole(reduction: Node) -> bool:
    """Whether a sum is over examples and features, of which there are several."""
    source, axes = reduction.inputs[0], reduction.equation.params["axes"]
    long = [i for i, size in enumerate(source.shape) if size > 1]
    return len(long) > 1 and set(long) <= set(axes)


def _is_per_place(subject: Subject, node: Node, reduction: Node) -> bool:
    """Whether a sum is over the examples only, for each place, but the scale is that of features.

    A batch norm that keeps places apart has a scale for each of them.
    """
    shape, rows = node.output.shape, subject.axes.rows_of(reduction.inputs[0])
    if len(shape) < 3 or tuple(reduction.equation.params["axes"]) != rows:
        return False
    crossed = VIEWS | {"add", "sub", "mul", "div"}
    for value in subject.graph.downstream(node.output, lambda user, i: user.name in crossed):
        for user, i in value.users:
            scale = user.inputs[1 - i] if user.name in ("mul", "add") else value
            if subject.is_trained(scale) and not subject.is_given(scale) and scale.size > 1:
                return sum(size > 1 for size in source_of(scale).shape) == 1
    return False


def _enters_nonlinearity(subject: Subject, node: Node) -> bool:
    """Whether a signal goes into a nonlinearity of a hidden layer without a scale and a shift."""
    linear = ("add", "sub", "mul", "div")
    crossed = VIEWS | set(linear)
    bends: list[Node] = []
    for value in subject.graph.downstream(node.output, lambda user, i: user.name in crossed):
        for user, i in value.users:
            other = user.inputs[1 - i] if user.name in linear else user.inputs[i]
            if subject.is_trained(other) and not subject.is_given(other):
                return False
            bends += [user] if user.name in _NONLINEARITIES else []
    return any(
        layer.name in PLAIN_PRODUCTS
        for bend in bends
        for value in subject.graph.downstream(bend.output)
        for layer, _ in value.users
    )
