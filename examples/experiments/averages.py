"""Three ways to average a noisy sequence, and what each costs.

Gradients of mini-batches are noisy, so optimizers average them over the steps. A box averages the
last n values. An exponential moving average only needs to remember one number:

    m_t = d * m_{t-1} + (1 - d) * g_t,    m_0 = 0

Its weights up to step t sum to 1 - d^t instead of 1: at the start it is far too small. Dividing by
that sum, the debiasing of Adam, corrects it at every step.

Averaging n independent values divides the variance of their noise by n. The exponential weights
(1 - d) d^k multiply it by the sum of their squares, (1 - d) / (1 + d), like a box of the length
n = (1 + d) / (1 - d). The price is age: on a steady climb both lag by the mean age of what they
average, d / (1 - d) = (n - 1) / 2 steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.sequences import filtered

CLAIM = (
    "An exponential moving average that starts from zero is too small by the factor 1 - d^t, and "
    "dividing by it makes it right from the first step; it then removes as much noise, and lags "
    "by as many steps, as a box of (1 + d) / (1 - d) values."
)

DECAYS = (0.5, 0.8, 0.9, 0.95)
# The length of the box that removes as much noise: (1 + d) / (1 - d).
WINDOWS = (3, 9, 19, 39)
DECAY, WINDOW = 0.9, 19
NOISE = 0.5
STEPS = 400
BLACK, BLUE, VERMILION, GREEN, *_ = COLORS
COLOR_OF = {"box": GREEN, "biased": VERMILION, "debiased": BLUE}
LABELS = {
    "box": f"box, n = {WINDOW}",
    "biased": f"exponential, d = {DECAY:g}, biased",
    "debiased": f"exponential, d = {DECAY:g}, debiased",
}


def run(settings: Settings) -> Outcome:
    """Average noise around 1 in many independent sequences, and a steady climb."""
    sequences = settings.choose(full=16384, quick=4096)
    noise = NOISE * jax.random.normal(settings.key, (STEPS, sequences))
    start = first_steps(1 + noise[:60])
    variance = np.asarray(variance_left(noise)) / NOISE**2
    climbing = averages(jnp.arange(STEPS, dtype=jnp.float32))
    jump = jnp.where(jnp.arange(120) < 60, 1.0, 2.0) + noise[:120, 0]
    return Outcome(
        [*_start_checks(start), *_late_checks(variance, climbing)],
        _draw(jump, start, variance, climbing),
        f"Top left: a noisy sequence whose true value jumps from 1 to 2. The biased average "
        f"(d = {DECAY:g}) has to climb from zero first; the debiased one is right at once. After "
        "the jump the exponential average approaches the new value more and more slowly, while "
        f"the box (n = {WINDOW}) climbs steadily until it has forgotten the old value. Top right: "
        f"the mean over {sequences:,} sequences follows 1 - d^t. Bottom left: in terms of boxes of "
        "equal effect, both kinds lie on the line 1 / n. Bottom right: on a steady climb both end "
        "up with the same lag.",
    )


def _start_checks(start: dict[str, jax.Array]) -> list[Check]:
    """The checks of the first steps of averages of values around 1."""
    sum_of_weights = 1 - DECAY ** np.arange(1, 61)
    factor_error = np.abs(start["factor"] / sum_of_weights[:, None] - 1).max()
    debiased_error = np.abs(start["debiased"] - 1).max()
    return [
        Check(
            f"the biased average is 1 - {DECAY:g}^t times the debiased one, at every step",
            f"largest relative deviation {factor_error:.1e}",
            bool(factor_error < 1e-5),
        ),
        Check(
            f"the biased average of values around 1 begins at 1 - {DECAY:g} = {1 - DECAY:.3f}",
            f"{start['biased'][0]:.3f}",
            bool(abs(start["biased"][0] - (1 - DECAY)) < 0.005),
        ),
        Check(
            "the debiased average begins with the first value itself",
            f"largest deviation {start['first']:.1e}",
            bool(start["first"] < 1e-5),
        ),
        Check(
            "the mean of the debiased average is 1 at every step",
            f"largest deviation {debiased_error:.3f}",
            bool(debiased_error < 0.05),
        ),
    ]


def _late_checks(variance: np.ndarray, climbing: dict[str, jax.Array]) -> list[Check]:
    """The checks of the noise that is left, and of the lag on a steady climb."""
    errors = np.abs(variance / (1 / np.array(WINDOWS)) - 1).max(axis=1)
    lag = {name: STEPS - 1 - float(average[-1]) for name, average in climbing.items()}
    return [
        Check(
            "an exponential average leaves (1 - d) / (1 + d) of the noise's variance",
            f"largest relative deviation {errors[0]:.1%} for d = {_listed(DECAYS)}",
            bool(errors[0] < 0.05),
        ),
        Check(
            "a box of n values leaves 1 / n of the noise's variance",
            f"largest relative deviation {errors[1]:.1%} for n = {_listed(WINDOWS)}",
            bool(errors[1] < 0.05),
        ),
        Check(
            f"on a steady climb both lag by d / (1 - d) = (n - 1) / 2 = {(WINDOW - 1) // 2} steps",
            f"exponential {lag['debiased']:.3f}, box {lag['box']:.3f} steps",
            all(abs(lag[name] - (WINDOW - 1) / 2) < 0.01 for name in ("debiased", "box")),
        ),
    ]


def averages(signal: jax.Array) -> dict[str, jax.Array]:
    """The box average and the exponential averages of a signal of shape (steps, ...)."""
    return {
        "box": filtered(gradtx.simple_moving_average(WINDOW), signal),
        "biased": filtered(gradtx.ema(DECAY, debias=False), signal),
        "debiased": filtered(gradtx.ema(DECAY), signal),
    }


@jax.jit
def first_steps(signal: jax.Array) -> dict[str, jax.Array]:
    """The averages of signals around 1, of shape (steps, sequences), at the start.

    Returns:
        "biased", "debiased": the means over the sequences, of shape (steps,);
        "factor": the biased over the debiased average, of shape (steps, sequences);
        "first": the largest distance of the debiased average from the signal at the first step.
    """
    average = averages(signal)
    return {
        "biased": average["biased"].mean(axis=1),
        "debiased": average["debiased"].mean(axis=1),
        "factor": average["biased"] / average["debiased"],
        "first": jnp.abs(average["debiased"][0] - signal[0]).max(),
    }


@jax.jit
def variance_left(noise: jax.Array) -> jax.Array:
    """The variance of averages of noise, long after their start.

    Args:
        noise: of shape (steps, sequences) and mean zero.

    Returns:
        An array of shape (2, 4): of exponential averages with each of DECAYS, and of boxes with
        each of WINDOWS.
    """

    def late_variance(tx: gradtx.GradientTransformation) -> jax.Array:
        return jnp.mean(filtered(tx, noise)[STEPS // 2 :] ** 2)

    exponential = [late_variance(gradtx.ema(decay)) for decay in DECAYS]
    box = [late_variance(gradtx.simple_moving_average(window)) for window in WINDOWS]
    return jnp.stack([jnp.stack(exponential), jnp.stack(box)])


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _draw(jump: jax.Array, start: Any, variance: np.ndarray, climbing: dict[str, jax.Array]) -> Any:
    figure, panels = new_figure("Averages of a noisy sequence", rows=2)
    _draw_sequence(panels[0, 0], jump)
    _draw_start(panels[0, 1], start)
    _draw_noise(panels[1, 0], variance)
    _draw_climb(panels[1, 1], climbing)
    return figure


def _draw_sequence(axes: Any, jump: jax.Array) -> None:
    steps = np.arange(1, len(jump) + 1)
    axes.plot(steps, jump, ".", color="0.7", label="noisy values")
    axes.step(steps, np.where(steps <= 60, 1, 2), color=BLACK, lw=1, ls=":", label="true value")
    for name, average in averages(jump).items():
        axes.plot(steps, average, color=COLOR_OF[name], label=LABELS[name], lw=2)
    describe(axes, "One sequence", "step", "value")
    axes.legend(fontsize="small", loc="lower right")


def _draw_start(axes: Any, start: Any) -> None:
    steps = np.arange(1, 41)
    axes.plot(steps, 1 - DECAY**steps, color=BLACK, lw=1, label=r"formula $1 - d^t$")
    axes.axhline(1, color=BLACK, lw=1, ls=":", label="true value")
    for name, marker in (("biased", "o"), ("debiased", "s")):
        label = f"measured, {name}"
        axes.plot(steps, start[name][:40], marker, ms=4, color=COLOR_OF[name], label=label)
    describe(axes, "The start, mean over all sequences", "step", "mean of the average")
    axes.set_ylim(0, 1.15)
    axes.legend(fontsize="small", loc="lower right")


def _draw_noise(axes: Any, variance: np.ndarray) -> None:
    lengths = np.geomspace(2, 60)
    axes.plot(lengths, 1 / lengths, color=BLACK, lw=1, label="formula $1 / n$")
    axes.plot(WINDOWS, variance[1], "s", ms=9, mfc="none", color=GREEN, label="measured, box")
    axes.plot(WINDOWS, variance[0], "o", ms=4, color=BLUE, label="measured, exponential")
    for decay, window in zip(DECAYS, WINDOWS, strict=True):
        axes.annotate(
            f"d = {decay:g}", (window, 1 / window), (7, 5), textcoords="offset points", size="small"
        )
    describe(
        axes,
        "Noise that is left",
        "n: values in the box, or (1 + d) / (1 - d)",
        "variance / variance of the noise",
        xscale="log",
        yscale="log",
        xticks=WINDOWS,
        xticklabels=WINDOWS,
        yticks=1 / np.array(WINDOWS),
        yticklabels=[f"1/{window}" for window in WINDOWS],
    )
    axes.minorticks_off()


def _draw_climb(axes: Any, climbing: dict[str, jax.Array]) -> None:
    steps = np.arange(1, 61)
    axes.plot(steps, steps, color=BLACK, lw=1, ls=":", label="true value")
    axes.plot(steps, steps - (WINDOW - 1) / 2, color=BLACK, lw=1, label="9 steps later")
    for name in ("box", "debiased"):
        axes.plot(steps, 1 + climbing[name][:60], color=COLOR_OF[name], label=LABELS[name], lw=2)
    describe(axes, "Lag on a steady climb", "step", "value")
