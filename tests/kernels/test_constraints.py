"""Projections: updates of norm 1, parameters that stay above zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax import lax

import gradtx

from ..trajectory import cases, check_refused, equation_tests, wrong_arguments

CASES = [
    *cases(gradtx.keep_params_nonnegative, {}),
    *cases(gradtx.normalize, {}),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_parameters_reach_zero_exactly(dtype):
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.uniform(size=100), dtype)
    tx = gradtx.keep_params_nonnegative()
    updates, _ = tx.update(jnp.asarray(rng.normal(size=100), dtype), tx.init(params), params)
    new = np.asarray(gradtx.apply_updates(params, updates), np.float64)
    assert np.min(new) == 0
    assert np.sum(new == 0) > 20


def test_projected_descent_solves_a_nonnegative_quadratic():
    # min 1/2 sum(c (x - a)^2) over x >= 0 is x = max(a, 0); the coordinates that stay positive
    # contract by 1 - rate * c, as without the constraint.
    curvature, a = np.array([1.0, 2.0, 3.0]), np.array([0.5, -1.0, 2.0])
    tx = gradtx.chain(gradtx.sgd(0.1), gradtx.keep_params_nonnegative())

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jnp.asarray(curvature) * (x - jnp.asarray(a)), state, x)
        x = gradtx.apply_updates(x, updates)
        return (x, state), x

    with jax.enable_x64(True):
        start = jnp.full(3, 4.0)
        _, path = lax.scan(step, (start, tx.init(start)), length=40)
    t = np.arange(1, 41)[:, None]
    expected = a + (1 - 0.1 * curvature) ** t * (4 - a)
    np.testing.assert_allclose(path, np.maximum(expected, 0), rtol=1e-12, atol=1e-14)


def test_complex_parameters_have_no_sign():
    params = jnp.array([1.0 + 1.0j])
    tx = gradtx.keep_params_nonnegative()
    with pytest.raises(ValueError, match="complex"):
        tx.update(params, tx.init(params), params)


def test_normalize_is_that_of_optax():
    g = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([-3.0])}
    ours, theirs = gradtx.normalize(), optax.contrib.normalize()
    assert ours.init(g) == theirs.init(g)
    updates, expected = [tx.update(g, tx.init(g))[0] for tx in (ours, theirs)]
    for name in g:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-35, 5e37])
def test_normalized_where_squares_leave_the_range(size):
    g = {"a": jnp.array([3.0]) * jnp.float32(size), "b": jnp.array(-4.0) * jnp.float32(size)}
    tx = gradtx.normalize()
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates["a"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.8, rtol=1e-6)


def test_normalized_zeros_are_zeros():
    g = {dtype: jnp.zeros(3, dtype) for dtype in ("float16", "bfloat16", "float32")}
    tx = gradtx.normalize()
    updates, _ = tx.update(g, tx.init(g))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_normalized_across_a_mapped_axis():
    pieces = np.random.default_rng(1).normal(size=(4, 3))
    tx = gradtx.normalize(axis_name="pieces")
    updates = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="pieces")(
        jnp.asarray(pieces, jnp.float32)
    )
    np.testing.assert_allclose(updates, pieces / np.linalg.norm(pieces), rtol=2e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(gradtx.normalize, {}, axis_reduction=("max",)),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
