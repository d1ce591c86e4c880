"""AdaGrad, RMSProp, Adadelta and Rprop against their papers, with everything around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    KEPT,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)

CASES = [
    *cases(
        gradtx.adagrad,
        {"learning_rate": 0.1},
        {"learning_rate": 1.0, "initial_accumulator_value": 0.5, "eps": 1e-2},
    ),
    *cases(
        gradtx.rmsprop,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "decay": 0.5, "eps_in_sqrt": False, "centered": True},
        {"learning_rate": 0.1, "decay": 0.8, "momentum": 0.9, "bias_correction": True},
        {
            "learning_rate": 0.1,
            "decay": 0.9,
            "eps": 1e-2,
            "initial_scale": 1.0,
            "centered": True,
            "momentum": 0.7,
            "nesterov": True,
        },
    ),
    *cases(
        gradtx.adadelta,
        {},
        {"learning_rate": 1.0, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.3},
    ),
    *cases(
        gradtx.rprop,
        {"learning_rate": 1e-2},
        {
            "learning_rate": 1.0,
            "eta_minus": 0.3,
            "eta_plus": 1.7,
            "min_step_size": 0.2,
            "max_step_size": 2.0,
        },
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.rprop]))
def test_equation(check, case):
    check(case)


def test_penalty_of_adadelta_stays_inside_its_mask():
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = gradtx.adadelta(1.0, weight_decay=0.5, weight_decay_mask=gradtx.select("kernel"))
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_rprop_finds_a_minimum_whatever_the_scale_of_the_loss():
    # Only the signs of the gradient count, so that the paths agree to the last digit.
    start = jnp.array([5.0, -3.0])

    def path(scale):
        tx = gradtx.rprop(0.1)
        params, state, update = start, tx.init(start), jax.jit(tx.update)
        for _ in range(60):
            updates, state = update(scale * (params - 1.0), state)
            params = gradtx.apply_updates(params, updates)
        return params

    np.testing.assert_array_equal(path(1e-6), path(1e6))
    np.testing.assert_allclose(path(1.0), 1, atol=1e-3)


def test_adagrad_with_a_constant_gradient_moves_as_the_harmonic_root_sum():
    tx = gradtx.adagrad(0.5, initial_accumulator_value=0.0, eps=0.0)
    position = jnp.array(0.0)
    state = tx.init(position)
    for _ in range(30):
        updates, state = tx.update(jnp.array(-7.0), state)
        position = gradtx.apply_updates(position, updates)
    np.testing.assert_allclose(position, 0.5 * np.sum(1 / np.sqrt(np.arange(1, 31))), rtol=3e-6)


VALID = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.adagrad,
            VALID,
            learning_rate=ANY_NUMBER,
            initial_accumulator_value=NON_NEGATIVE,
            eps=NON_NEGATIVE,
        ),
        *wrong_arguments(
            gradtx.rmsprop,
            VALID,
            learning_rate=ANY_NUMBER,
            decay=DECAY,
            eps=NON_NEGATIVE,
            initial_scale=NON_NEGATIVE,
            momentum=KEPT,
        ),
        *wrong_arguments(
            gradtx.adadelta,
            VALID,
            learning_rate=ANY_NUMBER,
            rho=DECAY,
            eps=NON_NEGATIVE,
            weight_decay=NON_NEGATIVE,
        ),
        *wrong_arguments(
            gradtx.rprop,
            VALID,
            learning_rate=NON_NEGATIVE,
            eta_minus=(0.0, *DECAY),
            eta_plus=(1.0, 0.5, *NON_NEGATIVE),
            min_step_size=NON_NEGATIVE,
            max_step_size=NON_NEGATIVE,
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
