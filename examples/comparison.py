"""Shows the stored results of `examples.which_optimizer`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from examples.experiments.experiment import COLORS, describe

STORED = Path(__file__).parent / "site" / "results" / "which_optimizer.json"

Results = dict[str, Any]

# In the order of the command; one more than the palette has.
_NAMES = ("adamw", "muon", "soap", "schedule_free_adamw")
_NAMES += ("momentum", "lion", "adafactor", "prodigy")
_COLORS: dict[str, str] = dict(zip(_NAMES, (*COLORS, "#999999"), strict=True))


def load(path: Path = STORED) -> Results:
    """The results of the command, by default those that were stored."""
    return json.loads(path.read_text())


def ends(result: Results) -> np.ndarray:
    """The last evaluation of each seed; NaN where a run failed."""
    return np.array([run[-1] for run in result["evaluation"]], float)


def table(problem: Results, names: Iterable[str] | None = None) -> str:
    """The results of a problem in lines, the best first.

    Args:
        problem: one of the problems of the results.
        names: which optimizers; None: all.
    """
    found = _chosen(problem, names)
    lines = [
        f"{'':20} {'rate':>8} {'mean':>9} {'from':>9} {'to':>9} {'ms/step':>8} {'time':>6} "
        f"{'bytes/param':>11}"
    ]
    for name, result in sorted(found.items(), key=lambda item: ends(item[1]).mean()):
        last = ends(result)
        lines.append(
            f"{name:20} {result['rate']:>8.3g} {last.mean():>9.3g} {last.min():>9.3g} "
            f"{last.max():>9.3g} {result['milliseconds']:>8.3g} {result['ratios'][1]:>6.2f} "
            f"{result['state_bytes'] / problem['parameters']:>11.1f}"
        )
    return "\n".join(lines)


def draw(axes: Iterable[Any], problem: Results, names: Iterable[str] | None = None) -> None:
    """Plot the evaluation against steps and time, and the last one against the learning rate.

    Args:
        axes: three panels.
        problem: one of the problems of the results.
        names: which optimizers; None: all.
    """
    by_step, by_time, by_rate = axes
    found = _chosen(problem, names)
    steps = np.array(problem["steps"])
    for name, result in found.items():
        color, runs = _COLORS[name], np.array(result["evaluation"], float)
        for panel, x in ((by_step, steps), (by_time, steps * result["ratios"][1])):
            # What is measured before the first step is the same for all.
            panel.plot(x[1:], runs.mean(axis=0)[1:], color=color, label=name, lw=1.5)
            panel.fill_between(
                x[1:], runs.min(axis=0)[1:], runs.max(axis=0)[1:], color=color, alpha=0.2, lw=0
            )
        _plot_sweep(by_rate, result, color)
    measure = problem["measure"]
    describe(by_step, "Against steps", "step", measure)
    describe(by_time, "Against time", "time, in steps of AdamW", measure)
    describe(by_rate, "Tuning", "learning rate", "last evaluation", xscale="log")
    _limit(by_rate, found)
    for panel in (by_step, by_time, by_rate):
        _scale(panel)
        if panel.get_legend():
            panel.get_legend().remove()
    lines = by_step.get_legend_handles_labels()
    by_step.figure.legend(*lines, loc="outside lower center", ncols=len(found))


def _scale(axes: Any) -> None:
    """A logarithmic scale where values differ by more than a factor of ten."""
    lowest, highest = axes.dataLim.intervaly
    axes.set_yscale("log" if highest > 10 * lowest else "linear")


def _plot_sweep(axes: Any, result: Results, color: str) -> None:
    """The result of each learning rate that was tried; a circle marks the best one."""
    if result["sweep"]:
        rates, values = np.array(result["sweep"], float).T
        axes.plot(rates, values, ".-", color=color, lw=1)
        best = np.nanargmin(values)
        axes.plot(rates[best], values[best], "o", ms=9, mfc="none", color=color)


def _limit(axes: Any, found: dict[str, Results]) -> None:
    """Leave out what is worse than the start: it says only that the rate is too large."""
    first = max(run[0] for result in found.values() for run in result["evaluation"])
    if axes.dataLim.y1 > first:
        axes.set_ylim(top=first)


def _chosen(problem: Results, names: Iterable[str] | None) -> dict[str, Results]:
    found = problem["optimizers"]
    return found if names is None else {name: found[name] for name in names}
