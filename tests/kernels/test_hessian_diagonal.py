"""Hutchinson's estimate: exact on diagonals, with its predicted variance elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import check_refused, wrong_arguments

HESSIAN = np.array([[2.0, 1.0, -3.0], [1.0, 5.0, 0.5], [-3.0, 0.5, -1.0]], np.float32)


def quadratic(x):
    return x @ (jnp.asarray(HESSIAN) @ x) / 2


def coupled(params):
    """A diagonal block for w, another one for b, and a coupling between them."""
    w, b = params["w"], params["b"]
    scale = jnp.asarray([1.0, 10.0, 100.0], w.dtype)
    return jnp.sum(scale * w**2) / 2 + 7 * w[0] * b[0] + jnp.sum(b**4)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_estimate_is_unbiased_with_the_predicted_variance(distribution):
    tx = gradtx.hutchinson_estimator_diag_hessian(distribution=distribution)
    x = jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    @jax.vmap
    def draw(key):
        state = optax.contrib.HutchinsonState(key)
        return tx.update(jax.grad(quadratic)(x), state, x, obj_fn=quadratic)[0]

    draws = np.float64(draw(jax.random.split(jax.random.key(0), 20_000)))
    errors = draws - np.mean(draws, 0)
    error_of_mean = np.sqrt(np.var(draws, 0) / len(draws))
    np.testing.assert_array_less(np.abs(np.mean(draws, 0) - np.diag(HESSIAN)), 5 * error_of_mean)
    # Var(z_i sum_j H_ij z_j) = sum_{j != i} H_ij^2, and for normal numbers 2 H_ii^2 more.
    variance = np.sum(HESSIAN**2, 1) + np.diag(HESSIAN) ** 2 * (
        1 if distribution == "normal" else -1
    )
    error_of_variance = np.sqrt(np.var(errors**2, 0) / len(draws))
    np.testing.assert_array_less(np.abs(np.var(draws, 0) - variance), 5 * error_of_variance)


def test_estimate_is_that_of_optax():
    params = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([0.5, 1.0])}
    grads = jax.grad(coupled)(params)
    ours, theirs = (lib.hutchinson_estimator_diag_hessian() for lib in (gradtx, optax.contrib))
    state, their_state = ours.init(params), theirs.init(params)
    for _ in range(2):
        estimate, state = ours.update(grads, state, params, obj_fn=coupled)
        expected, their_state = theirs.update(grads, their_state, params, obj_fn=coupled)
        np.testing.assert_array_equal(state.key, their_state.key)
        for name in params:
            np.testing.assert_allclose(estimate[name], expected[name], rtol=1e-6)


def test_leaves_without_a_gradient_take_no_part():
    params = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([0.5, 1.0]), "steps": 3}
    grads = {"w": jax.grad(coupled, allow_int=True)(params)["w"], "b": None, "steps": None}
    tx = gradtx.hutchinson_estimator_diag_hessian(4)
    estimate, _ = tx.update(grads, tx.init(params), params, value_fn=coupled)
    # The Hessian of w alone is diagonal; with b in play its first row is not.
    np.testing.assert_allclose(estimate["w"], [1.0, 10.0, 100.0], rtol=1e-6)
    assert estimate["b"] is None
    assert estimate["steps"] is None


@pytest.mark.parametrize("key", [3, jax.random.key(3), jax.random.PRNGKey(3)], ids=type)
def test_keys_are_kept_as_they_are(key):
    state = gradtx.hutchinson_estimator_diag_hessian(key).init(None)
    expected = jax.random.key(3) if isinstance(key, int) else key
    assert state.key.dtype == expected.dtype
    assert jnp.all(state.key == expected)


def update(params, loss, grads=None, **extra):
    tx = gradtx.hutchinson_estimator_diag_hessian()
    return tx.update(params if grads is None else grads, tx.init(params), params, **extra, **loss)


@pytest.mark.parametrize(
    ("params", "loss", "message"),
    [
        (jnp.ones(3), {}, "obj_fn"),
        (None, {"obj_fn": quadratic}, "needs the parameters"),
        (jnp.ones(3), {"obj_fn": lambda x: x}, r"real scalar.*float32 of shape \(3,\)"),
        (jnp.ones(3), {"obj_fn": lambda x: (x[0], x)}, "real scalar.*tuple"),
        ({"w": jnp.ones(3, jnp.complex64)}, {"obj_fn": quadratic}, "complex.*'w'"),
    ],
    ids=["no-loss", "no-parameters", "vector", "pair", "complex"],
)
def test_what_has_no_hessian_is_refused(params, loss, message):
    with pytest.raises(ValueError, match=message):
        update(params, loss, jnp.ones(3) if params is None else None)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.hutchinson_estimator_diag_hessian,
        {},
        random_seed=(True, "seed", 0.5),
        distribution=("uniform", None),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
