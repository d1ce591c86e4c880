"""At a cliff the gradient is a catapult; clipping limits its length and may keep its direction.

A recurrent network of one unit repeats h <- w sigmoid(h) + b for 50 steps. Its loss
(sigmoid(h) - 0.7)^2, as a function of (w, b), is nearly flat except for a wall, where the unit's
memory flips from one fixed point to the other (Pascanu, Mikolov & Bengio 2013, "On the difficulty
of training recurrent neural networks", Figure 6). The minimum lies at the foot of the wall.
Gradient descent comes down the gentle slope, touches the wall, and takes a step as long as the wall
is steep: it is thrown far away, to a plateau that it never leaves. There are two ways to limit the
gradient g:

    by norm    u = min(1, m / ||g||) g        shorter, in the same direction
    by value   u_i = min(max(g_i, -c), c)     in a different direction: where all components are
                                              clipped, always along a diagonal

With c = m / sqrt(2) both allow steps of the same length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure

CLAIM = (
    "On a loss with a cliff, plain gradient descent is thrown far away; with clipped gradients it "
    "is not, and clipping by norm, which keeps their direction, ends at a lower loss than clipping "
    "by value, which does not."
)

RATE = 0.1
MAX_NORM = 0.5
START, SPREAD = (5.5, -2.2), 0.1
STEPS = 400
NONE, VALUE, NORM = "no clipping", "by value", "by norm"
BLACK, BLUE, VERMILION, GREEN, *_ = COLORS
COLOR_OF = {NONE: VERMILION, VALUE: GREEN, NORM: BLUE}
CLIPPINGS = {
    NONE: gradtx.identity(),
    VALUE: gradtx.clip(MAX_NORM / 2**0.5),
    NORM: gradtx.clip_by_global_norm(MAX_NORM),
}


def loss(point: jax.Array) -> jax.Array:
    """The loss at (w, b), shape (2,)."""
    w, b = point
    h = jax.lax.fori_loop(0, 50, lambda _, h: w * jax.nn.sigmoid(h) + b, jnp.full_like(w, 0.5))
    return (jax.nn.sigmoid(h) - 0.7) ** 2


class Paths(NamedTuple):
    """Many runs: points, gradients and updates of shape (runs, steps, 2), losses (runs, steps)."""

    points: Any
    losses: Any
    gradients: Any
    updates: Any

    @property
    def cosines(self) -> np.ndarray:
        """The cosine of the angle between the update and minus the gradient, at each step."""
        lengths = np.linalg.norm(self.gradients, axis=-1) * np.linalg.norm(self.updates, axis=-1)
        # On the plateau both underflow to zero.
        is_zero = lengths == 0
        product = -np.sum(self.gradients * self.updates, axis=-1)
        return np.where(is_zero, 1, product / np.where(is_zero, 1, lengths))


def descend(clipping: gradtx.GradientTransformationExtraArgs, starts: jax.Array) -> Paths:
    """Runs of clipped gradient descent from starts of shape (runs, 2)."""
    tx = gradtx.chain(clipping, gradtx.sgd(RATE))

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        point, state = carry
        value, gradient = jax.value_and_grad(loss)(point)
        updates, state = tx.update(gradient, state, point)
        carry = gradtx.apply_updates(point, updates), state
        return carry, Paths(point, value, gradient, updates)

    @jax.jit
    @jax.vmap
    def runs(start: jax.Array) -> Paths:
        return jax.lax.scan(step, (start, tx.init(start)), None, length=STEPS)[1]

    return jax.device_get(runs(starts))


def run(settings: Settings) -> Outcome:
    """Descend from many starts above the wall, with and without clipping."""
    runs = settings.choose(full=64, quick=16)
    starts = jnp.array([START]) + SPREAD * jax.random.normal(settings.key, (runs, 2))
    paths = {name: descend(clipping, starts) for name, clipping in CLIPPINGS.items()}
    longest = {
        name: np.linalg.norm(path.updates, axis=-1).max(axis=1) for name, path in paths.items()
    }
    # The run whose longest step is the median one.
    typical = int(np.argsort(longest[NONE])[runs // 2])
    figure, panels = new_figure("A cliff, and three ways to meet it", rows=2)
    _draw_paths(panels[0, 0], paths, typical, (3.0, 9.0), (-4.5, 3.0), "One run from above")
    _draw_paths(panels[0, 1], paths, typical, (4.3, 5.1), (-2.7, -2.15), "The foot of the wall")
    _draw_losses(panels[1, 0], paths)
    _draw_cosines(panels[1, 1], paths)
    caption = (
        "Top: a run goes down the gentle slope until it meets the wall, beyond which the loss is "
        "high (dark). Unclipped, it is thrown over it and ends far away. Clipped by norm, steps "
        "off the wall go straight away from it, and the run slides along its foot towards the "
        "minimum. Clipped by value, they go along the diagonal, partly backwards, and the run "
        "makes less progress. Bottom: the losses of all runs, and the directions of all clipped "
        "steps."
    )
    return Outcome([*_step_checks(paths, longest), *_loss_checks(paths)], figure, caption)


def _step_checks(paths: dict[str, Paths], longest: dict[str, np.ndarray]) -> list[Check]:
    """The checks of the lengths and directions of steps, given each run's longest step."""
    cosine = {name: float(path.cosines.min()) for name, path in paths.items()}
    allowed = RATE * MAX_NORM
    return [
        Check(
            "without clipping the wall throws each run farther than clipping ever allows, "
            f"{allowed:g}",
            f"longest steps {longest[NONE].min():.2f} to {longest[NONE].max():.3g}, median "
            f"{np.median(longest[NONE]):.2f}",
            bool(longest[NONE].min() > 2 * allowed and np.median(longest[NONE]) > 20 * allowed),
        ),
        Check(
            f"clipped steps are at most {allowed:g} long",
            f"{longest[VALUE].max():.4f} by value, {longest[NORM].max():.4f} by norm",
            bool(max(longest[VALUE].max(), longest[NORM].max()) < allowed * (1 + 1e-5)),
        ),
        Check(
            "clipping by norm keeps the direction",
            f"smallest cosine {cosine[NORM]:.6f}",
            cosine[NORM] > 1 - 1e-5,
        ),
        Check(
            "clipping by value does not",
            f"smallest cosine {cosine[VALUE]:.3f}",
            cosine[VALUE] < 0.95,
        ),
    ]


