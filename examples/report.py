"""How the examples report a run: a progress bar, a table and a picture."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples import extras


@dataclass(frozen=True)
class Epoch:
    """Means over the steps of an epoch, and the accuracy of the network at its end."""

    loss: float
    accuracy: float
    gradient_norm: float
    learning_rate: float
    test_accuracy: float
    averaged_accuracy: float

    @classmethod
    def from_metrics(
        cls, metrics: Sequence[dict[str, Any]], *, test_accuracy: Any, averaged_accuracy: Any
    ) -> "Epoch":
        """The epoch with these metrics of its steps."""

        def mean(name: str) -> float:
            return float(np.mean([step[name] for step in metrics]))

        return cls(
            loss=mean("loss"),
            accuracy=mean("accuracy"),
            gradient_norm=mean("gradient_norm"),
            learning_rate=mean("learning_rate"),
            test_accuracy=float(test_accuracy),
            averaged_accuracy=float(averaged_accuracy),
        )


@dataclass
class Run:
    """One network's training."""

    name: str
    learning_rate: float
    batch_size: int
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0

    def curve(self, quantity: str) -> np.ndarray:
        """One quantity over the epochs."""
        return np.array([getattr(epoch, quantity) for epoch in self.epochs])


class Log:
    """What a run has recorded so far, of which its checkpoints keep a copy.

    Attributes:
        run: the run up to the last whole epoch.
    """

    def __init__(self, run: Run, on_epoch: Callable[[Epoch], None]) -> None:
        self.run = run
        self._on_epoch = on_epoch
        self._metrics: list[dict[str, Any]] = []
        self._start = time.perf_counter()

    def step(self, metrics: dict[str, Any]) -> int:
        """Record a step; returns the number of steps in this epoch."""
        self._metrics.append(metrics)
        return len(self._metrics)

    def end_epoch(self, **accuracies: Any) -> None:
        """Record the end of an epoch, with the arguments of `Epoch.from_metrics`."""
        self._add(Epoch.from_metrics(jax.device_get(self._metrics), **accuracies))
        self._metrics.clear()

    def _add(self, epoch: Epoch) -> None:
        self.run.epochs.append(epoch)
        self._on_epoch(epoch)

    def finished(self) -> Run:
        """The run, with the time that it took."""
        now = time.perf_counter()
        self.run.seconds += now - self._start
        self._start = now
        return self.run

    def saved(self) -> dict[str, Any]:
        """The record for a checkpoint."""
        return {
            "epochs": [asdict(epoch) for epoch in self.run.epochs],
            "metrics": jax.device_get(self._metrics),
            "seconds": self.finished().seconds,
        }

    def go_on_from(self, saved: dict[str, Any]) -> None:
        """Take over the record of a checkpoint."""
        for epoch in saved["epochs"]:
            self._add(Epoch(**epoch))
        self._metrics = saved["metrics"]
        self.run.seconds = saved["seconds"]


def progress_bar() -> Any:
    """A bar for each run, with loss, accuracy and gradient norm of the last epoch."""
    progress = extras.load("rich.progress")
    return progress.Progress(
        progress.TextColumn("{task.description:9}"),
        progress.BarColumn(bar_width=12),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[summary]}"),
    )


def follow(bar: Any, name: str, epochs: int) -> Callable[[Epoch], None]:
    """Add a run to the bar; call the returned function after each epoch."""
    task = bar.add_task(name, total=epochs, summary="compiling")

    def on_epoch(epoch: Epoch) -> None:
        summary = (
            f"loss {epoch.loss:<8.3g} accuracy {epoch.accuracy:<6.1%} "
            f"gradient norm {epoch.gradient_norm:.3g}"
        )
        bar.update(task, advance=1, summary=summary)

    return on_epoch


def print_table(runs: Sequence[Run], test_samples: int) -> None:
    """Print the results of each run."""
    table = extras.load("rich.table").Table(
        title=f"Accuracy of the raw and the averaged parameters on {test_samples} test images"
    )
    table.add_column("optimizer")
    for heading in ("learning rate", "batch", "loss", "raw", "averaged", "seconds"):
        table.add_column(heading, justify="right")
    for run in runs:
        last = run.epochs[-1]
        table.add_row(
            run.name,
            f"{run.learning_rate:g}",
            str(run.batch_size),
            f"{last.loss:.3g}",
            f"{last.test_accuracy:.2%}",
            f"{last.averaged_accuracy:.2%}",
            f"{run.seconds:.1f}",
        )
    extras.load("rich.console").Console().print(table)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Plot one run in four panels, or training loss and test accuracy of several runs in two."""
    extras.load("matplotlib").use("Agg")
    pyplot = extras.load("matplotlib.pyplot")
    is_single = len(runs) == 1
    figure, panels = pyplot.subplots(
        2 if is_single else 1, 2, figsize=(11, 8 if is_single else 5), layout="constrained"
    )
    loss, accuracy, *others = panels.flat
    for i, run in enumerate(runs):
        # Ten colors, and a different line style for each further ten runs.
        style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3]}
        _plot(loss, run, "loss", label=run.name, **style)
        _plot(accuracy, run, "averaged_accuracy", label="averaged parameters", **style)
    _describe(loss, "Training loss", "mean cross-entropy", yscale="log")
    _describe(accuracy, "Test accuracy of the averaged parameters", "share of correct answers")
    # The initial rise says little: show it only if a run ends that low.
    lowest = min(run.curve("averaged_accuracy").min() for run in runs)
    worst_end = min(run.epochs[-1].averaged_accuracy for run in runs)
    accuracy.set_ylim(max(lowest, min(worst_end, 0.8)) - 0.01, 1.002)
    if is_single:
        (run,) = runs
        gradient_norm, learning_rate = others
        _plot(accuracy, run, "test_accuracy", label="raw parameters", color="C1", linestyle="--")
        accuracy.set_title("Test accuracy")
        accuracy.legend(loc="lower right")
        _plot(gradient_norm, run, "gradient_norm", color="C0")
        _describe(gradient_norm, "Gradient", "mean norm before clipping", yscale="log")
        _plot(learning_rate, run, "learning_rate", color="C0")
        _describe(learning_rate, "Schedule", "mean learning rate")
        learning_rate.set_ylim(bottom=0)
        figure.suptitle(f"Handwritten digits, trained with {run.name}")
    else:
        figure.legend(*loss.get_legend_handles_labels(), loc="outside right center")
        figure.suptitle(f"Handwritten digits, trained with {len(runs)} optimizers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot(axes: Any, run: Run, quantity: str, **style: Any) -> None:
    axes.plot(np.arange(1, len(run.epochs) + 1), run.curve(quantity), marker=".", **style)


def _describe(axes: Any, title: str, quantity: str, **scale: str) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=quantity, **scale)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
