"""Tables for people: aligned text, and HTML for notebooks."""

import html
from collections.abc import Collection, Sequence


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
) -> str:
    """The same as HTML.

    Args:
        headings: one for each column.
        rows: the texts of the cells, as many in each row.
        caption: a line above the table.
        bold: the rows to emphasize.
    """
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr{}>{}</tr>".format(
            ' style="font-weight:bold"' if number in bold else "",
            "".join(f"<td>{html.escape(text)}</td>" for text in row),
        )
        for number, row in enumerate(rows)
    )
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
