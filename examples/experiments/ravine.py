"""Four optimizers in a ravine.

The loss is a parabola in two parameters, L = (m x^2 + M y^2) / 2, which is k = M / m times flatter
along its floor than across it. The learning rate of gradient descent must stay below 2 / M, or it
would climb the walls; with the best, 2 / (M + m), it zigzags across the ravine, because 1 - h M is
negative, while it crawls along the floor. The loss shrinks by ((k - 1) / (k + 1))^2 at each step,
so that the number of steps until it is a hundredth of its initial value is

    log(1 / 100) / (2 log((k - 1) / (k + 1)))

Momentum adds up what persists, the motion along the floor, and cancels what alternates. RMSprop and
Adam divide each parameter's gradient by its size, which flattens the walls, but only if the ravine
is aligned with the axes. Where it runs diagonally, both parameters see the same steepness, and the
division has no effect.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.sequences import descend

CLAIM = (
    "Across a ravine gradient descent zigzags and crawls as its condition number predicts; "
    "momentum, RMSprop and Adam arrive several times sooner, but RMSprop loses most of its lead, "
    "and Adam about half, if the ravine is diagonal to the parameters' axes."
)

CURVATURES = np.array([1.0, 200.0])
CONDITION = CURVATURES[1] / CURVATURES[0]
GOAL = 0.01
STEPS = 400
BLACK, BLUE, VERMILION, GREEN, PURPLE, *_ = COLORS

OPTIMIZERS: dict[str, Callable[[Any], gradtx.GradientTransformation]] = {
    "gradient descent": gradtx.sgd,
    "momentum": lambda learning_rate: gradtx.sgd(learning_rate, momentum=0.9),
    "RMSprop": gradtx.rmsprop,
    "Adam": gradtx.adam,
}
COLOR_OF = dict(zip(OPTIMIZERS, (BLACK, BLUE, GREEN, VERMILION), strict=True))


@dataclass(frozen=True)
class Descent:
    """One optimizer's path to the minimum.

    Attributes:
        learning_rate: the learning rate that was used.
        path: the positions along and across the ravine, of shape (STEPS + 1, 2).
        loss: the loss relative to its initial value, of shape (STEPS + 1,).
        arrival: the step from which on the loss stays below GOAL.
    """

    learning_rate: float
    path: np.ndarray
    loss: np.ndarray
    arrival: int


def run(settings: Settings) -> Outcome:
    """Let each optimizer descend with its best learning rate, along an axis and diagonally."""
    # The walls and the floor contribute about equally to the loss at the start.
    jitter = jax.random.uniform(settings.key, (2,), minval=0.9, maxval=1.1)
    start = np.asarray(jitter) * [CONDITION**0.5, 1.0]
    rates = np.geomspace(1e-3, 3, settings.choose(full=80, quick=40))
    straight = {name: best_descent(name, start, 0.0, rates) for name in OPTIMIZERS}
    turned = {name: best_descent(name, start, np.pi / 4, rates) for name in OPTIMIZERS}
    return Outcome(
        [*_straight_checks(straight), *_turned_checks(straight, turned)],
        _draw(straight, turned),
        "Left: the paths to the minimum (cross), in coordinates along and across the ravine, whose "
        "width is stretched. Gradient descent is the comb. Right: the loss; a dot marks the step "
        "from which on it stays below a hundredth. Top: the parameters are the positions along and "
        "across the ravine. Bottom: their axes are rotated by 45°: gradient descent and momentum "
        "take exactly the same paths, RMSprop and Adam lose much of their lead. RMSprop, whose "
        "steps do not shrink with the gradient, keeps oscillating around the minimum. Each "
        f"optimizer uses the best of {len(rates)} learning rates, gradient descent the theoretical "
        "optimum.",
    )


def _straight_checks(straight: dict[str, Descent]) -> list[Check]:
    """The checks in a ravine along an axis."""
    plain = straight["gradient descent"]
    flips = zigzags(plain.path[: plain.arrival + 1, 1])
    predicted = predicted_steps()
    sooner = {name: plain.arrival / descent.arrival for name, descent in straight.items()}
    return [
        Check(
            "gradient descent crosses the floor at every step",
            f"{flips} times in {plain.arrival} steps",
            flips == plain.arrival,
        ),
        Check(
            f"it takes log(1 / 100) / (2 log((k - 1) / (k + 1))) = {predicted} steps",
            f"{plain.arrival} steps",
            abs(plain.arrival - predicted) <= 1,
        ),
        *(
            Check(
                f"{name} needs at least {least:g} times fewer steps",
                f"{straight[name].arrival} steps, {sooner[name]:.1f} times fewer",
                sooner[name] >= least,
            )
            for name, least in (("momentum", 4), ("RMSprop", 2), ("Adam", 5))
        ),
    ]


def _turned_checks(straight: dict[str, Descent], turned: dict[str, Descent]) -> list[Check]:
    """The checks in a diagonal ravine, compared with one along an axis."""
    later = {name: turned[name].arrival / straight[name].arrival for name in OPTIMIZERS}
    return [
        *(
            Check(
                f"{name} takes as many steps in a diagonal ravine",
                f"{turned[name].arrival} instead of {straight[name].arrival} steps",
                abs(turned[name].arrival - straight[name].arrival) <= 1,
            )
            for name in ("gradient descent", "momentum")
        ),
        *(
            Check(
                f"{name} needs at least {least:g} times the steps in a diagonal ravine",
                f"{turned[name].arrival} instead of {straight[name].arrival} steps, "
                f"{later[name]:.1f} times",
                later[name] >= least,
            )
            for name, least in (("RMSprop", 2), ("Adam", 1.5))
        ),
    ]


def best_descent(name: str, start: np.ndarray, angle: float, rates: np.ndarray) -> Descent:
    """An optimizer's path with the learning rate with which it arrives first.

    Args:
        name: the optimizer.
        start: where to start, along and across the ravine.
        angle: the angle between the ravine and the first parameter's axis, in rad.
        rates: the learning rates to try; gradient descent takes 2 / (M + m) instead.
    """
    if name == "gradient descent":
        rates = np.array([2 / CURVATURES.sum()])
    cosine, sine = np.cos(angle), np.sin(angle)
    to_parameters = np.array([[cosine, -sine], [sine, cosine]])
    hessian = jnp.asarray(to_parameters * CURVATURES @ to_parameters.T, jnp.float32)
    first = jnp.asarray(to_parameters @ start, jnp.float32)
    # If the learning rate is too large, it diverges and overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        paths = _paths(name, jnp.asarray(rates, jnp.float32), hessian, first)
        positions = np.asarray(paths) @ to_parameters
        losses = positions**2 @ CURVATURES
        losses /= losses[:, :1]
    arrivals = [arrival(loss) for loss in losses]
    best = int(np.argmin(arrivals))
    return Descent(float(rates[best]), positions[best], losses[best], arrivals[best])


@functools.partial(jax.jit, static_argnames="name")
def _paths(name: str, rates: jax.Array, hessian: jax.Array, first: jax.Array) -> jax.Array:
    """The parameters, of shape (rates, STEPS + 1, 2)."""

    def path(rate: jax.Array) -> jax.Array:
        return descend(OPTIMIZERS[name](rate), lambda x: hessian @ x, first, STEPS)

    return jax.vmap(path)(rates)


def arrival(loss: np.ndarray) -> int:
    """The step from which on the loss stays below GOAL; if it never does, one after the last."""
    above = np.flatnonzero(~(loss < GOAL))
    return int(above[-1]) + 1 if above.size else 0


def zigzags(across: np.ndarray) -> int:
    """How often the position across the ravine changes its sign."""
    return int(np.sum(across[1:] * across[:-1] < 0))


def predicted_steps() -> int:
    """The number of steps that gradient descent needs with its best learning rate."""
    rate = (CONDITION - 1) / (CONDITION + 1)
    return int(np.ceil(np.log(GOAL) / (2 * np.log(rate))))


def _draw(straight: dict[str, Descent], turned: dict[str, Descent]) -> Any:
    figure, panels = new_figure(
        f"A ravine that is {CONDITION:g} times steeper across than along", rows=2
    )
    along, across = np.meshgrid(np.linspace(-6, 18, 200), np.linspace(-1.5, 1.5, 200))
    # The root of the loss, so that contours are evenly spaced.
    height = np.sqrt(CURVATURES[0] * along**2 + CURVATURES[1] * across**2)
    for (paths, losses), descents, where in (
        (panels[0], straight, "Along an axis"),
        (panels[1], turned, "Diagonal to the axes"),
    ):
        paths.contourf(along, across, height, levels=10, cmap="Greys", alpha=0.4)
        for name, descent in descents.items():
            # The comb of gradient descent would hide the others.
            width, size = (0.5, 1) if name == "gradient descent" else (1.5, 5)
            path = descent.path[: descent.arrival + 1].T
            paths.plot(*path, ".-", lw=width, ms=size, color=COLOR_OF[name], label=name)
            label = f"{name}: {descent.arrival} steps, rate {descent.learning_rate:.2g}"
            losses.plot(descent.loss[:260], color=COLOR_OF[name], lw=1.5, label=label)
            losses.plot(descent.arrival, GOAL, "o", ms=6, color=COLOR_OF[name], mec="white")
        paths.plot(0, 0, "x", ms=9, mew=2.5, color="white", zorder=3)
        paths.plot(0, 0, "x", ms=8, mew=1.5, color=BLACK, zorder=4)
        describe(paths, f"{where}: the paths", "position along the ravine", "position across")
        paths.legend(fontsize="small", loc="lower left")
        losses.axhline(GOAL, color=BLACK, lw=1, ls=":")
        describe(
            losses, f"{where}: the loss", "step", "loss / first loss", yscale="log", ylim=(1e-5, 40)
        )
        losses.legend(fontsize="small", loc="upper right")
    return figure
