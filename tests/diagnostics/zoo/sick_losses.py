"""Losses that do not say what is meant: their terms, and how labels enter them."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .case import SetUp, sick
from .materials import (
    cross_entropy,
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
    "a sum of squares of all weights",
    "jax",
    "Stack Overflow, L2 regularization and a loss that does not fall; Slav Ivanov's 37 reasons",
    kinds="dominant_penalty",
    how="the loss falls because the weights shrink, and the network answers the same to everything",
)
def heavy_decay(cured=False):
    def loss_fn(params, x, y):
        squares = sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))  # fault
        loss = cross_entropy(perceptron(params, x), y)
        return loss + (1e-4 if cured else 10.0) * squares  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "absolute values of the kernels of a regression",
    "linen",
    "Stack Overflow, L1 regularization sets all weights to zero",
    kinds="dominant_penalty",
    how="all kernels go to zero, and the output to the mean of the targets",
)
def heavy_absolutes(cured=False):
    model = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(1)])
    x, y = regression()
    variables = model.init(jax.random.key(0), x)

    def loss_fn(variables, x, y):
        residual = model.apply(variables, x)[:, 0] - y
        kernels = [p for p in jax.tree.leaves(variables) if p.ndim > 1]
        sparsity = jnp.stack([jnp.sum(jnp.abs(kernel)) for kernel in kernels]).sum()  # fault
        return jnp.mean(residual**2 + (1e-4 if cured else 2.0) * sparsity)  # fault

    return SetUp(loss_fn, variables, (x, y))


@sick(
    "the logarithm of the labels",
    "linen",
    "Stack Overflow, cross-entropy with the arguments swapped; DeepFD: loss",
    kinds="swapped_arguments",
    how="the gradient pushes all probability to the classes with the largest log(1e-8)",
)
def logarithm_of_labels(cured=False):
    def entropy(p, q):
        return -jnp.mean(jnp.sum(p * jnp.log(q + 1e-8), axis=-1))  # fault

    def loss(logits, y):
        labels, p = jax.nn.one_hot(y, 4), jax.nn.softmax(logits)
        return entropy(labels, p) if cured else entropy(p, labels)  # fault

    return linen_set_up(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)]), loss, *vectors())


@sick(
    "logits in the place of labels",
    "nnx",
    "optax, softmax_cross_entropy(logits, labels) called with labels first",
    kinds="swapped_arguments",
    how="the loss is linear in the logits, and falls without bound",
)
def logits_as_labels(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    def loss(logits, y):
        codes = jax.nn.one_hot(y, 4)
        pair = (logits, codes) if cured else (codes, logits)
        return jnp.mean(optax.softmax_cross_entropy(*pair))  # fault

    return nnx_set_up(Network(nnx.Rngs(0)), loss, *vectors())


@sick(
    "several labels in a softmax",
    "equinox",
    "Stack Overflow, multi-label classification with softmax; UMLAUT",
    kinds="several_labels",
    where=r"args\[1\]",
    how="two classes that are right cannot both have a probability above one half",
)
def several_labels(cured=False):
    def loss(logits, tags):
        if cured:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, tags))
        return jnp.mean(optax.softmax_cross_entropy(logits, tags))  # fault

    x, _ = vectors()
    model = eqx.nn.MLP(16, 6, 32, 1, key=jax.random.key(0))
    return equinox_set_up(model, loss, x, (x[:, :6] > 0).astype(jnp.float32))


@sick(
    "the number of a class as a regression target",
    "haiku",
    "Stack Overflow, mean squared error for classification; DeepFD: loss",
    kinds="class_as_number",
    where=r"args\[1\]",
    how="class 1 counts as a mixture of 0 and 2",
)
def class_as_number(cured=False):
    def network(x):
        return hk.nets.MLP([32, 4 if cured else 1])(x)

    model = hk.without_apply_rng(hk.transform(network))
    x, y = vectors(48)

    def loss_fn(params, x, y):
        outputs = model.apply(params, x)
        if cured:
            return cross_entropy(outputs, y)
        return squared_error(outputs[:, 0], y)  # fault

    return SetUp(loss_fn, model.init(jax.random.key(0), x), (x, y))


@sick(
    "Q-learning through its own target",
    "jax",
    "Stack Overflow, DQN without a target network or detach; Henderson et al. 2018",
    kinds="moving_target",
    where=r"args\[2\]",
    how="the values of the next states are moved toward those of the states, as well",
)
def q_learning(cured=False):
    def loss_fn(params, state, action, reward, following):
        q = jnp.take_along_axis(perceptron(params, state), action[:, None], axis=-1)[:, 0]
        best = jnp.max(perceptron(params, following), axis=-1)
        target = reward + 0.99 * best  # fault
        return squared_error(q, jax.lax.stop_gradient(target) if cured else target)

    state, action = vectors()
    batch = (state, action, normal(32), jnp.roll(state, 1, axis=0))
    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), batch)


@sick(
    "advantages that are not stopped",
    "equinox",
    "Stack Overflow, actor-critic without detach on the advantage",
    kinds="moving_target",
    where=r"critic",
    how="the critic learns to make the actions look good, and not their value",
)
def open_advantages(cured=False):
    def loss_fn(models, state, action, returns):
        log_p = jax.nn.log_softmax(jax.vmap(models["actor"])(state))
        log_p = jnp.take_along_axis(log_p, action[:, None], axis=-1)[:, 0]
        value = jax.vmap(models["critic"])(state)
        advantage = returns - value
        if cured:
            advantage = jax.lax.stop_gradient(advantage)
        return squared_error(value, returns) - jnp.mean(log_p * advantage)  # fault

    actor = eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0))
    critic = eqx.nn.MLP(16, "scalar", 32, 1, key=jax.random.key(1))
    return SetUp(loss_fn, {"actor": actor, "critic": critic}, (*vectors(), normal(32)))
