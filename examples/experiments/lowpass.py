"""Averages and momentum as low-pass filters.

An optimizer sees its gradients as a sequence, and a sequence is a sum of waves. A linear filter
turns each wave of w radians per step into a wave of the same frequency; only its amplitude and its
phase change. For the exponential moving average with decay b,

    m_t = b * m_{t-1} + (1 - b) * g_t

both follow from the transfer function H(w) = (1 - b) / (1 - b exp(-iw)):

    amplitude   |H(w)| = (1 - b) / sqrt(1 - 2 b cos w + b^2)
    phase       arg H(w) = -atan2(b sin w, 1 - b cos w)

Slow waves pass unchanged but b / (1 - b) steps late; fast ones, such as the noise of mini-batches
or the zigzag across a ravine, nearly vanish. Momentum, v_t = b * v_{t-1} + g_t, is the same filter
1 / (1 - b) times as strong: what persists becomes 1 / (1 - b) times as large, what changes its sign
at each step only 1 / (1 + b) times. Above the cutoff frequency, where
cos w = 1 - (1 - b)^2 / (2 b), less than half of the power is left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.sequences import filtered

CLAIM = (
    "An exponential moving average and momentum are the same low-pass filter, up to the factor "
    "1 / (1 - b): they change the amplitude and the phase of every wave as their transfer function "
    "says."
)

DECAYS = (0.5, 0.9, 0.99)
# So many that the remaining share of the start, 0.99^STEPS, is below 1e-8.
STEPS = 2000
SLOW, FAST = 2 * np.pi / 100, 2 * np.pi / 5
BLACK, BLUE, VERMILION, GREEN, *_ = COLORS
COLOR_OF = dict(zip(DECAYS, (GREEN, BLUE, VERMILION), strict=True))


def run(settings: Settings) -> Outcome:
    """Send waves of many frequencies through `gradtx.ema` and `gradtx.trace`."""
    cutoffs = np.array([cutoff(decay) for decay in DECAYS])
    frequencies = np.concatenate([np.geomspace(1e-3, np.pi, 60), cutoffs])
    average = measured_response(lambda b: gradtx.ema(b, debias=False), frequencies)
    momentum = measured_response(gradtx.trace, frequencies)
    amplitudes = np.abs(transfer(0.9, np.array([SLOW, FAST])))
    return Outcome(
        [*_response_checks(frequencies, average, momentum), *_special_checks(frequencies, average)],
        _draw(frequencies, average, momentum, *two_waves(settings.key)),
        "The curves are the formulas; each dot is a wave that went through gradtx. Top: both "
        "filters have the same shape; the average passes slow waves with amplitude 1, momentum "
        "makes them 1 / (1 - b) times larger. Triangles mark the cutoff. Bottom left: the phase, "
        "as steps of delay: the stronger the filter, the later the slow waves. Bottom right: a "
        "slow and a fast wave with noise, before and after an average with b = 0.9, which leaves "
        f"{amplitudes[0]:.0%} of the slow and {amplitudes[1]:.0%} of the fast wave.",
    )


def _response_checks(
    frequencies: np.ndarray, average: np.ndarray, momentum: np.ndarray
) -> list[Check]:
    """The checks of amplitude and phase at all frequencies."""
    decays = np.array(DECAYS)[:, None]
    expected = transfer(decays, frequencies)
    average_error = np.abs(np.abs(average) / np.abs(expected) - 1).max()
    momentum_error = np.abs(np.abs(momentum) / np.abs(expected / (1 - decays)) - 1).max()
    phase_error = max(
        np.abs(np.angle(response / expected)).max() for response in (average, momentum)
    )
    return [
        Check(
            "the amplitude of the average is (1 - b) / sqrt(1 - 2 b cos w + b²)",
            f"largest relative deviation {average_error:.1e} at {len(frequencies)} frequencies",
            bool(average_error < 1e-4),
        ),
        Check(
            "the amplitude of momentum is 1 / sqrt(1 - 2 b cos w + b²)",
            f"largest relative deviation {momentum_error:.1e} at {len(frequencies)} frequencies",
            bool(momentum_error < 1e-4),
        ),
        Check(
            "the phase of both is -atan2(b sin w, 1 - b cos w)",
            f"largest deviation {phase_error:.1e} rad",
            bool(phase_error < 1e-4),
        ),
    ]


def _special_checks(frequencies: np.ndarray, average: np.ndarray) -> list[Check]:
    """The checks at the cutoff frequencies, which are the last ones, and of slow waves."""
    at_cutoff = np.diagonal(np.abs(average[:, -len(DECAYS) :]))
    delay = -np.angle(average[:, 0]) / frequencies[0]
    expected_delay = np.array(DECAYS) / (1 - np.array(DECAYS))
    return [
        Check(
            "at the cutoff frequency half of the power is left: amplitude 1 / sqrt(2) = 0.7071",
            ", ".join(f"{amplitude:.4f}" for amplitude in at_cutoff)
            + f" for b = {_listed(DECAYS)}",
            bool(np.abs(at_cutoff - np.sqrt(0.5)).max() < 1e-4),
        ),
        Check(
            f"slow waves are b / (1 - b) = {_listed(expected_delay)} steps late",
            f"{', '.join(f'{steps:.2f}' for steps in delay)} steps for b = {_listed(DECAYS)}",
            # Not exactly: the wave with w = 0.001 is not infinitely slow.
            bool(np.abs(delay / expected_delay - 1).max() < 0.01),
        ),
    ]


def transfer(decay: Any, frequency: np.ndarray) -> np.ndarray:
    """The transfer function H(w) = (1 - b) / (1 - b exp(-iw)) of the average; w in rad/step."""
    return (1 - decay) / (1 - decay * np.exp(-1j * frequency))


def cutoff(decay: float) -> float:
    """The frequency, in rad/step, above which less than half of the power is left."""
    return float(np.arccos(1 - (1 - decay) ** 2 / (2 * decay)))


def measured_response(
    make: Callable[[Any], gradtx.GradientTransformation], frequencies: np.ndarray
) -> np.ndarray:
    """The response of filters to waves, after the start has faded.

    Args:
        make: makes the filter with a decay.
        frequencies: in rad/step, of shape (n,).

    Returns:
        The complex amplitudes that each of DECAYS gives to waves of amplitude 1, shape (decays, n).
    """
    # In float64, because the angle grows to thousands of rad.
    angle = frequencies * np.arange(STEPS)[:, None]
    signal = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)

    @jax.jit
    @jax.vmap
    def last(decay: jax.Array) -> jax.Array:
        return filtered(make(decay), signal)[-1]

    cosine, sine = np.moveaxis(np.asarray(last(jnp.array(DECAYS))), 1, 0)
    return (cosine + 1j * sine) / np.exp(1j * angle[-1])


def two_waves(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A slow and a fast wave with noise, of 200 steps, before and after an average with b = 0.9."""
    steps = jnp.arange(200, dtype=jnp.float32)
    slow, fast = jnp.sin(SLOW * steps), 0.7 * jnp.sin(FAST * steps)
    signal = slow + fast + 0.2 * jax.random.normal(key, steps.shape)
    return signal, filtered(gradtx.ema(0.9, debias=False), signal)


