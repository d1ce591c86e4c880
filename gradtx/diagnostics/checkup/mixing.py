"""How the examples of a batch get into the predictions of others.

Statistics of a batch are on purpose in a batch norm, and so are the pairs of a contrastive loss,
the neighbours in a graph, and the steps of a sequence. What is found here has none of these forms.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.norms import mixed, norms_over_examples
from gradtx.diagnostics.checkup.pooled import pooled_back
from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing.flow import is_differentiable
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.layout import has_rows
from gradtx.diagnostics.tracing.patterns import Softmax, uses_of
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS


def mixed_examples(subject: Subject) -> Iterator[Finding]:
    """The findings on examples that are mixed, at most one for each line."""
    if subject.axes.number < 2:
        return
    learning = set(subject.graph.upstream(subject.graph.output, is_differentiable))
    lines: set[str] = set()
    for examine in _EXAMINATIONS:
        for finding in examine(subject, learning):
            if finding.source not in lines:
                lines.add(finding.source)
                yield finding


def _has_labels(subject: Subject) -> bool:
    """Whether there is one label for each first index of data that has further axes."""
    leaves = [v for v in subject.data if v.shape[:1] == (subject.axes.number,)]
    wide = [
        v
        for v in leaves
        if len(v.shape) >= 3 or (len(v.shape) == 2 and jnp.issubdtype(v.dtype, jnp.integer))
    ]
    return any(
        len(label.shape) == 1 or (len(label.shape) == 2 and label.shape[1] != one.shape[1])
        for one in wide
        for label in leaves
        if label is not one
    )


def _has_partner(subject: Subject) -> bool:
    leaves = [v for v in subject.data if v.shape[:1] == (subject.axes.number,)]
    return len(leaves) > 1


# A softmax over the examples.


def _softmax(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    axes = subject.axes
    for softmax in subject.softmaxes:
        logits = softmax.logits
        rows = axes.rows_of(logits)
        others = [i for i, size in enumerate(logits.shape) if size > 1 and i not in rows]
        if len(rows) != 1 or softmax.axes != rows or not others or not _is_used(softmax, learning):
            continue
        if not (subject.is_trained(logits) and subject.is_given(logits)):
            continue
        if any(has_rows(axes.of(logits)[i]) for i in others):
            continue
        if not _has_partner(subject) or axes.is_sequence(subject.is_given):
            continue
        yield mixed(
            subject,
            "error",
            softmax.entry,
            f"the softmax of an array of shape {logits.shape} is taken over axis {rows[0]}, that "
            "of the examples: the outputs of an example depend on all others.",
            "take it over another axis, -1 for classes.",
            logits,
        )


def _is_used(softmax: Softmax, learning: set[Value]) -> bool:
    """Whether a gradient passes through a softmax."""
    results = (softmax.probabilities, softmax.log_probabilities, softmax.normalizer)
    return any(one is not None and one in learning for one in results)


# Attention among the examples.


def _attention(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    axes = subject.axes
    for softmax in subject.softmaxes:
        logits, weights = softmax.logits, softmax.probabilities
        rows = axes.rows_of(logits)
        if len(rows) != 2 or weights is None or weights not in learning:
            continue
        if len(softmax.axes) != 1 or softmax.axes[0] not in rows:
            continue
        if not any(_reads(subject, node, i) for node, i in uses_of(weights)):
            continue
        is_sure = _has_labels(subject) and logits.size > axes.number**2
        if not is_sure and axes.is_sequence(subject.is_given):
            continue
        yield mixed(
            subject,
            "error" if is_sure else "remark",
            softmax.entry,
            f"the attention, with weights of shape {logits.shape}, reads over the axis of the "
            "examples: each example attends to all others.",
            "attend along the axis of the sequence: transpose the data, or vmap over the first "
            "axis.",
            logits,
        )


def _reads(subject: Subject, node: Node, position: int) -> bool:
    """Whether an operation sums values of all examples with the weights of an attention."""
    if node.name != "dot_general":
        return False
    contracted = node.equation.params["dimension_numbers"][0]
    values = node.inputs[1 - position]
    rows = [set(subject.axes.rows_of(value)) for value in node.inputs]
    both = zip(contracted[position], contracted[1 - position], strict=True)
    return subject.is_given(values) and any(
        i in rows[position] and j in rows[1 - position] for i, j in both
    )


# A reshape in the place of a transposition.


def _torn(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    del learning
    reaching = set(subject.graph.upstream(subject.graph.output))
    for meeting in subject.axes.signs.clashes:
        node = meeting.node
        trained = [value for value in node.inputs if subject.is_trained(value)]
        targets = [v for v in node.inputs if subject.is_given(v) and not subject.is_trained(v)]
        if len(trained) != 1 or not targets or node.output not in reaching:
            continue
        for side in (*trained, *targets):
            culprit = _where_torn(subject, side)
            if culprit is None:
                continue
            yield _torn_finding(subject, culprit)
            return


def _summed(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    """A layer whose inputs are parts of several examples, and whose rows are parts of others."""
    axes = subject.axes
    for node in subject.graph.named("dot_general"):
        contracted = node.equation.params["dimension_numbers"][0]
        for i, value in enumerate(node.inputs):
            weight, layout = node.inputs[1 - i], axes.of(value)
            several = [j for j in contracted[i] if has_rows(layout[j])]
            several = [j for j in several if not axes.is_rows(layout[j])]
            free = [size for j, size in enumerate(value.shape) if j not in contracted[i]]
            is_layer = subject.is_trained(weight) and not subject.is_given(weight)
            if not (several and is_layer and axes.number in free and node.output in learning):
                continue
            culprit = _where_torn(subject, value)
            if culprit is not None:
                yield _torn_finding(subject, culprit)
                return


def _torn_finding(subject: Subject, culprit: Node) -> Finding:
    shapes = f"{culprit.inputs[0].shape} to {culprit.output.shape}"
    return mixed(
        subject,
        "error",
        culprit,
        f"`{culprit.name}` from {shapes} puts parts of several examples into one, so that "
        "predictions and targets belong to different examples.",
        "swap axes with transpose, keep the axis of the examples in a reshape, and give jnp.roll "
        "and the like an axis.",
        culprit.inputs[0],
    )


def _where_torn(subject: Subject, value: Value) -> Node | None:
    """The last reshape on the way to a value after which examples are not in order."""
    axes = subject.axes

    def is_torn(one: Value) -> bool:
        return not axes.rows_of(one) and any(map(has_rows, axes.of(one)))

    for one in subject.graph.upstream(value):
        node = one.producer
        if node is not None and node.inputs and is_torn(one) and axes.rows_of(node.inputs[0]):
            return node
    return None


# What runs along the examples.


def _convolution(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    leaves = [v for v in subject.data if v.shape[:1] == (subject.axes.number,)]
    is_flat = all(len(v.shape) <= 2 for v in leaves) and any(len(v.shape) == 1 for v in leaves)
    for node in subject.axes.signs.slid:
        if node.name != "conv_general_dilated" or node.output not in learning or not is_flat:
            continue
        (before, after), *others = node.equation.params["padding"]
        # One-sided padding is that of a causal convolution over time.
        if not others and abs(before - after) <= 1 and subject.is_given(node.inputs[0]):
            yield mixed(
                subject,
                "warning",
                node,
                "the convolution runs along the axis of the examples, as if they were a sequence.",
                "give the data an axis of channels: x[..., None].",
                node.output,
            )


def _recurrence(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    if not _has_labels(subject):
        return
    for node in subject.axes.signs.slid:
        if node.name != "loop_slice" or len(node.output.shape) < 2:
            continue
        for layer in _recurrent_layers(subject, node):
            if layer.output in learning:
                yield mixed(
                    subject,
                    "error",
                    layer,
                    "the recurrence runs along the axis of the examples: the state of one goes on "
                    "in the next one.",
                    "scan over the axis of time: swap the first two axes of the data.",
                    layer.output,
                )
                break


def _recurrent_layers(subject: Subject, node: Node) -> Iterator[Node]:
    """The layers of a loop's body that take a state, which takes the slices of the loop."""
    inside = set(subject.graph.downstream(node.output))
    for carry in subject.graph.named("loop_carry"):
        if carry.equation is not node.equation or carry.inputs[-1] not in inside:
            continue
        if len(carry.output.shape) < 2:
            continue
        for value in subject.graph.downstream(
            carry.output, lambda user, i: user.name not in (*PLAIN_PRODUCTS, "loop_stack")
        ):
            yield from (user for user, _ in value.users if user.name in PLAIN_PRODUCTS)


def _running(subject: Subject, learning: set[Value]) -> Iterator[Finding]:
    """A running sum of hidden features along the examples."""
    axes = subject.axes
    if not _has_partner(subject) or axes.is_sequence(subject.is_given):
        return
    for node in subject.graph.named("cumsum", "cumlogsumexp", "cumprod", "cummax", "cummin"):
        rows = axes.rows_of(node.inputs[0])
        is_wide = sum(size > 1 for size in node.output.shape) > 1
        if rows == (node.equation.params["axis"],) and is_wide and node.output in learning:
            yield mixed(
                subject,
                "warning",
                node,
                f"`{node.name}` runs along the axis of the examples.",
                "let it run along another axis.",
                node.output,
            )


_EXAMINATIONS = (
    _softmax,
    _attention,
    _torn,
    _summed,
    _convolution,
    _recurrence,
    _running,
    norms_over_examples,
    pooled_back,
)
