"""Gradient descent and momentum on least squares, parameter by parameter.

Along the singular vectors of its matrix, a least-squares problem separates into one parabola per
parameter, whose curvature L is the square of a singular value. Gradient descent with the learning
rate h multiplies the distance from the minimum, at each step, by

    1 - h L

One rate must serve all curvatures from m to M: the best is h = 2 / (M + m), and the slowest
parameters shrink by (k - 1) / (k + 1) at each step, where k = M / m is the condition number.

Momentum b remembers the previous step, so that the distances obey a recurrence of second order,

    x_{t+1} = (1 + b - h L) x_t - b x_{t-1}

and shrink like the larger root z of z^2 - (1 + b - h L) z + b = 0. Where the roots are complex, the
parameter oscillates like a weak spring, and both roots have the modulus sqrt(b), for any curvature:
all these parameters converge equally fast. The best choice is h = (2 / (sqrt(M) + sqrt(m)))^2 and
b = ((sqrt(k) - 1) / (sqrt(k) + 1))^2, with the rate (sqrt(k) - 1) / (sqrt(k) + 1): as if the
condition number were only its square root.
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
    "|1 - h L| for gradient descent, sqrt(b) for momentum where it oscillates; at its best "
    "momentum replaces the condition number by its square root."
)

SINGULAR_VALUES = np.array([1.0, 0.55, 0.3, 0.17, 0.1])
CURVATURES = SINGULAR_VALUES**2
CONDITION = CURVATURES.max() / CURVATURES.min()
# The best learning rates and momentum for this condition number.
BEST_GD = 2 / (CURVATURES.max() + CURVATURES.min())
BEST_HB = (2 / (SINGULAR_VALUES.max() + SINGULAR_VALUES.min())) ** 2
BEST_MOMENTUM = ((CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)) ** 2
# With these the flattest parameter crawls and all others oscillate.
SHOWN = (1.5, 0.7)
STEPS = 300
BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = COLORS
COLOR_OF = (BLUE, SKY, GREEN, ORANGE, VERMILION)


def run(settings: Settings) -> Outcome:
    """Descend from one starting point with many learning rates and momenta."""
    start = first_parameters(settings.key)
    plain, heavy = paths(start, np.array([[BEST_GD, 0.0], SHOWN]))
    learning_rates, momenta = np.linspace(0.02, 4.4, 80), np.linspace(0, 0.95, 48)
    grid = np.stack(np.meshgrid(learning_rates, momenta), axis=-1)
    surface = slowest(paths(start, grid.reshape(-1, 2))).reshape(grid.shape[:2])
    lines = {
        momentum: slowest(paths(start, np.stack([rates, np.full_like(rates, momentum)], axis=-1)))
        for momentum, rates in sweeps().items()
    }
    return Outcome(
        [*_parameter_checks(plain, heavy), *_best_checks(lines, surface)],
        _draw(plain, heavy, lines, learning_rates, momenta, surface),
        "Top: the distance of each parameter from the minimum, and (dotted) its predicted slope. "
        "Gradient descent leaves the flattest parameter far behind (and the steepest one, whose "
        "sign changes at each step). With momentum all parameters that oscillate have the same "
        "slope; only the flattest still crawls. Bottom left: the rate of the slowest parameter, "
        "measured (dots) and predicted (curves). Bottom right: the same over both "
        "hyperparameters; the star is the predicted optimum, and gray means divergence.",
    )


def _parameter_checks(plain: np.ndarray, heavy: np.ndarray) -> list[Check]:
    """The checks of each parameter's rate, on one path of each method."""
    plain_rates, heavy_rates = measured_rates(plain), measured_rates(heavy)
    plain_error = np.abs(plain_rates - predicted_rates(BEST_GD, 0.0)).max()
    oscillates = is_underdamped(*SHOWN)
    deviation = np.abs(heavy_rates - predicted_rates(*SHOWN))
    return [
        Check(
            "gradient descent: every parameter shrinks by |1 - h L| at each step",
            f"{_listed(plain_rates)}; largest deviation {plain_error:.1e}",
            bool(plain_error < 1e-3),
        ),
        Check(
            f"momentum: every parameter that oscillates shrinks by sqrt(b) = {SHOWN[1] ** 0.5:.4f}",
            f"{_listed(heavy_rates[oscillates])}; "
            f"largest deviation {deviation[oscillates].max():.1e}",
            bool(deviation[oscillates].max() < 2e-3),
        ),
        Check(
            "momentum: the one that does not oscillate shrinks by the larger root, "
            + _listed(predicted_rates(*SHOWN)[~oscillates]),
            f"{_listed(heavy_rates[~oscillates])}; deviation {deviation[~oscillates].max():.1e}",
            bool(deviation[~oscillates].max() < 2e-3),
        ),
    ]


