"""What a compiled program sends between devices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


class Sent(NamedTuple):
    """The collectives of one kind in a program.

    Attributes:
        number: how often they run.
        elements: how many elements their results have on each device, all together.
    """

    number: int
    elements: int


def collectives(program: Any, *, unknown_trips: int = 1) -> dict[str, Sent]:
    """Count the collectives that a compiled program runs, those in loops once for each pass.

    XLA puts collectives of one kind together where it can: two arrays that one all-reduce adds up
    count as one collective with the elements of both. Which it finds depends on the backend: on a
    CPU fewer than on a GPU or TPU. Of the branches of a conditional, the one that sends the most
    elements counts.

    Args:
        program: what `jax.jit(...).lower(...).compile()` returns, or its `as_text()`.
        unknown_trips: the number of passes, >= 0, of a loop whose number XLA does not know.

    Returns:
        For each of "all-gather", "all-reduce", "all-to-all", "collective-permute" and
        "reduce-scatter" its `Sent(number, elements)`.

    Raises:
        ValueError: if the text is not that of a compiled program.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx.testing import collectives
        >>> compiled = jax.jit(jnp.sum).lower(jnp.ones(3)).compile()
        >>> collectives(compiled)["all-reduce"]
        Sent(number=0, elements=0)
    """
    text = program if isinstance(program, str) else program.as_text()
    computations = dict(_computations(text))
    if _ENTRY not in computations:
        raise ValueError("collectives: program must be a compiled one, which has an ENTRY")
    return dict(_sent_by(_ENTRY, computations, unknown_trips, {}))


_ENTRY = "ENTRY"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# A result, its operation and what it is applied to.
_OPERATION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\((.*)$")
_ARRAY = re.compile(r"\b[a-z]\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count[^}]*?"n":"?(\d+)')
_NOTHING: Mapping[str, Sent] = dict.fromkeys(KINDS, Sent(0, 0))


def _computations(text: str) -> Iterator[tuple[str, list[re.Match[str]]]]:
    """The computations of a program by name, as their operations."""
    name, operations = "", []
    for line in map(str.strip, text.splitlines()):
        head = _HEAD.match(line)
        operation = _OPERATION.match(line)
        if operation:
            operations.append(operation)
        elif head:
            name, operations = _ENTRY if head[1] else head[2], []
        elif line.startswith("}") and name:
            yield name, operations


def _sent_by(
    name: str, computations: Mapping[str, list[Any]], unknown: int, known: dict[str, Any]
) -> Mapping[str, Sent]:
    """What one pass through a computation sends."""
    if name not in known:
        total = _NOTHING
        for result, kind, rest in (operation.groups() for operation in computations.get(name, ())):
            total = _sum(total, _own(result, kind))
            called = [_sent_by(own, computations, unknown, known) for own in _CALLED.findall(rest)]
            trips = 1
            if kind == "while":
                match = _TRIPS.search(rest)
                trips = unknown if match is None else int(match[1])
            for own in called:
                total = _sum(total, own, trips)
            names = re.findall(r"[\w.\-]+", " ".join(map(" ".join, _BRANCHES.findall(rest))))
            branches = [_sent_by(own, computations, unknown, known) for own in names]
            total = _sum(total, max(branches, key=_elements, default=_NOTHING))
        known[name] = total
    return known[name]


def _own(result: str, kind: str) -> Mapping[str, Sent]:
    """What an operation sends itself."""
    started = kind.endswith("-start")
    kind = kind.removesuffix("-start")
    if kind not in KINDS:
        return _NOTHING
    shapes = [[int(n) for n in shape.split(",") if n] for shape in _ARRAY.findall(result)]
    if started and kind != "all-reduce":
        # Until it is done, the operands stand before the results, and numbers of the backend after.
        shapes = [shape for shape in shapes if shape]
        shapes = shapes[len(shapes) // 2 :]
    return {**_NOTHING, kind: Sent(1, sum(map(math.prod, shapes)))}


def _sum(total: Mapping[str, Sent], more: Mapping[str, Sent], times: int = 1) -> dict[str, Sent]:
    return {
        kind: Sent(
            total[kind].number + times * more[kind].number,
            total[kind].elements + times * more[kind].elements,
        )
        for kind in KINDS
    }


def _elements(sent: Mapping[str, Sent]) -> int:
    return sum(own.elements for own in sent.values())
