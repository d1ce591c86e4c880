"""How often each class occurs among the labels of a batch, and in a network's answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of
from gradtx.diagnostics.tracing.primitives import PRODUCTS
from gradtx.diagnostics.tracing.targets import BinaryCrossEntropy, CrossEntropy, OneHot, one_hots

_AFTER_LOGITS = VIEWS | {"add", "sub", "mul", "div", "select_n", "max", "min", "clamp", "tanh"}


@dataclass
class Marginal:
    """The classes of a batch.

    Attributes:
        counts: how many labels each class has.
        mean: the probability that the network gives to each class, averaged over the batch.
        names: the arguments that hold the labels.
        source: the line of the loss.
        is_per_example: whether an example has one label.
        is_weighted: whether the loss weights its terms.
    """

    counts: np.ndarray
    mean: np.ndarray
    names: list[str]
    source: str
    is_per_example: bool
    is_weighted: bool

    @property
    def distance(self) -> float:
        """The Kullback-Leibler divergence of the network's answers from the labels, in nats."""
        shares = self.counts / self.counts.sum()
        present = shares > 0
        mean = np.maximum(self.mean[present], 1e-12)
        return float(np.sum(shares[present] * np.log(shares[present] / mean)))


def requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for `marginals`."""
    for one in _given(subject):
        if isinstance(one, BinaryCrossEntropy):
            yield one.node, _binary_counts(one)
            node = maker_of(one.logits)
            if one.logits is not None and node is not None:
                yield node, _binary_mean(node.outputs.index(one.logits))
            continue
        axes = one.softmax.axes
        yield one.softmax.entry, _mean(axes)
        node, measure = _counts(subject, one)
        if measure is not None:
            yield node, measure


def marginals(subject: Subject) -> Iterator[Marginal]:
    """The classes of each cross-entropy whose labels come from the batch, and from a head."""
    for one in _given(subject):
        is_binary = isinstance(one, BinaryCrossEntropy)
        if is_binary:
            counted = subject.measured.get(one.node, {})
            node = maker_of(one.logits)
            at_logits = subject.measured.get(node, {}) if node is not None else {}
        else:
            counted = subject.measured.get(_counts(subject, one)[0], {})
            at_logits = subject.measured.get(one.softmax.entry, {})
        if "labels/counts" not in counted or "labels/mean" not in at_logits:
            continue
        counts, mean = (
            np.asarray(array, np.float64).reshape(-1, array.shape[-1])
            for array in (counted["labels/counts"], at_logits["labels/mean"])
        )
        counts, mean = counts.sum(0), mean.mean(0)
        if not np.all(np.isfinite(counts)):
            continue
        if is_binary and abs(mean[0] * counts.sum() - counts[0]) > abs(
            mean[1] * counts.sum() - counts[0]
        ):
            # The sign of the logits is not known: the one that fits better.
            mean = mean[::-1]
        labels = _labels(one)
        yield Marginal(
            counts,
            mean,
            [subject.name(d) for d in subject.data if labels.depends >> (d.argument or 0) & 1],
            one.node.line,
            counts.sum() == subject.examples,
            _is_weighted(subject, one),
        )


def _given(subject: Subject) -> list[Any]:
    everything = [*subject.cross_entropies, *subject.binary_cross_entropies]
    return [
        one
        for one in everything
        if subject.is_given(_labels(one)) and has_head(subject, _logits(one))
    ]


def _labels(one: Any) -> Value:
    if isinstance(one, BinaryCrossEntropy):
        return one.targets
    return one.labels if one.labels is not None else one.targets


def _logits(one: Any) -> Value | None:
    return one.logits if isinstance(one, BinaryCrossEntropy) else one.softmax.logits


def has_head(subject: Subject, logits: Value | None) -> bool:
    """Whether logits come from a layer, rather than from comparing examples."""
    return head_of(subject, logits) is not None


def head_of(subject: Subject, logits: Value | None) -> Node | None:
    """The layer that logits come from; None: they come from comparing examples."""
    if logits is None:
        return None
    for value in subject.graph.upstream(logits, lambda node, i: node.name in _AFTER_LOGITS):
        node = value.producer
        if node is not None and node.name in PRODUCTS:
            return node if weight_of(subject, node) is not None else None
    return None


def names_of_head(subject: Subject, logits: Value | None) -> list[str]:
    """The weights of the layer that logits come from."""
    node = head_of(subject, logits)
    weight = weight_of(subject, node) if node is not None else None
    if node is None or weight is None:
        return []
    return [subject.name(one) for one in subject.trained_arguments_of(node.inputs[weight])]


def weight_of(subject: Subject, node: Node) -> int | None:
    """Which input of a product depends on parameters only; None: no single one."""
    if node.name not in PRODUCTS:
        return None
    weights = [subject.is_trained(one) and not subject.is_given(one) for one in node.inputs[:2]]
    return weights.index(True) if weights.count(True) == 1 else None


def is_in_loss(subject: Subject, value: Value) -> bool:
    """Whether a value goes into the loss, and into no further layer."""
    return not any(
        weight_of(subject, node) is not None
        for after in subject.graph.downstream(value)
        for node, _ in after.users
    )


def _is_weighted(subject: Subject, one: Any) -> bool:
    """Whether the terms of a loss are multiplied by weights that come from the batch."""
    after = subject.graph.downstream(one.node.output)
    targets = _labels(one)
    for value in after:
        for node, i in value.users:
            if node.name not in ("mul", "dot_general", "select_n") or len(node.inputs) < 2:
                continue
            others = [v for j, v in enumerate(node.inputs) if j != i]
            if any(
                v.size > 1
                and v.depends
                and not subject.is_trained(v)
                and source_of(v) is not source_of(targets)
                and not isinstance(one, BinaryCrossEntropy)
                for v in others
            ):
                return True
    return False


def maker_of(value: Value | None) -> Node | None:
    """The operation that makes a value, if it can be measured."""
    node = value.producer if value is not None else None
    return node if node is not None and node.name == node.equation.primitive.name else None


# The measurements.


def _mean(axes: tuple[int, ...]) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        shares = jax.nn.softmax(inputs[0].astype(jnp.float32), axes)
        others = tuple(axis for axis in range(shares.ndim) if axis not in axes)
        return {"labels/mean": jnp.mean(shares, others).reshape(-1)}

    return measure


def _counts(subject: Subject, one: CrossEntropy) -> tuple[Node, Measure | None]:
    """Where the labels are counted, and how; None: they are not of a form that can be counted."""
    number = one.softmax.number
    if one.targets is None:
        component = _component(one)

        def of_gather(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
            del results
            return {"labels/counts": _histogram(inputs[1][..., component], number)}

        return one.node, of_gather
    for code in one_hots(subject.graph):
        if one.labels is code.labels and code.classes == number:
            return code.node, _counts_of(code)
    position = next(i for i, value in enumerate(one.node.inputs) if value is one.targets)
    axes = one.softmax.axes
    if one.targets.shape != one.softmax.logits.shape or one.node.name != "mul":
        return one.node, None

    def of_targets(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        others = tuple(axis for axis in range(inputs[position].ndim) if axis not in axes)
        sums = jnp.sum(inputs[position].astype(jnp.float32), others)
        return {"labels/counts": sums.reshape(-1)}

    return one.node, of_targets


def _counts_of(code: OneHot) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        return {"labels/counts": _histogram(inputs[code.position], code.classes)}

    return measure


def _component(one: CrossEntropy) -> int:
    """Which component of the indices counts the classes."""
    axes = one.node.equation.params["dimension_numbers"].start_index_map
    sizes = [one.node.inputs[0].shape[axis] for axis in axes]
    return max(i for i, size in enumerate(sizes) if size == one.softmax.number or i == 0)


def _histogram(labels: Any, number: int) -> Any:
    labels = labels.reshape(-1).astype(jnp.int32)
    is_inside = (labels >= 0) & (labels < number)
    zeros = jnp.zeros(number, jnp.float32)
    return zeros.at[jnp.where(is_inside, labels, 0)].add(is_inside.astype(jnp.float32))


def _binary_counts(one: BinaryCrossEntropy) -> Measure:
    position = next(i for i, value in enumerate(one.node.inputs) if value is one.targets)

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        targets = inputs[position].astype(jnp.float32)
        is_share = jnp.all((targets >= 0) & (targets <= 1))
        ones = jnp.where(is_share, jnp.sum(targets), jnp.nan)
        return {"labels/counts": jnp.stack([targets.size - ones, ones])}

    return measure


def _binary_mean(position: int) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del inputs
        share = jnp.mean(jax.nn.sigmoid(results[position].astype(jnp.float32)))
        return {"labels/mean": jnp.stack([1 - share, share])}

    return measure
