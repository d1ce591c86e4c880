"""Shapes that fit by broadcasting, and reductions over another axis."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .case import SetUp, sick
from .materials import (
    affine,
    attend,
    cross_entropy,
    dense,
    keys,
    labels,
    linen_set_up,
    merge_heads,
    mlp,
    normal,
    perceptron,
    regression,
    sentences,
    split_heads,
    vectors,
)


@sick(
    "(N, 1) minus (N,)",
    "linen",
    "Stack Overflow and the PyTorch warning on a target size that differs from the input size",
    kinds="broadcast_difference broadcast_target",
    how="every prediction is compared with every target, so that it learns their mean",
)
def column_minus_row(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(1)(nn.relu(nn.Dense(32)(x)))
            return x[:, 0] if cured else x

    def loss(prediction, y):
        return jnp.mean((prediction - y) ** 2)  # fault

    return linen_set_up(Network(), loss, *regression())


@sick(
    "logits (N, 1) and labels (N,)",
    "equinox",
    "optax issues on sigmoid_binary_cross_entropy and broadcasting",
    kinds="broadcast_difference broadcast_target",
    how="every logit is compared with every label",
)
def binary_broadcast(cured=False):
    model = eqx.nn.MLP(16, 1, 32, 2, key=jax.random.key(0))

    def loss_fn(model, x, y):
        logits = jax.vmap(model)(x)
        logits = logits[:, 0] if cured else logits
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y))  # fault

    x, y = vectors(classes=2)
    return SetUp(loss_fn, model, (x, y.astype(jnp.float32)))


@sick(
    "values (N, 1) and returns (N,) in Q-learning",
    "jax",
    "Stack Overflow, DQN does not learn; GitHub issues of reinforcement learning code",
    kinds="broadcast_difference broadcast_target",
    how="each value is pulled to the mean of all returns",
)
def q_learning_broadcast(cured=False):
    def loss_fn(params, state, action, goal):
        q = jnp.take_along_axis(perceptron(params, state), action[:, None], axis=-1)
        q = q[:, 0] if cured else q
        error = q - goal  # fault
        return jnp.mean(jnp.where(jnp.abs(error) < 1, 0.5 * error**2, jnp.abs(error) - 0.5))

    action = jnp.asarray(np.random.default_rng(0).integers(0, 3, 32), jnp.int32)
    state = normal(32, 8)
    return SetUp(loss_fn, mlp(keys(), 8, 32, 32, 3), (state, action, state[:, 0] * state[:, 1]))


@sick(
    "weights of examples (N,) times losses (N, 1)",
    "jax",
    "PyTorch forum, weighting the loss of each example",
    kinds="broadcast_difference broadcast_target",
    where=r"args\[2\]",
    how="each loss is weighted with the mean of all weights",
)
def weights_broadcast(cured=False):
    def loss_fn(params, x, y, weight):
        losses = (perceptron(params, x) - y[:, None]) ** 2
        losses = losses[:, 0] if cured else losses
        return jnp.mean(losses * weight)  # fault

    weight = jax.random.uniform(jax.random.key(1), (32,), minval=0.2, maxval=1.8)
    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (*regression(), weight))


@sick(
    "one target for a whole sequence",
    "linen",
    "Keras issues, return_sequences and a target without a time axis",
    kinds="broadcast_target broadcast_difference",
    how="every step is asked for the target of the end, and with N steps for that of others",
)
def sequence_against_target(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(1)(nn.RNN(nn.GRUCell(16))(x))[..., 0]
            return x[:, -1] if cured else x

    def loss(prediction, y):
        return jnp.mean((prediction - y) ** 2)  # fault

    x = normal(12, 12, 4)
    return linen_set_up(Network(), loss, x, jnp.mean(x[..., 0], axis=1) * 12**0.5)


@sick(
    "softmax over time instead of classes",
    "jax",
    "PyTorch forum, class dimension of the cross-entropy of sequences",
    kinds="wrong_axis",
    how="the probabilities of a step do not sum to one",
)
def softmax_over_time(cured=False):
    axis = -1 if cured else 1

    def loss_fn(params, tokens, y):
        x = jnp.tanh(affine(params["hidden"], params["table"][tokens]))
        log_p = jax.nn.log_softmax(affine(params["head"], x), axis=axis)  # fault
        return -jnp.mean(jnp.take_along_axis(log_p, y[..., None], axis=-1))

    k = keys()
    params = {
        "table": jax.random.normal(next(k), (32, 16)),
        "hidden": dense(next(k), 16, 32, 1.0),
        "head": dense(next(k), 32, 3, 1.0),
    }
    tokens = sentences()
    return SetUp(loss_fn, params, (tokens, tokens % 3))


@sick(
    "softmax over queries instead of keys",
    "jax",
    "Stack Overflow and PyTorch forum, softmax dimension of self-attention",
    kinds="wrong_axis",
    how="the weights with which a query reads do not sum to one",
)
def softmax_over_queries(cured=False):
    axis = -1 if cured else -2

    def loss_fn(params, x, y):
        q, k, v = (split_heads(z, 2) for z in jnp.split(affine(params["qkv"], x), 3, axis=-1))
        scores = q @ jnp.swapaxes(k, -1, -2) / 8**0.5
        p = jax.nn.softmax(scores, axis=axis)  # fault
        x = x + affine(params["out"], merge_heads(p @ v))
        return cross_entropy(affine(params["head"], jnp.mean(x, axis=1)), y)

    k = keys()
    params = {
        "qkv": dense(next(k), 16, 48, 1.0),
        "out": dense(next(k), 16, 16, 1.0),
        "head": dense(next(k), 16, 4, 1.0),
    }
    return SetUp(loss_fn, params, (normal(12, 6, 16), labels(12, 4)))


@sick(
    "softmax of a single unit",
    "jax",
    "Stack Overflow, why does a binary Keras CNN always predict 1; DeepFD, NeuraLint",
    kinds="constant_loss zero_gradient wrong_axis blocked zero_loss",
    where=".*",
    how="the softmax of one number is 1 whatever the number: nothing learns",
)
def softmax_of_one(cured=False):
    def loss_fn(params, x, y):
        logit = perceptron(params, x)
        p = jax.nn.sigmoid(logit) if cured else jax.nn.softmax(logit, axis=-1)  # fault
        p = jnp.clip(p[:, 0], 1e-7, 1 - 1e-7)
        return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))

    x, y = vectors(classes=2)
    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x, y.astype(jnp.float32)))


@sick(
    "a causal mask for the batch",
    "jax",
    "PyTorch forum, shape of the attention mask",
    kinds="mixed_examples wrong_axis",
    where="qkv",
    how="time and batch are swapped before the attention, which reads over the examples",
)
def mask_over_batch(cured=False):
    def loss_fn(params, x, y):
        x = x if cured else x.swapaxes(0, 1)  # fault
        q, k, v = (split_heads(z, 2) for z in jnp.split(affine(params["qkv"], x), 3, axis=-1))
        read = merge_heads(attend(q, k, v, np.tril(np.ones((x.shape[1],) * 2, bool))))  # fault
        x = x + affine(params["out"], read)
        x = x if cured else x.swapaxes(0, 1)
        return cross_entropy(affine(params["head"], x[:, -1]), y)

    k = keys()
    params = {
        "qkv": dense(next(k), 16, 48, 1.0),
        "out": dense(next(k), 16, 16, 1.0),
        "head": dense(next(k), 16, 4, 1.0),
    }
    return SetUp(loss_fn, params, (normal(12, 6, 16), labels(12, 4)))