def _best_checks(lines: dict[float, np.ndarray], surface: np.ndarray) -> list[Check]:
    """The checks of the slowest parameter, and of the best rate of each method."""
    line_error = max(
        np.abs(lines[momentum] - predicted_slowest(rates, momentum)).max()
        for momentum, rates in sweeps().items()
    )
    best_plain = lines[0.0].min()
    best_heavy = min(lines[BEST_MOMENTUM].min(), surface.min())
    predicted_plain = (CONDITION - 1) / (CONDITION + 1)
    predicted_heavy = (CONDITION**0.5 - 1) / (CONDITION**0.5 + 1)
    return [
        Check(
            "the slowest parameter follows the formula at every learning rate",
            f"largest deviation {line_error:.1e}",
            bool(line_error < 0.01),
        ),
        Check(
            f"the best rate of gradient descent is (k - 1) / (k + 1) = {predicted_plain:.4f}",
            f"{best_plain:.4f}",
            bool(abs(best_plain - predicted_plain) < 1e-3),
        ),
        Check(
            f"the best rate of momentum is (sqrt(k) - 1) / (sqrt(k) + 1) = {predicted_heavy:.4f}",
            f"{best_heavy:.4f}",
            bool(abs(best_heavy - predicted_heavy) < 0.01),
        ),
        Check(
            "k = 100: that is about sqrt(k) = 10 times fewer steps for each digit",
            f"{np.log(best_heavy) / np.log(best_plain):.1f} times",
            bool(9 < np.log(best_heavy) / np.log(best_plain) < 11),
        ),
    ]


def first_parameters(key: jax.Array) -> jax.Array:
    """A starting point at a distance of 1 to 2 along each singular vector, on either side."""
    sign_key, distance_key = jax.random.split(key)
    shape = SINGULAR_VALUES.shape
    return jax.random.rademacher(sign_key, shape, jnp.float32) * jax.random.uniform(
        distance_key, shape, minval=1, maxval=2
    )


def paths(start: jax.Array, hyperparameters: np.ndarray) -> np.ndarray:
    """The parameters at every step, which are also their distances from the minimum.

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

    A parameter that oscillates passes through zero, but never twice in a row: the length of the
    pair (x_t, x_{t-1}) shrinks without dips.

    Args:
        path: of shape (..., steps + 1, parameters).

    Returns:
        An array of shape (..., parameters); infinite where the parameter overflowed.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.hypot(path[..., 1:, :], path[..., :-1, :]).astype(np.float64)
    steps = np.arange(length.shape[-2])[:, None]
    # Before float32 underflows, and without the first half, where the smaller root has an effect.
    fitted = np.isfinite(length) & (length > 1e-30)
    fitted &= steps >= fitted.sum(axis=-2, keepdims=True) // 2
    log = np.log(length, where=fitted, out=np.zeros_like(length))
    weight = fitted / fitted.sum(axis=-2, keepdims=True)
    centered = steps - (weight * steps).sum(axis=-2, keepdims=True)
    spread = (weight * centered**2).sum(axis=-2)
    # Without spread the parameter reached zero at once.
    slope = np.full_like(spread, -np.inf)
    np.divide((weight * centered * log).sum(axis=-2), spread, out=slope, where=spread > 0)
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
    """Whether each parameter oscillates, that is, has complex roots."""
    return (1 + momentum - learning_rate * CURVATURES) ** 2 < 4 * momentum


def sweeps() -> dict[float, np.ndarray]:
    """Learning rates up to divergence, without momentum and with the best momentum."""
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
    _draw_distances(first, titles[0], plain, (BEST_GD, 0.0))
    _draw_distances(second, titles[1], heavy, SHOWN)
    # Its legend serves both panels.
    second.legend(fontsize="small", loc="lower left")
    _draw_slowest(rates, lines)
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


def _draw_distances(axes: Any, title: str, path: np.ndarray, pair: tuple[float, float]) -> None:
    """Plot the distance of each parameter, and the slope predicted for h and b."""
    steps = np.arange(101)
    # Before the curves, because a panel that is described after them gets a legend.
    describe(axes, title, "step", "distance from the minimum", yscale="log", ylim=(1e-6, 5))
    for i, slope in enumerate(predicted_rates(*pair)):
        label = f"singular value {SINGULAR_VALUES[i]:g}"
        axes.plot(steps, np.abs(path[:101, i]), color=COLOR_OF[i], label=label)
        axes.plot(steps, 1.5 * slope**steps, color=COLOR_OF[i], lw=1, ls=":")


def _draw_slowest(axes: Any, lines: dict[float, np.ndarray]) -> None:
    """Plot the rate of the slowest parameter over the learning rate, measured and predicted."""
    for (momentum, measured), color, name in zip(
        lines.items(), (VERMILION, BLUE), ("gradient descent", "momentum"), strict=True
    ):
        fine = np.linspace(0.01, 3.5, 600)
        axes.plot(fine, predicted_slowest(fine, momentum), color=color, lw=1)
        label = name if momentum == 0 else f"{name}, b = {momentum:.2f}"
        axes.plot(sweeps()[momentum], measured, "o", ms=4, color=color, label=label)
    for x, y, color in (
        (BEST_GD, (CONDITION - 1) / (CONDITION + 1), VERMILION),
        (BEST_HB, BEST_MOMENTUM**0.5, BLUE),
    ):
        axes.plot(x, y, "*", ms=15, color=color, mec=BLACK)
    describe(
        axes, "The slowest parameter", "h: learning rate", "factor per step", ylim=(0.79, 1.05)
    )
