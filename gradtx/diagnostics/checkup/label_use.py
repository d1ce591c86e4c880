"""Labels that enter a loss in another way than it is made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.entries import inputs_of
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.marginals import has_head, is_in_loss, maker_of
from gradtx.diagnostics.checkup.ranges import differences, range_of
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of, uses_of
from gradtx.diagnostics.tracing.targets import CrossEntropy

# How far a one and a zero may be from it for safety, before the logarithm is taken.
_SAFETY = 1e-3
# Operations between the logarithm of the labels and the predictions.
_AFTER_LOGARITHM = VIEWS | {"neg", "max", "min", "clamp", "select_n", "add"}
# The share of rows with several ones that is not a mistake in the data.
_FEW = 0.05
# Numbers of classes that a batch shows to be equally frequent.
_FEWEST_CLASSES, _MOST_CLASSES, _EACH = 3, 20, 3


def requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for `findings`."""
    for one in _logarithms(subject):
        node = maker_of(one.labels)
        if node is not None:
            yield node, _extremes(node.outputs.index(one.labels))
    for entropy, position in _weighted_sums(subject):
        yield entropy.node, _ones(position, entropy.softmax.axes)


def findings(subject: Subject) -> Iterator[Finding]:
    """Labels and predictions that are swapped, several labels at once, and labels as numbers."""
    yield from _swapped(subject)
    for entropy, _ in _weighted_sums(subject):
        yield from _several(subject, entropy)
    yield from _as_numbers(subject)


def _names(subject: Subject, value: Value) -> list[str]:
    return [subject.name(d) for d in subject.data if value.depends >> (d.argument or 0) & 1]


# Predictions and labels that are swapped.


@dataclass(frozen=True, eq=False)
class _Logarithm:
    """A logarithm that is taken of labels, where it meets predictions.

    Attributes:
        labels: what it is taken of; for a log-softmax or a softplus, in place of logits.
        node: where it is multiplied by predictions.
    """

    labels: Value
    node: Node


def _logarithms(subject: Subject) -> Iterator[_Logarithm]:
    of_labels = [(node.inputs[0], node.output) for node in subject.graph.named("log")]
    of_labels += [
        (one.logits, one.log_probabilities)
        for one in subject.softmaxes
        if one.log_probabilities is not None
    ]
    of_labels += [(one.logits, one.node.output) for one in subject.sigmoids if one.is_logarithm]
    for labels, logarithm in of_labels:
        if subject.is_trained(labels) or not subject.is_given(labels):
            continue
        for node, i in uses_of(logarithm, _AFTER_LOGARITHM):
            is_met = node.name in ("mul", "dot_general") and _is_prediction(
                subject, node.inputs[1 - i]
            )
            if is_met and is_in_loss(subject, node.output):
                yield _Logarithm(source_of(labels), node)
                break


def _is_prediction(subject: Subject, value: Value) -> bool:
    return subject.is_trained(value) and subject.is_given(value)


