"""Whether attention sees what is to be predicted, and whether sequences end with padding."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.lookups import Lookup, lookups
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node
from gradtx.diagnostics.tracing.observe import Measure

# Longer arrays of tokens are compared in part.
_MOST = 1 << 16
_SAME = 0.99
# Of shifted tokens, few are the same by chance.
_DIFFERENT = 0.8


def _sequences(subject: Subject) -> list[Lookup]:
    """The uses of arrays of indices, one number for each place of several sequences."""
    return [
        one
        for one in lookups(subject)
        if one.node.name in ("gather", "eq") and len(one.sizes) == 1 and one.indices.depends
    ]


def _shape(lookup: Lookup) -> tuple[int, ...]:
    shape = lookup.indices.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for `findings`."""
    for one in _sequences(subject):
        position = next(i for i, value in enumerate(one.node.inputs) if value is one.indices)
        yield one.node, functools.partial(_numbers, position)


def _numbers(position: int, inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
    del results
    return {"futures/numbers": inputs[position].reshape(-1)[:_MOST]}


def _read(subject: Subject, lookup: Lookup) -> np.ndarray | None:
    numbers = subject.measured.get(lookup.node, {}).get("futures/numbers")
    shape = _shape(lookup)
    if numbers is None or len(shape) < 2 or numbers.ndim != 1:
        return None
    length = shape[-1]
    return numbers[: len(numbers) // length * length].reshape(-1, length)


def _predicted(subject: Subject) -> Iterator[tuple[Lookup, Lookup]]:
    """Pairs of tokens that are read and labels that are the tokens after them."""
    goals = {id(one.node) for one in subject.cross_entropies}
    goals |= {id(one.labels) for one in subject.cross_entropies if one.labels is not None}
    sequences = [(one, _read(subject, one)) for one in _sequences(subject)]
    for tokens, read in sequences:
        if read is None or tokens.table is None or not subject.is_trained(tokens.table):
            continue
        if id(tokens.node) in goals:
            continue
        for labels, wanted in sequences:
            if wanted is None or wanted.shape != read.shape or read.shape[1] < 3:
                continue
            is_goal = id(labels.node) in goals or labels.table is None
            if not is_goal or np.mean(read == wanted) > _DIFFERENT:
                continue
            if np.mean(read[:, 1:] == wanted[:, :-1]) > _SAME:
                yield tokens, labels


def findings(subject: Subject) -> Iterator[Finding]:
    """Attention that sees the tokens that are to be predicted."""
    for tokens, labels in _predicted(subject):
        # An encoder may see all of its own tokens, also if they are the same argument.
        after = set(subject.graph.downstream(tokens.node.output))
        for one in subject.attentions:
            measured = subject.measured.get(one.softmax.entry, {})
            later = measured.get("attention/later")
            sees = [value in after for value in one.scores.inputs]
            is_self = all(sees) and one.softmax.logits.shape[one.axis] == _shape(tokens)[-1]
            if later is None or not is_self or np.max(later) == 0:
                continue
            names = list(dict.fromkeys([*tokens.names(subject), *labels.names(subject)]))
            yield Finding(
                "future_leak",
                "error",
                "the labels are the tokens one place later, but attention sees "
                f"{100 * float(np.max(later)):.0f}% of what comes later: the answer can be copied.",
                "hide later keys with a causal mask: a query sees itself and what is before it.",
                place=place_of(names),
                source=one.softmax.entry.line or one.scores.line,
                evidence={"later": float(np.max(later))},
            )
            return


def padded(subject: Subject, masks: Sequence[str]) -> str:
    """The argument with sequences that end with padding, to which a mask of ones belongs.

    Padding is a number that stands only at the ends of sequences, of several lengths.
    """
    shapes = [
        value.shape
        for value in subject.data
        if subject.name(value) in masks and np.all(subject.array(value) == 1)
    ]
    for value in subject.data:
        array = subject.array(value)
        if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape not in shapes:
            continue
        if subject.name(value) in masks:
            continue
        is_last = array == np.bincount(array[:, -1] - array.min()).argmax() + array.min()
        ends = np.cumprod(is_last[:, ::-1], 1).sum(1)
        is_only_there = ends.sum() == is_last.sum()
        if is_only_there and np.sum(ends > 1) >= 2 and len(np.unique(ends)) > 1:
            return subject.name(value)
    return ""
