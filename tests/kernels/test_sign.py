"""Signs of gradients and of momenta against their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)

CASES = [
    *cases(gradtx.scale_by_sign, {}),
    *cases(
        gradtx.scale_by_lion,
        {},
        {"b1": 0.0, "b2": 0.5},
        {"b1": 0.95, "b2": 0.98, "mode": "refined"},
        {"b1": 0.5, "b2": 0.9, "mode": "smooth", "smooth_beta": 0.7},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_sign_of_zero_is_zero():
    tx = gradtx.scale_by_sign()
    updates, _ = tx.update(jnp.array([-2.0, 0.0, 1e-30]), tx.init(jnp.zeros(3)))
    np.testing.assert_array_equal(updates, [-1, 0, 1])


def test_lion_turns_when_the_gradient_outweighs_the_momentum():
    # After many gradients of 1 the momentum is 1, and c = b1 - (1 - b1) * g for a gradient of -g.
    tx = gradtx.scale_by_lion(b1=0.75, b2=0.5)
    state = tx.init(jnp.zeros(2))
    for _ in range(30):
        _, state = tx.update(jnp.ones(2), state)
    updates, _ = tx.update(jnp.array([-2.9, -3.1]), state)
    np.testing.assert_array_equal(updates, [1, -1])


def test_storage_dtype_of_the_momentum():
    tx = gradtx.scale_by_lion(b2=0.5, mu_dtype=jnp.bfloat16)
    _, state = tx.update(jnp.array([8.0, -4.0]), tx.init(jnp.zeros(2)))
    assert state.mu.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.mu.astype(jnp.float32), [4, -2])


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_lion,
        {},
        b1=DECAY,
        b2=DECAY,
        smooth_beta=NON_NEGATIVE,
        mode=("soft", None),
        mu_dtype=("float99",),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize("traced", ["min_step_size", "max_step_size"])
def test_limits_of_rprop_are_compared_only_if_both_are_numbers(traced):
    def step_size(limit):
        return gradtx.scale_by_rprop(0.1, **{traced: limit}).init(jnp.ones(2)).step_sizes

    np.testing.assert_array_equal(jax.jit(step_size)(1e-3), np.float32([0.1, 0.1]))


def test_rprop_steps_in_imaginary_numbers_as_in_real_ones():
    tx = gradtx.scale_by_rprop(0.1)
    gradients = jnp.array([[1.0, -2.0, 3.0], [2.0, 1.0, 3.0], [-1.0, 1.0, 0.5]])

    def steps(factor):
        state, found = tx.init(jnp.zeros(3, jnp.complex64)), []
        for g in gradients:
            update, state = tx.update(g.astype(jnp.complex64) * jnp.complex64(factor), state)
            found.append(update)
        return np.array(found)

    np.testing.assert_allclose(steps(1j), 1j * steps(1), rtol=1e-6)
    # 1.2 times as long while the sign stays, and nothing where it changes.
    np.testing.assert_allclose(steps(1)[:2], [[0.1, -0.1, 0.1], [0.12, 0, 0.12]], rtol=1e-6)