def _extremes(position: int) -> Measure:
    """The share of zeros among numbers that are zero or one, up to what is added for safety."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del inputs
        numbers = results[position].astype(jnp.float32)
        is_zero, is_one = jnp.abs(numbers) < _SAFETY, jnp.abs(numbers - 1) < _SAFETY
        is_hard = jnp.all(is_zero | is_one)
        return {"labels/zeros": jnp.where(is_hard, jnp.mean(is_zero.astype(jnp.float32)), 0.0)}

    return measure


def _share_of_zeros(subject: Subject, labels: Value) -> float:
    if labels.argument is not None:
        array = subject.array(labels)
        is_hard = np.isin(array, (0, 1)).all()
        return float(np.mean(array == 0)) if is_hard and array.size else 0.0
    node = maker_of(labels)
    measured = subject.measured.get(node, {}) if node is not None else {}
    return float(np.mean(measured.get("labels/zeros", 0.0)))


def _swapped(subject: Subject) -> Iterator[Finding]:
    entropies = [*subject.cross_entropies, *subject.binary_cross_entropies]
    # A symmetric cross-entropy has both directions.
    right = {(one.targets or one.labels).depends for one in entropies if one.targets or one.labels}
    seen = set()
    for one in _logarithms(subject):
        share = _share_of_zeros(subject, one.labels)
        names = _names(subject, one.labels)
        if not 0 < share < 1 or one.labels.depends in right or tuple(names) in seen:
            continue
        seen.add(tuple(names))
        yield Finding(
            "swapped_arguments",
            "error",
            f"the logarithm in the cross-entropy is taken of the labels in {' and '.join(names)}, "
            "and multiplied by the network's outputs: predictions and labels are swapped.",
            "swap the arguments: the logarithm belongs to the predictions, -sum(labels * log(p)).",
            place=place_of(names),
            source=one.node.line,
            evidence={"zeros": share},
        )


# Several labels at once.


def _weighted_sums(subject: Subject) -> Iterator[tuple[CrossEntropy, int]]:
    """The cross-entropies of a head with an array of targets, and where it enters."""
    read = sum(1 << (value.argument or 0) for value in inputs_of(subject))
    for entropy in subject.cross_entropies:
        targets, logits = entropy.targets, entropy.softmax.logits
        if targets is None or targets.shape != logits.shape or not has_head(subject, logits):
            continue
        # Words of a document are counted, and predicted from themselves, by a softmax on purpose.
        if subject.is_given(targets) and not targets.depends & read:
            yield entropy, entropy.node.inputs.index(targets)


def _ones(position: int, axes: Sequence[int]) -> Measure:
    """How many ones a row of zeros and ones has."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        targets = inputs[position].astype(jnp.float32)
        is_hard = jnp.all((targets == 0) | (targets == 1))
        ones = jnp.where(is_hard, jnp.sum(targets, tuple(axes)), 0.0)
        others = (i for i in range(targets.ndim) if i not in axes)
        # Along another axis there may be a single one: then the softmax is over the wrong one.
        elsewhere = [jnp.max(jnp.sum(targets, i)) for i in others]
        return {
            "labels/several": jnp.mean((ones > 1).astype(jnp.float32)),
            "labels/most": jnp.max(ones),
            "labels/elsewhere": jnp.min(jnp.stack([*elsewhere, jnp.float32(jnp.inf)])),
        }

    return measure


def _several(subject: Subject, entropy: CrossEntropy) -> Iterator[Finding]:
    measured = subject.measured.get(entropy.node, {})
    if "labels/several" not in measured or entropy.targets is None:
        return
    share, most = float(np.mean(measured["labels/several"])), int(np.max(measured["labels/most"]))
    if share <= _FEW or np.max(measured["labels/elsewhere"]) <= 1:
        return
    names = _names(subject, entropy.targets)
    yield Finding(
        "several_labels",
        "warning",
        f"{100 * share:.0f}% of the rows of targets in {' and '.join(names)} have more than one 1, "
        f"up to {most}, but the classes of a softmax exclude each other: its probabilities add up "
        "to 1.",
        "use a sigmoid and a binary cross-entropy for each class, or divide each row by its sum.",
        place=place_of(names),
        source=entropy.node.line,
        evidence={"share": share, "most": most},
    )


# Numbers of classes as targets of a regression.


def _as_numbers(subject: Subject) -> Iterator[Finding]:
    read = inputs_of(subject)
    seen = set()
    for one in differences(subject):
        target = source_of(one.node.inputs[one.target])
        if target.argument is None or target in read or target in seen:
            continue
        seen.add(target)
        number = _classes(subject.array(target))
        # Where the outputs cannot reach the targets, that is found elsewhere.
        is_bounded = range_of(subject, one.node.inputs[one.prediction]).is_bounded
        if number is None or is_bounded:
            continue
        yield Finding(
            "class_as_number",
            "warning",
            f"the targets in {subject.name(target)} are the numbers 0 to {number - 1}, each about "
            "equally often, as the numbers of classes are, and the loss measures how far an output "
            "is from them: class 1 counts as a mixture of the classes 0 and 2.",
            f"for classes, give the head {number} outputs and use a cross-entropy; if the numbers "
            "are quantities, this is as it should be.",
            place=subject.name(target),
            source=one.node.line,
            evidence={"classes": number},
        )


def _classes(array: np.ndarray) -> int | None:
    """How many classes an array has the numbers of; None: they seem to be something else.

    Counts and grades of something have a shape: few are extreme. The numbers of classes are about
    equally frequent, as Pearson's test says: its sum of squares has the mean K - 1 then, and the
    variance 2 (K - 1).
    """
    numbers, counts = np.unique(array.astype(np.float64), return_counts=True)
    classes = len(numbers)
    if not _FEWEST_CLASSES <= classes <= _MOST_CLASSES or array.size < _EACH * classes:
        return None
    if not np.array_equal(numbers, np.arange(classes)):
        return None
    expected = array.size / classes
    statistic = float(np.sum((counts - expected) ** 2)) / expected
    return classes if statistic < classes - 1 + np.sqrt(2 * (classes - 1)) else None
