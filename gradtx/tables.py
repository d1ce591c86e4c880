"""Tables for people: aligned text, and HTML for notebooks."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeAlias

# For each number in a name the numbers that it covers, and the rows of their combinations.
_Box: TypeAlias = tuple[list[set[str]], list[int]]


def text_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int] = ()
) -> list[str]:
    """The lines of a table, its columns aligned.

    Args:
        headings: one for each column.
        rows: the texts of the cells, as many in each row.
        numeric: the columns to align to the right.
    """
    lines = [list(headings), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if i in numeric else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def html_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    bold: Collection[int] = (),
    titles: Mapping[int, str] | None = None,
) -> str:
    """The table as HTML.

    Args:
        headings: one for each column.
        rows: the texts of the cells, as many in each row.
        caption: a line above the table.
        bold: the rows to emphasize.
        titles: lines across the table, by the number of the row that they stand above.
    """
    across = {
        number: f'<tr><th colspan="{len(headings)}" style="text-align:left">'
        f"{html.escape(title)}</th></tr>"
        for number, title in (titles or {}).items()
    }
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "{}<tr{}>{}</tr>".format(
            across.get(number, ""),
            ' style="font-weight:bold"' if number in bold else "",
            "".join(f"<td>{html.escape(text)}</td>" for text in row),
        )
        for number, row in enumerate(rows)
    )
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def collapsed(rows: Sequence[tuple[str, Hashable]]) -> list[tuple[str, list[int]]]:
    """Merge rows whose names differ only in their numbers, such as those of layers.

    Args:
        rows: the name of each row and its other content; only rows with the same content are
            merged.

    Returns:
        In the order of their first rows, the common names and the indices of their rows. A common
        name covers exactly the names that its ranges expand to.

    Example:
        >>> from gradtx.tables import collapsed
        >>> collapsed([(f"layers/{i}/kernel", "adam") for i in (0, 1, 2, 4)] + [("head", "adam")])
        [('layers/[0-2,4]/kernel', [0, 1, 2, 3]), ('head', [4])]
    """
    groups: dict[tuple[tuple[str, ...], Hashable], list[_Box]] = {}
    for index, (name, content) in enumerate(rows):
        texts, numbers = re.split(r"\d+", name), re.findall(r"\d+", name)
        boxes = groups.setdefault((tuple(texts), content), [])
        boxes.append(([{number} for number in numbers], [index]))
    found = []
    for (texts, _), boxes in groups.items():
        for position in reversed(range(len(texts) - 1)):
            boxes = _merged(boxes, position)
        for numbers, indices in boxes:
            ends = [_range(values) for values in numbers]
            name = "".join(text + end for text, end in zip(texts, [*ends, ""], strict=True))
            found.append((name, sorted(indices)))
    return sorted(found, key=lambda row: row[1])


def _merged(boxes: list[_Box], position: int) -> list[_Box]:
    """The boxes, merged where they differ only in the numbers at one position."""
    merged: dict[Hashable, _Box] = {}
    for numbers, indices in boxes:
        others = tuple(frozenset(values) for i, values in enumerate(numbers) if i != position)
        if others in merged:
            merged[others][0][position].update(numbers[position])
            merged[others][1].extend(indices)
        else:
            merged[others] = (numbers, indices)
    return list(merged.values())


def _range(numbers: Collection[str]) -> str:
    """A number, or several as [0-3,7]."""
    in_order = sorted(numbers, key=lambda number: (int(number), number))
    if len(in_order) == 1:
        return in_order[0]
    places = enumerate(in_order)
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(places, key=lambda place: int(place[1]) - place[0])
    ]
    return f"[{','.join(run[0] if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)}]"
