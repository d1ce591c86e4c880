"""Softmaxes that are taken over another axis than the one along which something has to add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import Softmax, uses_of
from gradtx.diagnostics.tracing.targets import CrossEntropy

# By how much the sums of targets along the axis of the classes may differ from one.
_TOLERANCE = 1e-3


def wrong_axes(subject: Subject) -> Iterator[Finding]:
    """The findings on axes of softmaxes."""
    for entropy in subject.cross_entropies:
        yield from _class_axis(subject, entropy)
    for softmax in subject.softmaxes:
        yield from _single(subject, softmax)
        yield from _attention_axis(subject, softmax)
    yield from _heads(subject)


def sums_of_targets(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for them."""
    for entropy in subject.cross_entropies:
        if entropy.targets is not None:
            yield entropy.node, _sums_of(entropy.node.inputs.index(entropy.targets))


def is_feature(subject: Subject, value: Value, axis: int) -> bool:
    """Whether an axis counts the outputs of a layer."""
    while value.producer is not None:
        node = value.producer
        if node.name == "dot_general":
            contracted, batch = node.equation.params["dimension_numbers"]
            first = len(node.inputs[0].shape) - len(contracted[0])
            weight = node.inputs[axis >= first]
            return (
                axis >= len(batch[0])
                and subject.is_trained(weight)
                and not subject.is_given(weight)
            )
        if node.name not in primitives.ELEMENTWISE:
            return False
        sources = [one for one in node.inputs if len(one.shape) > axis and subject.is_given(one)]
        if len(sources) != 1 or sources[0].shape != value.shape:
            return False
        value = sources[0]
    return False


def _sums_of(position: int) -> Measure:
    """How far the sums of an input along each of its axes are from one, at most."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        targets = jnp.asarray(inputs[position], jnp.float32)
        return {
            f"shapes_sum_{axis}": jnp.max(jnp.abs(jnp.sum(targets, axis) - 1), initial=0)
            for axis in range(targets.ndim)
        }

    return measure


def _class_axis(subject: Subject, entropy: CrossEntropy) -> Iterator[Finding]:
    """A softmax that normalizes along another axis than that of the classes."""
    softmax, node = entropy.softmax, entropy.node
    rank = len(softmax.logits.shape)
    if len(softmax.axes) != 1:
        return
    if node.name == "gather":
        numbers = node.equation.params["dimension_numbers"]
        rows = subject.axes.rows_of(softmax.logits)
        classes = [axis for axis in numbers.start_index_map if axis not in rows]
        if len(node.inputs[0].shape) != rank:
            return
    elif entropy.targets is not None and len(entropy.targets.shape) == rank:
        measured = subject.measured.get(node, {})
        off = [float(np.max(measured.get(f"shapes_sum_{axis}", 1.0))) for axis in range(rank)]
        classes = [axis for axis in range(rank) if off[axis] < _TOLERANCE]
    else:
        return
    if len(classes) != 1 or classes[0] == softmax.axes[0]:
        return
    yield Finding(
        "wrong_axis",
        "error",
        f"the softmax is taken over axis {softmax.axes[0]} of the logits of shape "
        f"{softmax.logits.shape}, but the classes are along axis {classes[0]}.",
        f"take it over the axis of the classes: axis={classes[0]}, or -1 if that is the last one.",
        source=softmax.entry.line,
        evidence={
            "axis": softmax.axes[0],
            "class_axis": classes[0],
            "shape": list(softmax.logits.shape),
        },
    )


def _single(subject: Subject, softmax: Softmax) -> Iterator[Finding]:
    """A softmax of a single output."""
    logits = softmax.logits
    if softmax.number != 1 or len(softmax.axes) != 1 or not subject.is_trained(logits):
        return
    if is_feature(subject, logits, softmax.axes[0]):
        yield Finding(
            "wrong_axis",
            "error",
            f"the softmax over axis {softmax.axes[0]} of the logits of shape {logits.shape} is "
            "taken of a single number: it is 1, whatever the number.",
            "use a sigmoid for one output, or give the layer an output for each class.",
            source=softmax.entry.line,
            evidence={"axis": softmax.axes[0], "shape": list(logits.shape)},
        )


def _attention_axis(subject: Subject, softmax: Softmax) -> Iterator[Finding]:
    """Weights of attention that are summed over another axis than they are normalized along."""
    if softmax.probabilities is None or not _are_scores(subject, softmax.logits):
        return
    for node, i in uses_of(softmax.probabilities, frozenset({"convert_element_type", "copy"})):
        if node.name != "dot_general" or len(softmax.axes) != 1:
            continue
        if node.inputs[i].shape != softmax.probabilities.shape:
            continue
        contracted = node.equation.params["dimension_numbers"][0][i]
        values = node.inputs[1 - i]
        if not subject.is_given(values) or set(contracted) & set(softmax.axes):
            continue
        yield Finding(
            "wrong_axis",
            "error",
            f"the weights of attention, of shape {softmax.logits.shape}, are normalized along axis "
            f"{softmax.axes[0]}, but the values are summed over axis {contracted[0]}.",
            f"take the softmax over axis {contracted[0]}, that of the keys.",
            source=softmax.entry.line,
            evidence={"axis": softmax.axes[0], "key_axis": int(contracted[0])},
        )
        return


def _are_scores(subject: Subject, value: Value) -> bool:
    """Whether an array consists of products of queries and keys that are both made of data."""
    crossed = primitives.ELEMENTWISE | {"broadcast_in_dim"}
    for one in subject.graph.upstream(value, lambda node, i: node.name in crossed):
        node = one.producer
        if node is not None and node.name == "dot_general" and one.shape == value.shape:
            return _is_of_data(subject, node)
    return False


def _heads(subject: Subject) -> Iterator[Finding]:
    """A reshape from (time, features) to (heads, time, features), without a transposition."""
    crossed = primitives.ELEMENTWISE | primitives.REARRANGING
    for node in subject.graph.named("reshape"):
        before, after = node.inputs[0].shape, node.output.shape
        if len(after) != len(before) + 1 or len(before) < 2 or after[:-3] != before[:-2]:
            continue
        (time, width), (heads, length, features) = before[-2:], after[-3:]
        if time != length or heads * features != width or heads in (1, time) or features == 1:
            continue
        if time == 1 or not subject.is_trained(node.output) or not subject.is_given(node.output):
            continue
        after_it = subject.graph.downstream(node.output, lambda user, i: user.name in crossed)
        users = (user for value in after_it for user, _ in value.users)
        if any(user.name == "dot_general" and _is_of_data(subject, user) for user in users):
            yield Finding(
                "wrong_axis",
                "error",
                f"the reshape from {before} to {after} does not split the features into heads: it "
                "deals the steps out to the heads.",
                f"reshape to {(*before[:-1], heads, features)}, and swap the axes of the heads and "
                "of time.",
                source=node.line,
                evidence={"shape": list(before), "result": list(after)},
            )
            return


def _is_of_data(subject: Subject, node: Node) -> bool:
    return all(map(subject.is_given, node.inputs))
