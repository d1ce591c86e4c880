"""AdaBelief, Yogi and RAdam against their papers."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.kernels.adam_variants import _LANGEVIN

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    Case,
    cases,
    check_equation,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)


def rising(count):
    """A threshold for RAdam, which must not fall below 4."""
    return 4.5 + count / 32


CASES = [
    *cases(
        gradtx.scale_by_belief,
        {},
        {"b1": 0.5, "b2": 0.9, "eps": 1e-3, "eps_root": 0.0},
        {"b1": 0.8, "b2": 0.5, "eps": 0.0, "eps_root": 1e-2, "nesterov": True},
    ),
    *cases(
        gradtx.scale_by_yogi,
        {},
        {"b1": 0.0, "b2": 0.5, "eps": 0.1, "initial_accumulator_value": 1.0},
        {"b1": 0.5, "b2": 0.9, "eps_root": 1e-2, "initial_accumulator_value": 0.0},
    ),
    *cases(
        gradtx.scale_by_radam,
        {},
        {"b1": 0.5, "b2": 0.9, "eps": 1e-2, "nesterov": True},
        {"b2": 0.99, "eps": 1e-3, "eps_root": 1e-2, "threshold": 4.0},
        {"b1": 0.8, "b2": 0.97, "threshold": rising},
    ),
]
FROM_ZERO = [
    case
    for case in CASES
    if case.factory is gradtx.scale_by_yogi and case.arguments.get("initial_accumulator_value") == 0
]


@pytest.mark.parametrize(
    ("check", "case"),
    [
        *equation_tests(CASES, unlike_optax=[gradtx.scale_by_yogi]),
        # optax's Yogi starts its first moment too at the initial value.
        *[test for test in equation_tests(FROM_ZERO) if "optax" in test.id],
    ],
)
def test_equation(check, case):
    check(case)


def test_complex_gradients_count_by_their_modulus():
    complex_gradients(CASES[1])


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_radam_stays_accurate_across_its_threshold(b2):
    check_equation(Case(gradtx.scale_by_radam, {"b2": b2}, steps=48))


def test_radam_rectifies_from_the_sixth_step_on():
    # For b2 = 0.999 rho_t is 4.997 at t = 5 and 5.995 at t = 6 (paper, section 4.2).
    tx = gradtx.scale_by_radam(b1=0.0, b2=0.999, eps=0.0)
    state = tx.init(jnp.zeros([]))
    updates = []
    for _ in range(6):
        update, state = tx.update(jnp.array(100.0), state)
        updates.append(float(update))
    np.testing.assert_allclose(updates[:5], 100, rtol=1e-6)
    assert 0 < updates[5] < 1


def test_yogi_changes_its_second_moment_by_a_bounded_amount():
    # A gradient of 1 pulls v = 100 down by (1 - b2) at a time, where Adam's v falls by a share.
    tx = gradtx.scale_by_yogi(b2=0.9, initial_accumulator_value=100.0)
    state = tx.init(jnp.zeros([]))
    for t in range(1, 11):
        _, state = tx.update(jnp.array(1.0), state)
        np.testing.assert_allclose(state.nu, 100 - 0.1 * t, rtol=1e-6)


def test_belief_takes_large_steps_where_the_gradient_is_as_predicted():
    tx = gradtx.scale_by_belief(b1=0.9, b2=0.9, eps_root=0.0)
    steady, erratic = tx.init(jnp.zeros([])), tx.init(jnp.zeros([]))
    for t in range(200):
        steady_step, steady = tx.update(jnp.array(1.0), steady)
        erratic_step, erratic = tx.update(jnp.array((-1.0) ** t), erratic)
    # The deviation from the average falls as b1^t in the one case, and stays near 1 in the other.
    assert steady_step > 1e3
    assert abs(erratic_step) < 0.1


ADAM = {"b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE, "eps_root": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.scale_by_belief, {}, **ADAM),
        *wrong_arguments(gradtx.scale_by_yogi, {}, **ADAM, initial_accumulator_value=NON_NEGATIVE),
        *wrong_arguments(gradtx.scale_by_radam, {}, **ADAM, threshold=(3.9, *NON_NEGATIVE)),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_series_of_the_degrees_of_freedom_is_that_of_the_bernoulli_numbers():
    # coth(x) - 1 / x is the sum of 2^(2n) B_2n / (2n)! x^(2n - 1) over n > 0.
    bernoulli = [Fraction(1)]
    for m in range(1, 15):
        rest = sum(math.comb(m + 1, k) * b for k, b in enumerate(bernoulli))
        bernoulli.append(-rest / (m + 1))
    exact = [Fraction(4) ** n * bernoulli[2 * n] / math.factorial(2 * n) for n in range(7, 0, -1)]
    assert [Fraction(c).limit_denominator(10**9) for c in _LANGEVIN] == exact
