"""The optimistic gradient against its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)

CASES = cases(
    gradtx.scale_by_optimistic_gradient,
    {},
    {"alpha": 0.3, "beta": 2.0},
)


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_complex_gradients():
    complex_gradients(CASES[1])


def test_a_linear_change_of_the_gradient_is_foreseen():
    # With alpha = beta = 1 a gradient that changes by a constant is the one of the next step.
    tx = gradtx.scale_by_optimistic_gradient()
    state, update = tx.init(jnp.zeros(2)), jax.jit(tx.update)
    for t in range(5):
        updates, state = update(jnp.array([1.0 + 2 * t, 3.0 - t]), state)
        now = t + (t > 0)
        np.testing.assert_array_equal(updates, [1 + 2 * now, 3 - now])


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(gradtx.scale_by_optimistic_gradient, {}, alpha=ANY_NUMBER, beta=ANY_NUMBER),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
