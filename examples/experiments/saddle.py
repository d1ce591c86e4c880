"""A saddle holds up gradient descent; noise lets it go.

The loss f(x, y) = x^2 / 2 - L y^2 / 2 + y^4 / 4 has its minima at (0, +-sqrt(L)) and between them,
at the origin, a saddle. Near it, each step of gradient descent with learning rate eta multiplies

    x by 1 - eta          (the saddle attracts), and
    y by g = 1 + eta L    (it repels, but slowly if L is small).

A start on the line y = 0 never leaves it. A start next to it, at y_0, needs

    T = log(d / y_0) / log(g)

steps to reach y = d: the closer the start is to the line, the longer the wait. Noise of standard
deviation s in the gradient ends the wait for every start: t steps after y_0 = 0

    Var y_t = v (g^(2t) - 1)    with    v = (eta s)^2 / (g^2 - 1).

On the plateau the loss hardly falls. It looks like the end of training, but it is not.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure

CLAIM = (
    "Gradient descent waits at a saddle in proportion to log(1 / distance of the start from its "
    "stable line), and on the line forever; with noise every run leaves, as fast as the negative "
    "curvature predicts."
)

L = 0.2
RATE = 0.1
GROWTH = 1 + RATE * L
NOISE = 1e-3
NOISE_FLOOR = (RATE * NOISE) ** 2 / (GROWTH**2 - 1)
ESCAPED = 0.05  # up to this distance, y^4 hardly counts
EARLY = 60  # a step at which all runs are still close to the line
STARTS = tuple(10.0**-k for k in range(2, 13, 2))
STEPS = 2000
SHOWN = 12  # noisy runs in the picture
BLACK, BLUE, VERMILION, *_ = COLORS


def loss(point: jax.Array) -> jax.Array:
    """The loss at the point (x, y)."""
    x, y = point
    return x**2 / 2 - L * y**2 / 2 + y**4 / 4


def descend(tx: gradtx.GradientTransformationExtraArgs, start: Any) -> tuple[Any, Any]:
    """The points before each step, of shape (STEPS, 2), and their losses."""

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        point, state = carry
        value, gradient = jax.value_and_grad(loss)(point)
        updates, state = tx.update(gradient, state, point)
        return (gradtx.apply_updates(point, updates), state), (point, value)

    start = jnp.asarray(start)
    return jax.lax.scan(step, (start, tx.init(start)), None, length=STEPS)[1]


def escape_steps(y: np.ndarray) -> np.ndarray:
    """The number of steps until each run, y of shape (runs, steps), escapes; inf: it does not."""
    is_out = np.abs(y) >= ESCAPED
    return np.where(is_out.any(axis=1), is_out.argmax(axis=1), np.inf)


def run(settings: Settings) -> Outcome:
    """Descend from the stable line, from next to it, and from the line with noise."""
    runs = settings.choose(full=2000, quick=400)
    descent = gradtx.sgd(RATE)
    starts = jnp.array([[1.0, y] for y in (0.0, *STARTS)])
    points, losses = jax.device_get(
        jax.jit(jax.vmap(lambda start: descend(descent, start)))(starts)
    )

    def descend_noisily(key: jax.Array) -> tuple[Any, Any]:
        noise = gradtx.add_noise(eta=NOISE**2, gamma=0.0, key=key)
        return descend(gradtx.chain(noise, descent), (1.0, 0.0))

    keys = jax.random.split(settings.key, runs)
    noisy_points, noisy_losses = jax.device_get(jax.jit(jax.vmap(descend_noisily))(keys))
    y, noisy_y = points[1:, :, 1], noisy_points[:, :, 1]
    waits, noisy_waits = escape_steps(y), escape_steps(noisy_y)
    figure, panels = new_figure("Escape from a saddle", rows=2)
    _draw_paths(panels[0, 0], points, noisy_points[:SHOWN])
    _draw_distances(panels[0, 1], y, noisy_y[:SHOWN])
    _draw_waits(panels[1, 0], waits, noisy_waits)
    _draw_losses(panels[1, 1], losses, noisy_losses[:SHOWN])
    caption = (
        "Every run first falls to the saddle at the origin. There the distance |y| grows as a "
        "power of 1 + eta L (dashed: the formula), so that each factor of 100 in the start costs "
        "the same number of steps, while the loss hardly changes. A run that starts exactly on the "
        "line stays there; with a little noise half of the runs have escaped after "
        f"{np.median(noisy_waits):.0f} steps."
    )
    return Outcome(
        [*_plain_checks(points, waits), *_noise_checks(noisy_y, noisy_waits)], figure, caption
    )


def _plain_checks(points: np.ndarray, waits: np.ndarray) -> list[Check]:
    """The checks without noise, of points from the line and from each of STARTS."""
    end = float(np.linalg.norm(points[0, -1]))
    nearest = points[-1, :, 1]
    growth = (nearest[EARLY] / nearest[0]) ** (1 / EARLY)
    delays = waits - np.log(ESCAPED / np.array(STARTS)) / math.log(GROWTH)
    return [
        Check(
            "on its stable line the saddle is the end",
            f"distance {end:.1g} after {STEPS} steps",
            end < 1e-6,
        ),
        Check(
            f"next to it y grows by 1 + eta L = {GROWTH:g} per step",
            f"{growth:.6f}",
            bool(abs(growth - GROWTH) < 1e-5),
        ),
        Check(
            "y = d takes log(d / y_0) / log(1 + eta L) steps",
            f"{waits[0]:.0f} to {waits[-1]:.0f} steps, {delays.min():+.1f} to {delays.max():+.1f} "
            "from the formula",
            # A whole number of steps, and slightly more because of y^4.
            bool(np.all((delays >= 0) & (delays < 2))),
        ),
    ]


def _noise_checks(noisy_y: np.ndarray, noisy_waits: np.ndarray) -> list[Check]:
    """The checks with noise."""
    runs = len(noisy_y)
    variance_ratio = noisy_y[:, EARLY].var() / (NOISE_FLOOR * (GROWTH ** (2 * EARLY) - 1))
    # Late noise has no time to grow, so y_t is near sqrt(v) g^t N(0, 1), whose median is 0.6745.
    typical = math.log(ESCAPED / (0.6745 * math.sqrt(NOISE_FLOOR))) / math.log(GROWTH)
    return [
        Check(
            f"after {EARLY} noisy steps Var y is v (g^{2 * EARLY} - 1)",
            f"{variance_ratio:.3f} times that",
            # Four standard errors of the variance of normal numbers.
            bool(abs(variance_ratio - 1) < 4 * math.sqrt(2 / runs)),
        ),
        Check(
            "with noise every run escapes",
            f"{np.isfinite(noisy_waits).mean():.0%} of {runs}, the last after "
            f"{noisy_waits.max():.0f} steps",
            bool(np.isfinite(noisy_waits).all()),
        ),
        Check(
            f"half of them within {typical:.0f} steps, as predicted",
            f"median {np.median(noisy_waits):.0f} steps",
            bool(abs(np.median(noisy_waits) - typical) < 0.1 * typical),
        ),
    ]


def _draw_paths(axes: Any, points: np.ndarray, noisy_points: np.ndarray) -> None:
    grid = jnp.stack(jnp.meshgrid(jnp.linspace(-0.4, 1.1, 121), jnp.linspace(-0.7, 0.7, 121)))
    roots = np.linspace(-L / 2, 0.8, 28)  # dense where the loss is flat
    levels = np.sign(roots) * roots**2
    axes.contour(*grid, loss(grid), levels=levels, colors="0.75", linewidths=0.8)
    for i, path in enumerate(noisy_points):
        axes.plot(*path.T, color=VERMILION, label="from y = 0, noisy" if i == 0 else None)
    axes.plot(*points[1].T, color=BLUE, linewidth=2, label=f"from y = {STARTS[0]:g}")
    axes.plot(*points[0].T, color=BLACK, linewidth=2, label="from y = 0")
    axes.plot(0, 0, "X", color=BLACK, markersize=10)
    axes.plot([0, 0], [L**0.5, -(L**0.5)], "*", color=BLACK, markersize=10)
    offset = {"textcoords": "offset points", "va": "center"}
    axes.annotate("saddle", (0, 0), (-10, 0), ha="right", **offset)
    axes.annotate("minimum", (0, L**0.5), (12, 0), **offset)
    axes.annotate("minimum", (0, -(L**0.5)), (12, 0), **offset)
    describe(axes, "The loss from above", "$x$", "$y$")


def _draw_distances(axes: Any, y: np.ndarray, noisy_y: np.ndarray) -> None:
    for distances in np.abs(noisy_y):
        axes.semilogy(distances, color=VERMILION, linewidth=0.6)
    for start, distances in zip(STARTS, np.abs(y), strict=True):
        axes.semilogy(distances, color=BLUE)
        steps = np.arange(math.log(L**0.5 / start) / math.log(GROWTH))
        axes.semilogy(steps, start * GROWTH**steps, "k--", linewidth=1)
    axes.plot([], [], color=VERMILION, label="from $y = 0$, noisy")
    axes.plot([], [], color=BLUE, label="from $y_0$, without noise")
    axes.plot([], [], "k--", label=r"$y_0 (1 + \eta L)^t$")
    describe(axes, "The way out", "step $t$", "$|y_t|$", ylim=(1e-13, 2))


def _draw_waits(axes: Any, waits: np.ndarray, noisy_waits: np.ndarray) -> None:
    ends = np.array([STARTS[0] * 2, STARTS[-1] / 2])
    predicted = np.log(ESCAPED / ends) / math.log(GROWTH)
    axes.semilogx(ends, predicted, "k--", label=r"$\log(d / y_0) / \log(1 + \eta L)$")
    axes.semilogx(STARTS, waits, "o", color=BLUE, label="from $y_0$, without noise")
    low, middle, high = np.quantile(noisy_waits, (0.05, 0.5, 0.95))
    axes.axhline(middle, color=VERMILION, label="from $y = 0$, noisy: median, 90% of runs")
    axes.axhspan(low, high, color=VERMILION, alpha=0.25)
    axes.invert_xaxis()
    describe(axes, f"The wait until $|y| = d = {ESCAPED:g}$", "start $y_0$", "steps")


def _draw_losses(axes: Any, losses: np.ndarray, noisy_losses: np.ndarray) -> None:
    for curve in noisy_losses:
        axes.plot(curve, color=VERMILION, linewidth=0.8)
    for curve in losses[1:]:
        axes.plot(curve, color=BLUE)
    axes.plot(losses[0], color=BLACK, linewidth=2)
    axes.plot([], [], color=BLACK, label="from $y = 0$")
    axes.plot([], [], color=VERMILION, label="from $y = 0$, noisy")
    exponents = f"10^{{{math.log10(STARTS[0]):.0f}}}$ to $10^{{{math.log10(STARTS[-1]):.0f}}}"
    axes.plot([], [], color=BLUE, label=f"from $y_0 = {exponents}$, left to right")
    describe(axes, "The plateau", "step $t$", "loss", ylim=(-1.15 * L**2 / 4, 0.3 * L**2))
