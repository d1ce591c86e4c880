"""What changes the signal of a whole network: its trunk is judged, and not what branches do."""

import math
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from gradtx import diagnostics, initializers
from gradtx.diagnostics.tracing import passing
from gradtx.diagnostics.tracing.graph import Graph
from gradtx.diagnostics.tracing.traced import trace_loss
from gradtx.diagnostics.tracing.trunk import products_of, trunk_of

from .remedies import NUMBER, WIDTH, assert_healthy, assert_sick, inputs, loss_with, network

BLOCKS = 5


def images(side=8, channels=3):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((4, side, side, channels)), jnp.float32)


def cross_entropy(logits):
    labels = jax.nn.one_hot(jnp.arange(logits.shape[0]) % 3, 3)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))


def normalized(x):
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5)


# The measurements along the trunk, in NumPy and float64.


def residual_network(blocks=BLOCKS):
    def he(number, *shape):
        return jnp.asarray(
            np.random.default_rng(number).standard_normal(shape) * math.sqrt(2 / shape[-2]),
            jnp.float32,
        )

    return {
        "first": he(0, WIDTH, WIDTH),
        "up": he(1, blocks, WIDTH, 64),
        "down": he(2, blocks, 64, WIDTH),
        "last": he(3, WIDTH, 3),
    }


def block_with(up, down, x, scale=1.0, normalize=lambda x: x):
    return x + scale * (jax.nn.relu(normalize(x) @ up) @ down)


def listed(**options):
    def loss_fn(params, x):
        x = x @ params["first"]
        for up, down in zip(params["up"], params["down"], strict=True):
            x = block_with(up, down, x, **options)
        return jnp.mean((x @ params["last"]) ** 2)

    return loss_fn


def scanned(**options):
    def loss_fn(params, x):
        def step(x, weights):
            return block_with(*weights, x, **options), None

        x, _ = lax.scan(step, x @ params["first"], (params["up"], params["down"]))
        return jnp.mean((x @ params["last"]) ** 2)

    return loss_fn


def reference(params, x):
    """The signal before each block and after the last one, and the gradients there."""
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), params)
    states, slopes = [np.asarray(x, np.float64) @ params["first"]], []
    for up, down in zip(params["up"], params["down"], strict=True):
        z = states[-1] @ up
        slopes.append(z > 0)
        states.append(states[-1] + np.maximum(z, 0) @ down)
    outputs = states[-1] @ params["last"]
    gradients = [2 * outputs @ params["last"].T / outputs.size]
    for i in reversed(range(len(slopes))):
        back = (gradients[0] @ params["down"][i].T) * slopes[i]
        gradients.insert(0, gradients[0] + back @ params["up"][i].T)
    return states, gradients


@pytest.mark.parametrize("write", [listed, scanned])
def test_measurements_of_the_trunk_of_a_residual_network(write):
    params, x = residual_network(5), inputs()
    states, gradients = reference(params, x)
    loss = trace_loss("test", write(), params, (x,), has_aux=False)
    graph = Graph(loss.closed_jaxpr)
    trunk = trunk_of(graph, products_of(graph, len(loss.params)))
    measured = passing.measure(loss, graph, trunk.values)
    found = [measured[id(value)] for value in trunk.values if id(value) in measured]
    rms = np.concatenate([np.atleast_1d(one) for one, _ in found])
    norms = np.concatenate([np.atleast_1d(one) for _, one in found])
    expected = [np.sqrt(np.mean(state**2)) for state in states]
    expected_norms = [np.linalg.norm(gradient) for gradient in gradients]
    if write is scanned:
        # The first state is seen twice: before the loop, and as what its first iteration receives.
        expected, expected_norms = ([each[0], *each] for each in (expected, expected_norms))
    np.testing.assert_allclose(rms, expected, rtol=1e-5)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-4)


# Residual networks.


@pytest.mark.parametrize("write", [listed, scanned])
def test_residual_blocks_that_grow_are_blamed_on_their_sums(write):
    params = residual_network()
    report = diagnostics.signal_report(write(), params, inputs())
    assert_sick(report, "exploding")
    states, _ = reference(params, inputs())
    rms = [np.sqrt(np.mean(state**2)) for state in states]
    per_block = (rms[-1] / rms[0]) ** (1 / BLOCKS)
    assert report.diagnosis.factor == pytest.approx(per_block, rel=0.1)
    assert "per block" in report.verdict
    assert "in the sum of each block with its input at test_verdict_trunk.py" in report.verdict
    stated = re.search(rf"multiply each branch by ({NUMBER})", report.verdict)
    assert "a layer_norm or batch_norm at its start" in report.verdict
    # The cures in the sentence.
    for cured in scanned(scale=float(stated[1])), scanned(normalize=normalized):
        assert_healthy(diagnostics.signal_report(cured, params, inputs()))


def test_branches_with_large_weights_are_told_so():
    params = residual_network()
    params = {**params, "up": 3 * params["up"], "down": 3 * params["down"]}
    report = diagnostics.signal_report(listed(), params, inputs())
    assert_sick(report, "exploding")
    assert "fan_in; currently" in report.verdict


@pytest.mark.parametrize(("write", "scale"), [(scanned, 0.0), (listed, 1e-6), (scanned, 0.1)])
def test_branches_scaled_on_purpose_are_healthy(write, scale):
    """ReZero, SkipInit, and the layer scale of ConvNeXt and CaiT."""
    loss_fn = write(scale=scale, normalize=normalized)
    assert_healthy(diagnostics.signal_report(loss_fn, residual_network(), inputs()))


class ConvNeXtBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        features = x.shape[-1]
        h = nn.Conv(features, (3, 3), feature_group_count=features)(x)
        h = nn.gelu(nn.Dense(4 * features)(nn.LayerNorm()(h)))
        scale = self.param("scale", nn.initializers.constant(1e-6), (features,))
        return x + scale[None, None, None] * nn.Dense(features)(h)


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(8, (2, 2), (2, 2))(x))
        x = ConvNeXtBlock()(x)
        x = nn.Conv(16, (2, 2), (2, 2))(nn.LayerNorm()(x))
        x = ConvNeXtBlock()(x)
        return nn.Dense(3)(nn.LayerNorm()(jnp.mean(x, axis=(1, 2))))


class ZeroGamma(nn.Module):
    """Residual blocks whose last normalization begins with a scale of zero."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(2):
            h = nn.Conv(8, (3, 3))(nn.relu(nn.BatchNorm(use_running_average=False)(x)))
            h = nn.relu(nn.BatchNorm(use_running_average=False)(h))
            zeros = nn.initializers.zeros
            h = nn.BatchNorm(use_running_average=False, scale_init=zeros)(nn.Conv(8, (3, 3))(h))
            x = x + h
        return nn.Dense(3)(jnp.mean(nn.relu(x), axis=(1, 2)))


@pytest.mark.parametrize("model", [ConvNeXt(), ZeroGamma()])
def test_flax_networks_with_weak_branches_are_healthy(model):
    variables = jax.jit(model.init)(jax.random.key(0), images())

    def loss_fn(params, x):
        given = {**variables, "params": params}
        return cross_entropy(model.apply(given, x, mutable=["batch_stats"])[0])

    assert_healthy(diagnostics.signal_report(loss_fn, variables["params"], images()))


class ReZero(eqx.Module):
    first: eqx.nn.Linear
    blocks: list
    gains: list
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.first = eqx.nn.Linear(WIDTH, 16, key=keys[0])
        self.blocks = [eqx.nn.Linear(16, 16, key=one) for one in keys[1:4]]
        self.gains = [jnp.zeros(()) for _ in self.blocks]
        self.last = eqx.nn.Linear(16, 3, key=keys[4])

    def __call__(self, x):
        x = self.first(x)
        for block, gain in zip(self.blocks, self.gains, strict=True):
            x = x + gain * jnp.tanh(block(x))
        return self.last(x)


def test_rezero_of_equinox_is_healthy():
    def loss_fn(model, x):
        return cross_entropy(jax.vmap(model)(x))

    assert_healthy(diagnostics.signal_report(loss_fn, ReZero(jax.random.key(0)), inputs()))


class Adapted(nnx.Module):
    """A network whose layers are adapted by products of low rank that begin at zero."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3)])
        self.adapters = nnx.List([nnx.LoRA(WIDTH, 2, WIDTH, rngs=rngs) for _ in self.layers])
        self.last = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        for layer, adapter in zip(self.layers, self.adapters, strict=True):
            x = x + nnx.gelu(layer(x) + adapter(x))
        return self.last(x)


def test_low_rank_adapters_of_nnx_are_healthy():
    graphdef, state = nnx.split(Adapted(nnx.Rngs(0)))

    def loss_fn(state, x):
        return cross_entropy(nnx.merge(graphdef, state)(x))

    assert_healthy(diagnostics.signal_report(loss_fn, state, inputs()))


# What happens between the layers of other networks.


class Pooled(nn.Module):
    activation: object
    has_norm: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = self.activation(nn.Conv(8, (3, 3), kernel_init=initializers.he_normal())(x))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(3)(nn.LayerNorm()(x) if self.has_norm else x)


def test_mean_over_many_places_is_blamed_and_not_the_layers_beside_it():
    params = jax.jit(Pooled(jnp.tanh).init)(jax.random.key(0), images(64))

    def report_of(model, params=params):
        return diagnostics.signal_report(
            lambda params, x: cross_entropy(model.apply(params, x)), params, images(64)
        )

    report = report_of(Pooled(jnp.tanh))
    assert_sick(report, "vanishing")
    assert "in the sum or mean over 4,096 places at test_verdict_trunk.py" in report.verdict
    assert report.diagnosis.layers == ("params/Conv_3/kernel",)
    assert report.diagnosis.factor < 1 / 20
    # The cures in the sentence.
    assert "a layer_norm after it, or a relu before it" in report.verdict
    norm = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    with_norm = {"params": {**params["params"], "LayerNorm_0": norm}}
    assert_healthy(report_of(Pooled(jnp.tanh, has_norm=True), with_norm))
    assert_healthy(report_of(Pooled(jax.nn.relu)))


def test_multiplication_between_layers_is_blamed():
    def loss_with_factor(factor):
        def loss_fn(params, x):
            for layer in params:
                x = jax.nn.relu(x @ layer["kernel"]) * factor
            return jnp.mean(x**2)

        return loss_fn

    params = network(5, initializers.he_normal())
    report = diagnostics.signal_report(loss_with_factor(0.25), params, inputs())
    assert_sick(report, "vanishing")
    assert "in the multiplication at test_verdict_trunk.py" in report.verdict
    stated = re.search(rf"multiply by ({NUMBER}) there", report.verdict)
    cured = loss_with_factor(0.25 * float(stated[1]))
    assert_healthy(diagnostics.signal_report(cured, params, inputs()))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_inputs_of_another_scale_are_not_a_trend(scale):
    def normalize(z):
        return (z - jnp.mean(z, axis=0, keepdims=True)) * lax.rsqrt(
            jnp.var(z, axis=0, keepdims=True) + 1e-12
        )

    loss_fn = loss_with(jax.nn.relu, normalize)
    params = network(4, initializers.he_normal())
    report = diagnostics.signal_report(loss_fn, params, inputs(scale))
    assert report.kind in ("healthy", "unstandardized"), report.verdict
