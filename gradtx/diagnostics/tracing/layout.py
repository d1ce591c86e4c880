"""What the axes of an array count: the examples of a batch, copies, or something else.

An axis is a number whose digits count something. A reshape regroups the digits, a transposition
moves them, a reduction takes them away. Whatever is not understood counts "something else".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Part:
    """A digit of an index.

    Attributes:
        kind: "rows" (it counts examples), "copies" (all are the same), "other", or "torn" (parts of
            several examples are together).
        size: how many values it has.
        stride: by how many examples a step goes; of rows only.
    """

    kind: str
    size: int
    stride: int = 1


Axis = tuple[Part, ...]
Layout = tuple[Axis, ...]

_ORDER = ("copies", "other", "rows", "torn")


def precedence(part: Part) -> int:
    """Of two kinds that meet, the one of higher precedence remains."""
    return _ORDER.index(part.kind)


def axis_of(size: int, kind: str = "other") -> Axis:
    """An axis of one kind."""
    return (Part(kind, size),) if size != 1 else ()


def layout_of_numbers(array: np.ndarray) -> Layout:
    """The layout of a constant: along some axes it may be the same everywhere."""
    is_same = [bool(np.all(array == np.take(array, [0], i))) for i in range(array.ndim)]
    return tuple(
        axis_of(size, "copies" if same else "other")
        for size, same in zip(array.shape, is_same, strict=True)
    )


def size_of(axis: Axis) -> int:
    """The number of indices."""
    return math.prod([part.size for part in axis])


def has_rows(axis: Axis) -> bool:
    """Whether an axis counts examples, among others."""
    return any(part.kind in ("rows", "torn") for part in axis)


def joined(one: Axis, other: Axis) -> Axis:
    """The axis of a result, of axes that meet."""
    if one == other:
        return one
    if [part.size for part in one] == [part.size for part in other]:
        return tuple(max(pair, key=precedence) for pair in zip(one, other, strict=True))
    return max(one, other, key=lambda axis: max(map(precedence, axis), default=0))


def is_clash(one: Axis, other: Axis) -> bool:
    """Whether examples meet that are not in the same order."""
    if not (has_rows(one) and has_rows(other)) or one == other:
        return False
    is_torn = any(part.kind == "torn" for part in (*one, *other))
    rows = [[(p.size, p.stride) for p in axis if p.kind == "rows"] for axis in (one, other)]
    return is_torn or rows[0] != rows[1]


def merged(axis: Sequence[Part]) -> Axis:
    """The axis with neighbouring digits of one kind made one."""
    result: list[Part] = []
    for part in axis:
        if part.size == 1:
            continue
        last = result[-1] if result else None
        follows = last is not None and last.kind == part.kind
        if follows and part.kind == "rows":
            follows = last is not None and last.stride == part.size * part.stride
        if follows and last is not None:
            result[-1] = Part(part.kind, last.size * part.size, part.stride)
        else:
            result.append(part)
    return tuple(result)


def _split(part: Part, size: int) -> tuple[Part, Part]:
    """The higher digit, of a given size, and the lower one."""
    low = part.size // size
    return Part(part.kind, size, part.stride * low), replace(part, size=low)


def regrouped(layout: Layout, shape: Sequence[int]) -> Layout:
    """The layout after a reshape, in the order of rows."""
    parts = list(merged([part for axis in layout for part in axis]))
    result: list[list[Part]] = []
    for i, size in enumerate(shape):
        axis: list[Part] = []
        need = size
        while need > 1:
            part = parts.pop(0)
            if need % part.size == 0:
                axis.append(part)
                need //= part.size
            elif part.size % need == 0:
                high, low = _split(part, need)
                axis.append(high)
                parts.insert(0, low)
                need = 1
            else:
                whole = [*axis, part, *parts]
                kind = "torn" if any(p.kind in ("rows", "torn") for p in whole) else "other"
                return (*map(tuple, result), *(axis_of(size, kind) for size in shape[i:]))
        result.append(axis)
    return tuple(map(tuple, result))
