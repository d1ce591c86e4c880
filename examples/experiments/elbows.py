"""Where relu units bend, and how their initialization determines it.

A unit relu(w x + b) with one input is zero on one side of its elbow x = -b / w and a straight line
on the other. A network can bend only where its units have elbows, so they should be where the data
are, here in [-1, 1]. A unit whose elbow lies outside is linear on all data or, if it points away
from them (b <= -|w|), dead: zero on all data, with no gradient to learn from.

    normal      w, b ~ N(0, 1)      elbows are Cauchy distributed, F(x) = 1/2 + atan(x) / pi: half
                                    of them lie in [-1, 1], a quarter of the units are dead
    uniform     w, b ~ U(-1, 1)     F(x) = 1/2 + x/4 in [-1, 1], 1 - 1/(4x) above: the same shares;
                                    this is PyTorch's initialization of a layer with one input
    zero bias   b = 0               all elbows are at 0: no unit is lost, but all bend at one point
    spread      b = -c w            with c ~ U(-1, 1): the elbows are c, spread evenly over the data

Then networks with one hidden layer learn three periods of a sine wave from each of these starts.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import apply_dense
from gradtx.diagnostics import relu_elbows
from gradtx.initializers import he_normal, normal, uniform_symmetric

CLAIM = (
    "With normal weights and biases the elbows of relu units with one input are Cauchy "
    "distributed: half of them miss the data and a quarter of the units are dead; elbows spread "
    "over the data lose no unit and fit a wave best."
)

HIDDEN = 64
STEPS = 2000
X = np.linspace(-1, 1, 128, dtype=np.float32)[:, None]
WAVE = np.sin(3 * np.pi * X)
NORMAL, UNIFORM, ZERO, SPREAD = STARTS = ("normal", "uniform", "zero bias", "spread")
BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, _ = COLORS
COLOR_OF = dict(zip(STARTS, (VERMILION, ORANGE, PURPLE, BLUE), strict=True))
# The shares of units that bend within the data, are linear on all data, and are dead.
SHARES = dict.fromkeys((NORMAL, UNIFORM), (0.5, 0.25, 0.25)) | dict.fromkeys(
    (ZERO, SPREAD), (1.0, 0.0, 0.0)
)

Layer = tuple[jax.Array, jax.Array]


def first_layers(key: jax.Array, units: int) -> dict[str, Layer]:
    """Kernel (1, units) and bias (units,) of each start."""
    w_key, b_key, c_key, *uniform_keys = jax.random.split(key, 5)
    w, uniform = normal(1.0)(w_key, (1, units)), uniform_symmetric(1.0)
    return {
        NORMAL: (w, normal(1.0)(b_key, (units,))),
        UNIFORM: (uniform(uniform_keys[0], (1, units)), uniform(uniform_keys[1], (units,))),
        ZERO: (w, jnp.zeros(units)),
        SPREAD: (w, -w[0] * uniform(c_key, (units,))),
    }


def distribution(start: str, x: np.ndarray) -> np.ndarray:
    """The share of elbows below x, by the formulas above."""
    if start == NORMAL:
        return 0.5 + np.arctan(x) / np.pi
    if start == SPREAD:
        return np.clip(0.5 + x / 2, 0, 1)
    outside = np.maximum(np.abs(x), 1)
    return 0.5 + np.clip(x, -1, 1) / 4 + np.sign(x) * (1 - 1 / outside) / 4


def distance(elbows: np.ndarray, start: str) -> float:
    """The Kolmogorov-Smirnov distance between the measured and the expected distribution."""
    expected = distribution(start, np.sort(elbows))
    measured = np.arange(len(elbows) + 1) / len(elbows)
    return float(np.maximum(measured[1:] - expected, expected - measured[:-1]).max())


def shares(layer: Layer) -> np.ndarray:
    """The measured shares of units that bend within the data, are linear there, and are dead."""
    kernel, bias = layer
    is_on = np.asarray(X @ kernel + bias[None]) > 0
    dead, linear = np.mean(~is_on.any(axis=0)), np.mean(is_on.all(axis=0))
    return np.array([1 - dead - linear, linear, dead])


def fit(params: Any) -> tuple[jax.Array, jax.Array]:
    """The mean squared error at each training step, and the outputs at the end."""
    tx, x = gradtx.adam(3e-3), jnp.asarray(X)

    def loss(params: Any) -> jax.Array:
        return jnp.mean((apply_dense(params, x) - WAVE) ** 2)

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), value

    (params, _), errors = jax.lax.scan(step, (params, tx.init(params)), None, length=STEPS)
    return errors, apply_dense(params, x)[:, 0]


@jax.jit
@jax.vmap
def fits(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `fit` returns for a network from each of STARTS, with the same last layer."""
    first_key, last_key = jax.random.split(key)
    last = {"kernel": he_normal()(last_key, (HIDDEN, 1)), "bias": jnp.zeros(1)}
    networks = [
        [{"kernel": kernel, "bias": bias}, last]
        for kernel, bias in first_layers(first_key, HIDDEN).values()
    ]
    return jax.vmap(fit)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks))


