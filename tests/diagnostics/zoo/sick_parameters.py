"""Parameters that do not learn, or all learn the same."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    dense,
    equinox_set_up,
    keys,
    linen_set_up,
    mlp,
    nnx_set_up,
    normal,
    perceptron,
    regression,
    squared_error,
    vectors,
)


@sick(
    "all weights zero",
    "linen",
    "NeuraLint: weights initialized to one constant; Stack Overflow, initializing with zeros",
    kinds="identical_units zero_gradient dead",
    where="kernel",
    how="the hidden layers get no gradient at all, so that only the last bias learns",
)
def zero_weights(cured=False):
    init = nn.initializers.he_normal() if cured else nn.initializers.zeros

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(nn.Dense(32, kernel_init=init)(x))
            return nn.Dense(4, kernel_init=init)(x)

    return linen_set_up(Network(), cross_entropy, *vectors())


@sick(
    "hidden weights constant",
    "jax",
    "DeepFD: faulty initialization; NeuraLint: weights of equal values",
    kinds="identical_units",
    where="kernel",
    how="the units of a layer stay copies of each other, as wide as one unit",
)
def constant_weights(cured=False):
    params = mlp(keys(), 16, 32, 32, 4)
    if not cured:
        for layer in params[:-1]:
            layer["kernel"] = jnp.full_like(layer["kernel"], 0.1)

    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x, jnp.tanh), y)

    return SetUp(loss_fn, params, vectors())


@sick(
    "a layer that is never called",
    "equinox",
    "Slav Ivanov, 37 reasons why your neural network is not working; PyTorch forum",
    kinds="unused",
    where="second",
    how="its weights keep their values, and the network is shallower than it seems",
)
def uncalled_layer(cured=False):
    class Network(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear
        last: eqx.nn.Linear

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.first = eqx.nn.Linear(16, 32, key=a)
            self.second = eqx.nn.Linear(32, 32, key=b)
            self.last = eqx.nn.Linear(32, 4, key=c)

        def __call__(self, x):
            x = jax.nn.relu(self.first(x))
            z = jax.nn.relu(self.second(x)) if cured else x
            return self.last(z)

    return equinox_set_up(Network(jax.random.key(0)), cross_entropy, *vectors())


@sick(
    "an encoder behind stop_gradient",
    "jax",
    "PyTorch forum, detach in the forward pass; JAX discussions",
    kinds="blocked",
    where="encoder",
    how="the encoder keeps its random weights",
)
def stopped_encoder(cured=False):
    def loss_fn(params, x, y):
        z = jax.nn.relu(affine(params["encoder"], x))
        if not cured:
            z = jax.lax.stop_gradient(z)  # fault
        return cross_entropy(affine(params["head"], z), y)

    k = keys()
    params = {"encoder": dense(next(k), 16, 32), "head": dense(next(k), 32, 4, 1.0)}
    return SetUp(loss_fn, params, vectors())


@sick(
    "a detached residual trunk",
    "nnx",
    "PyTorch forum, detaching hidden states between blocks",
    kinds="blocked",
    where=r"first|blocks/0",
    how="only the last block and the head learn",
)
def detached_trunk(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(16, 32, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(32, 32, rngs=rngs) for _ in range(2)])
            self.last = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            x = self.first(x)
            for block in self.blocks:
                trunk = x if cured else jax.lax.stop_gradient(x)  # fault
                x = trunk + nnx.relu(block(trunk))
            return self.last(x)

    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, *vectors())


@sick(
    "rounding inside",
    "linen",
    "Stack Overflow, no gradients provided for tf.round; quantization without straight-through",
    kinds="blocked",
    where="Dense_0",
    how="the layer before the rounding keeps its random weights",
)
def rounding(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            z = nn.tanh(nn.Dense(32)(x))
            if not cured:
                z = jnp.round(z * 8) / 8  # fault
            return nn.Dense(4)(z)

    return linen_set_up(Network(), cross_entropy, *vectors())


@sick(
    "a choice by argmax",
    "jax",
    "Stack Overflow, argmax is not differentiable; JAX discussions on hard attention",
    kinds="blocked",
    where="router",
    how="the router never learns which expert to choose",
)
def argmax_choice(cured=False):
    def loss_fn(params, x, y):
        scores = affine(params["router"], x)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), 3)  # fault
        choice = jax.nn.softmax(scores) if cured else hard
        experts = jnp.tanh(jnp.einsum("ni,eio->neo", x, params["experts"]))
        return cross_entropy(affine(params["head"], jnp.einsum("ne,neo->no", choice, experts)), y)

    k = keys()
    params = {
        "router": dense(next(k), 16, 3, 1.0),
        "experts": normal(3, 16, 16) / 4,
        "head": dense(next(k), 16, 4, 1.0),
    }
    return SetUp(loss_fn, params, vectors())


@sick(
    "a step as nonlinearity",
    "jax",
    "Stack Overflow, training with a step or sign activation",
    kinds="blocked zero_gradient",
    where=r"0/kernel",
    how="the derivative of the sign is zero, so that the hidden layer does not learn",
)
def step_nonlinearity(cured=False):
    def loss_fn(params, x, y):
        z = affine(params[0], x)
        z = jnp.tanh(z) if cured else jnp.sign(z)  # fault
        return cross_entropy(affine(params[1], z), y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4, gain=1.0), vectors())


@sick(
    "weights cast to integers",
    "equinox",
    "Equinox issues on filter_grad with integer leaves; Stack Overflow, numpy integer weights",
    kinds="integer_parameter blocked",
    where="weight",
    how="a filtered gradient skips integers, and the weights keep their values",
)
def integer_weights(cured=False):
    class Network(eqx.Module):
        weight: jax.Array
        last: eqx.nn.Linear

        def __init__(self, key):
            weight = jax.random.normal(key, (16, 32))
            self.weight = weight / 4 if cured else jnp.round(weight).astype(jnp.int32)
            self.last = eqx.nn.Linear(32, 4, key=key)

        def __call__(self, x):
            scale = 1.0 if cured else 0.25
            return self.last(jnp.tanh(scale * (x @ self.weight)))

    return equinox_set_up(Network(jax.random.key(0)), cross_entropy, *vectors())


@sick(
    "activations cast to integers",
    "jax",
    "Stack Overflow, gradient is None after a cast to an integer",
    kinds="blocked",
    where=r"0/kernel",
    how="no gradient passes the cast, and the hidden layer does not learn",
)
def integer_activations(cured=False):
    def loss_fn(params, x, y):
        z = 4 * jnp.tanh(affine(params[0], x))
        if not cured:
            z = z.astype(jnp.int32).astype(jnp.float32)  # fault
        return cross_entropy(affine(params[1], z), y)

    params = mlp(keys(), 16, 32, 4, gain=1.0)
    params[1]["kernel"] = params[1]["kernel"] / 4
    return SetUp(loss_fn, params, vectors())


@sick(
    "updates lost in bfloat16",
    "jax",
    "GitHub issues on training in pure bfloat16; Zamirai et al. 2021",
    kinds="lost_update",
    where="kernel",
    how="a step is smaller than the spacing of the parameters, which keep their values",
)
def lost_updates(cured=False):
    dtype = jnp.float32 if cured else jnp.bfloat16
    params = jax.tree.map(lambda p: p.astype(dtype), mlp(keys(), 16, 32, 32, 4))

    def loss_fn(params, x, y):
        x = x.astype(dtype)
        return cross_entropy(perceptron(params, x).astype(jnp.float32), y)

    return SetUp(loss_fn, params, vectors(), {"tx": optax.sgd(1e-5 if not cured else 0.1)})


@sick(
    "a loss of the data only",
    "jax",
    "DeepFD: wrong loss; JAX discussions, zero gradients everywhere",
    kinds="constant_loss unused",
    where=".*",
    how="a name was mistaken, and the loss compares the targets with themselves",
)
def loss_of_data(cured=False):
    def loss_fn(params, x, y):
        prediction = perceptron(params, x)[:, 0]
        compared = prediction if cured else x[:, 0]  # fault
        return squared_error(compared, y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), regression())


@sick(
    "a table that only indices of the argmax reach",
    "linen",
    "Stack Overflow, sampling tokens inside of the network",
    kinds="blocked",
    where="Dense_0",
    how="tokens are chosen by argmax, so that what chooses them does not learn",
)
def argmax_tokens(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            embed = nn.Embed(12, 16)
            logits = nn.Dense(12)(x)
            if cured:
                z = nn.softmax(logits) @ embed.embedding
            else:
                z = embed(jnp.argmax(logits, axis=-1))  # fault
            return nn.Dense(4)(nn.relu(nn.Dense(32)(z)))

    return linen_set_up(Network(), cross_entropy, *vectors())
