"""Gradient descent and momentum on least squares, parameter by parameter.

Along the singular vectors of its matrix, a least-squares problem falls apart into one parabola
per parameter, whose curvature L is the square of a singular value. Gradient descent with the
learning rate h multiplies the distance from the minimum, at each step, by

    1 - h L

One rate must serve all curvatures from m to M: the best is h = 2 / (M + m), and the slowest
parameters shrink by (k - 1) / (k + 1) at each step, where k = M / m is the condition number.

Momentum b remembers the previous step, so that the distances obey a recurrence of second order,

    x_{t+1} = (1 + b - h L) x_t - b x_{t-1}

and shrink like the larger root z of z^2 - (1 + b - h L) z + b = 0. Where the roots are complex the
parameter swings like a weak spring, and both have the modulus sqrt(b), whatever the curvature: all
these parameters converge equally fast. Best are h = (2 / (sqrt(M) + sqrt(m)))^2 and
b = ((sqrt(k) - 1) / (sqrt(k) + 1))^2, with the rate (sqrt(k) - 1) / (sqrt(k) + 1): as if the
condition number were only its root.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.sequences import descend

CLAIM = (
    "On least squares each parameter converges at the rate that its singular value predicts: "
    "|1 - h L| for gradient descent, sqrt(b) for momentum where it swings; at its best momentum "
    "replaces the condition number by its square root."
)

SINGULAR_VALUES = np.array([1.0, 0.55, 0.3, 0.17, 0.1])
CURVATURES = SINGULAR_VALUES**2
CONDITION = CURVATURES.max() / CURVATURES.min()
# The best learning rates and momentum that there are for this condition number.
BEST_GD = 2 / (CURVATURES.max() + CURVATURES.min())
BEST_HB = (2 / (SINGULAR_VALUES.max() + SINGULAR_VALUES.min())) ** 2
BEST_MOMENTUM = ((CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)) ** 2
# With these the flattest parameter crawls and all others swing.
SHOWN = (1.5, 0.7)
STEPS = 300
BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = COLORS
COLOR_OF = (BLUE, SKY, GREEN, ORANGE, VERMILION)


def run(settings: Settings) -> Outcome:
    """Descend from one starting point with many learning rates and momenta."""
    start = first_parameters(settings.key)
    plain, heavy = paths(start, np.array([[BEST_GD, 0.0], SHOWN]))
    plain_rates, heavy_rates = measured_rates(plain), measured_rates(heavy)
    swings = is_underdamped(*SHOWN)
    deviation = np.abs(heavy_rates - predicted_rates(*SHOWN))

    learning_rates, momenta = np.linspace(0.02, 4.4, 80), np.linspace(0, 0.95, 48)
    grid = np.stack(np.meshgrid(learning_rates, momenta), axis=-1)
    surface = slowest(paths(start, grid.reshape(-1, 2))).reshape(grid.shape[:2])
    lines = {
        momentum: slowest(paths(start, np.stack([rates, np.full_like(rates, momentum)], axis=-1)))
        for momentum, rates in sweeps().items()
    }
    line_error = max(
        np.abs(lines[momentum] - predicted_slowest(rates, momentum)).max()
        for momentum, rates in sweeps().items()
    )
    best_plain = lines[0.0].min()
    best_heavy = min(lines[BEST_MOMENTUM].min(), surface.min())
    predicted_plain = (CONDITION - 1) / (CONDITION + 1)
    predicted_heavy = (CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)
    plain_error = np.abs(plain_rates - predicted_rates(BEST_GD, 0.0)).max()
    checks = [
        Check(
            "gradient descent: every parameter shrinks by |1 - h L| at each step",
            f"{_listed(plain_rates)}; largest deviation {plain_error:.1e}",
            bool(plain_error < 1e-3),
        ),
        Check(
            f"momentum: every parameter that swings shrinks by sqrt(b) = {SHOWN[1] ** 0.5:.4f}",
            f"{_listed(heavy_rates[swings])}; largest deviation {deviation[swings].max():.1e}",
            bool(deviation[swings].max() < 2e-3),
        ),
        Check(
            "momentum: the one that does not swing shrinks by the larger root, "
            + _listed(predicted_rates(*SHOWN)[~swings]),
            f"{_listed(heavy_rates[~swings])}; deviation {deviation[~swings].max():.1e}",
            bool(deviation[~swings].max() < 2e-3),
        ),
        Check(
            "the slowest parameter follows the formula at every learning rate",
            f"largest deviation {line_error:.1e}",
            bool(line_error < 0.01),
        ),
        Check(
            f"the best that gradient descent can do is (k - 1) / (k + 1) = {predicted_plain:.4f}",
            f"{best_plain:.4f}",
            bool(abs(best_plain - predicted_plain) < 1e-3),
        ),
        Check(
            "the best that momentum can do is (sqrt(k) - 1) / (sqrt(k) + 1) = "
            f"{predicted_heavy:.4f}",
            f"{best_heavy:.4f}",
            bool(abs(best_heavy - predicted_heavy) < 0.01),
        ),
        Check(
            "k = 100: that is about sqrt(k) = 10 times fewer steps for each digit",
            f"{np.log(best_heavy) / np.log(best_plain):.1f} times",
            bool(9 < np.log(best_heavy) / np.log(best_plain) < 11),
        ),
    ]
    return Outcome(
        checks,
        _draw(plain, heavy, lines, learning_rates, momenta, surface),
        "Top: the distance of each parameter from the minimum, and dotted its predicted slope. "
        "Gradient descent leaves the flattest (and, flipping its sign at each step, the steepest) "
        "parameter far behind. With momentum all that swing have the same slope; only the flattest "
        "still crawls. Bottom left: the slowest parameter's rate, measured (dots) and predicted "
        "(curves). Bottom right: the same over both numbers; the star is the predicted optimum, "
        "grey means that it diverges.",
    )


def first_parameters(key: jax.Array) -> jax.Array:
    """A starting point at a distance of 1 to 2 along each singular vector, on either side."""
    sign_key, distance_key = jax.random.split(key)
    shape = SINGULAR_VALUES.shape
    return jax.random.rademacher(sign_key, shape, jnp.float32) * jax.random.uniform(
        distance_key, shape, minval=1, maxval=2
    )


def paths(start: jax.Array, hyperparameters: np.ndarray) -> np.ndarray:
    """The parameters, which are their own distances from the minimum, at every step.

    Args:
        start: of shape (5,).
        hyperparameters: pairs of learning rate and momentum, of shape (n, 2).

    Returns:
        An array of shape (n, STEPS + 1, 5).
    """
    return np.asarray(_paths(start, jnp.asarray(hyperparameters, jnp.float32)))


@jax.jit
def _paths(start: jax.Array, hyperparameters: jax.Array) -> jax.Array:
    matrix = jnp.diag(jnp.asarray(SINGULAR_VALUES, jnp.float32))

    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: 0.5 * jnp.sum((matrix @ x) ** 2))(x)

    def path(pair: jax.Array) -> jax.Array:
        learning_rate, momentum = pair
        return descend(gradtx.sgd(learning_rate, momentum=momentum), gradient, start, STEPS)

    return jax.vmap(path)(hyperparameters)


def measured_rates(path: np.ndarray) -> np.ndarray:
    """The factor by which each parameter shrinks at each step, from its slope on a log scale.

    A parameter that swings passes through zero, but never twice in a row: the length of the pair
    (x_t, x_{t-1}) shrinks without dips.

    Args:
        path: of shape (..., steps + 1, parameters).

    Returns:
        An array of shape (..., parameters); infinite where the parameter left the range of numbers.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.hypot(path[..., 1:, :], path[..., :-1, :]).astype(np.float64)
    steps = np.arange(length.shape[-2])[:, None]
    # Before float32 underflows, and without the first half, where the smaller root still matters.
    fitted = np.isfinite(length) & (length > 1e-30)
    fitted &= steps >= fitted.sum(axis=-2, keepdims=True) // 2
    log = np.log(length, where=fitted, out=np.zeros_like(length))
    weight = fitted / fitted.sum(axis=-2, keepdims=True)
    centred = steps - (weight * steps).sum(axis=-2, keepdims=True)
    spread = (weight * centred**2).sum(axis=-2)
    # Without spread the parameter was there at once.
    slope = np.full_like(spread, -np.inf)
    np.divide((weight * centred * log).sum(axis=-2), spread, out=slope, where=spread > 0)
    return np.where(np.isfinite(length).all(axis=-2), np.exp(slope), np.inf)


