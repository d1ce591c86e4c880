"""Common networks are healthy, before and after training: the verdict raises no false alarm."""

import functools
import itertools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gradtx import diagnostics, initializers

from .remedies import WIDTH, assert_healthy, inputs, loss_with, network


@pytest.mark.parametrize(("name", "depth"), [("relu", 10), ("tanh", 10), ("relu", 2)])
def test_well_initialized_networks_are_healthy(name, depth):
    activation, initializer = {
        "relu": (jax.nn.relu, initializers.he_normal()),
        "tanh": (jnp.tanh, initializers.glorot_normal()),
    }[name]
    params = network(depth, initializer)
    assert_healthy(diagnostics.signal_report(loss_with(activation), params, inputs()))


@pytest.mark.parametrize("name", ["gelu", "silu", "selu", "elu"])
def test_other_activations_with_their_initializers_are_healthy(name):
    initializer = initializers.lecun_normal() if name == "selu" else initializers.he_normal()
    loss_fn = loss_with(getattr(jax.nn, name))
    assert_healthy(diagnostics.signal_report(loss_fn, network(3, initializer), inputs()))


# Networks that were trained, and classifiers.


def trained(loss_fn, params, *args, steps=60, learning_rate=3e-3):
    tx = optax.adam(learning_rate)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params, *args), state)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return run(params)


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))


def labels_for(number, classes):
    return jax.nn.one_hot(jnp.arange(number) % classes, classes)


def classifier_loss(params, x, labels):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return cross_entropy((x @ last["kernel"] + last["bias"][None])[:, :10], labels)


def test_trained_classifier_is_healthy():
    params = network(6, initializers.he_normal())
    labels = labels_for(64, 10)
    before = float(classifier_loss(params, inputs(), labels))
    params = trained(classifier_loss, params, inputs(), labels, learning_rate=3e-3, steps=150)
    report = diagnostics.signal_report(classifier_loss, params, inputs(), labels)
    assert report.loss < 0.1 * before
    assert_healthy(report)


def test_classifier_whose_head_begins_at_zero_is_healthy():
    params = network(4, initializers.he_normal())
    params[-1]["kernel"] = jnp.zeros((WIDTH, WIDTH))
    report = diagnostics.signal_report(classifier_loss, params, inputs(), labels_for(64, 10))
    assert_healthy(report)


def test_trained_autoencoder_is_healthy():
    widths = (WIDTH, 16, 8, 16, WIDTH)
    init = initializers.he_normal()
    params = jax.jit(
        lambda key: [init(key, shape, jnp.float32) for shape in itertools.pairwise(widths)]
    )(jax.random.key(0))

    def loss_fn(params, x):
        hidden = x
        for kernel in params[:-1]:
            hidden = jax.nn.relu(hidden @ kernel)
        return jnp.mean((hidden @ params[-1] - x) ** 2)

    params = trained(loss_fn, params, inputs(), steps=150)
    assert_healthy(diagnostics.signal_report(loss_fn, params, inputs()))


def test_linear_regression_from_zero_is_healthy():
    def loss_fn(params, x):
        return jnp.mean((x @ params["w"] + params["b"] - 1.0) ** 2)

    params = {"w": jnp.zeros(WIDTH), "b": jnp.asarray(0.0)}
    assert_healthy(diagnostics.signal_report(loss_fn, params, inputs()))


# Convolutional networks.


class LeNet(nn.Module):
    has_norm: bool
    pool: str

    @nn.compact
    def __call__(self, x):
        he = initializers.he_normal()
        for features in (6, 8):
            x = nn.Conv(features, (3, 3), kernel_init=he)(x)
            if self.has_norm:
                x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.relu(x)
            operation, start = (lax.max, -jnp.inf) if self.pool == "max" else (lax.add, 0.0)
            x = nn.pool(x, start, operation, (2, 2), (2, 2), "VALID")
            x = x if self.pool == "max" else 0.25 * x
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(24, kernel_init=he)(x))
        return nn.Dense(10)(x)


