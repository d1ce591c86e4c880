"""Whether padding takes part in a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, is_number, source_of, uses_of

# Relative to the loss; rounding alone changes it by less.
_TOLERANCE = 1e-5
_LEFT = "padding_left"


def padding(subject: Subject) -> Iterator[Finding]:
    """A finding if the loss depends on what stands where a mask says that there is nothing."""
    masks = list(_masks(subject))
    for mask, is_there in masks:
        padded = [
            value
            for value in subject.data
            if value is not mask and _is_covered(subject, value, is_there)
        ]
        if not padded:
            continue
        loss = float(subject.loss_of(subject.traced.data))
        changes = {}
        for value in padded:
            other = float(subject.loss_of(_exchanged(subject, value, is_there)))
            if np.isfinite(loss) and abs(other - loss) > _TOLERANCE * max(abs(loss), abs(other)):
                changes[subject.name(value)] = other
        if changes:
            yield _finding(subject, mask, is_there, loss, changes)
            return
    if not masks:
        yield from _unnoticed(subject)


def _unnoticed(subject: Subject) -> Iterator[Finding]:
    """Padding that shows in the data alone, and that no mask speaks of.

    Whoever pads on purpose without a mask, as for a convolution, gives none; one that hides nothing
    is a mistake, and so is a mean or an attention over what is plainly padding.
    """
    for value in subject.data:
        is_there = _before_tails(subject.array(value)) if _can_be_mask(value) else None
        if is_there is None or _is_recognized(subject, value):
            continue
        same = [one for one in subject.data if one.shape == value.shape and _can_be_mask(one)]
        ones = [one for one in same if np.all(subject.array(one) == 1)]
        loss = float(subject.loss_of(subject.traced.data))
        other = float(subject.loss_of(_exchanged(subject, value, is_there)))
        if np.isfinite(loss) and abs(other - loss) > _TOLERANCE * max(abs(loss), abs(other)):
            yield _unmasked(subject, value, is_there, ones, (loss, other))
            return


def _unmasked(
    subject: Subject,
    value: Value,
    is_there: np.ndarray,
    ones: Sequence[Value],
    losses: tuple[float, float],
) -> Finding:
    array, name = subject.array(value), subject.name(value)
    pad = array[~is_there].ravel()[0]
    use = _use(subject, value) if _is_plain(array, pad) else None
    what, line = use or ("takes part", "")
    return Finding(
        "padding",
        "warning" if ones or use else "remark",
        f"the examples of {name} end in different numbers of {pad:g}, which looks like padding, "
        f"but {what}: other numbers there change the loss from {losses[0]:.4g} to {losses[1]:.4g}.",
        "pass a mask of what is no padding, and use it in means, attention and the loss.",
        place=place_of([name, *map(subject.name, ones)]),
        source=line,
        evidence={"loss": losses[0], "losses": {name: losses[1]}, "padding": float(pad)},
    )


def _is_plain(array: np.ndarray, pad: Any) -> bool:
    """Whether a number is one that padding usually consists of."""
    return bool(pad <= 0 or pad == np.max(array))


def _before_tails(array: np.ndarray) -> np.ndarray | None:
    """Where entries are, if rows end in a number that is nowhere else; None: they do not."""
    if array.ndim == 3 and array.dtype.kind == "f":
        is_there = np.any(array != 0, axis=-1)
        if not np.all(is_there[:, 0]):
            return None
    elif array.ndim == 2 and array.dtype.kind in "iu" and array.shape[1] >= 3:
        pads = np.unique(array[:, -1], return_counts=True)
        is_there = array != pads[0][np.argmax(pads[1])]
    else:
        return None
    lengths = np.sum(is_there, axis=1)
    is_tail = np.array_equal(is_there, np.arange(array.shape[1]) < lengths[:, None])
    is_common = np.mean(lengths <= array.shape[1] - 2) > 0.25
    return is_there if is_tail and is_common and len(np.unique(lengths)) > 2 else None


def _use(subject: Subject, value: Value) -> tuple[str, str] | None:
    """What is summed up over the padding of an argument: in words, and the line."""
    for softmax in subject.softmaxes:
        is_wide = len(softmax.logits.shape) > 2
        if is_wide and _is_along(subject, value, softmax.logits, softmax.axes):
            return "attention sees it", softmax.entry.line
    for node in _sums(subject, value):
        left = subject.measured.get(node, {}).get(_LEFT)
        if _is_mean(node, value.shape[1]) or (left is not None and np.max(left) > 0):
            return "takes part in a mean or a sum", node.line
    return None


def _is_along(subject: Subject, value: Value, array: Value, axes: Sequence[int]) -> bool:
    """Whether these axes of something that is made of an argument are that of its entries."""
    rows = subject.axes.rows_of(array)
    is_made_of_it = array.depends >> (value.argument or 0) & 1 and subject.is_trained(array)
    is_long = [array.shape[axis] for axis in axes] == [value.shape[1]]
    return bool(is_made_of_it and is_long and len(rows) == 1 and rows[0] not in axes)


def _sums(subject: Subject, value: Value) -> Iterator[Node]:
    """Where hidden features are summed up over the entries of an argument."""
    for node in subject.graph.named("reduce_sum"):
        source, axes = node.inputs[0], node.equation.params["axes"]
        if len(source.shape) > 2 and _is_along(subject, value, source, axes):
            (rows,) = subject.axes.rows_of(source)
            if axes[0] == rows + 1:
                yield node


def _is_mean(node: Node, length: int) -> bool:
    """Whether a sum is divided by the number of all entries, padding included."""
    return any(
        (user.name == "div" and i == 0 and is_number(user.inputs[1], length))
        or (user.name == "mul" and is_number(user.inputs[1 - i], 1 / length))
        for user, i in uses_of(node.output)
    )


def padding_requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for it: what padding without a mask adds to sums."""
    for value in subject.data:
        is_there = _before_tails(subject.array(value)) if _can_be_mask(value) else None
        if is_there is not None:
            for node in _sums(subject, value):
                (rows,) = subject.axes.rows_of(node.inputs[0])
                yield node, _left_of(is_there, rows)


