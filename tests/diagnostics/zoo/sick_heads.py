"""Last layers that do not fit the loss or the targets."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    equinox_set_up,
    keys,
    linen_set_up,
    mlp,
    nnx_set_up,
    perceptron,
    regression,
    squared_error,
    vectors,
)


@sick(
    "softmax before a loss of logits",
    "linen",
    "Karpathy, common neural net mistakes; UMLAUT: softmax twice; Stack Overflow",
    kinds="double_softmax",
    how="the logits lie between 0 and 1: the loss cannot fall below log(1 + 3 / e)",
)
def softmax_twice(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4)(nn.relu(nn.Dense(32)(x)))
            return x if cured else nn.softmax(x)  # fault

    def loss(logits, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))  # fault

    return linen_set_up(Network(), loss, *vectors())


@sick(
    "sigmoid before a loss of logits",
    "nnx",
    "PyTorch forum, BCELoss and BCEWithLogitsLoss; UMLAUT: output activation",
    kinds="double_softmax",
    how="no probability below one half can be expressed",
)
def sigmoid_twice(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(16, 32, rngs=rngs)
            self.last = nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, x):
            x = self.last(nnx.relu(self.first(x)))[:, 0]
            return x if cured else nnx.sigmoid(x)  # fault

    def loss(logits, y):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y))  # fault

    x, y = vectors(classes=2)
    return nnx_set_up(Network(nnx.Rngs(0)), loss, x, y.astype(jnp.float32))


@sick(
    "probabilities into a softmax written out",
    "jax",
    "Stack Overflow, softmax_cross_entropy_with_logits of a softmax",
    kinds="double_softmax",
    how="the second softmax flattens the probabilities",
)
def softmax_written_out(cured=False):
    def loss_fn(params, x, y):
        z = perceptron(params, x)
        if not cured:
            z = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
            z = z / jnp.sum(z, axis=-1, keepdims=True)  # fault
        log_p = z - jnp.log(jnp.sum(jnp.exp(z), axis=-1, keepdims=True))  # fault
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=-1))

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "tanh for targets from 0 to 9",
    "jax",
    "NeuraLint: last activation and target; DeepFD: activation; Stack Overflow",
    kinds="target_out_of_range",
    where=r"args\[1\]|1/",
    how="the output saturates at 1 and cannot reach the targets",
)
def tanh_output(cured=False):
    x, y = regression()
    y = jnp.clip(jnp.round(4.5 + 2.5 * y), 0, 9)

    def loss_fn(params, x, y):
        z = perceptron(params, x)[:, 0]
        prediction = 4.5 + 2.5 * z if cured else jnp.tanh(z)  # fault
        return squared_error(prediction, y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x, y))


@sick(
    "relu for negative targets",
    "equinox",
    "Stack Overflow, regression network outputs only zeros; DeepLocalize",
    kinds="target_out_of_range dead",
    where=r"args\[1\]|layers/2|last",
    how="negative targets are out of reach, and outputs die",
)
def relu_output(cured=False):
    final = (lambda z: z) if cured else jax.nn.relu
    model = eqx.nn.MLP(16, 1, 32, 2, final_activation=final, key=jax.random.key(0))

    def loss(prediction, y):
        return jnp.mean((prediction[:, 0] - y) ** 2)  # fault

    x, y = regression()
    return equinox_set_up(model, loss, x, y)


@sick(
    "sigmoid for prices",
    "linen",
    "Stack Overflow, regression with a sigmoid output; NeuraLint",
    kinds="target_out_of_range",
    where=r"args\[1\]|Dense_1",
    how="the output saturates at 1, far below the targets",
)
def sigmoid_output(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(1)(nn.relu(nn.Dense(32)(x)))[:, 0]
            return 10 + 5 * x if cured else nn.sigmoid(x)  # fault

    x, y = regression()
    return linen_set_up(Network(), squared_error, x, jnp.maximum(10 + 5 * y, 0.5))


@sick(
    "targets of ten thousands",
    "jax",
    "Stack Overflow, house prices and a huge loss; Slav Ivanov's 37 reasons; DeepDiagnosis",
    kinds="target_out_of_range initial_loss unstandardized",
    where=r"args\[1\]|1/",
    how="the loss starts at 1e8 and the first thousands of steps move the bias",
)
def huge_targets(cured=False):
    x, y = regression()

    def loss_fn(params, x, y):
        return squared_error(perceptron(params, x)[:, 0], y)  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x, y if cured else 3e4 + 1e4 * y))


@sick(
    "the nonlinearity forgotten",
    "linen",
    "UMLAUT: missing activation functions; DeepFD; Stack Overflow 48934338",
    kinds="no_nonlinearity",
    where=r"Dense_[01]",
    how="the layers multiply to a single linear one",
)
def forgotten_nonlinearity(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(32)(x)
            x = nn.relu(x) if cured else x
            x = nn.Dense(32)(x)  # fault
            return nn.Dense(4)(nn.relu(x))

    return linen_set_up(Network(), cross_entropy, *vectors())


@sick(
    "a linear convolutional network",
    "haiku",
    "UMLAUT: missing activation functions; NeuraLint: missing nonlinearity",
    kinds="no_nonlinearity",
    where=r"conv2_d|linear",
    how="two convolutions and a layer without anything between are one linear map",
)
def linear_convolutions(cured=False):
    def network(x):
        act = jax.nn.relu if cured else (lambda z: z)
        x = act(hk.Conv2D(8, 3)(x))
        x = act(hk.Conv2D(8, 3)(x))
        return hk.Linear(4)(x.reshape(len(x), -1))

    model = hk.without_apply_rng(hk.transform(network))
    x, y = vectors(32, 36)
    x = x.reshape(32, 6, 6, 1)

    def loss_fn(params, x, y):
        return cross_entropy(model.apply(params, x), y)

    return SetUp(loss_fn, model.init(jax.random.key(0), x), (x, y))


@sick(
    "a last layer that is far too large",
    "jax",
    "Karpathy, a recipe: verify the loss at initialization; DeepDiagnosis: out of range",
    kinds="initial_loss large_logits exploding",
    where=r"2/kernel|args\[1\]",
    how="the loss starts at many times log C, and the first steps undo the initialization",
)
def large_head(cured=False):
    params = mlp(keys(), 16, 32, 32, 4)
    if not cured:
        params[-1]["kernel"] = 30 * params[-1]["kernel"]

    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x), y)  # fault

    return SetUp(loss_fn, params, vectors())


@sick(
    "a temperature of a thousandth",
    "equinox",
    "GitHub issues of contrastive losses, temperature too low",
    kinds="large_logits initial_loss one_hot_attention",
    where=r"temperature|last|mlp",
    how="the softmax is one-hot at the start, and most examples give no gradient",
)
def low_temperature(cured=False):
    def loss_fn(model, x, other):
        a, b = jax.vmap(model)(x), jax.vmap(model)(other)
        a = a / jnp.linalg.norm(a, axis=-1, keepdims=True)
        b = b / jnp.linalg.norm(b, axis=-1, keepdims=True)
        logits = a @ b.T / (0.2 if cured else 0.001)  # fault
        log_p = jax.nn.log_softmax(logits)  # fault
        return -jnp.mean(jnp.diagonal(log_p))

    model = eqx.nn.MLP(16, 16, 32, 1, key=jax.random.key(0))
    x, _ = vectors(16)
    return SetUp(loss_fn, model, (x, 0.7 * x + 0.7 * jnp.roll(x, 1, axis=1)))


@sick(
    "relu before a loss of logits",
    "jax",
    "DeepFD and NeuraLint: relu in the last layer; Stack Overflow",
    kinds="target_out_of_range dead no_negative_logits double_softmax",
    where=r"1/|args\[1\]",
    how="a probability below one half cannot be expressed, and outputs die",
)
def relu_logits(cured=False):
    x, y = vectors(classes=2)

    def loss_fn(params, x, y):
        z = perceptron(params, x)[:, 0]
        logits = z if cured else jax.nn.relu(z)  # fault
        return jnp.mean(jnp.logaddexp(0.0, logits) - y * logits)  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x, y.astype(jnp.float32)))


@sick(
    "the sign of the loss forgotten",
    "jax",
    "PyTorch forum, negative loss; Karpathy, a recipe",
    kinds="wrong_sign initial_loss cannot_overfit",
    where=".*",
    how="the log-likelihood is minimized: the right class becomes the least probable",
)
def forgotten_sign(cured=False):
    def loss_fn(params, x, y):
        log_p = jax.nn.log_softmax(affine(params[1], jnp.tanh(affine(params[0], x))))
        likelihood = jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=-1))
        return -likelihood if cured else likelihood  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4, gain=1.0), vectors())
