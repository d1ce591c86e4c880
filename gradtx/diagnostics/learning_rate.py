"""The learning rate range test: a short run that tries increasing learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradtx import trees
from gradtx.arguments import DECAY, POSITIVE_FINITE, Range, check
from gradtx.compose.sequence import as_transformation
from gradtx.diagnostics import _extras
from gradtx.diagnostics.noise_scale import first_axis_size
from gradtx.messages import shown
from gradtx.recipes.descent import sgd
from gradtx.training import TrainState, make_train_step
from gradtx.wrappers.steps import holding_back

_OWNER = "learning_rate_range"
_STEPS = Range("a whole number >= 3", lambda value: value >= 3 and float(value).is_integer())


@dataclass(frozen=True, eq=False)
class LearningRateRange:
    """What a learning rate range test found, see `learning_rate_range`.

    Attributes:
        learning_rates: the learning rate of each step.
        losses: the loss before each step.
        smoothed: the smoothed losses; NaN from the first non-finite loss onwards.
        steepest: the learning rate at which the smoothed loss falls fastest, before its minimum;
            NaN if it never falls.
        lowest: the learning rate at which the smoothed loss is lowest; NaN if it never falls.
        diverges_at: the first learning rate at which the loss is not finite or, after its minimum,
            the smoothed loss exceeds its initial value; infinite if there is none in the range.
        suggestion: a learning rate to start with: `steepest`, but at most a tenth of `lowest`.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float
    lowest: float
    diverges_at: float
    suggestion: float

    def __repr__(self) -> str:
        return (
            f"LearningRateRange(suggestion={self.suggestion:.3g}, steepest={self.steepest:.3g}, "
            f"lowest={self.lowest:.3g}, diverges_at={self.diverges_at:.3g}, {len(self.losses)} "
            f"losses from {self.learning_rates[0]:.3g} to {self.learning_rates[-1]:.3g})"
        )

    def plot(self) -> Any:
        """Plot the losses against the learning rates, with the learning rates that were found.

        Returns:
            A `matplotlib.figure.Figure`; save it with `figure.savefig("range.png")`. Losses far
            above the first one are cut off.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        figure = _extras.load("matplotlib.figure").Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        is_finite = np.isfinite(self.losses)
        axes.plot(self.learning_rates[is_finite], self.losses[is_finite], alpha=0.4, label="loss")
        axes.plot(self.learning_rates, self.smoothed, label="smoothed loss")
        marks = {
            "steepest": (self.steepest, ":"),
            "suggestion": (self.suggestion, "-"),
            "diverges at": (self.diverges_at, "--"),
        }
        for color, (label, (rate, style)) in enumerate(marks.items(), start=2):
            if math.isfinite(rate):
                axes.axvline(rate, color=f"C{color}", linestyle=style, label=f"{label} {rate:.2g}")
        first = self.losses[0]
        bottom = np.min(self.smoothed[np.isfinite(self.smoothed)], initial=np.inf)
        if bottom < first < np.inf:
            margin = 0.3 * (first - bottom)
            axes.set_ylim(bottom - margin, first + margin)
        axes.set(
            title="learning rate range test", xlabel="learning rate", ylabel="loss", xscale="log"
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure


def learning_rate_range(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    tx_factory: Callable[[Any], optax.GradientTransformation] = sgd,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.8,
    stacked: bool = False,
    model_state: Any = None,
    has_aux: bool = False,
    key: jax.Array | None = None,
) -> LearningRateRange:
    """Train for a few steps with a growing learning rate, and see where the loss falls and rises.

        eta_t = low * (high / low)^(t / (steps - 1)),    t = 0 .. steps - 1
        l_t   = the loss before step t
        s_t   = sum_{i <= t} smoothing^(t-i) l_i / sum_{i <= t} smoothing^(t-i)

    All steps run as one compiled scan. The given parameters are not modified.

    Args:
        loss_fn: the loss of a batch, as for `gradtx.training.make_train_step`:
            `loss_fn(params, batch)`, with `model_state` before the batch and a key after it if
            these are given.
        params: the parameters, a tree of arrays. The run starts from them.
        batch: the batch of every step, a tree of arrays.
        tx_factory: makes the transformation from a learning rate, which is a schedule:
            `gradtx.sgd`, `optax.adamw`, or
            `lambda learning_rate: gradtx.sgd(learning_rate, momentum=0.9)`.
        low: the first learning rate, > 0.
        high: the last learning rate, > low.
        steps: the number of steps, >= 3.
        smoothing: the decay rate of the exponential moving average of the losses, in [0, 1); 0: no
            smoothing. The average lags by smoothing / (1 - smoothing) steps.
        stacked: whether the arrays of `batch` have a first axis of batches, which are used in turn.
        model_state: the rest of the network's state; None: there is none.
        has_aux: whether the loss returns a pair of the loss and something else.
        key: the PRNG key of the run; None: the loss is not random.

    Returns:
        A `LearningRateRange`: the curve, `steepest`, `lowest`, `diverges_at` and `suggestion`, and
        a `plot`.

    Raises:
        ValueError: if `loss_fn` or `tx_factory` is not a function, `tx_factory` does not return a
            gradient transformation or returns one that can skip steps, as `MultiSteps` does, a
            number is outside its range, the first axes of a stacked batch are missing or differ,
            or the loss is not a real scalar.

    Source:
        Smith 2017, "Cyclical learning rates for training neural networks", section 3.3, where the
        learning rate grows linearly; Howard & Gugger 2020, "Deep learning for coders with fastai
        and PyTorch", chapter 5, for exponential growth and the tenth of `lowest`.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import learning_rate_range
        >>> def loss_fn(x, curvature):
        ...     return curvature * x**2 / 2
        >>> found = learning_rate_range(loss_fn, jnp.array(1.0), jnp.array(4.0))
        >>> bool(found.suggestion < 2 / 4.0 < found.diverges_at)
        True
    """
    for name, function in (("loss_fn", loss_fn), ("tx_factory", tx_factory)):
        if not callable(function):
            raise ValueError(f"{_OWNER}: {name} must be a function, got {shown(function)}")
    low = check(_OWNER, "low", low, POSITIVE_FINITE)
    high = check(
        _OWNER, "high", high, Range(f"finite and > low, {low}", lambda v: low < v < math.inf)
    )
    steps = check(_OWNER, "steps", steps, _STEPS)
    smoothing = check(_OWNER, "smoothing", smoothing, DECAY)
    number = first_axis_size(_OWNER, "batch", batch) if stacked else 1
    rates = np.geomspace(float(low), float(high), int(steps))
    table = jnp.asarray(rates, dtype=float)
    tx = as_transformation(_OWNER, "the result of tx_factory", tx_factory(lambda t: table[t]))
    trained, complete = _without_settings(params)

    def loss_of_trained(trained: Any, *args: Any) -> Any:
        return loss_fn(complete(trained), *args)

    train_step = make_train_step(
        loss_of_trained,
        tx,
        has_model_state=model_state is not None,
        has_aux=has_aux,
        has_key=key is not None,
        donate=False,
    )

    def step(state: TrainState, batches: Any) -> tuple[TrainState, jax.Array]:
        turn = jax.tree.map(lambda leaf: leaf[state.step % number], batches) if stacked else batches
        state, metrics = train_step(state, turn)
        return state, metrics["loss"]

    @jax.jit
    def run(state: TrainState, batches: Any) -> jax.Array:
        return lax.scan(lambda state, _: step(state, batches), state, length=len(rates))[1]

    state = TrainState.create(trained, tx, model_state=model_state, key=key)
    if holding_back(state.opt_state):
        raise ValueError(
            f"{_OWNER}: the result of tx_factory must take a step at each call, but it has a "
            "wrapper that can skip steps (MultiSteps, apply_if_finite, ...); omit it for the test"
        )
    losses = run(state, jax.tree.map(jnp.asarray, batch))
    return _analyzed(rates, np.asarray(losses).astype(np.float64), float(smoothing))


def _without_settings(params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The arrays among the parameters, and the function that adds everything else to them.

    A compiled training step takes arrays only; a module may also have numbers and functions.
    """
    leaves, treedef = trees.flatten(params)
    is_array = [hasattr(leaf, "dtype") for leaf in leaves]
    if all(is_array):
        return params, lambda trained: trained

    def complete(trained: Any) -> Any:
        parts = treedef.flatten_up_to(trained)
        return treedef.unflatten(
            part if given else leaf
            for part, leaf, given in zip(parts, leaves, is_array, strict=True)
        )

    arrays = treedef.unflatten(
        leaf if given else None for leaf, given in zip(leaves, is_array, strict=True)
    )
    return arrays, complete


