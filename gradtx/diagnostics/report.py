"""What `signal_report` found: the layers, a verdict, a table, a picture."""

import functools
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradtx.diagnostics import _extras
from gradtx.diagnostics.layer_signal import LayerSignal
from gradtx.diagnostics.nonfinite import Culprit
from gradtx.diagnostics.verdict import Diagnosis, diagnose
from gradtx.tables import html_table

# The columns of the table: heading, and the text for a layer.
_COLUMNS: dict[str, Callable[[LayerSignal], str]] = {
    "layer": lambda layer: layer.name,
    "shape": lambda layer: "×".join(map(str, layer.shape)),
    "nonlinearity": lambda layer: layer.activation or "–",
    "mean": lambda layer: f"{layer.mean:.2g}",
    "rms": lambda layer: f"{layer.rms:.2g}",
    "zero": lambda layer: f"{layer.zero_fraction:.0%}",
    "dead": lambda layer: f"{layer.dead_fraction:.0%}",
    "saturated": lambda layer: f"{layer.saturated_fraction:.0%}",
    "gradient rms": lambda layer: f"{layer.grad_rms:.2g}",
    "weight rms": lambda layer: f"{layer.weight_rms:.2g}",
    "weight gradient rms": lambda layer: f"{layer.weight_grad_rms:.2g}",
}


def _shortened(name: str) -> str:
    return name if len(name) <= 72 else f"…{name[-71:]}"


@dataclass(frozen=True)
class SignalReport:
    """How the signal fares in a network; made by `signal_report`.

    Attributes:
        loss: the loss of the batch.
        layers: the layers in the order in which they are evaluated.
        culprit: the operation that made the first NaN or infinity; None: everything is finite.
    """

    loss: float
    layers: tuple[LayerSignal, ...]
    culprit: Culprit | None = None

    @functools.cached_property
    def diagnosis(self) -> Diagnosis:
        """What is wrong: its kind, the layers where it happens, the factor per layer."""
        return diagnose(self.layers, self.culprit, self.loss)

    @property
    def kind(self) -> str:
        """One word: healthy, vanishing, exploding, dead, saturated or nan."""
        return self.diagnosis.kind

    @property
    def verdict(self) -> str:
        """What is wrong, by how much, in which layers, and what to do about it."""
        return self.diagnosis.sentence

    def table(self) -> str:
        """The measurements as text, a line for each layer.

        Raises:
            ImportError: if rich is not installed, naming the extra.
        """
        table = _extras.load("rich.table").Table(title=f"loss {self.loss:.4g}")
        for heading in _COLUMNS:
            is_text = heading in ("layer", "shape", "nonlinearity")
            table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
        for layer in self.layers:
            table.add_row(*(text(layer) for text in _COLUMNS.values()))
        # Neither the terminal nor the environment decides how wide the text is.
        console = _extras.load("rich.console").Console(
            file=io.StringIO(),
            width=10_000,
            height=100,
            color_system=None,
            force_terminal=False,
            markup=False,
        )
        console.print(table)
        lines = console.file.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def plot(self) -> Any:
        """The measurements as a picture: signal, gradient and idle units over the layers.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: if matplotlib is not installed, naming the extra.
        """
        number = len(self.layers)
        recurrent = [layer for layer in self.layers if layer.rms_by_step]
        panels = 4 if recurrent else 3
        width = min(max(6.0, 0.3 * number + 3), 16.0)
        figure = _extras.load("matplotlib.figure").Figure(
            figsize=(width, 2.7 * panels), layout="constrained"
        )
        signal, gradient, idle, *through_time = figure.subplots(panels, 1)
        places = np.arange(number)

        def curve(axes: Any, attribute: str, label: str, color: str, **style: Any) -> None:
            values = np.array([getattr(layer, attribute) for layer in self.layers])
            axes.plot(places, np.where(values > 0, values, np.nan), label=label, c=color, **style)
            if (values == 0).any():
                # A logarithmic axis has no zero: a cross at its lower end stands for it.
                zeros = np.where(values == 0, 0.03, np.nan)
                at_the_end = {"transform": axes.get_xaxis_transform(), "linestyle": "none"}
                axes.plot(places, zeros, marker="x", c=color, label=f"{label}: zero", **at_the_end)

        curve(signal, "input_rms", "input", "C7", marker=".", linestyle=":")
        curve(signal, "rms", "after the nonlinearity", "C0", marker="o")
        signal.set(title="Signal", ylabel="root mean square", yscale="log")
        curve(gradient, "grad_rms", "at the layer's output", "C3", marker="o")
        curve(gradient, "weight_grad_rms", "at its weights", "C1", marker="s", ls="--")
        gradient.set(title="Gradient of the loss", ylabel="root mean square", yscale="log")
        for axes in (signal, gradient):
            axes.sharex(idle)
            axes.tick_params(labelbottom=False)
        for axes in through_time:
            for layer in recurrent:
                axes.plot(layer.grad_rms_by_step, label=_shortened(layer.name))
            axes.set(
                title="Gradient at the outputs, through the steps of the recurrence",
                xlabel="step",
                ylabel="root mean square",
                yscale="log",
            )
        for attribute, label, color, offset in (
            ("zero_fraction", "zero", "C7", -0.27),
            ("dead_fraction", "dead", "black", 0.0),
            ("saturated_fraction", "saturated", "C1", 0.27),
        ):
            shares = [100 * getattr(layer, attribute) for layer in self.layers]
            idle.bar(places + offset, shares, 0.27, label=label, color=color)
        idle.set(title="Units that pass no gradient on", ylabel="share (%)", ylim=(0, 105))
        every = max(1, -(-number // 40))
        idle.set_xticks(
            places[::every],
            [_shortened(layer.name) for layer in self.layers][::every],
            rotation=90 if number > 6 else 20,
            ha="center" if number > 6 else "right",
            fontsize="small",
            parse_math=False,
        )
        idle.set_xlabel("layer, in the order of evaluation")
        for axes in (signal, gradient, idle, *through_time):
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        figure.suptitle(f"{self.kind.capitalize()} (loss {self.loss:.4g})")
        return figure

    def __str__(self) -> str:
        return f"SignalReport of {len(self.layers)} layers, loss {self.loss:.4g}\n{self.verdict}"

    def _repr_html_(self) -> str:
        affected = set(self.diagnosis.layers)
        table = html_table(
            list(_COLUMNS),
            [[text(layer) for text in _COLUMNS.values()] for layer in self.layers],
            caption=f"loss {self.loss:.4g}",
            bold=[i for i, layer in enumerate(self.layers) if layer.name in affected],
        )
        return f"<p>{html.escape(self.verdict)}</p>{table}"