def _listed(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _draw(
    frequencies: np.ndarray,
    average: np.ndarray,
    momentum: np.ndarray,
    waves: jax.Array,
    filtered_waves: jax.Array,
) -> Any:
    figure, ((first, second), (delays, example)) = new_figure(
        "Averages and momentum are low-pass filters", rows=2
    )
    fine = np.geomspace(1e-3, np.pi, 400)
    for i, decay in enumerate(DECAYS):
        curve = {"color": COLOR_OF[decay], "lw": 1}
        dots = {"color": COLOR_OF[decay], "ls": "", "marker": ".", "label": f"b = {decay:g}"}
        expected = transfer(decay, fine)
        for axes, response, gain in ((first, average, 1.0), (second, momentum, 1 / (1 - decay))):
            axes.plot(fine, gain * np.abs(expected), **curve)
            axes.plot(frequencies, np.abs(response[i]), **dots)
            axes.plot(
                cutoff(decay), gain * np.sqrt(0.5), "v", ms=9, color=COLOR_OF[decay], mec=BLACK
            )
        delays.plot(fine, -np.angle(expected) / fine, **curve)
        delays.plot(frequencies, -np.angle(average[i]) / frequencies, **dots)
    x = "w: frequency (rad/step)"
    scale = {"xscale": "log", "yscale": "log"}
    describe(first, "Exponential moving average", x, "|H(w)|: amplitude of the wave", **scale)
    describe(second, "Momentum", x, "amplitude of the wave", **scale)
    describe(delays, "Delay of both", x, "steps", ylim=(0.02, 200), **scale)
    steps = np.arange(len(waves))
    example.plot(steps, waves, ".-", color="0.7", lw=0.7, ms=3, label="gradients")
    example.plot(steps, np.sin(SLOW * steps), color=BLACK, lw=1, ls=":", label="slow wave in them")
    example.plot(steps, filtered_waves, color=BLUE, lw=2, label="average, b = 0.9")
    describe(example, "A slow and a fast wave with noise", "step", "gradient", ylim=(-2.4, 3.0))
    example.legend(fontsize="small", loc="upper center", ncols=3)
    return figure
