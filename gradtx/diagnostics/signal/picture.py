"""The picture of a signal report: the measurements of its layers, in panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradtx.diagnostics import _extras
from gradtx.diagnostics.signal.layer_signal import LayerSignal

# On axes that are not longer than this, a tick at each power of ten would be too few.
_MOST_DECADES = 3.0

# More names than these do not fit below the axis.
_MOST_NAMES = 40


def picture_of(layers: Sequence[LayerSignal], title: str) -> Any:
    """A figure of the signal, the gradient and the idle units over the layers.

    Args:
        layers: the measurements, in the order of evaluation.
        title: the title of the figure.

    Returns:
        A `matplotlib.figure.Figure`, with a fourth panel if a layer is part of a recurrence.

    Raises:
        ImportError: if matplotlib is not installed, naming the extra.
    """
    recurrent = [layer for layer in layers if layer.rms_by_step]
    panels = 4 if recurrent else 3
    width = min(max(6.0, 0.3 * len(layers) + 3), 16.0)
    figure = _extras.load("matplotlib.figure").Figure(
        figsize=(width, 2.7 * panels), layout="constrained"
    )
    signal, gradient, idle, *through_time = figure.subplots(panels, 1)
    _draw_signal(signal, layers)
    _draw_gradient(gradient, layers)
    for axes in (signal, gradient):
        axes.sharex(idle)
        axes.tick_params(labelbottom=False)
    for axes in through_time:
        _draw_steps(axes, recurrent)
    _draw_idle_units(idle, layers)
    _name_layers(idle, layers)
    for axes in (signal, gradient, *through_time):
        _mark(axes)
    for axes in (signal, gradient, idle, *through_time):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    return figure


def _draw_signal(axes: Any, layers: Sequence[LayerSignal]) -> None:
    # Where both are equal, the open squares around the dots and the dashes on the line show it.
    _draw_curve(axes, layers, "rms", "after the nonlinearity", "C0", marker="o")
    style = {"marker": "s", "markersize": 9, "fillstyle": "none", "linestyle": "--"}
    _draw_curve(axes, layers, "input_rms", "input", "black", linewidth=1.2, **style)
    axes.set(title="Signal", ylabel="root mean square", yscale="log")


def _draw_gradient(axes: Any, layers: Sequence[LayerSignal]) -> None:
    _draw_curve(axes, layers, "grad_rms", "at the layer's output", "C3", marker="o")
    _draw_curve(axes, layers, "weight_grad_rms", "at its weights", "C1", marker="s", ls="--")
    axes.set(title="Gradient of the loss", ylabel="root mean square", yscale="log")


def _draw_curve(
    axes: Any, layers: Sequence[LayerSignal], attribute: str, label: str, color: str, **style: Any
) -> None:
    """Plot an attribute of the layers on a logarithmic axis, with crosses where it is zero."""
    places = np.arange(len(layers))
    values = np.array([getattr(layer, attribute) for layer in layers])
    axes.plot(places, np.where(values > 0, values, np.nan), label=label, c=color, **style)
    if (values == 0).any():
        # A logarithmic axis has no zero, so a cross at its lower end marks it.
        zeros = np.where(values == 0, 0.03, np.nan)
        at_the_end = {"transform": axes.get_xaxis_transform(), "linestyle": "none"}
        axes.plot(places, zeros, marker="x", c=color, label=f"{label}: zero", **at_the_end)


def _mark(axes: Any) -> None:
    """Plain numbers along a logarithmic axis, several of them also if it is short."""
    ticker = _extras.load("matplotlib.ticker")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    if decades > _MOST_DECADES:
        return
    if decades < 1:
        locator = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    else:
        locator = ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _draw_steps(axes: Any, recurrent: Sequence[LayerSignal]) -> None:
    """Plot the gradient of each recurrent layer over the steps of the recurrence."""
    for layer in recurrent:
        axes.plot(layer.grad_rms_by_step, label=_shortened(layer.name))
    axes.set(
        title="Gradient at the outputs, over the steps of the recurrence",
        xlabel="step",
        ylabel="root mean square",
        yscale="log",
    )


def _draw_idle_units(axes: Any, layers: Sequence[LayerSignal]) -> None:
    places = np.arange(len(layers))
    for attribute, label, color, offset in (
        ("zero_fraction", "zero", "C7", -0.27),
        ("dead_fraction", "dead", "black", 0.0),
        ("saturated_fraction", "saturated", "C1", 0.27),
    ):
        shares = [100 * getattr(layer, attribute) for layer in layers]
        axes.bar(places + offset, shares, 0.27, label=label, color=color)
    axes.set(title="Units that pass no gradient on", ylabel="share (%)", ylim=(0, 105))


def _name_layers(axes: Any, layers: Sequence[LayerSignal]) -> None:
    """Label the axis with the names of the layers, or some of them if there are very many."""
    number = len(layers)
    every = max(1, -(-number // _MOST_NAMES))
    axes.set_xticks(
        np.arange(number)[::every],
        [_shortened(layer.name) for layer in layers][::every],
        rotation=90 if number > 6 else 20,
        ha="center" if number > 6 else "right",
        fontsize="small",
        parse_math=False,
    )
    axes.set_xlabel("layer, in the order of evaluation")


def _shortened(name: str) -> str:
    return name if len(name) <= 72 else f"…{name[-71:]}"