def slowest(path: np.ndarray) -> np.ndarray:
    """The rate of the slowest parameter."""
    return measured_rates(path).max(axis=-1)


def predicted_rates(learning_rate: Any, momentum: Any) -> np.ndarray:
    """The modulus of the larger root z of z^2 - (1 + b - h L) z + b = 0, for each curvature L.

    Args:
        learning_rate: h, of any shape.
        momentum: b, a number; 0: gradient descent, |1 - h L|.
    """
    a = 1 + momentum - np.asarray(learning_rate)[..., None] * CURVATURES
    root = np.sqrt((a**2 - 4 * momentum).astype(complex))
    return np.maximum(np.abs(a + root), np.abs(a - root)) / 2


def predicted_slowest(learning_rate: Any, momentum: Any) -> np.ndarray:
    """The predicted rate of the slowest parameter."""
    return predicted_rates(learning_rate, momentum).max(axis=-1)


def is_underdamped(learning_rate: float, momentum: float) -> np.ndarray:
    """Whether each parameter swings: its roots are complex."""
    return (1 + momentum - learning_rate * CURVATURES) ** 2 < 4 * momentum


def sweeps() -> dict[float, np.ndarray]:
    """Learning rates up to where it diverges, without momentum and with the best."""
    return {
        0.0: np.append(np.linspace(0.1, 2.1, 21), BEST_GD),
        BEST_MOMENTUM: np.append(np.linspace(0.1, 3.4, 24), BEST_HB),
    }


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _draw(
    plain: np.ndarray,
    heavy: np.ndarray,
    lines: dict[float, np.ndarray],
    learning_rates: np.ndarray,
    momenta: np.ndarray,
    surface: np.ndarray,
) -> Any:
    figure, ((first, second), (rates, both)) = new_figure(
        "Least squares with condition number k = 100", rows=2
    )
    titles = (
        f"Gradient descent, h = {BEST_GD:.2f} (its best)",
        f"Momentum, h = {SHOWN[0]:g}, b = {SHOWN[1]:g}",
    )
    for axes, title, path, pair in (
        (first, titles[0], plain, (BEST_GD, 0.0)),
        (second, titles[1], heavy, SHOWN),
    ):
        steps = np.arange(101)
        for i, slope in enumerate(predicted_rates(*pair)):
            # One legend serves both panels.
            label = f"singular value {SINGULAR_VALUES[i]:g}" if axes is second else None
            axes.plot(steps, np.abs(path[:101, i]), color=COLOR_OF[i], label=label)
            axes.plot(steps, 1.5 * slope**steps, color=COLOR_OF[i], lw=1, ls=":")
        describe(axes, title, "step", "distance from the minimum", yscale="log", ylim=(1e-6, 5))
    second.legend(fontsize="small", loc="lower left")
    for (momentum, measured), color, name in zip(
        lines.items(), (VERMILION, BLUE), ("gradient descent", "momentum"), strict=True
    ):
        fine = np.linspace(0.01, 3.5, 600)
        rates.plot(fine, predicted_slowest(fine, momentum), color=color, lw=1)
        label = name if momentum == 0 else f"{name}, b = {momentum:.2f}"
        rates.plot(sweeps()[momentum], measured, "o", ms=4, color=color, label=label)
    for x, y, color in (
        (BEST_GD, (CONDITION - 1) / (CONDITION + 1), VERMILION),
        (BEST_HB, BEST_MOMENTUM**0.5, BLUE),
    ):
        rates.plot(x, y, "*", ms=15, color=color, mec=BLACK)
    describe(
        rates, "The slowest parameter", "h: learning rate", "factor per step", ylim=(0.79, 1.05)
    )
    image = both.pcolormesh(
        learning_rates,
        momenta,
        np.ma.masked_greater_equal(surface, 1),
        cmap="viridis_r",
        vmin=BEST_MOMENTUM**0.5 - 0.01,
        vmax=1,
        rasterized=True,
    )
    both.set_facecolor("0.8")
    both.plot(BEST_HB, BEST_MOMENTUM, "*", ms=15, color="white", mec=BLACK)
    figure.colorbar(image, ax=both, label="the slowest parameter's factor per step")
    describe(both, "All learning rates and momenta", "h: learning rate", "b: momentum")
    both.grid(visible=False)
    return figure
