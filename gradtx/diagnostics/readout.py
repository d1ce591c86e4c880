"""What happened in a run: reads and plots what `record_history` left in the state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gradtx import trees
from gradtx.diagnostics import _extras
from gradtx.diagnostics.history import HistoryState
from gradtx.messages import listed

# With more curves in a panel, a legend would hide them.
_MOST_LABELS = 12


def history_of(state: Any) -> dict[str, np.ndarray]:
    """Read what `record_history` recorded, from the state of any chain.

    Args:
        state: an optimizer state, however deeply nested, or a `gradtx.training.TrainState`. Several
            records are merged if they were taken at the same steps.

    Returns:
        "step" -> the steps of the measurements, counted from 0, oldest first; and for each measure
        its name -> values of shape (number of measurements, ...). A measure that returns a tree
        has a name for each leaf, such as "update_ratio/dense/kernel".

    Raises:
        ValueError: if the state has no history, several that were recorded at different steps or
            that share a name, or those of a batch of runs.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.diagnostics import history_of, record_history
        >>> tx = gradtx.chain(gradtx.scale(2.0), record_history(every=2))
        >>> state = tx.init(jnp.zeros(1))
        >>> for gradient in (1.0, 2.0, 3.0):
        ...     _, state = tx.update(jnp.array([gradient]), state)
        >>> history = history_of(state)
        >>> print(history["step"], history["gradient_norm"])
        [0 2] [2. 6.]
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, HistoryState))
    found = [node for node in nodes if isinstance(node, HistoryState)]
    if not found:
        raise ValueError("history_of: the state has no record_history")
    merged: dict[str, np.ndarray] = {}
    for node in found:
        history = _chronological(node)
        if merged and not np.array_equal(merged["step"], history["step"]):
            raise ValueError(
                f"history_of: the state has {len(found)} histories recorded at different steps; "
                f"pass one part of the state at a time: {listed(sorted(merged))} and "
                f"{listed(sorted(history))}"
            )
        shared = sorted(merged.keys() & history.keys() - {"step"})
        if shared:
            raise ValueError(
                f"history_of: the state has several measures with the names {listed(shared)}; give "
                "the measures of each record_history distinct names"
            )
        merged |= history
    return merged


def _chronological(state: HistoryState) -> dict[str, np.ndarray]:
    steps = np.asarray(state.steps)
    if steps.ndim != 1:
        raise ValueError(
            f"history_of: the state belongs to a batch of runs of shape {steps.shape[:-1]}; pass "
            "the state of one run: jax.tree.map(lambda leaf: leaf[i], state)"
        )
    order = np.argsort(steps)[np.count_nonzero(steps < 0) :]
    named, _ = jax.tree_util.tree_flatten_with_path(state.buffers)
    buffers = {trees.path_name(path): np.asarray(buffer)[order] for path, buffer in named}
    return {"step": steps[order], **buffers}


def plot_history(history: Any) -> Any:
    """Plot a history, with a panel for each measure.

    Args:
        history: what `history_of` returned, or a state that it can read. Names that agree up to
            the first "/" share a panel, as do the elements of an array.

    Returns:
        A `matplotlib.figure.Figure`; save it with `figure.savefig("history.png")`. A panel has a
        logarithmic axis if its values are positive and span more than two decades. Values that are
        not finite leave a gap.

    Raises:
        ValueError: if `history` is neither a history nor a state with one, or has no measures.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from gradtx.diagnostics import plot_history
        >>> figure = plot_history({"step": np.arange(3), "loss": np.array([4.0, 2.0, 1.0])})
        >>> figure.axes[0].get_title()
        'loss'
    """
    is_history = isinstance(history, Mapping) and isinstance(history.get("step"), np.ndarray)
    values = dict(history) if is_history else history_of(history)
    steps = values.pop("step")
    if not values:
        raise ValueError("plot_history: the history has no measures, only 'step'")
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name, array in values.items():
        curves = panels.setdefault(name.partition("/")[0], {})
        for index in np.ndindex(array.shape[1:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            curves[label] = array[(slice(None), *index)]
    figure = _extras.load("matplotlib.figure").Figure(
        figsize=(7, 1 + 2.5 * len(panels)), layout="constrained"
    )
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, curves) in zip(grid, panels.items(), strict=True):
        for label, curve in curves.items():
            axes.plot(steps, curve, label=label, marker="." if len(steps) == 1 else None)
        numbers = np.concatenate(list(curves.values()))
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size and numbers.min() > 0 and numbers.max() > 100 * numbers.min():
            axes.set_yscale("log")
        axes.set(title=name, ylabel=name.replace("_", " "))
        axes.grid(alpha=0.3)
        if 1 < len(curves) <= _MOST_LABELS:
            axes.legend(fontsize="small")
    grid[-1].set_xlabel("step")
    return figure
