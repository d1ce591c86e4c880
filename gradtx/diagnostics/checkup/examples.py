"""`check_examples`: whether each example of a batch has a loss of its own, and all count alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.contrast import self_similarity
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.future import future_leak, sums_of_logits
from gradtx.diagnostics.checkup.mixing import mixed_examples
from gradtx.diagnostics.checkup.padding import padding, padding_requests
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, subject_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of

_LINEAR = VIEWS | {"neg", "add_any", "reduce_sum"}
# A factor of one over the number of examples may be a little off, in half precision.
_LEEWAY = 1.01


def check_examples(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Find examples that get into the predictions of others, and a loss that grows with the batch.

    The kinds of findings: "mixed_examples" (a softmax, an attention, a norm, a reshape, a
    convolution or a recurrence goes over the axis of the examples, or what is pooled over it goes
    back into each of them), "sum_over_examples" (the loss is a sum over the batch, not a mean),
    "padding" (what stands where a mask is zero changes the loss, or padding that no mask speaks of
    takes part in a mean or an attention), "future_leak" (the predictions of the next entry of a
    sequence depend on it) and "self_similarity" (the softmax of a contrastive loss contains the
    similarity of each example with itself).

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, or `params` has
            no inexact arrays.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x, y):
        ...     return -jnp.sum(y * jax.nn.log_softmax(x @ params, axis=0))
        >>> x, y = jnp.ones((8, 3)), jnp.eye(8, 4)
        >>> for finding in diagnostics.check_examples(loss_fn, jnp.ones((3, 4)), x, y):
        ...     print(finding.severity, finding.kind)
        error mixed_examples
        warning sum_over_examples
    """
    subject = subject_of("check_examples", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, EXAMPLES))


def _findings(subject: Subject) -> Iterator[Finding]:
    yield from mixed_examples(subject)
    yield from _sum_over_examples(subject)
    yield from padding(subject)
    yield from future_leak(subject)
    yield from self_similarity(subject)


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    yield from sums_of_logits(subject)
    yield from padding_requests(subject)


EXAMPLES = Examination(_findings, _requests)


# A loss that is a sum over the batch.


def _sum_over_examples(subject: Subject) -> Iterator[Finding]:
    axes = subject.axes
    if axes.number < 2 or axes.is_sequence(subject.is_given) or _has_shares(subject):
        return
    for node, factors in _sums(subject, subject.graph.output, ()):
        if not _is_mean(subject, node, factors):
            factor = float(np.prod(factors))
            yield Finding(
                "sum_over_examples",
                "warning",
                f"the loss adds up the {axes.number:,} examples of the batch instead of averaging "
                "them, so that the gradient, and a step, grow with the batch.",
                "take the mean over the examples.",
                source=node.line,
                evidence={"examples": axes.number, "factor": factor},
            )
            return


def _sums(
    subject: Subject, value: Value, factors: tuple[float, ...]
) -> Iterator[tuple[Node, tuple[float, ...]]]:
    """The sums over examples that the loss consists of, with the factors after them."""
    node = value.producer
    if node is None or not subject.is_trained(value) or not subject.is_given(value):
        return
    if _adds_examples(subject, node):
        yield node, factors
    elif node.name in ("add", "sub"):
        for one in node.inputs:
            yield from _sums(subject, one, factors)
    elif node.name in ("mul", "div"):
        for i, one in enumerate(node.inputs[: 2 if node.name == "mul" else 1]):
            other = node.inputs[1 - i]
            number = _number(other)
            if number is not None:
                factor = 1 / number if node.name == "div" else number
                yield from _sums(subject, one, (*factors, factor))
            elif not subject.is_given(other):
                yield from _sums(subject, one, factors)
    elif node.name in _LINEAR:
        yield from _sums(subject, node.inputs[0], factors)


def _adds_examples(subject: Subject, node: Node) -> bool:
    """Whether an operation sums over the axis of the examples, or is the sum in a loop."""
    axes = subject.axes
    if node.name == "loop_carry":
        is_over_rows = axes.is_rows(axes.signs.scanned.get(id(node.equation), ()))
        last = node.inputs[-1].producer
        added = last.inputs if last is not None and last.name == "add" else []
        is_sum = node.output in map(source_of, added)
        return is_over_rows and is_sum and not node.output.shape
    if node.name == "reduce_sum":
        rows = axes.rows_of(node.inputs[0])
        return len(rows) == 1 and rows[0] in node.equation.params["axes"]
    if node.name == "dot_general" and not node.output.shape:
        contracted = node.equation.params["dimension_numbers"][0]
        return all(
            set(axes.rows_of(value)) & set(along)
            for value, along in zip(node.inputs, contracted, strict=True)
        )
    return False


def _number(value: Value) -> float | None:
    """The number that an array consists of; None: it is not constant."""
    constant = source_of(value).constant
    if constant is None or np.size(constant) != 1 or float(np.ravel(constant)[0]) == 0:
        return None
    return float(np.ravel(constant)[0])


def _is_mean(subject: Subject, node: Node, factors: tuple[float, ...]) -> bool:
    """Whether a sum over examples is divided by their number, or by something that can be meant."""
    numbers = [*factors, *_factors_before(subject, node.inputs[0])]
    seconds = [v.shape[1] for v in subject.data if len(v.shape) > 1 and v.shape[1] > 1]
    # Data may have time on the first axis, and the examples on the second one.
    is_shared = len(seconds) > 1 and len(set(seconds)) == 1
    return any(
        abs(number) <= _LEEWAY / subject.axes.number
        or (is_shared and abs(number * seconds[0] - 1) < 1e-3)
        for number in numbers
    )


def _factors_before(subject: Subject, value: Value) -> Iterator[float]:
    """The constant factors inside of a sum, and one over the counts by which it is divided."""
    crossed = _LINEAR | {"mul", "div", "add", "sub"}
    for one in subject.graph.upstream(value, lambda node, i: node.name in crossed):
        node = one.producer
        if node is None or node.name not in ("mul", "div"):
            continue
        for i, other in enumerate(node.inputs):
            number = _number(other)
            if number is not None and (node.name == "mul" or i == 1):
                yield 1 / number if node.name == "div" else number
            elif node.name == "div" and i == 1 and not subject.is_trained(other):
                yield 0.0


def _has_shares(subject: Subject) -> bool:
    """Whether an array of the data gives each example its share of the loss."""
    for value in subject.data:
        is_column = value.shape[:1] == (subject.axes.number,) and value.size == subject.axes.number
        if is_column and jnp.issubdtype(value.dtype, jnp.floating):
            array = np.asarray(subject.array(value), np.float64)
            if np.min(array) >= 0 and abs(np.sum(array) - 1) < 1e-3:
                return True
    return False