def run(settings: Settings) -> Outcome:
    """Measure the elbows of many units, and train networks from each start."""
    units = settings.choose(full=40_000, quick=10_000)
    unit_key, network_key = jax.random.split(settings.key)
    layers = first_layers(unit_key, units)
    elbows = {name: np.asarray(relu_elbows(*layer)) for name, layer in layers.items()}
    measured = {name: shares(layer) for name, layer in layers.items()}
    errors, outputs = jax.device_get(
        fits(jax.random.split(network_key, settings.choose(full=64, quick=24)))
    )
    checks = [
        *_elbow_checks(elbows),
        *_share_checks(measured, units),
        _check_of_fits(errors[:, :, -1]),
    ]
    figure, panels = new_figure("The elbows of relu units", rows=2)
    _draw_densities(panels[0, 0], elbows)
    _draw_shares(panels[0, 1], measured)
    _draw_fits(panels[1, 0], errors[:, :, -1], outputs)
    _draw_errors(panels[1, 1], errors)
    caption = (
        "Top left: histograms of the elbows and the densities that the formulas predict; the data "
        "lie in the shaded interval, and normal or uniform weights put half of the elbows outside. "
        "Top right: the shares of units that bend, are linear or are dead (dots: predicted). "
        "Bottom left: a network whose elbows all start at 0 misses waves at the ends. Bottom "
        "right: the error during training, geometric mean over the networks."
    )
    return Outcome(checks, figure, caption)


def _elbow_checks(elbows: dict[str, np.ndarray]) -> list[Check]:
    """The checks of the distributions of the elbows."""
    units = len(elbows[NORMAL])
    # One sample in 1000 lies beyond this distance.
    critical = math.sqrt(math.log(2 / 1e-3) / 2 / units)
    quartiles = np.quantile(elbows[NORMAL], (0.25, 0.75))
    # Four standard errors of a quartile of the Cauchy distribution.
    quartile_error = 4 * math.sqrt(3 / 16 / units) * 2 * math.pi
    return [
        *(
            Check(
                f"{name}: the elbows are distributed as the formula says",
                f"Kolmogorov-Smirnov distance {distance(elbows[name], name):.4f}, "
                f"critical {critical:.4f}",
                distance(elbows[name], name) < critical,
            )
            for name in (NORMAL, UNIFORM, SPREAD)
        ),
        Check(
            "normal: the quartiles of the elbows are -1 and 1",
            f"{quartiles[0]:.3f} and {quartiles[1]:.3f}",
            bool(np.abs(quartiles - (-1, 1)).max() < quartile_error),
        ),
    ]


def _share_checks(measured: dict[str, np.ndarray], units: int) -> list[Check]:
    """The checks of the shares of units."""
    # Four standard errors of a share.
    error = 4 * math.sqrt(1 / 4 / units)
    return [
        Check(
            f"{name}: {_percent(SHARES[name])} of the units bend within the data, are linear "
            "there, are dead",
            _percent(measured[name]),
            bool(np.abs(measured[name] - SHARES[name]).max() < error),
        )
        for name in STARTS
    ]


def _check_of_fits(errors: np.ndarray) -> Check:
    """The check of the errors after training, of shape (networks, starts)."""
    # The errors of networks differ by factors, so their mean is geometric.
    error = dict(zip(STARTS, np.exp(np.log(errors).mean(axis=0)), strict=True))
    return Check(
        "spread elbows fit the wave best, and elbows at one point worst",
        "mean squared error " + ", ".join(f"{name} {error[name]:.2g}" for name in STARTS),
        error[SPREAD] < min(error[NORMAL] / 2, error[UNIFORM])
        and error[ZERO] > 2 * max(error[NORMAL], error[UNIFORM]),
    )


def _percent(values: Any) -> str:
    return " / ".join(f"{value:.1%}" for value in values)


def _draw_densities(axes: Any, elbows: dict[str, np.ndarray]) -> None:
    edges = np.linspace(-4, 4, 81)
    centers, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    axes.axvspan(-1, 1, color="0.9")
    for name in (NORMAL, UNIFORM, SPREAD):
        counts, _ = np.histogram(elbows[name], edges)
        axes.stairs(
            counts / len(elbows[name]) / width, edges, color=COLOR_OF[name], label=name, lw=2
        )
        density = np.diff(distribution(name, edges)) / width
        axes.plot(centers, density, ":", color=BLACK, lw=1)
    axes.axvline(0, color=COLOR_OF[ZERO], lw=2, label=ZERO)
    describe(axes, "Where the elbows are", "x", "density of elbows")


def _draw_shares(axes: Any, measured: dict[str, np.ndarray]) -> None:
    colors = (GREEN, "0.75", BLACK)
    heights, bottoms = np.array(list(measured.values())), np.zeros(len(STARTS))
    for i, label in enumerate(("bend within the data", "linear on the data", "dead")):
        axes.bar(STARTS, heights[:, i], 0.6, bottoms, color=colors[i], label=label)
        bottoms += heights[:, i]
    edges = np.cumsum([SHARES[name][:2] for name in STARTS], axis=1)
    axes.plot(np.arange(len(STARTS)), edges, "o", color=ORANGE, mec=BLACK)
    describe(axes, "The shares of units", "start", "share of the units", ylim=(0, 1.3))
    axes.legend(fontsize="small", loc="upper center", ncols=3)


def _draw_fits(axes: Any, errors: np.ndarray, outputs: np.ndarray) -> None:
    axes.plot(X, WAVE, color=BLACK, lw=4, alpha=0.25, label="wave")
    for i, name in enumerate(STARTS):
        if name != UNIFORM:
            typical = np.argsort(errors[:, i])[len(errors) // 2]
            axes.plot(X, outputs[typical, i], color=COLOR_OF[name], label=name)
    describe(axes, "Typical fits", "x", "output", ylim=(-1.3, 1.9))
    axes.legend(fontsize="small", loc="upper center", ncols=4)


def _draw_errors(axes: Any, errors: np.ndarray) -> None:
    means = np.exp(np.log(errors).mean(axis=0))
    for name, mean in zip(STARTS, means, strict=True):
        axes.semilogy(mean, color=COLOR_OF[name], label=name)
    describe(axes, f"Learning, {len(errors)} networks each", "step", "mean squared error")
