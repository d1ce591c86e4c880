"""RMSProp's, AdaGrad's, Adadelta's and Rprop's scalings against their papers."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    last_cases,
    wrong_arguments,
)

MEAN_SQUARES = (
    {"decay": 0.5, "eps": 1e-3, "eps_in_sqrt": False},
    {"decay": 0.99, "initial_scale": 1.0, "bias_correction": True},
    {"decay": 0.8, "eps": 1e-2, "initial_scale": 0.3},
)
CASES = [
    *cases(gradtx.scale_by_rms, {}, {"decay": 0.0, "eps": 0.1}, *MEAN_SQUARES),
    *cases(gradtx.scale_by_stddev, {}, *MEAN_SQUARES),
    *cases(
        gradtx.scale_by_rss,
        {},
        {"initial_accumulator_value": 0.0, "eps": 0.0},
        {"initial_accumulator_value": 2.0, "eps": 0.5},
    ),
    *cases(
        gradtx.scale_by_adadelta,
        {},
        {"rho": 0.0, "eps": 0.1},
        {"rho": 0.95, "eps": 1e-2},
    ),
    *cases(
        gradtx.scale_by_rprop,
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "min_step_size": 0.5},
        {
            "learning_rate": 1.0,
            "eta_minus": 0.3,
            "eta_plus": 1.7,
            "min_step_size": 0.2,
            "max_step_size": 2.0,
        },
    ),
]
MODULUS = (gradtx.scale_by_rms, gradtx.scale_by_stddev, gradtx.scale_by_rss)


@pytest.mark.parametrize(
    ("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.scale_by_rprop])
)
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize(
    "case", [case for case in last_cases(CASES) if case.factory in MODULUS], ids=str
)
def test_complex_gradients_count_by_their_modulus(case):
    complex_gradients(case)


def respond(tx, gradients):
    """The updates to a sequence of gradients of one parameter."""
    state, updates = tx.init(jnp.zeros([])), []
    for g in gradients:
        update, state = tx.update(jnp.array(g), state)
        updates.append(float(update))
    return updates


def test_adagrad_slows_down_as_one_over_the_root_of_t():
    tx = gradtx.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
    t = np.arange(1, 41)
    np.testing.assert_allclose(respond(tx, [-3.0] * 40), -1 / np.sqrt(t), rtol=1e-6)


def test_rms_of_a_constant_gradient_tends_to_its_sign():
    t = np.arange(1, 41)
    plain = respond(gradtx.scale_by_rms(decay=0.5, eps=0.0), [-3.0] * 40)
    np.testing.assert_allclose(plain, -1 / np.sqrt(1 - 0.5**t), rtol=1e-6)
    corrected = gradtx.scale_by_rms(decay=0.99, eps=0.0, bias_correction=True)
    np.testing.assert_allclose(respond(corrected, [-3.0] * 40), -1, rtol=2e-6)


def test_rprop_accelerates_geometrically_and_stops_at_a_change_of_sign():
    tx = gradtx.scale_by_rprop(0.25, eta_minus=0.5, eta_plus=2.0, max_step_size=4.0)
    updates = respond(tx, [1.0, 9.0, 0.1, 1.0, 1.0, 1.0, -5.0, -1e-9, -1.0, 0.0, 7.0])
    #  grows to 4 and stays; stops; steps 4 / 2 without growth, then grows; stands; no growth
    np.testing.assert_array_equal(updates, [0.25, 0.5, 1, 2, 4, 4, 0, -2, -4, 0, 4])


def test_rprop_keeps_its_step_above_the_smallest():
    tx = gradtx.scale_by_rprop(1.0, min_step_size=0.4)
    # Each change of sign halves the step, and the step after it moves.
    updates = respond(tx, [1.0, -1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(updates, [1, 0, -0.5, 0, 0.4], rtol=1e-6)


def test_rprop_leaves_a_step_of_zero():
    # PyTorch's bounds hold after growth as after shrinking.
    tx = gradtx.scale_by_rprop(0.0, min_step_size=0.5)
    np.testing.assert_allclose(respond(tx, [1.0, 1.0, 1.0]), [0, 0.5, 0.6], rtol=1e-6)


MEAN_SQUARE = {"decay": DECAY, "eps": NON_NEGATIVE, "initial_scale": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.scale_by_rms, {}, **MEAN_SQUARE),
        *wrong_arguments(gradtx.scale_by_stddev, {}, **MEAN_SQUARE),
        *wrong_arguments(
            gradtx.scale_by_rss, {}, initial_accumulator_value=NON_NEGATIVE, eps=NON_NEGATIVE
        ),
        *wrong_arguments(gradtx.scale_by_adadelta, {}, rho=DECAY, eps=NON_NEGATIVE),
        *wrong_arguments(
            gradtx.scale_by_rprop,
            {"learning_rate": 1.0},
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
