"""Objectives beyond labels: representations, reinforcement, physics, nested ones."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .case import SetUp, healthy
from .materials import (
    cross_entropy,
    keys,
    mlp,
    normal,
    perceptron,
    squared_error,
    vectors,
)


@healthy("triplet loss", "equinox", "Schroff et al. 2015, unit embeddings", rate=0.01)
def triplet():
    def loss_fn(model, anchor, positive, negative):
        def embed(x):
            z = jax.vmap(model)(x)
            return z * jax.lax.rsqrt(jnp.sum(z**2, axis=-1, keepdims=True) + 1e-12)

        a, p, n = embed(anchor), embed(positive), embed(negative)
        difference = jnp.sum((a - p) ** 2, axis=-1) - jnp.sum((a - n) ** 2, axis=-1)
        return jnp.mean(jax.nn.relu(difference + 0.2))

    model = eqx.nn.MLP(16, 8, 32, 2, key=jax.random.key(0))
    x = normal(32, 16)
    return SetUp(loss_fn, model, (x, x + 0.5 * normal(32, 16, seed=1), jnp.roll(x, 1, axis=0)))


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


@healthy("SimCLR", "linen", "Chen et al. 2020, other images are negatives", is_trained=True)
def simclr():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(32)(x)))
            return _unit(nn.Dense(16)(nn.relu(nn.Dense(32)(x))))

    x, _ = vectors(16)
    views = jnp.concatenate([x + 0.3 * normal(16, 16), x + 0.3 * normal(16, 16, seed=1)])
    model = Network()
    variables = model.init(jax.random.key(0), views)

    def loss_fn(params, statistics, views):
        variables = {"params": params, "batch_stats": statistics}
        z, updated = model.apply(variables, views, mutable=["batch_stats"])
        similarity = jnp.where(np.eye(32, dtype=bool), -1e9, z @ z.T / 0.5)
        return cross_entropy(similarity, (jnp.arange(32) + 16) % 32), updated

    batch = (variables["batch_stats"], views)
    return SetUp(loss_fn, variables["params"], batch, {"has_aux": True})


@healthy("CLIP", "jax", "Radford et al. 2021, a learned temperature", is_trained=True)
def clip():
    def loss_fn(params, image, text):
        a, b = _unit(perceptron(params["image"], image)), _unit(perceptron(params["text"], text))
        logits = jnp.exp(params["log_scale"]) * a @ b.T
        target = jnp.arange(len(image))
        return 0.5 * (cross_entropy(logits, target) + cross_entropy(logits.T, target))

    k = keys()
    params = {
        "image": mlp(k, 16, 32, 64),
        "text": mlp(k, 16, 32, 64),
        # 1 / 0.07 belongs to 512 dimensions, where the cosines are smaller.
        "log_scale": jnp.asarray(np.log(5.0), jnp.float32),
    }
    x = normal(16, 16)
    return SetUp(loss_fn, params, (x, x @ normal(16, 16, seed=1) / 4))


@healthy("BYOL", "jax", "Grill et al. 2020, a slowly moving target without gradient")
def byol():
    def loss_fn(params, target, one, other):
        z = perceptron(params["predictor"], perceptron(params["online"], one))
        goal = jax.lax.stop_gradient(perceptron(target, other))
        return jnp.mean(2 - 2 * jnp.sum(_unit(z) * _unit(goal), axis=-1))

    params = {"online": mlp(keys(), 16, 32, 16), "predictor": mlp(keys(1), 16, 32, 16)}
    x, _ = vectors()
    views = x + 0.3 * normal(32, 16), x + 0.3 * normal(32, 16, seed=1)
    return SetUp(loss_fn, params, (mlp(keys(2), 16, 32, 16), *views))


@healthy("DQN", "jax", "Mnih et al. 2015, a target network and the Huber loss", is_trained=True)
def dqn():
    def loss_fn(params, target, state, action, reward, following, is_last):
        q = jnp.take_along_axis(perceptron(params, state), action[:, None], axis=-1)[:, 0]
        best = jnp.max(perceptron(target, following), axis=-1)
        goal = jax.lax.stop_gradient(reward + 0.99 * (1 - is_last) * best)
        return jnp.mean(optax.huber_loss(q, goal))

    rng = np.random.default_rng(0)
    action = jnp.asarray(rng.integers(0, 3, 32), jnp.int32)
    is_last = jnp.asarray(rng.random(32) < 0.1, jnp.float32)
    state, following = normal(32, 8), normal(32, 8, seed=1)
    batch = (mlp(keys(1), 8, 32, 32, 3), state, action, state[:, 0], following, is_last)
    return SetUp(loss_fn, mlp(keys(), 8, 32, 32, 3), batch)


def _actor_critic_params():
    k = keys()
    policy, value = mlp(k, 8, 32, 32, 3, gain=1.0), mlp(k, 8, 32, 32, 1, gain=1.0)
    # The usual last layer of a policy: nearly equal probabilities.
    policy[-1]["kernel"] = 0.01 * policy[-1]["kernel"]
    return {"policy": policy, "value": value}


@healthy("PPO", "jax", "Schulman et al. 2017, the clipped ratio and an entropy bonus")
def ppo():
    def loss_fn(params, state, action, old_log_p, advantage, goal):
        log_p = jax.nn.log_softmax(perceptron(params["policy"], state, jnp.tanh))
        entropy = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
        log_p = jnp.take_along_axis(log_p, action[:, None], axis=-1)[:, 0]
        ratio = jnp.exp(log_p - old_log_p)
        clipped = jnp.clip(ratio, 0.8, 1.2)
        gain = jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
        value = perceptron(params["value"], state, jnp.tanh)[:, 0]
        return -gain + 0.5 * squared_error(value, goal) - 0.01 * entropy

    params = _actor_critic_params()
    state = normal(32, 8)
    log_p = jax.nn.log_softmax(perceptron(params["policy"], state, jnp.tanh))
    action = jnp.asarray(np.random.default_rng(0).integers(0, 3, 32), jnp.int32)
    old = jnp.take_along_axis(log_p, action[:, None], axis=-1)[:, 0]
    advantage = (normal(32, seed=1) + state[:, 0]) / 2**0.5
    return SetUp(loss_fn, params, (state, action, old, advantage, normal(32, seed=2)))


@healthy("actor and critic", "jax", "Mnih et al. 2016, advantages without gradient")
def actor_critic():
    def loss_fn(params, state, action, returns):
        value = perceptron(params["value"], state, jnp.tanh)[:, 0]
        log_p = jax.nn.log_softmax(perceptron(params["policy"], state, jnp.tanh))
        log_p = jnp.take_along_axis(log_p, action[:, None], axis=-1)[:, 0]
        advantage = jax.lax.stop_gradient(returns - value)
        return -jnp.mean(log_p * advantage) + 0.5 * squared_error(value, returns)

    action = jnp.asarray(np.random.default_rng(0).integers(0, 3, 32), jnp.int32)
    batch = (normal(32, 8), action, normal(32, seed=2))
    return SetUp(loss_fn, _actor_critic_params(), batch)


@healthy("physics-informed network", "jax", "Raissi et al. 2019, derivatives in the loss")
def physics_informed():
    def u(params, t, x):
        return perceptron(params, jnp.stack([t, x]), jnp.tanh)[0]

    def residual(params, t, x):
        u_t = jax.grad(u, 1)(params, t, x)
        u_xx = jax.grad(jax.grad(u, 2), 2)(params, t, x)
        return u_t - 0.1 * u_xx

    def loss_fn(params, t, x, start):
        inside = jnp.mean(jax.vmap(residual, (None, 0, 0))(params, t, x) ** 2)
        at_start = jax.vmap(u, (None, None, 0))(params, 0.0, start)
        return inside + squared_error(at_start, jnp.sin(jnp.pi * start))

    points = jax.random.uniform(jax.random.key(1), (2, 32))
    batch = (points[0], 2 * points[1] - 1, jnp.linspace(-1, 1, 16))
    return SetUp(loss_fn, mlp(keys(), 2, 24, 24, 24, 1, gain=1.0), batch)


@healthy("MAML", "jax", "Finn et al. 2017, a gradient step inside of the loss")
def maml():
    def task_loss(params, x, y):
        return squared_error(perceptron(params, x)[:, 0], y)

    def loss_fn(params, x, y, x_test, y_test):
        def adapted_loss(x, y, x_test, y_test):
            gradient = jax.grad(task_loss)(params, x, y)
            adapted = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
            return task_loss(adapted, x_test, y_test)

        return jnp.mean(jax.vmap(adapted_loss)(x, y, x_test, y_test))

    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (6, 16, 1))
    amplitude, phase = rng.uniform(0.5, 1.5, (6, 1)), rng.uniform(0, np.pi, (6, 1))
    y = amplitude * np.sin(x[..., 0] + phase)
    arrays = [x[:, :8], y[:, :8], x[:, 8:], y[:, 8:]]
    batch = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    return SetUp(loss_fn, mlp(keys(), 1, 32, 32, 1), batch)


@healthy("float16 with loss scaling", "jax", "Micikevicius et al. 2018, a loss times 1024")
def loss_scaling():
    def loss_fn(params, x, y):
        half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
        logits = perceptron(half, x.astype(jnp.float16)).astype(jnp.float32)
        return 1024.0 * cross_entropy(logits, y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 4), vectors())


@healthy("weight decay in the loss", "jax", "Krogh and Hertz 1992, half the sum of squares")
def decay_in_the_loss():
    def loss_fn(params, x, y):
        squares = sum(jnp.sum(layer["kernel"] ** 2) for layer in params)
        return cross_entropy(perceptron(params, x), y) + 0.5 * 5e-3 * squares

    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 4), vectors())


@healthy("Bayes by backprop", "jax", "Blundell et al. 2015, a divergence of the weights")
def bayes_by_backprop():
    def loss_fn(params, x, y, key):
        std = jax.tree.map(jax.nn.softplus, params["rho"])
        leaves, treedef = jax.tree.flatten(std)
        split = jax.random.split(key, len(leaves))
        noise = [jax.random.normal(k, s.shape) for k, s in zip(split, leaves, strict=True)]
        noise = jax.tree.unflatten(treedef, noise)
        weights = jax.tree.map(lambda m, s, n: m + s * n, params["mean"], std, noise)
        divergences = jax.tree.map(
            lambda m, s: jnp.sum(0.5 * (m**2 + s**2 - 1) - jnp.log(s)), params["mean"], std
        )
        # Of a training set of 4096 examples.
        return cross_entropy(perceptron(weights, x), y) + sum(jax.tree.leaves(divergences)) / 4096

    mean = mlp(keys(), 16, 32, 32, 4)
    params = {"mean": mean, "rho": jax.tree.map(lambda m: jnp.full_like(m, -4.0), mean)}
    return SetUp(loss_fn, params, (*vectors(), jax.random.key(1)))


@healthy("symmetric cross-entropy", "jax", "Wang et al. 2019, for noisy labels")
def symmetric_cross_entropy():
    def loss_fn(params, x, y):
        logits, codes = perceptron(params, x), jax.nn.one_hot(y, 4)
        p = jnp.clip(jax.nn.softmax(logits), 1e-7, 1.0)
        reverse = -jnp.mean(jnp.sum(p * jnp.log(jnp.clip(codes, 1e-4, 1.0)), axis=-1))
        return 0.1 * cross_entropy(logits, y) + reverse

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@healthy("counts", "jax", "Nelder and Wedderburn 1972, numbers of events")
def counts():
    def loss_fn(params, x, y):
        return squared_error(perceptron(params, x)[:, 0], y)

    x, _ = vectors()
    rate = np.exp(0.5 + 0.4 * np.asarray(x[:, 0]))
    y = np.random.default_rng(0).poisson(rate)
    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x, jnp.asarray(y, jnp.float32)))
