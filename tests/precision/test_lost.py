"""The share of updates that rounding loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx


def measured(tx, params, gradient):
    tx = gradtx.with_metrics(tx)
    _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    return gradtx.metrics(state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_share_against_numpy(dtype):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(40, 30)).astype(dtype), "b": rng.normal(size=50).astype(dtype)}
    gradient = {
        name: (2.0 ** rng.uniform(-14, 0, p.shape) * (rng.random(p.shape) < 0.8)).astype(dtype)
        for name, p in params.items()
    }
    acts = lost = 0
    for name, p in params.items():
        u = -gradient[name].astype(np.float64)
        acts += np.sum(u != 0)
        lost += np.sum((u != 0) & ((p.astype(np.float64) + u).astype(dtype) == p))
    assert 0.1 < lost / acts < 0.9
    found = measured(gradtx.sgd(1.0), *map(jax.device_put, (params, gradient)))
    np.testing.assert_allclose(found["lost_to_rounding"], lost / acts, rtol=1e-6)


def test_the_disease_and_its_remedies():
    params = {"half": jnp.ones(100, jnp.bfloat16), "single": jnp.ones(100)}
    gradient = jax.tree.map(jnp.ones_like, params)
    tx = gradtx.adamw(1e-3)
    assert measured(tx, params, gradient)["lost_to_rounding"] == 1
    for wrap in (
        gradtx.with_master_weights,
        gradtx.with_kahan_sum,
        lambda tx: gradtx.with_stochastic_rounding(tx, 0),
    ):
        assert measured(wrap(tx), params, gradient)["lost_to_rounding"] == 0
        # What is inside sees float32, of which nothing is lost.
        inside = wrap(gradtx.with_metrics(tx))
        assert "lost_to_rounding" not in gradtx.metrics(inside.init(params))


def test_nothing_is_lost_where_nothing_moves():
    params = jnp.ones(3, jnp.float16)
    found = measured(gradtx.sgd(0.1), params, jnp.zeros(3, jnp.float16))
    assert found["lost_to_rounding"] == 0


def test_without_parameters_it_is_not_known():
    tx = gradtx.with_metrics(gradtx.sgd(0.1))
    gradient = jnp.ones(3, jnp.float16)
    _, state = tx.update(gradient, tx.init(gradient))
    assert np.isnan(gradtx.metrics(state)["lost_to_rounding"])


def test_only_half_precision_is_measured():
    params = {"a": jnp.ones(3), "b": jnp.array([1j]), "c": jnp.int32(1)}
    assert "lost_to_rounding" not in gradtx.metrics(
        gradtx.with_metrics(gradtx.sgd(0.1)).init(params)
    )
