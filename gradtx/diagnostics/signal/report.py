"""What `signal_report` found: the layers, a verdict, a table, a picture."""

from __future__ import annotations

import functools
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradtx.diagnostics import _extras
from gradtx.diagnostics.signal import picture
from gradtx.diagnostics.signal.blocked import some
from gradtx.diagnostics.signal.diagnosis import Diagnosis
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.learning import IdleParameter, Unseen
from gradtx.diagnostics.signal.nonfinite import Culprit
from gradtx.diagnostics.signal.passage import Passage
from gradtx.diagnostics.signal.silence import Silence
from gradtx.diagnostics.signal.verdict import diagnose
from gradtx.tables import html_table

# The columns of the table: the heading, and the text for a layer.
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


@dataclass(frozen=True)
class SignalReport:
    """What happens to the signal in a network; returned by `signal_report`.

    Attributes:
        loss: the loss of the batch.
        layers: the layers in the order in which they are evaluated.
        culprit: the operation that made the first NaN or infinity; None: everything is finite, or
            it was not found.
        idle_parameters: the parameters that have no gradient, and why.
        unseen: the operations that take parameters and cannot be looked into.
        coverage: how many parameters are weights of `layers`, and how many there are, as numbers of
            elements.
        learns: whether any parameter has a gradient.
        trunk: what all of the signal passes, if the layers look as if signal or gradient changed
            much; else empty.
        silence: what makes zeros of all units of a layer, if it is not the layer itself.
    """

    loss: float
    layers: tuple[LayerSignal, ...]
    culprit: Culprit | None = None
    idle_parameters: tuple[IdleParameter, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    coverage: tuple[int, int] = (0, 0)
    learns: bool = True
    trunk: tuple[Passage, ...] = ()
    silence: Silence | None = None

    @functools.cached_property
    def diagnosis(self) -> Diagnosis:
        """What is wrong: the kind of problem, the affected layers, the factor per layer."""
        return diagnose(
            self.layers,
            self.culprit,
            self.loss,
            self.idle_parameters,
            learns=self.learns,
            not_seen=self._not_seen(),
            trunk=self.trunk,
            silence=self.silence,
        )

    @property
    def kind(self) -> str:
        """One word: healthy, vanishing, exploding, dead, saturated, nan, ..., see `Diagnosis`."""
        return self.diagnosis.kind

    @property
    def verdict(self) -> str:
        """What is wrong, by how much, in which layers, and how to fix it."""
        return self.diagnosis.sentence

    def _not_seen(self) -> str:
        """Which parameters are not in the layers that were measured, if some are hidden."""
        if not self.unseen:
            return ""
        mine, all_ = self.coverage
        places = [
            f"`{one.operation}`{f' at {one.source}' if one.source else ''}, which takes "
            f"{some(one.parameters)}"
            for one in self.unseen[:3]
        ]
        more = f"; and {len(self.unseen) - 3} more" if len(self.unseen) > 3 else ""
        return (
            f" Of {all_:,} parameters, {mine:,} are in layers that were measured; not seen: "
            f"{'; '.join(places)}{more}."
        )

    def table(self) -> str:
        """The measurements as text, with a line for each layer.

        Raises:
            ImportError: if rich is not installed, naming the extra.
        """
        table = _extras.load("rich.table").Table(title=f"loss {self.loss:.4g}")
        for heading in _COLUMNS:
            is_text = heading in ("layer", "shape", "nonlinearity")
            table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
        for layer in self.layers:
            table.add_row(*(text(layer) for text in _COLUMNS.values()))
        # The width of the text must not depend on the terminal or the environment.
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
        """Plot the measurements: signal, gradient and idle units over the layers.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: if matplotlib is not installed, naming the extra.
        """
        title = f"{self.kind.capitalize()} (loss {self.loss:.4g})"
        return picture.picture_of(self.layers, title)

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
