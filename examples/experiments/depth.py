"""What many layers do to a signal, and how large weights must be for it to pass.

A layer multiplies the size of its input by a factor, and many layers by a power of it: with
W = 1.5 I the signal explodes as 1.5^l, with 0.5 I it vanishes as 0.5^l, and the backpropagated
gradients do the same. With random weights of variance s / fan_in, the mean square q of the
activations phi(z) and the mean square g of the gradients obey, for wide layers of equal widths,

    forward     q_l = E phi(z)^2,    z ~ N(0, s q_{l-1})
    backward    g_{l-1} = s E phi'(z)^2 g_l

For relu both factors are s / 2, and only s = 2, He's rule, preserves both; with LeCun's s = 1,
which is Glorot's for equal widths, they halve at each layer. tanh compresses large values: with
s = 1 the signal decays more and more slowly, as about 1 / (2 l), and with s = 2 it settles, while
the gradients grow as they are backpropagated.

The goal is not the same variance in all layers but the same variance times fan_in: with weights of
variance 2 / 256 everywhere the signal shrinks in layers that have fewer than 256 inputs, and grows
in those that have more.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import Activation, Initializer
from gradtx.diagnostics import activation_gain
from gradtx.initializers import he_normal, identity, normal, variance_scaling
from gradtx.normalization import rms_norm

CLAIM = (
    "The mean squares of activations and gradients change from layer to layer by the factors that "
    "initialization and nonlinearity predict; only weights of variance 2 / fan_in preserve both "
    "in deep relu networks, and the activations for all widths."
)

DEPTH = 40
WIDTH = 256
SCALES = (1.5, 1.0, 0.5)
# The nonlinearity, and s = fan_in * Var w.
NETWORKS: dict[str, tuple[Activation, float]] = {
    "ReLU, He": (jax.nn.relu, 2.0),
    "ReLU, LeCun": (jax.nn.relu, 1.0),
    "tanh, He": (jnp.tanh, 2.0),
    "tanh, LeCun": (jnp.tanh, 1.0),
}
NARROW, WIDE, BETWEEN, LAYERS = 128, 512, 256, 6  # 6 layers of 128 units, then 6 of 512
WIDTH_RULES = (f"2 / {BETWEEN}", "2 / fan_in")
BLACK = COLORS[0]


def pass_on(
    key: jax.Array, x: jax.Array, init: Initializer, activation: Activation, probes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Pass inputs of shape (n, inputs) through random layers.

    Args:
        key: the PRNG key of the weights.
        x: the inputs.
        init: the initializer of the weights; there are no biases.
        activation: the nonlinearity.
        probes: what to add to the activations of each layer, of shape (layers, n, width): zeros,
            so that the gradient with respect to them is that with respect to the activations.

    Returns:
        The last activations, and the mean squares of each layer's activations, shape (layers,).
    """

    def layer(h: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        key, probe = inputs
        h = activation(h @ init(key, (h.shape[-1], probe.shape[-1]))) + probe
        return h, jnp.mean(h**2)

    keys = jax.random.split(key, len(probes))
    h, first = layer(x, (keys[0], probes[0]))
    h, others = jax.lax.scan(layer, h, (keys[1:], probes[1:]))
    return h, jnp.concatenate([first[None], others])


def signals(
    key: jax.Array, x: jax.Array, init: Initializer, activation: Activation, width: int
) -> tuple[jax.Array, jax.Array]:
    """Mean squares of the activations and of the gradients, of shape (DEPTH,) each.

    The loss is a random linear function of the last activations, so that the last gradient has mean
    square 1.
    """
    weight_key, loss_key = jax.random.split(key)
    direction = jax.random.normal(loss_key, (len(x), width))

    def loss(probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        h, squares = pass_on(weight_key, x, init, activation, probes)
        return jnp.sum(h * direction), squares

    gradients, squares = jax.grad(loss, has_aux=True)(jnp.zeros((DEPTH, len(x), width)))
    return squares, jnp.mean(gradients**2, axis=(1, 2))


@functools.cache
def expected_signals(activation: Activation, s: float) -> tuple[np.ndarray, np.ndarray]:
    """What `signals` returns for wide layers, inputs of mean square 1 and Var w = s / fan_in."""
    slope = jax.vmap(jax.grad(activation))
    squares, factors = [1.0], []
    for _ in range(DEPTH):
        deviation = (s * squares[-1]) ** 0.5
        squares.append(activation_gain(lambda z, d=deviation: activation(d * z)))
        factors.append(s * activation_gain(lambda z, d=deviation: slope(d * z)))
    # The first layer's factor leads to the gradient of the inputs, which is not used.
    return np.array(squares[1:]), np.cumprod([1.0, *factors[:0:-1]])[::-1]


def squares_of_widths(key: jax.Array, x: jax.Array, init: Initializer) -> jax.Array:
    """The mean squares of the activations in a ReLU network of narrow and then wide layers."""
    narrow_key, wide_key = jax.random.split(key)
    probes = [jnp.zeros((LAYERS, len(x), width)) for width in (NARROW, WIDE)]
    h, narrow = pass_on(narrow_key, x, init, jax.nn.relu, probes[0])
    _, wide = pass_on(wide_key, h, init, jax.nn.relu, probes[1])
    return jnp.concatenate([narrow, wide])


def run(settings: Settings) -> Outcome:
    """Send digits through scaled identities, random layers, and layers of two widths."""
    # Each image is scaled to mean square 1.
    x = rms_norm(jnp.asarray(load_digits().train["image"][:16]), epsilon=0.0)
    keys = jax.random.split(settings.key, settings.choose(full=64, quick=4))
    identities = identity_signals(settings.key, x)
    measured = network_signals(keys, x)
    expected = {name: expected_signals(*network) for name, network in NETWORKS.items()}
    constant = normal((2 / BETWEEN) ** 0.5)
    widths = mean_over_networks(
        lambda key: [squares_of_widths(key, x, init) for init in (constant, he_normal())], keys
    )
    fans_in = [x.shape[-1], *[NARROW] * LAYERS, *[WIDE] * (LAYERS - 1)]
    expected_widths = [np.cumprod(np.array(fans_in) / BETWEEN), np.ones(len(fans_in))]
    checks = [
        *(
            _check_powers(scale, identities[0][i], identities[1][i])
            for i, scale in enumerate(SCALES)
        ),
        *(_check_factors(name, measured[name], expected[name]) for name in measured),
        *_width_checks(widths, expected_widths),
    ]
    figure, panels = new_figure("Signals and gradients through many layers", rows=2)
    _draw_identities(panels[0, 0], identities)
    _draw_networks(panels[0, 1], measured, expected, 0)
    _draw_networks(panels[1, 1], measured, expected, 1)
    _draw_widths(panels[1, 0], widths, expected_widths)
    caption = (
        f"Mean squares over the layers, of {len(x)} digits in {len(keys)} networks; dashed: "
        "predictions. Top left: powers of the scale. Right: activations in the forward pass and "
        f"gradients in the backward pass, with {WIDTH} units per layer; only He's rule with relu "
        f"preserves both. Bottom left: {LAYERS} layers of {NARROW} units and {LAYERS} of {WIDE}; "
        "with the same variance everywhere the signal vanishes and then explodes, with variance "
        "2 / fan_in it is preserved."
    )
    return Outcome(checks, figure, caption)


def identity_signals(key: jax.Array, x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """What `signals` returns for linear layers with identities scaled by each of SCALES."""

    @jax.jit
    @jax.vmap
    def scaled(scale: jax.Array) -> Any:
        def init(*arguments: Any) -> jax.Array:
            return scale * identity()(*arguments)

        return signals(key, x, init, lambda z: z, x.shape[-1])

    return jax.device_get(scaled(jnp.array(SCALES)))


def network_signals(keys: jax.Array, x: jax.Array) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What `signals` returns for each of NETWORKS, the mean over random weights."""
    activations, variances = zip(*NETWORKS.values(), strict=True)

    def random(key: jax.Array) -> Any:
        def network(i: jax.Array, s: jax.Array) -> Any:
            init = variance_scaling(s, "fan_in", "truncated_normal")
            return signals(key, x, init, lambda z: jax.lax.switch(i, activations, z), WIDTH)

        return jax.vmap(network)(jnp.arange(len(NETWORKS)), jnp.array(variances))

    forward, backward = mean_over_networks(random, keys)
    return dict(zip(NETWORKS, zip(forward, backward, strict=True), strict=True))


def mean_over_networks(measure: Callable[[jax.Array], Any], keys: jax.Array) -> Any:
    """The mean over PRNG keys of what is measured with each."""
    # One network at a time: the weights of all of them would fill the memory.
    results = jax.jit(lambda keys: jax.lax.map(measure, keys))(keys)
    return jax.tree.map(lambda a: np.asarray(a, np.float64).mean(axis=0), results)


def _width_checks(widths: Any, expected: Any) -> Iterator[Check]:
    for rule, squares, ideal in zip(WIDTH_RULES, widths, expected, strict=True):
        for width, part in ((NARROW, slice(0, LAYERS + 1)), (WIDE, slice(LAYERS, None))):
            yield Check(
                f"variance {rule}: times {_factor(ideal[part]):.3f} a layer with {width} inputs",
                f"{_factor(squares[part]):.3f}",
                abs(_factor(squares[part]) / _factor(ideal[part]) - 1) < 0.1,
            )


def _factor(squares: np.ndarray) -> float:
    """The factor from layer to layer, as a geometric mean."""
    return float((squares[-1] / squares[0]) ** (1 / (len(squares) - 1)))


def _check_powers(scale: float, forward: np.ndarray, backward: np.ndarray) -> Check:
    powers = scale ** (2.0 * np.arange(DEPTH))
    error = max(np.abs(a / a[0] / powers - 1).max() for a in (forward, backward[::-1]))
    return Check(
        f"W = {scale:g} I: signal and gradient change as {scale:g}^l",
        f"largest relative deviation {error:.1e} of the mean squares after {DEPTH} layers",
        bool(error < 1e-4),
    )


def _check_factors(name: str, measured: Any, expected: Any) -> Check:
    (forward, backward), ideal = (
        (_factor(squares[0]), _factor(squares[1][::-1])) for squares in (measured, expected)
    )
    return Check(
        f"{name}: activations times {ideal[0]:.3f} per layer, gradients {ideal[1]:.3f} backwards",
        f"{forward:.3f} and {backward:.3f}",
        abs(forward / ideal[0] - 1) < 0.025 and abs(backward / ideal[1] - 1) < 0.025,
    )


def _draw_identities(axes: Any, identities: tuple[np.ndarray, np.ndarray]) -> None:
    layers = np.arange(1, DEPTH + 1)
    for scale, forward, color in zip(SCALES, identities[0], COLORS[1:], strict=False):
        axes.semilogy(layers, forward, ".", color=color, label=f"W = {scale:g} I")
        axes.semilogy(layers, scale ** (2.0 * layers), "--", color=BLACK, lw=1)
    describe(axes, "Scaled identities: activations", "layer", "mean square")


def _draw_networks(axes: Any, measured: Any, expected: Any, direction: int) -> None:
    layers = np.arange(1, DEPTH + 1)
    for (name, squares), color in zip(measured.items(), COLORS[1:], strict=False):
        axes.semilogy(layers, squares[direction], color=color, lw=3, alpha=0.6, label=name)
        axes.semilogy(layers, expected[name][direction], "--", color=BLACK, lw=1)
    title = ("Random weights: activations", "Random weights: gradients")[direction]
    describe(axes, title, "layer", "mean square", ylim=(1e-13, 1e3))


def _draw_widths(axes: Any, widths: Any, expected: Any) -> None:
    layers = np.arange(1, 2 * LAYERS + 1)
    for rule, squares, ideal, color in zip(
        WIDTH_RULES, widths, expected, COLORS[2:0:-1], strict=True
    ):
        axes.semilogy(layers, squares, color=color, lw=3, alpha=0.6, label=f"variance {rule}")
        axes.semilogy(layers, ideal, "--", color=BLACK, lw=1)
    axes.axvspan(0.5, LAYERS + 0.5, color="0.93")
    for x, width in ((0.25, NARROW), (0.75, WIDE)):
        axes.text(x, 0.8, f"{width} units", ha="center", transform=axes.transAxes)
    describe(
        axes, "ReLU layers of two widths", "layer", "mean square", xlim=(0.5, 2 * LAYERS + 0.5)
    )