def _left_of(is_there: np.ndarray, rows: int) -> Measure:
    """The largest number where padding is."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        array = jnp.abs(jnp.moveaxis(inputs[0], (rows, rows + 1), (0, 1)))
        is_padding = ~is_there.reshape(*is_there.shape, *(1,) * (array.ndim - 2))
        return {_LEFT: jnp.max(jnp.where(is_padding, array, 0), initial=0)}

    return measure


def _finding(
    subject: Subject, mask: Value, is_there: np.ndarray, loss: float, changes: dict[str, float]
) -> Finding:
    share = 1 - float(np.mean(is_there))
    name = subject.name(mask)
    most = max(changes, key=lambda one: abs(changes[one] - loss))
    return Finding(
        "padding",
        "warning",
        f"{share:.0%} of {' and '.join(changes)} is padding according to {name}, but takes part: "
        f"other numbers there change the loss from {loss:.4g} to {changes[most]:.4g}.",
        "leave it out of means, sums, attention and the loss: multiply by the mask, and divide by "
        "its sum.",
        place=place_of([*changes, name]),
        evidence={"loss": loss, "losses": changes, "share": share},
    )


def _masks(subject: Subject) -> Iterator[tuple[Value, np.ndarray]]:
    """The arguments that say where padding begins, and for each place if something is there."""
    for value in subject.data:
        if not _can_be_mask(value):
            continue
        array = subject.array(value)
        if array.ndim == 1 and array.dtype.kind in "iu":
            yield from ((value, one) for one in _from_lengths(subject, value, array))
        elif array.ndim >= 2 and np.isin(array, (0, 1)).all():
            is_there = array.reshape(-1, array.shape[-1]).astype(bool)
            is_tail = np.all(is_there[:, 1:] <= is_there[:, :-1])
            if is_tail and np.all(is_there[:, 0]) and not np.all(is_there):
                yield value, array.astype(bool)


def _can_be_mask(value: Value) -> bool:
    return bool(value.shape) and (
        jnp.issubdtype(value.dtype, jnp.number) or value.dtype == jnp.bool_
    )


def _from_lengths(subject: Subject, value: Value, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The mask that lengths stand for, if data is constant from there on."""
    for other in subject.data:
        if other is value or len(other.shape) < 2 or other.shape[0] != len(lengths):
            continue
        size = other.shape[1]
        if np.min(lengths) < 1 or np.max(lengths) > size or len(np.unique(lengths)) < 2:
            continue
        is_there = np.arange(size) < lengths[:, None]
        array = np.asarray(subject.array(other))
        rest, last = array[~is_there], array[np.arange(len(lengths)), lengths - 1]
        if np.all(rest == rest[:1]) and np.mean(np.all(last == rest[:1], -1)) < 0.5:
            yield is_there
            return


def _is_covered(subject: Subject, value: Value, is_there: np.ndarray) -> bool:
    """Whether a mask belongs to an argument, in whose padding there is nothing.

    Lengths that differ can only be those of examples; if they do not, the padding is constant.
    """
    if value.shape[: is_there.ndim] != is_there.shape or not value.size:
        return False
    if not _can_be_mask(value) or _is_recognized(subject, value):
        return False
    array = subject.array(value)
    if np.isin(array, (0, 1)).all():
        return False
    rest, lengths = array[~is_there], np.sum(is_there, -1)
    return bool(np.min(lengths) < np.max(lengths) or np.all(rest == rest[:1]))


def _is_recognized(subject: Subject, value: Value) -> bool:
    """Whether the loss finds out by itself where an argument has a certain number."""
    crossed = VIEWS | {"slice", "dynamic_slice", "concatenate", "pad"}
    for one in subject.graph.downstream(value, lambda node, i: node.name in crossed):
        for node, i in one.users:
            if node.name in ("eq", "ne", "gt", "ge") and source_of(node.inputs[1 - i]).size == 1:
                return True
    return False


def _exchanged(subject: Subject, value: Value, is_there: np.ndarray) -> list[Any]:
    """The data with entries of other places in the padding of an argument."""
    array = np.array(subject.array(value))
    entries = array[is_there]
    array[~is_there] = entries[np.arange(np.sum(~is_there)) % len(entries)]
    return subject.data_with(value, array)


def tail_of_mask(subject: Subject, masks: Sequence[str]) -> str:
    """The argument with sequences that end with padding, to which a mask of ones belongs."""
    shapes = [
        value.shape
        for value in subject.data
        if subject.name(value) in masks and np.all(subject.array(value) == 1)
    ]
    for value in subject.data:
        is_covered = value.shape in shapes and subject.name(value) not in masks
        if is_covered and _before_tails(subject.array(value)) is not None:
            return subject.name(value)
    return ""
