"""Histories found in any state, and plotted: a panel for each measure."""

import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.diagnostics import HistoryState, history_of, plot_history, record_history

from .histories import numbers, run

PLACES = {
    "alone": lambda recorder: recorder,
    "chain": lambda recorder: gradtx.chain(gradtx.scale_by_adam(), recorder),
    "chain of optax": lambda recorder: optax.chain(optax.trace(0.9), recorder),
    "named chain": lambda recorder: gradtx.named_chain(("step", recorder)),
    "nested": lambda recorder: gradtx.chain(gradtx.chain(gradtx.chain(recorder))),
    "masked": lambda recorder: gradtx.masked(recorder, True),
    "average": lambda recorder: gradtx.average_params(recorder, 0.9),
}


@pytest.mark.parametrize("place", PLACES)
def test_found_anywhere(place):
    state = run(PLACES[place](record_history()), numbers(3))
    np.testing.assert_array_equal(history_of(state)["step"], [0, 1, 2])


@pytest.mark.parametrize(
    ("recorders", "message"),
    [
        ([], "history_of: the state has no record_history"),
        ([{}, {}], r"history_of: .* several measures with the names \['gradient_norm'\]"),
        ([{}, {"every": 2}], r"history_of: .* 2 histories recorded at different steps"),
        ([{}, {"length": 1}], r"history_of: .* 2 histories recorded at different steps"),
    ],
    ids=["none", "names", "every", "length"],
)
def test_history_of_refuses(recorders, message):
    tx = gradtx.chain(*(record_history(**arguments) for arguments in recorders))
    with pytest.raises(ValueError, match=message):
        history_of(run(tx, numbers(3)))


def test_one_history_of_two_is_read_from_its_part_of_the_state():
    tx = gradtx.chain(record_history(), record_history(every=2))
    first, second = run(tx, numbers(3))
    assert isinstance(second, HistoryState)
    np.testing.assert_array_equal(history_of(first)["step"], [0, 1, 2])
    np.testing.assert_array_equal(history_of(second)["step"], [0, 2])


# Plots.


def test_plot_has_a_panel_for_each_measure():
    steps = np.arange(0, 8, 2)
    history = {
        "step": steps,
        "gradient_norm": np.array([1.0, 10.0, 500.0, 2.0]),
        "loss": np.array([1.0, 2.0, np.nan, -3.0]),
        "ratio/w": np.array([1.0, 2.0, 3.0, 4.0]),
        "ratio/b": np.array([1.0, 2.0, 3.0, 99.0]),
        "eigenvalues": np.ones((4, 2)),
        "all": np.full(4, np.nan),
    }
    figure = plot_history(history)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["gradient_norm", "loss", "ratio", "eigenvalues", "all"]
    assert [axes.get_yscale() for axes in panels.values()] == ["log", *["linear"] * 4]
    assert panels["gradient_norm"].get_ylabel() == "gradient norm"
    assert figure.axes[-1].get_xlabel() == "step"
    (line,) = panels["loss"].get_lines()
    np.testing.assert_array_equal(line.get_xdata(), steps)
    np.testing.assert_array_equal(line.get_ydata(), history["loss"])
    legends = {name: axes.get_legend() for name, axes in panels.items()}
    labels = {name: [t.get_text() for t in box.get_texts()] for name, box in legends.items() if box}
    assert labels == {
        "ratio": ["ratio/w", "ratio/b"],
        "eigenvalues": ["eigenvalues[0]", "eigenvalues[1]"],
    }
    figure.canvas.draw()


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_plot_of_a_state(steps):
    state = run(gradtx.named_chain(("step", record_history())), numbers(steps) or [jnp.zeros(1)])
    if steps == 0:
        state = record_history().init(jnp.zeros(1))
    figure = plot_history(state)
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), np.arange(steps) + 1.0)
    figure.canvas.draw()


def test_plot_of_many_curves_has_no_legend():
    figure = plot_history({"step": np.arange(2), "x": np.ones((2, 50))})
    assert len(figure.axes[0].get_lines()) == 50
    assert figure.axes[0].get_legend() is None


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"step": np.arange(2)}, "plot_history: the history has no measures"),
        (gradtx.sgd(0.1).init(None), "history_of: the state has no record_history"),
        ({"loss": np.ones(3)}, "history_of: the state has no record_history"),
    ],
    ids=["only-steps", "state", "no-steps"],
)
def test_plot_refuses(history, message):
    with pytest.raises(ValueError, match=message):
        plot_history(history)


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*gradtx\[diagnostics\]"):
        plot_history({"step": np.arange(2), "x": np.ones(2)})
