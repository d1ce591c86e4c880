"""What an experiment is: a claim, the checks that decide whether it held, and a picture.

Each experiment is a module of this folder. It has a docstring that explains to a student what to
look for, a sentence `CLAIM`, and a function `run(settings)` that returns an `Outcome`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from examples import extras

if TYPE_CHECKING:
    import jax

T = TypeVar("T")

# Okabe & Ito's palette, which color-blind people can tell apart: black, blue, vermilion, green,
# purple, orange, sky blue.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# In the order of the lecture notes, initialization, optimization, normalization; then all of it.
NAMES = (
    "elbows",
    "bias",
    "depth",
    "momentum",
    "lowpass",
    "averages",
    "ravine",
    "saddle",
    "adagrad",
    "amsgrad",
    "clipping",
    "rounding",
    "quantized",
    "batchnorm",
    "noisy-batchnorm",
    "connectivity",
    "lottery",
    "batchsize",
    "faults",
)


@dataclass(frozen=True)
class Settings:
    """How to run an experiment."""

    seed: int = 0
    quick: bool = False

    @property
    def key(self) -> "jax.Array":
        """The PRNG key of the seed."""
        import jax  # only here, because listing the names does not need jax

        return jax.random.key(self.seed)

    def choose(self, *, full: T, quick: T) -> T:
        """One of two sizes: what the claim needs, or what takes a few seconds."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Check:
    """One measurement that the claim implies.

    Attributes:
        statement: what should be true, in a phrase.
        measured: the measured value, with its unit, as text.
        holds: whether it is true.
    """

    statement: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment.

    Attributes:
        checks: the measurements that decide whether the claim held.
        figure: a `matplotlib.figure.Figure`.
        caption: what the picture shows, in a few sentences for a student.
    """

    checks: Sequence[Check]
    figure: Any
    caption: str

    @property
    def holds(self) -> bool:
        """Whether every check held."""
        return all(check.holds for check in self.checks)


class Experiment(Protocol):
    """A module of this folder, seen as an experiment."""

    __doc__: str | None
    __file__: str
    CLAIM: str

    def run(self, settings: Settings) -> Outcome:
        """Measure, decide and plot."""
        ...


def load(name: str) -> Experiment:
    """The experiment of this name."""
    return cast(
        Experiment, importlib.import_module(f"examples.experiments.{name.replace('-', '_')}")
    )


def new_figure(title: str, rows: int = 1, columns: int = 2, **subplots: Any) -> tuple[Any, Any]:
    """An empty figure with a title, and its panels: an array of shape (rows, columns) of axes.

    Args:
        title: the title of the whole figure.
        rows: the number of rows of panels.
        columns: the number of columns of panels.
        **subplots: further arguments of `Figure.subplots`, such as `sharex`.
    """
    figure = extras.load("matplotlib.figure").Figure(
        figsize=(5.5 * columns, 4.0 * rows + 0.5), layout="constrained"
    )
    figure.suptitle(title, fontsize="x-large")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def describe(axes: Any, title: str, x: str, y: str, **more: Any) -> None:
    """Give a panel its title, axis labels with units, a grid, and a legend if it has labels.

    Args:
        axes: the panel.
        title: what the panel shows.
        x: the horizontal quantity and its unit.
        y: the vertical quantity and its unit.
        **more: further properties of the axes, such as `xscale="log"`.
    """
    axes.set(title=title, xlabel=x, ylabel=y, **more)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
