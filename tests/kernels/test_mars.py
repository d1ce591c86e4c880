"""The gradient correction of MARS against its paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    STEPS,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    inputs,
    run,
    wrong_arguments,
)

CASES = cases(
    gradtx.scale_by_mars,
    {},
    {"b1": 0.8, "gamma": 0.5, "max_norm": 6.0},
)


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_complex_gradients():
    complex_gradients(CASES[1])


def test_the_fully_corrected_average_does_not_lag_behind_the_gradient():
    # With gamma = 1 the first moment is STORM's: m_t - g_t = b1 * (m_{t-1} - g_{t-1}), so that
    # m_t = g_t - b1^t * g_1, however the gradient moves.
    b1 = 0.8
    with jax.enable_x64(True):
        tx = gradtx.chain(
            gradtx.scale_by_mars(b1, gamma=1.0, max_norm=math.inf), gradtx.ema(b1, debias=False)
        )
        gradients, params = inputs(STEPS)
        for t, (m, _) in enumerate(run(tx, gradients, params), start=1):
            for leaf, g in gradients[t - 1].items():
                expected = g - b1**t * gradients[0][leaf]
                np.testing.assert_allclose(m[leaf], expected, atol=1e-12)


def test_the_largest_gradients_may_change_their_sign():
    g, tx = jnp.full(4, 3e38), gradtx.scale_by_mars()
    _, state = tx.update(g, tx.init(g))
    updates, _ = tx.update(-g, state)
    np.testing.assert_allclose(updates, -0.5, rtol=1e-6)


def test_the_norm_of_each_leaf_is_bounded():
    tx = gradtx.scale_by_mars()
    g = {"long": jnp.array([30.0, 40.0]), "short": jnp.array([0.3, 0.4])}
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates["long"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["short"], g["short"])


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(gradtx.scale_by_mars, {}, b1=DECAY, gamma=ANY_NUMBER, max_norm=NON_NEGATIVE),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
