"""Signals that vanish, explode, saturate or die on their way."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    dense,
    equinox_set_up,
    keys,
    labels,
    linen_set_up,
    mlp,
    nnx_set_up,
    normal,
    perceptron,
    squared_error,
    vectors,
)


@sick(
    "a deep sigmoid network",
    "linen",
    "AutoTrainer: gradient vanish; DeepDiagnosis; Stack Overflow, deep sigmoid networks",
    kinds="vanishing saturated",
    where="Dense",
    how="the gradient of the first layer is a million times smaller than that of the last",
)
def deep_sigmoid(cured=False):
    act = nn.gelu if cured else nn.sigmoid
    init = nn.initializers.he_normal() if cured else nn.initializers.lecun_normal()

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(8):
                x = act(nn.Dense(32, kernel_init=init)(x))
            return nn.Dense(4)(x)

    return linen_set_up(Network(), cross_entropy, *vectors())


@sick(
    "standard normal weights",
    "jax",
    "AutoTrainer: gradient explode; DeepDiagnosis: exploding tensor; Stack Overflow",
    kinds="exploding",
    where="kernel",
    how="the signal grows by a factor of four in each layer, the loss starts at 1e3 and more",
)
def normal_weights(cured=False):
    params = mlp(keys(), 16, 32, 32, 32, 32, 4)
    if not cured:
        for key, layer in zip(keys(), params, strict=False):
            layer["kernel"] = jax.random.normal(key, layer["kernel"].shape)

    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x), y)

    return SetUp(loss_fn, params, vectors())


@sick(
    "weights of 0.01 in a deep plain network",
    "equinox",
    "He et al. 2015; CS231n on small random numbers; DeepFD: initialization",
    kinds="vanishing",
    where="weight",
    how="signal and gradient are below 1e-8 in the first layers: the network does not start",
)
def small_weights(cured=False):
    class Network(eqx.Module):
        layers: list

        def __init__(self, key):
            init = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
            sizes = [(16, 32), *[(32, 32)] * 6, (32, 4)]
            self.layers = []
            for size, k in zip(sizes, jax.random.split(key, 8), strict=True):
                layer = eqx.nn.Linear(*size, key=k)
                shape = layer.weight.shape
                weight = init(k, shape) if cured else 0.01 * jax.random.normal(k, shape)
                values = weight, jnp.zeros_like(layer.bias)
                self.layers.append(eqx.tree_at(lambda m: (m.weight, m.bias), layer, values))

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    return equinox_set_up(Network(jax.random.key(0)), cross_entropy, *vectors())


def _recurrence(scale):
    def loss_fn(params, x, y):
        def step(h, x):
            return jnp.tanh(0.3 * affine(params["input"], x) + h @ params["recurrent"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((x.shape[1], 24)), x)
        return cross_entropy(affine(params["head"], h), y)

    k = keys()
    params = {
        "input": dense(next(k), 8, 24, 1.0),
        "recurrent": scale * jax.nn.initializers.orthogonal()(next(k), (24, 24)),
        "head": dense(next(k), 24, 4, 1.0),
    }
    return SetUp(loss_fn, params, (normal(30, 16, 8), labels(16, 4)))


@sick(
    "a recurrence that forgets",
    "jax",
    "Pascanu et al. 2013; Stack Overflow, RNN does not learn long dependencies",
    kinds="vanishing",
    where="recurrent",
    how="after ten steps 1e-7 of the gradient is left",
)
def forgetting(cured=False):
    return _recurrence(1.0 if cured else 0.2)


@sick(
    "a recurrence that explodes",
    "jax",
    "Pascanu et al. 2013; AutoTrainer: gradient explode",
    kinds="exploding saturated",
    where="recurrent",
    how="tanh saturates at every step, or the gradient grows by the factor of the weights",
)
def exploding_recurrence(cured=False):
    return _recurrence(1.0 if cured else 4.0)


@sick(
    "biases of -10 before relu",
    "nnx",
    "AutoTrainer: dying relu; DeepDiagnosis: dead node; Stack Overflow",
    kinds="dead",
    where="first|second",
    how="all units of a layer are zero for all examples, and stay so",
)
def dead_units(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            bias = nnx.initializers.constant(0.0 if cured else -10.0)
            self.first = nnx.Linear(16, 32, rngs=rngs)
            self.second = nnx.Linear(32, 32, bias_init=bias, rngs=rngs)
            self.last = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))

    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, *vectors())


@sick(
    "dropout that keeps nothing",
    "linen",
    "UMLAUT: high dropout rate; Stack Overflow, keep probability and rate confused",
    # flax does not even look at the inputs then.
    kinds="dead zero_gradient blocked unused",
    where="Dense_0",
    how="the rate of 1 drops everything, and only the last bias learns",
)
def dropped_everything(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(32)(x))
            x = nn.Dropout(0.1 if cured else 1.0, deterministic=False)(x)  # fault
            return nn.Dense(4)(x)

    x, y = vectors()
    # Classes that are equally frequent would leave even the last bias where it is.
    y = y.at[:8].set(2)
    model = Network()
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def loss_fn(params, x, y, key):
        return cross_entropy(model.apply(params, x, rngs={"dropout": key}), y)

    return SetUp(loss_fn, params, (x, y, jax.random.key(2)))


@sick(
    "tanh of large weights",
    "jax",
    "DeepDiagnosis: saturated activation; CS231n on tanh with weights of 1",
    kinds="saturated exploding",
    where="kernel",
    how="nearly all activations are at 1 or -1",
)
def saturated_tanh(cured=False):
    params = mlp(keys(), 16, 32, 32, 32, 4, gain=1.0 if cured else 60.0)

    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x, jnp.tanh), y)

    return SetUp(loss_fn, params, vectors())


@sick(
    "residual branches that are not scaled",
    "jax",
    "Zhang et al. 2019 (Fixup), on residual networks without normalization; GitHub issues",
    kinds="exploding",
    where="blocks",
    how="each block doubles the variance and more: after 24 of them the loss starts at 1e7",
)
def unscaled_branches(cured=False):
    depth = 24

    def loss_fn(params, x, y):
        x = affine(params["first"], x)
        for block in params["blocks"]:
            z = jax.nn.relu(affine(block["one"], x))
            x = x + affine(block["two"], z)
        return cross_entropy(affine(params["last"], x), y)

    k = keys()
    gain = 1 / depth**2 if cured else 2.0
    params = {
        "first": dense(next(k), 16, 32, 1.0),
        "blocks": [
            {"one": dense(next(k), 32, 32), "two": dense(next(k), 32, 32, gain)}
            for _ in range(depth)
        ],
        "last": dense(next(k), 32, 4, 1.0),
    }
    return SetUp(loss_fn, params, vectors())


@sick(
    "an LSTM with a forget bias of -6",
    "jax",
    "Gers et al. 2000 and Jozefowicz et al. 2015, the sign mistaken; Keras issues",
    kinds="vanishing saturated",
    where="cell",
    how="the cell forgets within one step",
)
def closed_gate(cured=False):
    def loss_fn(params, x, y):
        def step(state, x):
            h, c = state
            z = jnp.concatenate([x, h], axis=-1)
            i, f, o, g = jnp.split(affine(params["cell"], z), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((x.shape[1], 24))
        (h, _), _ = jax.lax.scan(step, (start, start), x)
        return squared_error(affine(params["head"], h)[:, 0], y)

    k = keys()
    cell = dense(next(k), 26, 96, 1.0)
    forget = jnp.full(24, 1.0 if cured else -6.0)
    cell["bias"] = jnp.concatenate([jnp.zeros(24), forget, jnp.zeros(48)])
    params = {"cell": cell, "head": dense(next(k), 24, 1, 1.0)}
    x = normal(24, 16, 2)
    return SetUp(loss_fn, params, (x, x[2, :, 0]))


@sick(
    "a graph that is not normalized",
    "jax",
    "Kipf and Welling 2017 on the renormalization; GitHub issues of graph networks",
    kinds="exploding",
    where=r"kernel",
    how="each layer multiplies the features by the number of neighbours",
)
def unnormalized_graph(cured=False):
    rng = np.random.default_rng(0)
    edges = rng.random((30, 30)) < 0.4
    adjacency = np.triu(edges, 1) | np.triu(edges, 1).T | np.eye(30, dtype=bool)
    adjacency = adjacency / (adjacency.sum(1, keepdims=True) if cured else 1)

    def loss_fn(params, adjacency, x, y):
        for layer in params[:-1]:
            x = jax.nn.relu(adjacency @ affine(layer, x))  # fault
        return cross_entropy(affine(params[-1], x), y)

    params = mlp(keys(), 12, *[24] * (1 if cured else 5), 2)
    batch = (jnp.asarray(adjacency, jnp.float32), normal(30, 12), labels(30, 2))
    return SetUp(loss_fn, params, batch)


@sick(
    "an exponential as nonlinearity",
    "jax",
    "Stack Overflow, exponential activations and NaN; DeepDiagnosis: exploding tensor",
    kinds="exploding overflow nan large_logits",
    where=r"\d/kernel",
    how="the exponential of an exponential overflows",
)
def exponential(cured=False):
    act = jnp.tanh if cured else jnp.exp

    def loss_fn(params, x, y):
        x = act(affine(params[0], x))  # fault
        x = act(affine(params[1], x))  # fault
        return cross_entropy(affine(params[2], x), y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 4, gain=1.0 if cured else 3.0), vectors())
