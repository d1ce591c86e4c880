"""Derivatives inside of a loss: their products with the weights are not layers of the network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gradtx import diagnostics, initializers

from .remedies import assert_healthy, inputs

DEPTH, FEATURES = 3, 8


class Network(nn.Module):
    activation: object
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        for _ in range(DEPTH):
            x = self.activation(nn.Dense(16)(x))
        return nn.Dense(self.outputs)(x)


def points(samples=16, features=FEATURES):
    return inputs(width=features, samples=samples)


def gradient_penalty(params, x):
    def critic(x):
        return Network(jax.nn.leaky_relu).apply(params, x[None])[0, 0]

    norms = jnp.linalg.norm(jax.vmap(jax.grad(critic))(x), axis=-1)
    return jnp.mean(jax.vmap(critic)(x)) + 10 * jnp.mean((norms - 1) ** 2)


def differential_equation(params, x):
    def solution(x):
        return Network(jnp.tanh).apply(params, x[None])[0, 0]

    hessian = jax.vmap(jax.hessian(solution))(x)
    return jnp.mean((jax.vmap(jax.grad(solution))(x)[:, 0] - hessian[:, 1, 1]) ** 2)


def directional_derivative(params, x):
    def network(x):
        return Network(jnp.tanh, FEATURES).apply(params, x)

    outputs, tangents = jax.jvp(network, (x,), (jnp.ones_like(x),))
    return jnp.mean(outputs**2) + jnp.mean(tangents)


def one_step_of_adaptation(params, x):
    def task(params):
        return jnp.mean((Network(jnp.tanh).apply(params, x)[:, 0] - x[:, 0]) ** 2)

    adapted = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(task)(params))
    return task(adapted)


LOSSES = {
    # How many times each layer is evaluated, and the outputs of the network.
    "gradient-penalty": (gradient_penalty, 2, 1),
    "hessian": (differential_equation, 2, 1),
    "jvp": (directional_derivative, 1, FEATURES),
    "adaptation": (one_step_of_adaptation, 1, 1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_products_of_derivatives_are_not_layers(name):
    loss_fn, times, outputs = LOSSES[name]
    params = jax.jit(Network(jnp.tanh, outputs).init)(jax.random.key(0), points())
    report = diagnostics.signal_report(loss_fn, params, points())
    found = [layer.name for layer in report.layers]
    assert found == times * [f"params/Dense_{i}/kernel" for i in range(DEPTH + 1)]
    assert_healthy(report)


def test_gradient_penalty_of_a_scan():
    glorot = initializers.glorot_normal()
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    params = {
        "stack": jnp.stack([glorot(key, (FEATURES, FEATURES)) for key in keys[1:]]),
        "last": glorot(keys[0], (FEATURES, 1)),
    }

    def network(params, x):
        def step(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jnp.sum(lax.scan(step, x, params["stack"])[0] @ params["last"])

    def loss_fn(params, x):
        return jnp.mean(jax.grad(network, 1)(params, x) ** 2)

    report = diagnostics.signal_report(loss_fn, params, points())
    assert [layer.name for layer in report.layers] == [
        *(f"stack[{i}]" for i in range(DEPTH)),
        "last",
    ]
    assert_healthy(report)
