"""Losses that compare examples with each other, and by mistake with themselves."""

from __future__ import annotations

from collections.abc import Iterator

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.norms import nearest
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of, uses_of


def self_similarity(subject: Subject) -> Iterator[Finding]:
    """A softmax over the similarities of all examples with all, themselves included.

    A mask, a difference or a slice on the way takes the diagonal out. In attention, each may see
    itself.
    """
    for node in subject.graph.named("dot_general"):
        if not _is_with_itself(subject, node):
            continue
        for value in subject.graph.downstream(node.output, _is_passed):
            for total in _sums_of_exponentials(value):
                if _is_of_loss(subject, value, total):
                    yield _finding(subject, node, total)
                    return


def _finding(subject: Subject, node: Node, total: Node) -> Finding:
    number = node.output.shape[0]
    return Finding(
        "self_similarity",
        "error",
        f"the softmax over the similarities of {number:,} embeddings contains that of each with "
        "itself, which is the largest and cannot change: it takes most of the probability.",
        "take the diagonal out before the softmax: jnp.where(jnp.eye(number, dtype=bool), -1e9, "
        "similarities).",
        place=place_of(nearest(subject, node.output)),
        source=node.line,
        evidence={"embeddings": number, "sum": total.line},
    )


def _sums_of_exponentials(value: Value) -> Iterator[Node]:
    """The sums of all exponentials of similarities, of which nothing was left out."""
    for exponential, _ in uses_of(value):
        if exponential.name == "exp":
            for total, _ in uses_of(exponential.output):
                if total.name == "reduce_sum" and len(total.equation.params["axes"]) == 1:
                    yield total


def _is_of_loss(subject: Subject, shifted: Value, total: Node) -> bool:
    """Whether a sum is the denominator of a loss, and not that of an attention."""
    users = [user for user, _ in uses_of(total.output, VIEWS | {"add"})]
    if any(user.name == "sub" for user in users):
        return False
    is_entropy = any(one.softmax.shifted is shifted for one in subject.cross_entropies)
    return is_entropy or any(
        user.name == "log" or (user.name == "div" and user.output.size < shifted.size)
        for user in users
    )


def _is_with_itself(subject: Subject, node: Node) -> bool:
    """Whether a product is of all embeddings of the examples with all."""
    first, second = node.inputs
    (one, other), batched = node.equation.params["dimension_numbers"]
    shape = node.output.shape
    return (
        source_of(first) is source_of(second)
        and len(shape) == 2
        and shape[0] == shape[1] >= max(subject.axes.number, 2)
        and len(one) == len(other) == 1
        and not batched[0]
        and subject.is_trained(first)
        and subject.is_given(first)
    )


def _is_passed(node: Node, i: int) -> bool:
    """Whether similarities stay what they are: a temperature and a maximum do not matter."""
    if node.name in VIEWS or node.name == "concatenate":
        return True
    if node.name in ("mul", "div", "sub") and (i == 0 or node.name == "mul"):
        other = node.inputs[1 - i]
        return other.size < node.output.size
    return False
