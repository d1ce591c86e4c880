"""The measurements as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gradtx.bench.device import Run
from gradtx.bench.measure import Figure
from gradtx.diagnostics import _extras
from gradtx.tables import text_table

# Ratios closer to 1 may be noise, and fewer bytes do not matter.
_WORSE = 0.95
_FEW_BYTES = 1 << 16
# Enough for a library a thousand times slower or faster.
_TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
_COLORS = {"trace": "C0", "lower": "C1", "trace + lower": "C2", "compile": "C3", "step": "C4"}


def table(figures: Sequence[Figure]) -> list[str]:
    """The lines of a section's table; ratios above 1 are in favor of gradtx."""
    has_bound = any(figure.bound is not None for figure in figures)
    headings = ["", "", figures[0].peer, "gradtx", "ratio", *(["bound / gradtx"] * has_bound)]
    rows, last = [], None
    for figure in figures:
        row = [
            figure.case if figure.case != last else "",
            figure.measure,
            _amount(figure.theirs, figure.unit),
            _amount(figure.ours, figure.unit),
            "" if figure.ratio is None else _ratio(figure.ratio),
        ]
        if has_bound:
            share = "" if figure.bound is None else _ratio(figure.bound / figure.ours)
            row.append(share)
        rows.append(row)
        last = figure.case
    return text_table(headings, rows, numeric=range(2, 6))


def device_table(runs: Sequence[Run]) -> list[str]:
    """The lines of the table of `--device`."""
    headings = ["", "", "step", "of bandwidth", "kernels", "waits", "temporary", "state"]
    headings += ["trace + lower", "compile", "difference"]
    rows, last = [], None
    for run in runs:
        times = [_amount(seconds, "seconds") for seconds in (run.trace, run.compile)]
        row = [
            run.case if run.case != last else "",
            run.name,
            _amount(run.seconds, "seconds"),
            f"{run.share:.0%}",
            f"{run.kernels:,}",
            str(run.waits),
            "" if run.temporary is None else _amount(run.temporary, "bytes"),
            _amount(run.state, "bytes"),
            *times,
            f"{run.difference:.1g}",
        ]
        rows.append(row)
        last = run.case
    return text_table(headings, rows, numeric=range(2, len(headings)))


def brief(run: Run) -> str:
    """A run in one line."""
    times = (_amount(seconds, "seconds") for seconds in (run.seconds, run.trace, run.compile))
    time, tracing, compiling = times
    return (
        f"{run.case}, {run.name}: {time}, {run.share:.0%} of the bandwidth, {run.kernels:,} "
        f"operations; traced in {tracing}, compiled in {compiling}"
    )


def losses(figures: Sequence[Figure]) -> Iterator[str]:
    """A line for each figure in which gradtx is worse, worst first."""
    ratios = [(figure.ratio, figure) for figure in figures if figure.ratio is not None]
    for ratio, figure in sorted(ratios, key=lambda pair: pair[0]):
        if ratio < _WORSE and (figure.unit != "bytes" or figure.ours > _FEW_BYTES):
            yield f"{_ratio(ratio)}  {figure.section}: {figure.case}, {figure.measure}"


def chart(figures: Sequence[Figure], title: str) -> Any:
    """The ratios of all times as bars from 1, to the right where gradtx is faster.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    panels: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.unit == "seconds":
            panels.setdefault(figure.section, []).append(figure)
    columns = _columns({section: len(rows) for section, rows in panels.items()})
    # In addition to its bars, each panel takes the height of two bars for its title and axis.
    heights = [[len(panels[section]) + 2 for section in column] for column in columns]
    tallest = max(map(sum, heights))
    drawing = _extras.load("matplotlib.figure").Figure(
        figsize=(7.5 * len(columns), 1.2 + 0.2 * tallest), layout="constrained"
    )
    ratios = [figure.ratio for rows in panels.values() for figure in rows if figure.ratio]
    limits = (min(0.5, *ratios) / 1.5, max(2.0, *ratios) * 1.5)
    ticks = [tick for tick in _TICKS if limits[0] < tick < limits[1]]
    grid = drawing.add_gridspec(1, len(columns))
    for column, sizes, place in zip(columns, heights, grid, strict=True):
        # The shorter column is empty at the bottom, so that all bars have the same width.
        sizes = [*sizes, tallest - sum(sizes) or 1e-3]
        cells = place.subgridspec(len(sizes), 1, height_ratios=sizes)
        for section, cell in zip(column, cells, strict=False):
            axes = drawing.add_subplot(cell)
            _draw(axes, section, panels[section])
            axes.set(xscale="log", xlim=limits)
            axes.set_xticks(ticks, map("{:g}".format, ticks), fontsize="x-small")
            axes.set_xticks([], minor=True)
    drawing.suptitle(title, fontsize="medium")
    drawing.supxlabel(
        "their time / gradtx's, on a logarithmic axis: larger is better for gradtx",
        fontsize="small",
    )
    return drawing


def _columns(sizes: dict[str, int]) -> list[list[str]]:
    """The sections in one column, or in two of nearly equal heights if there are many bars."""
    names, total = list(sizes), sum(sizes.values())
    if total < 30:
        return [names]
    cuts = range(1, len(names))
    heights = [abs(2 * sum(sizes[name] for name in names[:cut]) - total) for cut in cuts]
    cut = min(zip(heights, cuts, strict=True), default=(0, len(names)))[1]
    return [column for column in (names[:cut], names[cut:]) if column]


def _draw(axes: Any, section: str, figures: Sequence[Figure]) -> None:
    labels, last = [], None
    for place, figure in enumerate(figures):
        ratio = figure.ratio or 1.0
        color = _COLORS.get(figure.measure, "C7")
        axes.barh(place, ratio - 1, left=1, height=0.8, color=color)
        axes.annotate(
            _ratio(ratio),
            (ratio, place),
            xytext=(3 if ratio >= 1 else -3, 0),
            textcoords="offset points",
            ha="left" if ratio >= 1 else "right",
            va="center",
            fontsize="x-small",
        )
        labels.append(f"{figure.case}  {figure.measure}" if figure.case != last else figure.measure)
        last = figure.case
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(figures)), labels, fontsize="x-small")
    axes.set_ylim(len(figures) - 0.4, -0.6)
    axes.set_title(f"{section}: {figures[0].peer} / gradtx", fontsize="small", loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _amount(value: float, unit: str) -> str:
    """A number with its unit, to three digits."""
    if unit == "bytes":
        return f"{value:,.0f} bytes"
    for scale, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{_digits(value / scale)} {name}"
    return f"{_digits(value / 1e-6)} µs"


def _ratio(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:#.2g}"


def _digits(value: float) -> str:
    """The value to three significant digits, or more before the decimal point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
