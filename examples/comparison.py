"""Show results of `examples.which_optimizer`: tables, and pictures if a folder is given for them.

python -m examples.comparison outputs/which_optimizer.json --pictures outputs
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples import commands, extras
from examples.experiments.experiment import COLORS, describe

STORED = Path(__file__).parent / "site" / "results" / "which_optimizer.json"

Results = dict[str, Any]

# In the order of the command; one more than the palette has.
_NAMES = ("adamw", "muon", "soap", "schedule_free_adamw")
_NAMES += ("momentum", "lion", "adafactor", "prodigy")
_COLORS: dict[str, str] = dict(zip(_NAMES, (*COLORS, "#999999"), strict=True))
# For others: Tol's muted palette, those first that the palette above does not resemble.
_MORE = ("#882255", "#999933", "#332288", "#CC6677", "#44AA99", "#DDCC77", "#117733", "#AA4499")
# Where times differ by more than this factor, most curves would lie at the left of a linear axis.
_WIDE = 4


def load(path: str | Path = STORED) -> Results:
    """The results of the command, by default those that were stored."""
    return json.loads(Path(path).read_text())


def base_of(names: Iterable[str]) -> str:
    """Whose time the others are compared with: AdamW where it takes part, otherwise the first."""
    names = list(names)
    return "adamw" if "adamw" in names else names[0]


def ends(result: Results) -> np.ndarray:
    """The last evaluation of each seed; NaN where a run failed."""
    return np.array([run[-1] for run in result["evaluation"]], float)


def table(problem: Results, names: Iterable[str] | None = None) -> str:
    """The results of a problem in lines, the best first.

    Args:
        problem: one of the problems of the results.
        names: which optimizers; None: all.
    """
    found, base = _chosen(problem, names), base_of(problem["optimizers"])
    lines = [
        f"{problem['title']}: {problem['parameters']:,} parameters, {problem['steps'][-1]} steps",
        f"{'':19} {'rate':>8} {'mean':>8} {'from':>8} {'to':>8} {'ms/step':>7} "
        f"{'time':>5} {'quartiles':>11} {'B/param':>7}",
    ]
    for name, result in sorted(found.items(), key=lambda item: ends(item[1]).mean()):
        last, (low, time, high) = ends(result), result["ratios"]
        lines.append(
            f"{name:19} {result['rate']:>8.3g} {last.mean():>8.3g} {last.min():>8.3g} "
            f"{last.max():>8.3g} {result['milliseconds']:>7.3g} "
            f"{time:>5.2f} {f'{low:.2f}-{high:.2f}':>11} "
            f"{result['state_bytes'] / problem['parameters']:>7.1f}"
        )
    return "\n".join(
        [*lines, f"time: of a step, relative to {base}; B/param: bytes of state per parameter"]
    )


def figure_of(problem: Results, names: Iterable[str] | None = None) -> Any:
    """The picture of a problem, a `matplotlib.figure.Figure`.

    Args:
        problem: one of the problems of the results.
        names: which optimizers; None: all.
    """
    figure = extras.load("matplotlib.figure").Figure(figsize=(13, 4.4), layout="constrained")
    draw(figure.subplots(1, 3), problem, names)
    return figure


def draw(axes: Iterable[Any], problem: Results, names: Iterable[str] | None = None) -> None:
    """Plot the evaluation against steps and time, and the last one against the learning rate.

    Args:
        axes: three panels.
        problem: one of the problems of the results.
        names: which optimizers; None: all.
    """
    by_step, by_time, by_rate = axes
    found, colors = _chosen(problem, names), _colors_of(problem["optimizers"])
    steps, times = np.array(problem["steps"]), [each["ratios"][1] for each in found.values()]
    for name, result in found.items():
        color, runs = colors[name], np.array(result["evaluation"], float)
        for panel, x in ((by_step, steps), (by_time, steps * result["ratios"][1])):
            # What is measured before the first step is the same for all.
            panel.plot(x[1:], runs.mean(axis=0)[1:], color=color, label=name, lw=1.5)
            panel.fill_between(
                x[1:], runs.min(axis=0)[1:], runs.max(axis=0)[1:], color=color, alpha=0.2, lw=0
            )
        _plot_sweep(by_rate, result, color)
    measure = problem["measure"]
    describe(by_step, "Against steps", "step", measure)
    base, scale = (
        base_of(problem["optimizers"]),
        "log" if max(times) > _WIDE * min(times) else "linear",
    )
    describe(by_time, "Against time", f"time, in steps of {base}", measure, xscale=scale)
    describe(by_rate, "Tuning", "learning rate", "last evaluation", xscale="log")
    _limit(by_rate, found)
    for panel in (by_step, by_time, by_rate):
        _scale(panel)
        if panel.get_legend():
            panel.get_legend().remove()
    lines = by_step.get_legend_handles_labels()
    by_step.figure.legend(*lines, loc="outside lower center", ncols=len(found))


def _colors_of(names: Iterable[str]) -> dict[str, str]:
    """The color of each optimizer, the same in the pictures of all problems."""
    names = list(names)
    others = [name for name in names if name not in _COLORS]
    return _COLORS | dict(zip(others, itertools.cycle(_MORE), strict=False))


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


def main(argv: Sequence[str] | None = None) -> int:
    """Show results with the arguments of the command line."""
    parser = commands.Parser(prog="python -m examples.comparison", description="Show results.")
    parser.add_argument("results", type=Path, nargs="?", default=STORED, help="the file with them")
    parser.add_argument(
        "--pictures", metavar="FOLDER", type=commands.folder, help="where to draw them"
    )
    arguments = parser.parse_args(argv)
    for name, problem in load(arguments.results)["problems"].items():
        print(f"{table(problem)}\n")
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            path = arguments.pictures / f"{name}.png"
            figure_of(problem).savefig(path)
            print(f"Picture: {path}\n")
    return 0


if __name__ == "__main__":
    commands.run(main)