def _loss_checks(paths: dict[str, Paths]) -> list[Check]:
    """The checks of the losses at the end."""
    # On the wall the runs jump up and down, so the loss of a single step means little.
    late = {name: path.losses[:, -STEPS // 4 :].mean(axis=1) for name, path in paths.items()}
    median = {name: float(np.median(losses)) for name, losses in late.items()}
    return [
        Check(
            "without clipping the runs end on a plateau",
            f"median loss {median[NONE]:.2g}",
            median[NONE] > 0.05,
        ),
        Check(
            "by norm they end near the minimum, at less than a fifth of the loss by value",
            f"median loss {median[NORM]:.2g} by norm, {median[VALUE]:.2g} by value",
            median[NORM] < 0.01 and median[NORM] < median[VALUE] / 5,
        ),
    ]


def _draw_paths(
    axes: Any,
    paths: Any,
    i: int,
    w: tuple[float, float],
    b: tuple[float, float],
    title: str,
) -> None:
    grid = jnp.stack(jnp.meshgrid(jnp.linspace(*w, num=301), jnp.linspace(*b, num=301)))
    axes.contourf(*grid, loss(grid), levels=30, cmap="Greys")
    start = paths[NONE].points[i, 0]
    axes.plot(*start, "*", ms=12, color=BLACK)
    axes.annotate("start", start, (8, 2), textcoords="offset points")
    for name, marker in ((NONE, "o"), (NORM, "s"), (VALUE, ".")):
        path = paths[name].points[i]
        axes.plot(*path.T, f"{marker}-", color=COLOR_OF[name], lw=1, ms=4, label=name)
    describe(axes, title, "w", "b", xlim=w, ylim=b)


def _draw_losses(axes: Any, paths: Any) -> None:
    for name, path in paths.items():
        # The mean of the last ten steps hides the jumps.
        means = path.losses.reshape(len(path.losses), -1, 10).mean(axis=-1)
        steps = np.arange(10, STEPS + 1, 10)
        low, middle, high = np.quantile(means, (0.1, 0.5, 0.9), axis=0)
        axes.fill_between(steps, low, high, color=COLOR_OF[name], alpha=0.2, lw=0)
        axes.semilogy(steps, middle, color=COLOR_OF[name], label=name)
    describe(axes, "Median of the runs, and 80% of them", "step", "loss, mean of 10 steps")


def _draw_cosines(axes: Any, paths: Any) -> None:
    for name in (NORM, VALUE):
        sizes = np.linalg.norm(paths[name].gradients, axis=-1)
        dots = {"color": COLOR_OF[name], "ms": 3, "alpha": 0.4, "label": name}
        axes.semilogx(sizes.ravel(), paths[name].cosines.ravel(), "o", **dots)
    axes.axvline(MAX_NORM, color=BLACK, ls="--", lw=1, label="largest norm m")
    describe(axes, "Direction of the steps", "norm of the gradient", "cosine to the descent")
