"""Private descent: a run that optax continues, and the distribution that it ends in."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

TARGETS = jnp.asarray(np.random.default_rng(4).normal(size=(8, 4096)), jnp.float32)


def loss(x, target):
    return jnp.sum((x["x"] - target) ** 2) / 2


def train(tx, params, state, steps):
    @jax.jit
    def step(carry, _):
        params, state = carry
        grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, TARGETS)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), length=steps)[0]


@pytest.mark.filterwarnings("ignore:.seed. is deprecated")
@pytest.mark.parametrize("momentum", [None, 0.5], ids=["plain", "nesterov"])
def test_run_changes_hands_mid_training(momentum):
    arguments = (0.1, 1.0, 0.7, 3, momentum, momentum is not None)
    ours, theirs = gradtx.dpsgd(*arguments), optax.contrib.dpsgd(*arguments)
    start = {"x": jnp.zeros(4096)}
    chex.assert_trees_all_equal_structs(ours.init(start), theirs.init(start))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(start), theirs.init(start))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = train(theirs, start, theirs.init(start), 6)
        for first, second in ((ours, theirs), (theirs, ours)):
            result = train(second, *train(first, start, first.init(start), 3), 3)
            chex.assert_trees_all_close(result[0], expected[0], rtol=1e-5, atol=1e-6)


def test_noise_settles_at_its_predicted_variance():
    # Nothing is clipped, so x - mean falls by 1 - rate in each step, and the noise adds up to a
    # geometric series: var = rate^2 s^2 (1 - q^2t) / (1 - q^2) with q = 1 - rate.
    rate, clip, multiplier, steps = 0.25, 1e3, 2e-2, 12
    tx = gradtx.dpsgd(rate, clip, multiplier, seed=jax.random.key(6))
    start = {"x": jnp.zeros(4096)}
    end, _ = train(tx, start, tx.init(start), steps)
    q, s = 1 - rate, clip * multiplier / len(TARGETS)
    residue = np.float64(end["x"]) - np.mean(np.float64(TARGETS), 0) * (1 - q**steps)
    variance = rate**2 * s**2 * (1 - q ** (2 * steps)) / (1 - q**2)
    np.testing.assert_allclose(np.mean(residue**2), variance, rtol=5 * np.sqrt(2 / 4096))
    assert abs(np.mean(residue)) < 5 * np.sqrt(variance / 4096)


def test_clipped_examples_pull_with_the_same_force():
    # Three far targets on one side and one near on the other: the step is their vote.
    targets, x = jnp.array([[100.0], [1e4], [50.0], [-0.5]]), jnp.zeros(1)
    grads = jax.vmap(lambda target: x - target)(targets)
    tx = gradtx.dpsgd(1.0, 1.0, 0.0, seed=0)
    updates, _ = tx.update(grads, tx.init(x), x)
    np.testing.assert_allclose(updates, [(3 * 1.0 - 0.5) / 4], rtol=1e-6)


def test_momentum_is_checked():
    with pytest.raises(ValueError, match=r"momentum.*1\.5"):
        gradtx.dpsgd(0.1, 1.0, 1.0, 0, momentum=1.5)
