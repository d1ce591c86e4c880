"""The step length of one optimizer with the direction of another."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx


def test_lengths_of_the_one_and_directions_of_the_other():
    magnitude, direction = gradtx.trace(0.9), gradtx.scale_by_adam()
    tx = gradtx.graft(magnitude, direction)
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(3, jnp.bfloat16)}
    state, rng = tx.init(params), np.random.default_rng(0)
    m_state, d_state = magnitude.init(params), direction.init(params)
    for _ in range(3):
        g = {
            "w": jnp.float32(rng.normal(size=(2, 2))),
            "b": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        }
        updates, state = tx.update(g, state)
        m, m_state = magnitude.update(g, m_state)
        d, d_state = direction.update(g, d_state)
        for name, rounding in {"w": 1e-6, "b": 2**-8}.items():
            m_leaf, d_leaf = (np.asarray(tree[name], np.float64) for tree in (m, d))
            expected = np.linalg.norm(m_leaf) / np.linalg.norm(d_leaf) * d_leaf
            np.testing.assert_allclose(np.asarray(updates[name], float), expected, rtol=rounding)


def test_no_direction_is_no_step():
    tx = gradtx.graft(gradtx.identity(), gradtx.set_to_zero())
    np.testing.assert_array_equal(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0], 0)


def test_huge_and_tiny_directions():
    for size in (1e-36, 1e38):
        tx = gradtx.graft(gradtx.sign_sgd(1.0), gradtx.identity())
        updates, _ = tx.update(jnp.full(4, size), tx.init(jnp.ones(4)))
        np.testing.assert_allclose(updates, jnp.ones(4), rtol=1e-6)


@pytest.mark.parametrize("wrong", ["magnitude", "direction"])
def test_wrong_argument(wrong):
    arguments = {"magnitude": gradtx.identity(), "direction": gradtx.identity()} | {wrong: 3.0}
    with pytest.raises(ValueError, match=rf"graft: {wrong} .* 3\.0"):
        gradtx.graft(**arguments)
