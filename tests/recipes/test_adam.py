"""Adam and its nearest relatives against their papers, with learning rate and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)

CASES = [
    *cases(
        gradtx.adam,
        {"learning_rate": 1e-3, "bias_correction": False},
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3},
    ),
    *cases(
        gradtx.adamw,
        {"learning_rate": 1e-3, "weight_decay": 1e-4},
        {"learning_rate": 0.1, "b2": 0.9, "weight_decay": 0.3, "nesterov": True},
    ),
    *cases(
        gradtx.nadam,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps_root": 1e-2},
    ),
    *cases(
        gradtx.nadamw,
        {"learning_rate": 1e-3, "weight_decay": 1e-4},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "weight_decay": 0.3},
    ),
    *cases(
        gradtx.amsgrad,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.6, "bias_correction_nu": False},
    ),
    *cases(
        gradtx.adamax,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.7, "eps": 1e-2},
    ),
    *cases(
        gradtx.adamaxw,
        {"learning_rate": 1e-3, "weight_decay": 1e-4},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.7, "weight_decay": 0.3},
    ),
]
DECOUPLED = [gradtx.adamw, gradtx.nadamw, gradtx.adamaxw]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_adamw_with_complex_parameters():
    complex_gradients(next(case for case in CASES if case.factory is gradtx.adamw))


@pytest.mark.parametrize("factory", DECOUPLED)
def test_decoupled_decay_is_geometric(factory):
    # Without a gradient p <- (1 - learning_rate * weight_decay) p, for any moments.
    tx = factory(0.5, weight_decay=0.1)
    params = jnp.array([3.0, -2.0])
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(1, 25):
        updates, state = update(jnp.zeros(2), state, params)
        params = gradtx.apply_updates(params, updates)
        np.testing.assert_allclose(params, 0.95**t * np.array([3, -2]), rtol=1e-5)


@pytest.mark.parametrize("factory", DECOUPLED)
def test_decay_stays_inside_its_mask(factory):
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = factory(0.5, weight_decay=0.5, mask=gradtx.select("kernel"))
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], np.full((2, 2), -1.0))
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


@pytest.mark.parametrize("factory", [gradtx.adam, gradtx.adamax, gradtx.amsgrad])
def test_first_step_is_the_learning_rate_against_the_sign(factory):
    g = jnp.array([1e-3, -20.0, 0.0, 5e3])
    tx = factory(0.25, eps=0.0)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, [-0.25, 0.25, 0, -0.25], rtol=1e-6)


MOMENTS = {"learning_rate": ANY_NUMBER, "b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE}
ROOT = {"eps_root": NON_NEGATIVE, "mu_dtype": ("float99",)}
WEIGHTS = {"weight_decay": NON_NEGATIVE}
VALID = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.adam, VALID, **MOMENTS, **ROOT),
        *wrong_arguments(gradtx.adamw, VALID, **MOMENTS, **ROOT, **WEIGHTS),
        *wrong_arguments(gradtx.nadam, VALID, **MOMENTS, **ROOT),
        *wrong_arguments(gradtx.nadamw, VALID, **MOMENTS, **ROOT, **WEIGHTS),
        *wrong_arguments(gradtx.amsgrad, VALID, **MOMENTS, **ROOT),
        *wrong_arguments(gradtx.adamax, VALID, **MOMENTS),
        *wrong_arguments(gradtx.adamaxw, VALID, **MOMENTS, **WEIGHTS),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
