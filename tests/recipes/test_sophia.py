"""Sophia on quadratics, where its steps are known beforehand."""

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

CURVATURE = jnp.array([1.0, 1e4])


def loss(x):
    return jnp.sum(CURVATURE * x**2) / 2


def train(tx, x, steps):
    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(loss)(x), state, x, obj_fn=loss)
        x = gradtx.apply_updates(x, updates)
        return (x, state), x

    return jax.lax.scan(step, (x, tx.init(x)), length=steps)[1]


def test_path_does_not_depend_on_the_curvature():
    # The estimate is exact on a diagonal Hessian. Without averages the step is clip(x / gamma):
    # x = 1 falls by the learning rate until x = gamma, then by a share of rate / gamma.
    rate, gamma = 2.0**-5, 0.25
    tx = gradtx.sophia(rate, b1=0.0, b2=0.0, gamma=gamma, weight_decay=0.0)
    path = np.float64(train(tx, jnp.ones(2), 40))
    linear = 1 - rate * np.arange(1, 25)
    geometric = gamma * (1 - rate / gamma) ** np.arange(1, 17)
    expected = np.concatenate([linear, geometric])
    np.testing.assert_allclose(path, np.stack([expected, expected], 1), rtol=1e-5)


def test_average_of_the_curvature_starts_at_zero():
    # h_t = d (1 - b2^j) after j renewals, here in every second step; the rest is Newton's step.
    rate, b2, steps = 0.25, 0.5, 8
    tx = gradtx.sophia(
        rate, b1=0.0, b2=b2, gamma=1.0, clip_threshold=None, weight_decay=0.0, update_interval=2
    )
    path = train(tx, jnp.array([3.0, -2.0]), steps)
    renewals = np.arange(steps) // 2 + 1
    shrinkage = np.cumprod(1 - rate / (1 - b2**renewals))
    np.testing.assert_allclose(path, np.outer(shrinkage, [3.0, -2.0]), rtol=1e-5)


def test_negative_curvature_gives_the_sign_of_the_momentum():
    def saddle(x):
        return jnp.sum(jnp.array([1.0, -1.0]) * x**2) / 2

    tx = gradtx.sophia(0.1, b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0)
    x = jnp.array([0.5, 0.5])
    updates, _ = tx.update(jax.grad(saddle)(x), tx.init(x), x, obj_fn=saddle)
    np.testing.assert_allclose(updates, [-0.05, 0.1], rtol=1e-6)


def test_weight_decay_is_decoupled_and_masked():
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    tx = gradtx.sophia(
        0.1, weight_decay=0.5, weight_decay_mask=gradtx.select("kernel"), verbose=True
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params, obj_fn=lambda p: 0.0 * p["bias"][0])
    np.testing.assert_allclose(updates["kernel"], [-0.1], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], [0.0])