def _analyzed(rates: np.ndarray, losses: np.ndarray, smoothing: float) -> LearningRateRange:
    is_bad = ~np.isfinite(losses)
    end = int(np.argmax(is_bad)) if is_bad.any() else len(losses)
    smoothed = np.full(len(losses), np.nan)
    average = weight = 0.0
    for t, loss in enumerate(losses[:end]):
        average = smoothing * average + (1 - smoothing) * loss
        weight = smoothing * weight + 1 - smoothing
        smoothed[t] = average / weight
    bottom = int(np.argmin(smoothed[:end])) if end else 0
    risen = np.flatnonzero(smoothed[bottom + 1 : end] > smoothed[0]) + bottom + 1
    first_bad = int(risen[0]) if risen.size else end
    steepest = lowest = math.nan
    if bottom > 0:
        # The learning rates are evenly spaced in their logarithm.
        slopes = np.gradient(smoothed[: bottom + 1])
        steepest, lowest = float(rates[np.argmin(slopes)]), float(rates[bottom])
    return LearningRateRange(
        learning_rates=rates,
        losses=losses,
        smoothed=smoothed,
        steepest=steepest,
        lowest=lowest,
        diverges_at=float(rates[first_bad]) if first_bad < len(rates) else math.inf,
        suggestion=min(steepest, lowest / 10),
    )
