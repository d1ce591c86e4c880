"""A convex problem on which Adam goes the wrong way, and AMSGrad the right one.

On the interval [-1, 1] the losses are straight lines in turn (Reddi, Kale & Kumar 2018, "On the
convergence of Adam and beyond", Theorem 1):

    f_t(x) = C x    if t = 1, 4, 7, ...        f_t(x) = -x    otherwise,    C > 2.

Three steps together have the slope C - 2 > 0, so the best fixed point is x = -1. Adam without a
first moment and with b2 = 1 / (1 + C^2) divides each gradient by the root of

    v_t = b2 v_{t-1} + (1 - b2) g_t^2,

which the large gradient raises when it comes, and which has forgotten it at the next step. So the
large gradient is scaled down and the two small ones are not: together they win, and x returns to
+1, the worst point, every third step. AMSGrad divides by the largest v so far. The sizes of the
steps then have the ratio C : 1 : 1 of the gradients, and x goes to -1. The measure is the average
regret, the mean over t of f_t(x_t) - f_t(-1), which an optimizer for convex problems should bring
to zero.

This does not depend on the order of the gradients: with the gradient 1010 in one of 100 steps,
drawn at random, and -10 otherwise (section 5 of the paper), the mean 0.2 also points to -1, and the
same happens.

Both optimizers run as in the paper: with rates proportional to 1 / sqrt(t), projected to [-1, 1],
and without the bias corrections that `gradtx.adam` and `gradtx.amsgrad` have by default.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure

CLAIM = (
    "There are convex problems, with cyclic or random gradients, on which Adam goes to the worst "
    "point because it forgets rare large gradients; AMSGrad, which remembers the largest, goes to "
    "the best."
)

C = 4.0
RATE = 0.5
RARE, COMMON, PROBABILITY = 1010.0, -10.0, 0.01
RUNS = 16
ADAM, AMSGRAD = "Adam", "AMSGrad"
BLACK, BLUE, VERMILION, *_ = COLORS
COLOR_OF = {ADAM: VERMILION, AMSGRAD: BLUE}


def optimizers(rate: float, b1: float, b2: float) -> dict[str, Any]:
    """Both, with the rate divided by sqrt(t)."""

    def schedule(count: Any) -> jax.Array:
        return rate / jnp.sqrt(count + 1)

    return {
        ADAM: gradtx.adam(schedule, b1, b2, bias_correction=False),
        AMSGRAD: gradtx.amsgrad(
            schedule, b1, b2, bias_correction_mu=False, bias_correction_nu=False
        ),
    }


def descend(tx: Any, carry: Any, gradients: jax.Array) -> tuple[Any, Any]:
    """Projected descent from (x, state): the last (x, state), and x and the update of each step."""

    def step(carry: Any, gradient: jax.Array) -> tuple[Any, Any]:
        x, state = carry
        update, state = tx.update(gradient, state, x)
        return (jnp.clip(gradtx.apply_updates(x, update), -1, 1), state), (x, update)

    return jax.lax.scan(step, carry, gradients)


class Turns(NamedTuple):
    """A run on gradients in turn: the positions, and the updates in units of the rate."""

    x: np.ndarray
    steps: np.ndarray

    @property
    def average_regret(self) -> np.ndarray:
        """The mean of f_t(x_t) - f_t(-1) over the steps so far."""
        regret = turning_gradients(len(self.x)) * (self.x.astype(np.float64) + 1)
        return np.cumsum(regret) / np.arange(1, len(self.x) + 1)


def turning_gradients(steps: int) -> np.ndarray:
    """The gradients C, -1, -1, C, -1, -1, ..."""
    return np.where(np.arange(steps) % 3 == 0, C, -1.0).astype(np.float32)


def take_turns(tx: Any, steps: int) -> Turns:
    """A run from x = 1 on gradients in turn."""
    x = jnp.ones(())
    _, (x, updates) = jax.jit(descend, static_argnums=0)(
        tx, (x, tx.init(x)), turning_gradients(steps)
    )
    return Turns(np.asarray(x), np.asarray(updates) * np.sqrt(np.arange(1, steps + 1)) / RATE)


def draw_at_random(tx: Any, key: jax.Array, blocks: int) -> np.ndarray:
    """Runs from x = 0 on random gradients: x after each 1000 steps, of shape (RUNS, blocks)."""

    def block(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        is_rare = jax.random.bernoulli(key, PROBABILITY, (1000,))
        carry, _ = descend(tx, carry, jnp.where(is_rare, RARE, COMMON))
        return carry, carry[0]

    @jax.jit
    @jax.vmap
    def runs(key: jax.Array) -> jax.Array:
        x = jnp.zeros(())
        return jax.lax.scan(block, (x, tx.init(x)), jax.random.split(key, blocks))[1]

    return np.asarray(runs(jax.random.split(key, RUNS)))


def run(settings: Settings) -> Outcome:
    """Run both optimizers on both problems."""
    steps = settings.choose(full=30_000, quick=9_000)
    blocks = settings.choose(full=4000, quick=1000)
    turns = {
        name: take_turns(tx, steps)
        for name, tx in optimizers(RATE, b1=0.0, b2=1 / (1 + C**2)).items()
    }
    drawn = {
        name: draw_at_random(tx, settings.key, blocks)
        for name, tx in optimizers(1.0, b1=0.9, b2=0.99).items()
    }
    bound = (2 * C - 4) / 3
    figure, panels = new_figure("Adam can go the wrong way", rows=2)
    _draw_steps(panels[0, 0], turns)
    _draw_turns(panels[0, 1], turns)
    _draw_regret(panels[1, 0], turns, bound)
    _draw_random(panels[1, 1], drawn)
    caption = (
        f"Top left: the three steps of a cycle with C = {C:g}. Adam makes the step of the large "
        "gradient small, because this gradient enters its own v, and the steps of the two small "
        "ones large; their sum is positive. AMSGrad preserves the ratio, and the sum is negative. "
        "Top right: so Adam stays at the worst point, while AMSGrad goes to the best. Bottom left: "
        "Adam's regret per step does not go to zero. Bottom right: the same with random gradients; "
        "each thin line is a run, the thick line is their mean."
    )
    return Outcome([*_turn_checks(turns, bound), *_random_checks(drawn)], figure, caption)


def _turn_checks(turns: dict[str, Turns], bound: float) -> list[Check]:
    """The checks of the runs on gradients in turn."""
    steps = len(turns[ADAM].x)
    cycle_errors = {name: np.abs(turns[name].steps[-3:] - cycle()[name]).max() for name in turns}
    regret = {name: float(turns[name].average_regret[-1]) for name in turns}
    return [
        Check(
            "in turn: Adam is at the worst point, x = 1, every third step",
            f"lowest of these x: {turns[ADAM].x[::3].min():g} in {steps:,} steps",
            bool(turns[ADAM].x[::3].min() == 1),
        ),
        Check(
            f"its average regret never falls below (2 C - 4) / 3 = {bound:.4f}",
            f"{turns[ADAM].average_regret[2::3].min():.4f} after whole cycles",
            bool(turns[ADAM].average_regret[2::3].min() >= bound),
        ),
        Check(
            "AMSGrad reaches the best point, x = -1, and its average regret goes to zero",
            f"x between {turns[AMSGRAD].x[-3:].min():.4f} and {turns[AMSGRAD].x[-3:].max():.4f}, "
            f"average regret {regret[AMSGRAD]:.4f}",
            bool(turns[AMSGRAD].x[-3:].max() < -0.98 and regret[AMSGRAD] < 0.02),
        ),
        Check(
            f"the three steps are as v predicts: {_listed(cycle()[ADAM])} for Adam, "
            f"{_listed(cycle()[AMSGRAD])} for AMSGrad, times the rate",
            f"largest deviation {max(cycle_errors.values()):.1e}",
            bool(max(cycle_errors.values()) < 1e-4),
        ),
    ]


def _random_checks(drawn: dict[str, np.ndarray]) -> list[Check]:
    """The checks of the runs on random gradients."""
    late = {name: x[:, -x.shape[1] // 5 :].mean(axis=1) for name, x in drawn.items()}
    return [
        Check(
            "at random: every run of Adam ends at the worst point",
            f"mean x of the last fifth {late[ADAM].min():.3f} to {late[ADAM].max():.3f}",
            bool(late[ADAM].min() > 0.95),
        ),
        Check(
            "most runs of AMSGrad end near the best point",
            f"mean x of the last fifth: median {np.median(late[AMSGRAD]):.3f} of {RUNS} runs, "
            f"{np.mean(late[AMSGRAD] < 0):.0%} below 0",
            bool(np.median(late[AMSGRAD]) < -0.7 and np.mean(late[AMSGRAD] < 0) > 0.75),
        ),
    ]


def cycle() -> dict[str, np.ndarray]:
    """The three steps that each optimizer repeats, in units of the rate."""
    gradients, b2 = turning_gradients(3), 1 / (1 + C**2)
    ages = (np.arange(3)[:, None] - np.arange(3)) % 3  # of gradient j at step i
    v = (1 - b2) / (1 - b2**3) * b2**ages @ gradients**2
    return {ADAM: -gradients / np.sqrt(v), AMSGRAD: -gradients / np.sqrt(v.max())}


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _draw_steps(axes: Any, turns: dict[str, Turns]) -> None:
    places = np.arange(4)
    axes.set_axisbelow(True)
    for name, shift in ((ADAM, -0.2), (AMSGRAD, 0.2)):
        steps = turns[name].steps[-3:]
        heights = [*steps, steps.sum()]
        bars = axes.bar(places + shift, heights, 0.4, color=COLOR_OF[name], label=name)
        axes.bar_label(bars, fmt="%+.2f", fontsize="small", padding=2)
    axes.axhline(0, color=BLACK, lw=1)
    axes.axvline(2.5, color=BLACK, ls=":", lw=1)
    axes.set_xticks(places, [*(f"{g:+g}" for g in turning_gradients(3)), "all three"])
    describe(
        axes, "The three steps of a cycle", "gradient of the step", "step / rate", ylim=(-1.4, 1.4)
    )


def _draw_turns(axes: Any, turns: dict[str, Turns]) -> None:
    shown = 90
    for name, turn in turns.items():
        axes.plot(np.arange(1, shown + 1), turn.x[:shown], ".-", color=COLOR_OF[name], label=name)
    axes.axhline(-1, color=BLACK, ls="--", lw=1, label="best point")
    describe(axes, "Gradients in turn", "step", "x")


def _draw_regret(axes: Any, turns: dict[str, Turns], bound: float) -> None:
    for name, turn in turns.items():
        regret = turn.average_regret[2::3]
        axes.loglog(3 * np.arange(1, len(regret) + 1), regret, color=COLOR_OF[name], label=name)
    axes.axhline(bound, color=BLACK, ls="--", lw=1, label="(2 C - 4) / 3")
    describe(
        axes, "Average regret, after whole cycles", "step", "loss above that of the best point"
    )


def _draw_random(axes: Any, drawn: dict[str, np.ndarray]) -> None:
    for name, x in drawn.items():
        thousands = np.arange(1, x.shape[1] + 1)
        axes.plot(thousands, x.T, color=COLOR_OF[name], lw=0.5, alpha=0.3)
        axes.plot(thousands, x.mean(axis=0), color=COLOR_OF[name], lw=2.5, label=name)
    axes.axhline(-1, color=BLACK, ls="--", lw=1, label="best point")
    describe(axes, "Random gradients", "step (thousands)", "x")
