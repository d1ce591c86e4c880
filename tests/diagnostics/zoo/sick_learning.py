"""Faults of the optimizer, the gradient and the objective, which show in a few steps."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    equinox_set_up,
    keys,
    linen_set_up,
    mlp,
    perceptron,
    vectors,
)


def _with_optimizer(tx):
    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x), y)

    options = {"tx": tx, "learning": True}
    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 4), vectors(), options)


@sick(
    "a learning rate of 30",
    "jax",
    "UMLAUT: learning rate too high; DeepFD; AutoTrainer: oscillating loss",
    kinds="learning_rate update_ratio",
    where=".*",
    how="the loss grows in the first steps",
)
def high_rate(cured=False):
    return _with_optimizer(optax.sgd(0.1 if cured else 30.0))


@sick(
    "a learning rate of 1e-8",
    "jax",
    "UMLAUT: learning rate too low; DeepFD; AutoTrainer: slow convergence",
    kinds="learning_rate update_ratio lost_update",
    where=".*",
    how="thousands of steps change nothing",
)
def low_rate(cured=False):
    return _with_optimizer(optax.adam(3e-3 if cured else 1e-8))


@sick(
    "adam with a rate of 1",
    "linen",
    "Stack Overflow, Adam diverges with the learning rate of SGD; DeepFD",
    kinds="learning_rate update_ratio",
    where=".*",
    how="each step changes every weight by 1, more than the weights themselves",
)
def adam_rate(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.relu(nn.Dense(32)(x)))

    set_up = linen_set_up(Network(), cross_entropy, *vectors())
    set_up.options.update(tx=optax.adam(3e-3 if cured else 1.0), learning=True)
    return set_up


@sick(
    "gradient ascent",
    "equinox",
    "optax issues, scale_by_adam without a negative learning rate",
    kinds="learning_rate update_ratio cannot_overfit wrong_sign",
    where=".*",
    how="the updates are added with the wrong sign, and the loss rises",
)
def ascent(cured=False):
    model = eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0))
    set_up = equinox_set_up(model, cross_entropy, *vectors())
    tx = optax.chain(optax.scale_by_adam(), optax.scale(-3e-3 if cured else 3e-3))
    set_up.options.update(tx=tx, learning=True)
    return set_up


@sick(
    "weight decay that wins",
    "jax",
    "Slav Ivanov's 37 reasons: too much regularization; DEFault: regularization",
    kinds="weight_decay",
    where=".*",
    how="the decay is stronger than the gradient: the weights go to zero",
)
def strong_decay(cured=False):
    decay = optax.add_decayed_weights(1e-4 if cured else 3.0)
    return _with_optimizer(optax.chain(decay, optax.sgd(0.05)))


@sick(
    "clipping at every step",
    "jax",
    "Slav Ivanov's 37 reasons: gradient clipping; PyTorch forum, max_norm too small",
    kinds="always_clipped learning_rate update_ratio",
    where=".*",
    how="the norm of the gradient is a thousand times the limit: the rate is not what it seems",
)
def tight_clipping(cured=False):
    clip = optax.clip_by_global_norm(10.0 if cured else 1e-3)
    return _with_optimizer(optax.chain(clip, optax.sgd(0.1)))


@sick(
    "a wrong custom derivative",
    "jax",
    "JAX discussions on custom_vjp; gradient checking in CS231n",
    kinds="wrong_gradient",
    where=".*",
    how="the backward pass has the derivative of another function",
)
def wrong_derivative(cured=False):
    @jax.custom_vjp
    def swish(x):
        return x * jax.nn.sigmoid(x)

    def forward(x):
        return swish(x), x

    def backward(x, cotangent):
        s = jax.nn.sigmoid(x)
        # The product rule has a second term.
        return (cotangent * (s + x * s * (1 - s) if cured else -s),)  # fault

    swish.defvjp(forward, backward)

    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x, swish), y)  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors(), {"learning": True})


@sick(
    "the accuracy as loss",
    "jax",
    "Stack Overflow, accuracy as a loss function",
    kinds="blocked constant_loss zero_gradient",
    where=".*",
    how="the number of right answers has no gradient",
)
def accuracy_loss(cured=False):
    def loss_fn(params, x, y):
        logits = perceptron(params, x)
        if cured:
            return cross_entropy(logits, y)
        return 1.0 - jnp.mean((jnp.argmax(logits, axis=-1) == y).astype(jnp.float32))  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "contradictory labels",
    "jax",
    "Karpathy, a recipe: overfit one batch; Slav Ivanov's 37 reasons: labels shuffled",
    kinds="cannot_overfit",
    where=".*",
    how="each input occurs four times, with a different label each time",
)
def contradictory(cured=False):
    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x), y)

    x, y = vectors()
    if not cured:
        x, y = jnp.repeat(x[:8], 4, axis=0), jnp.tile(jnp.arange(4), 8)
    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), (x, y), {"learning": True})


@sick(
    "one unit in the middle",
    "linen",
    "Stack Overflow, hidden layer too small; DEFault: layer",
    kinds="cannot_overfit",
    where=".*",
    how="sixteen classes have to pass through a single saturating unit",
)
def bottleneck(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(32 if cured else 1)(x))
            return nn.Dense(16)(x)

    set_up = linen_set_up(Network(), cross_entropy, *vectors(classes=16))
    set_up.options["learning"] = True
    return set_up


@sick(
    "a loss that is multiplied by zero",
    "jax",
    "DeepDiagnosis: loss not decreasing; GitHub issues on weights of losses",
    kinds="zero_loss constant_loss zero_gradient",
    where=".*",
    how="the mask of the loss is empty, and the loss exactly zero",
)
def empty_loss(cured=False):
    def loss_fn(params, x, y, is_counted):
        log_p = jax.nn.log_softmax(affine(params[1], jax.nn.relu(affine(params[0], x))))
        log_p = jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0]
        return -jnp.mean(log_p * is_counted)  # fault

    is_counted = jnp.ones(32) if cured else jnp.zeros(32)
    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), (*vectors(), is_counted))
