"""Adafactor and SM3: equations, states of optax, and steps of the predicted relative length."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.testing import references

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)
from ..wrappers.changing_hands import PARAMS, check_changes_hands


def relative_step(count):
    """The paper's learning rate."""
    return jnp.minimum(1e-2, 1 / jnp.sqrt(jnp.asarray(count, float) + 1))


CASES = cases(
    gradtx.adafactor,
    {"learning_rate": relative_step},
    {
        "learning_rate": 0.5,
        "min_dim_size_to_factor": 2,
        "decay_offset": 6,
        "multiply_by_parameter_scale": False,
        "clipping_threshold": 0.7,
        "eps": 1e-2,
    },
    {
        "learning_rate": 0.5,
        "min_dim_size_to_factor": 2,
        "decay_rate": 0.5,
        "momentum": 0.6,
        "dtype_momentum": None,
        "weight_decay_rate": 0.1,
        "min_scale": 0.9,
    },
)


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.adafactor]))
def test_equation(check, case):
    check(case)


def falling(count):
    return 0.1 / (1 + count)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"learning_rate": falling}, id="schedule"),
        pytest.param({"multiply_by_parameter_scale": False}, id="absolute"),
        pytest.param({"clipping_threshold": None, "factored": False}, id="unclipped"),
        pytest.param({"momentum": 0.9, "dtype_momentum": jnp.bfloat16}, id="momentum"),
        pytest.param({"weight_decay_rate": falling}, id="decay"),
        pytest.param(
            {
                "learning_rate": 0.1,
                "weight_decay_rate": 0.1,
                "weight_decay_mask": {"matrix": True, "vector": False},
            },
            id="mask",
        ),
    ],
)
def test_states_have_the_structure_of_optax(arguments):
    ours, theirs = (
        jax.eval_shape(library.adafactor(**arguments).init, PARAMS) for library in (gradtx, optax)
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.leaves(ours) == jax.tree.leaves(theirs)


def test_runs_change_hands():
    arguments = {
        "learning_rate": falling,
        "min_dim_size_to_factor": 2,
        "momentum": 0.9,
        "weight_decay_rate": 0.01,
        "weight_decay_mask": {"matrix": True, "vector": False},
    }
    check_changes_hands(gradtx.adafactor(**arguments), optax.adafactor(**arguments), at=3, steps=6)


def test_weight_decay_can_choose_matrices_by_name():
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
    tx = gradtx.adafactor(weight_decay_rate=0.25, decay="matrices")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], np.full((2, 2), -0.5))
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def path(tx, gradient, start, steps):
    """The points of a descent in double precision."""

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(gradient(x), state, x)
        x = gradtx.apply_updates(x, updates)
        return (x, state), x

    with jax.enable_x64(True):
        start = jax.tree.map(jnp.float64, start)
        _, points = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps))()
    return jax.tree.map(np.asarray, points)


SIGNS = np.array([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
CURVATURES = {"flat": 1e-6, "steep": 1e6}


def bowls(x):
    return {name: CURVATURES[name] * x[name] for name in x}


def test_weights_fall_at_the_relative_rate_and_then_by_the_smallest_scale():
    # Without a memory the direction is the sign, for any curvature.
    tx = gradtx.adafactor(0.1, min_dim_size_to_factor=2, decay_rate=0.0, eps=0.0)
    points = path(tx, bowls, {"flat": 0.01 * SIGNS, "steep": 0.02 * SIGNS}, 60)
    for name, size in (("flat", 0.01), ("steep", 0.02)):
        for point in points[name]:
            size = size - 0.1 * max(1e-3, abs(size)) * np.sign(size)
            np.testing.assert_allclose(point, size * SIGNS, rtol=1e-6, atol=1e-13)
        # From 1e-3 on it takes ten steps to the minimum, and stays within one of it.
        assert abs(size) <= 1e-4


def test_constant_gradients_move_by_the_sum_of_the_learning_rates():
    # The outer product's square has rank one, so that nothing but the signs is left of it.
    gradient = np.outer([1.0, -0.1], [3.0, 20.0, -5.0])
    tx = gradtx.adafactor(
        relative_step, min_dim_size_to_factor=2, multiply_by_parameter_scale=False, eps=0.0
    )
    points = path(tx, lambda x: jnp.asarray(gradient), np.zeros((2, 3)), 12000)
    travelled = np.cumsum(np.minimum(1e-2, np.arange(1, 12001) ** -0.5))
    at = [0, 99, 9999, 11999]
    expected = -travelled[at, None, None] * np.sign(gradient)
    np.testing.assert_allclose(points[at], expected, rtol=1e-6)


def test_with_the_exponent_one_it_is_adagrad():
    # The second moment is then the mean of all squares, which is their sum over t.
    arguments = {
        "decay_rate": 1.0,
        "multiply_by_parameter_scale": False,
        "clipping_threshold": None,
        "eps": 0.0,
    }
    with jax.enable_x64(True):
        tx = gradtx.adafactor(lambda count: 0.1 / jnp.sqrt(count + 1.0), **arguments)
    start = {"flat": np.array([1.0, -2.0]), "steep": SIGNS}
    points = path(tx, bowls, start, 100)
    expected = path(gradtx.adagrad(0.1, 0.0, 0.0), bowls, start, 100)
    for name in start:
        np.testing.assert_allclose(points[name], expected[name], rtol=1e-6)


def test_sm3_is_a_descent_along_its_scaled_momentum():
    reference = references.sm3(0.3, momentum=0.5)
    g = np.array([[1.0, -2.0], [0.5, 3.0]])
    for rate in (0.3, lambda count: jnp.float32(0.3)):
        tx = gradtx.sm3(rate, 0.5)
        state = tx.init(jnp.asarray(g, jnp.float32))
        for t, expected in enumerate(reference([g, 2 * g, 3 * g], g), start=1):
            updates, state = tx.update(jnp.asarray(t * g, jnp.float32), state)
            np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.adafactor,
            {"weight_decay_rate": 0.1},
            learning_rate=ANY_NUMBER,
            decay_rate=NON_NEGATIVE,
            decay_offset=(-1, 0.5, 2.0**31),
            clipping_threshold=NON_NEGATIVE,
            momentum=DECAY,
            dtype_momentum=("float99", "int32"),
            weight_decay_rate=NON_NEGATIVE,
            eps=NON_NEGATIVE,
            min_scale=NON_NEGATIVE,
            decay=("biases",),
        ),
        *wrong_arguments(
            gradtx.sm3, {"learning_rate": 0.1}, learning_rate=ANY_NUMBER, momentum=DECAY
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
