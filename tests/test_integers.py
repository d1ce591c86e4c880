"""Gradients of integers, and integers among the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx


@pytest.mark.parametrize("gradient", [jnp.array([1, 2]), 1, jnp.array([True, False])], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "lion"])
def test_a_gradient_of_integers_for_a_parameter_of_floats_is_promoted(gradient, dtype, name):
    params = {"a": [jnp.ones(np.shape(gradient), dtype)]}
    tx = getattr(gradtx, name)(0.25)
    expected, _ = tx.update({"a": [jnp.asarray(gradient, dtype)]}, tx.init(params), params)
    for given in (params, None) if name != "lion" else (params,):
        updates, state = jax.jit(tx.update)({"a": [gradient]}, tx.init(params), given)
        # Without parameters the state alone tells that it is one, and in which dtype not.
        np.testing.assert_allclose(
            *(np.asarray(tree["a"][0], np.float32) for tree in (updates, expected)), rtol=1e-6
        )
        assert given is None or updates["a"][0].dtype == dtype
        assert jax.tree.map(jnp.result_type, state) == jax.tree.map(
            jnp.result_type, tx.init(params)
        )


def test_an_integer_leaf_does_not_get_its_own_gradient_as_its_update():
    params = {"w": jnp.ones(2), "steps": jnp.int32(7), "size": 3, "flag": jnp.array(True)}
    gradients = {"w": jnp.ones(2), "steps": jnp.int32(5), "size": 2, "flag": jnp.array(True)}
    for tx in (
        gradtx.sgd(0.5),
        gradtx.adamw(0.5),
        gradtx.apply_if_finite(gradtx.adam(0.5), 3),
        gradtx.MultiSteps(gradtx.sgd(0.5), 1).gradient_transformation(),
        gradtx.inject_hyperparams(gradtx.scale)(-0.5),
        gradtx.masked(gradtx.sgd(0.5), gradtx.select("")),
        gradtx.flatten(gradtx.sgd(0.5)),
    ):
        updates, _ = tx.update(gradients, tx.init(params), params)
        new = gradtx.apply_updates(params, updates)
        assert (new["steps"], new["size"], new["flag"]) == (7, 3, True)
        assert float(new["w"][0]) < 1


def test_a_gradient_of_integers_is_promoted_without_parameters_too():
    updates, _ = gradtx.scale(-0.1).update({"a": 3, "b": jnp.arange(2)}, None)
    np.testing.assert_allclose(updates["a"], -0.3, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [0.0, -0.1], rtol=1e-6)
    updates, _ = gradtx.inject_hyperparams(gradtx.scale)(0.5).update(
        jnp.array([3]), gradtx.inject_hyperparams(gradtx.scale)(0.5).init(jnp.ones(1))
    )
    np.testing.assert_array_equal(updates, [1.5])
