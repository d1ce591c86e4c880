"""AdaGrad never forgets a gradient, RMSProp does.

Both divide the learning rate eta of each parameter by the root of its squared gradients: AdaGrad
by the root of their sum, RMSProp by the root of a moving average,

    s_t = s_{t-1} + g_t^2                     rate  eta / sqrt(s_t)
    v_t = d * v_{t-1} + (1 - d) * g_t^2       rate  eta / sqrt(v_t)

Under a constant gradient g these effective rates are

    AdaGrad   eta / (|g| sqrt(t))             decays to zero: covers 2 eta sqrt(t) in t steps
    RMSProp   eta / (|g| sqrt(1 - d^t))       settles at eta / |g|: covers eta t in t steps

A decaying rate is right where noise must be averaged out around a minimum. It is wrong where there
is still a long way to go: a steep wall at the start stays in AdaGrad's sum forever, so that it
hardly moves on the gentle slope after the wall. RMSProp has forgotten the wall after a few times
1 / (1 - d) steps. (A larger eta would help AdaGrad, but how much larger depends on the wall.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure

CLAIM = (
    "AdaGrad's effective rate can only shrink, as 1 / sqrt(t) under a constant gradient, so that "
    "after a steep wall it stalls on the gentle slope that follows; RMSProp's rate recovers."
)

RATE = 0.05
DECAY = 0.9
GRADIENT = 2.0
START, WALL, SLOPE = -1.0, 10.0, 0.5  # where the wall begins, and the gradients' sizes
WALLED_STEPS = 600
ADAGRAD, RMSPROP = "AdaGrad", "RMSProp"
BLACK, BLUE, VERMILION, *_ = COLORS
COLOR_OF = {ADAGRAD: VERMILION, RMSPROP: BLUE}


class Path(NamedTuple):
    """Positions, and the sum or average of the squared gradients, after each of some steps."""

    x: Any
    squares: Any

    @property
    def rates(self) -> np.ndarray:
        """The effective learning rate of each step."""
        return RATE / np.sqrt(self.squares)


def wall_then_slope(x: jax.Array) -> jax.Array:
    """A loss with gradient -WALL until x = 0, and -SLOPE after that."""
    return jnp.where(x < 0, -WALL, -SLOPE) * x


def descend(loss: Any, steps: int, start: float = 0.0) -> dict[str, Path]:
    """The paths of both optimizers."""

    def follow(tx: gradtx.GradientTransformationExtraArgs, slot: str) -> Path:
        def step(carry: Any, _: None) -> tuple[Any, Path]:
            x, state = carry
            updates, state = tx.update(jax.grad(loss)(x), state, x)
            x = gradtx.apply_updates(x, updates)
            return (x, state), Path(x, optax.tree.get(state, slot))

        x = jnp.asarray(start)
        return jax.lax.scan(step, (x, tx.init(x)), None, length=steps)[1]

    both = {
        ADAGRAD: follow(gradtx.adagrad(RATE, initial_accumulator_value=0.0), "sum_of_squares"),
        RMSPROP: follow(gradtx.rmsprop(RATE, DECAY), "nu"),
    }
    return jax.device_get(both)


def run(settings: Settings) -> Outcome:
    """Descend an endless slope, and a slope after a wall."""
    steps = settings.choose(full=10_000, quick=2000)
    even = descend(lambda x: -GRADIENT * x, steps)
    walled = descend(wall_then_slope, WALLED_STEPS, START)
    figure, panels = new_figure("AdaGrad never forgets, RMSProp does", rows=2)
    _draw_rates(panels[0, 0], even)
    _draw_distances(panels[0, 1], even)
    _draw_wall(panels[1, 0], walled)
    _draw_walled_rates(panels[1, 1], walled)
    caption = (
        "Top: under a constant gradient AdaGrad's rate decays to zero and it covers 2 eta sqrt(t); "
        "RMSProp's rate settles and it covers eta t. Bottom: both cross the steep wall. After it, "
        "AdaGrad's rate stays as low as the wall has made it: its dots crowd at the foot of the "
        "wall, while RMSProp's move on steadily as soon as its average has forgotten the wall."
    )
    return Outcome([*_even_checks(even, steps), *_wall_checks(walled)], figure, caption)


def _even_checks(even: dict[str, Path], steps: int) -> list[Check]:
    """The checks of the rates and distances under a constant gradient."""
    expected = expected_rates(steps)
    errors = {name: np.abs(even[name].rates / rates - 1).max() for name, rates in expected.items()}
    distances = {name: float(path.x[-1]) for name, path in even.items()}
    return [
        Check(
            "constant gradient: AdaGrad's rate is eta / (|g| sqrt(t))",
            f"largest relative deviation {errors[ADAGRAD]:.1e} in {steps:,} steps",
            bool(errors[ADAGRAD] < 1e-4),
        ),
        Check(
            "constant gradient: RMSProp's rate is eta / (|g| sqrt(1 - d^t))",
            f"largest relative deviation {errors[RMSPROP]:.1e} in {steps:,} steps",
            bool(errors[RMSPROP] < 1e-4),
        ),
        *(
            Check(
                f"constant gradient: {name} covers the sum of its rates times |g|, near {formula}",
                f"{distances[name]:.4g}, sum {rates.sum() * GRADIENT:.4g}, {formula} = {limit:.4g}",
                abs(distances[name] / (rates.sum() * GRADIENT) - 1) < 1e-3
                and abs(distances[name] / limit - 1) < 0.02,
            )
            for (name, rates), formula, limit in zip(
                expected.items(),
                ("2 eta sqrt(t)", "eta t"),
                (2 * RATE * steps**0.5, RATE * steps),
                strict=True,
            )
        ),
    ]


def _wall_checks(walled: dict[str, Path]) -> list[Check]:
    """The checks of the rates and positions after the wall."""
    after_wall = {name: float(path.rates[-1]) for name, path in walled.items()}
    stalled, predicted = float(walled[ADAGRAD].x[-1]), stall()
    return [
        Check(
            f"after the wall RMSProp's rate recovers to eta / |g| = {RATE / SLOPE:g}",
            f"{after_wall[RMSPROP]:.4f}",
            abs(after_wall[RMSPROP] / (RATE / SLOPE) - 1) < 1e-3,
        ),
        Check(
            "AdaGrad's rate does not: it is less than a hundredth of that",
            f"{after_wall[ADAGRAD]:.2g}",
            after_wall[ADAGRAD] < 0.01 * RATE / SLOPE,
        ),
        Check(
            f"AdaGrad stalls where its sum predicts, at {predicted:.4f}",
            f"{stalled:.4f}, while RMSProp reaches {walled[RMSPROP].x[-1]:.1f}",
            abs(stalled - predicted) < 1e-4,
        ),
    ]


def expected_rates(steps: int) -> dict[str, np.ndarray]:
    """The effective rates under the constant gradient, by the formulas."""
    t = np.arange(1, steps + 1)
    return {
        ADAGRAD: RATE / (GRADIENT * np.sqrt(t)),
        RMSPROP: RATE / (GRADIENT * np.sqrt(1 - DECAY**t)),
    }


def stall() -> float:
    """Where AdaGrad is at the end, after the wall, according to the formulas.

    Step k on the wall has the length eta / sqrt(k). The n steps on it leave a sum of n WALL^2.
    """
    on_wall = START + RATE * np.cumsum(1 / np.sqrt(np.arange(1, WALLED_STEPS + 1)))
    n = int(np.argmax(on_wall >= 0)) + 1
    later = np.arange(1, WALLED_STEPS - n + 1)
    return on_wall[n - 1] + np.sum(RATE * SLOPE / np.sqrt(n * WALL**2 + later * SLOPE**2))


def _draw_rates(axes: Any, even: Any) -> None:
    t = np.arange(1, len(even[ADAGRAD].x) + 1)
    for name, expected in expected_rates(len(t)).items():
        axes.loglog(t, even[name].rates, color=COLOR_OF[name], lw=4, alpha=0.5, label=name)
        formula = "formula" if name == RMSPROP else None
        axes.loglog(t, expected, "--", color=BLACK, lw=1, label=formula)
    describe(axes, f"A constant gradient of {GRADIENT:g}", "step", "effective rate")


def _draw_distances(axes: Any, even: Any) -> None:
    t = np.arange(1, len(even[ADAGRAD].x) + 1)
    formulas = {
        ADAGRAD: (2 * RATE * np.sqrt(t), "--", r"$2 \eta \sqrt{t}$"),
        RMSPROP: (RATE * t, "-.", r"$\eta t$"),
    }
    for name, (expected, line, label) in formulas.items():
        axes.loglog(t, even[name].x, color=COLOR_OF[name], lw=4, alpha=0.5, label=name)
        axes.loglog(t, expected, line, color=BLACK, lw=1, label=label)
    describe(axes, "The same gradient: distance covered", "step", "distance")


def _draw_wall(axes: Any, walled: Any) -> None:
    every = 20
    ends = jnp.array([START, 0.0, walled[RMSPROP].x[-1]])
    axes.plot(ends, wall_then_slope(ends), color="0.6")
    for name, dots in ((ADAGRAD, {"ms": 9, "mfc": "none", "mew": 2}), (RMSPROP, {"ms": 5})):
        x = walled[name].x[every - 1 :: every]
        label = f"{name}, every {every} steps"
        axes.plot(x, wall_then_slope(x), "o", color=COLOR_OF[name], label=label, **dots)
    x = walled[ADAGRAD].x[-1]
    axes.annotate(
        f"AdaGrad at step {WALLED_STEPS}",
        (x, wall_then_slope(x)),
        (0.25, 0.55),
        textcoords="axes fraction",
        arrowprops={"arrowstyle": "->", "shrinkB": 7},
    )
    describe(axes, "A wall, then a gentle slope", "x", "loss")


def _draw_walled_rates(axes: Any, walled: Any) -> None:
    for name, path in walled.items():
        foot = int(np.argmax(path.x >= 0))
        rates = path.rates
        axes.semilogy(np.arange(1, WALLED_STEPS + 1), rates, color=COLOR_OF[name], label=name)
        label = "end of the wall" if name == RMSPROP else None
        axes.semilogy(foot + 1, rates[foot], "v", color=BLACK, label=label)
    axes.axhline(RATE / SLOPE, color=BLACK, ls="--", lw=1, label=r"$\eta / |g|$ on the slope")
    describe(axes, "On the wall and the slope", "step", "effective rate")