@pytest.mark.parametrize(
    ("has_norm", "pool", "is_trained"),
    [
        pytest.param(False, "max", False, id="plain-max"),
        pytest.param(True, "mean", True, id="batch_norm-mean-trained"),
    ],
)
def test_convolutional_network_is_healthy(has_norm, pool, is_trained):
    model = LeNet(has_norm, pool)
    images = inputs(samples=8, width=144).reshape(8, 12, 12, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss_fn(params, images, labels):
        given = {**variables, "params": params}
        return cross_entropy(model.apply(given, images, mutable=["batch_stats"])[0], labels)

    params, labels = variables["params"], labels_for(8, 10)
    if is_trained:
        params = trained(loss_fn, params, images, labels)
    assert_healthy(diagnostics.signal_report(loss_fn, params, images, labels))


class ResidualNetwork(nn.Module):
    blocks: int

    @nn.compact
    def __call__(self, x):
        def normalized(x):
            return nn.BatchNorm(use_running_average=False)(x)

        x = nn.relu(normalized(nn.Conv(6, (3, 3), use_bias=False)(x)))
        for _ in range(self.blocks):
            hidden = nn.relu(normalized(nn.Conv(6, (3, 3), use_bias=False)(x)))
            x = nn.relu(x + normalized(nn.Conv(6, (3, 3), use_bias=False)(hidden)))
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def test_residual_network_with_batch_norm_is_healthy():
    model = ResidualNetwork(2)
    images = inputs(samples=8, width=64).reshape(8, 8, 8, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss_fn(params, images, labels):
        given = {**variables, "params": params}
        return cross_entropy(model.apply(given, images, mutable=["batch_stats"])[0], labels)

    report = diagnostics.signal_report(loss_fn, variables["params"], images, labels_for(8, 10))
    assert len(report.layers) == 6
    assert_healthy(report)


# Transformers.


@functools.partial(jax.jit, static_argnums=(0, 1))
def transformer(blocks, width):
    keys = iter(jax.random.split(jax.random.key(0), 4 * blocks + 2))
    init = initializers.lecun_normal()

    def weights(m, n):
        return init(next(keys), (m, n), jnp.float32)

    return {
        "embedding": jax.random.normal(next(keys), (11, width)),
        "blocks": [
            {
                "attention": weights(width, 3 * width),
                "projection": weights(width, width),
                "up": weights(width, 4 * width),
                "down": weights(4 * width, width),
            }
            for _ in range(blocks)
        ],
        "head": weights(width, 11),
    }


def standardized(x):
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5)


def transformer_loss(params, tokens, heads=2):
    x = params["embedding"][tokens[:, :-1]]
    is_seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    for block in params["blocks"]:
        projected = (standardized(x) @ block["attention"]).reshape(*x.shape[:2], 3, heads, -1)
        query, key, value = jnp.moveaxis(projected, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        shares = jax.nn.softmax(jnp.where(is_seen[None, None], scores, -1e9))
        attended = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
        x = x + attended @ block["projection"]
        x = x + jax.nn.gelu(standardized(x) @ block["up"]) @ block["down"]
    logits = standardized(x) @ params["head"]
    return cross_entropy(logits, jax.nn.one_hot(tokens[:, 1:], 11))


def test_transformer_is_healthy():
    """Also where its branches begin at zero, a common trick: each block is the identity."""
    blocks = 2
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 9)))
    params = transformer(blocks, 16)
    report = diagnostics.signal_report(transformer_loss, params, tokens)
    assert len(report.layers) == 4 * blocks + 1
    assert_healthy(report)
    for block in params["blocks"]:
        block["projection"] = jnp.zeros_like(block["projection"])
        block["down"] = jnp.zeros_like(block["down"])
    assert_healthy(diagnostics.signal_report(transformer_loss, params, tokens))


# Recurrent networks.


def test_gated_recurrent_network_of_flax_is_healthy():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.GRUCell(12))(x)[:, -1])

    x = inputs(samples=8 * 15, width=5).reshape(8, 15, 5)
    params = jax.jit(Network().init)(jax.random.key(0), x)

    def loss_fn(params, x, labels):
        return cross_entropy(Network().apply(params, x), labels)

    assert_healthy(diagnostics.signal_report(loss_fn, params, x, labels_for(8, 3)))


class RecurrentNetwork(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __call__(self, x):
        def step(state, signal):
            return self.cell(signal, state), None

        state, _ = lax.scan(step, (jnp.zeros(12), jnp.zeros(12)), x)
        return self.head(state[0])


def test_gated_recurrent_network_of_equinox_is_healthy():
    keys = jax.random.split(jax.random.key(0))
    model = RecurrentNetwork(eqx.nn.LSTMCell(5, 12, key=keys[0]), eqx.nn.Linear(12, 3, key=keys[1]))
    x = inputs(samples=8 * 15, width=5).reshape(8, 15, 5)

    def loss_fn(model, x, labels):
        return cross_entropy(jax.vmap(model)(x), labels)

    assert_healthy(diagnostics.signal_report(loss_fn, model, x, labels_for(8, 3)))
