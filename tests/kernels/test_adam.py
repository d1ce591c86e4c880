"""Adam, AMSGrad and AdaMax against their papers, and against what follows from them."""

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

CASES = [
    *cases(
        gradtx.scale_by_adam,
        {},
        {"b1": 0.0, "b2": 0.5, "eps": 0.0},
        {"b1": 0.95, "b2": 0.9, "eps": 0.1, "bias_correction": False},
        {"nesterov": True, "bias_correction": False},
        {"b1": 0.5, "b2": 0.99, "eps": 1e-3, "eps_root": 1e-2, "nesterov": True},
    ),
    *cases(
        gradtx.scale_by_amsgrad,
        {},
        {"b1": 0.5, "b2": 0.6, "bias_correction_mu": False},
        {"b2": 0.8, "bias_correction_nu": False},
        {"b1": 0.7, "b2": 0.7, "eps": 1e-3, "eps_root": 1e-2},
    ),
    *cases(
        gradtx.scale_by_adamax,
        {},
        {"b1": 0.0, "b2": 0.0, "eps": 1e-3},
        {"b1": 0.5, "b2": 0.8, "eps": 0.0},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("case", last_cases(CASES), ids=str)
def test_complex_gradients_count_by_their_modulus(case):
    complex_gradients(case)


@pytest.mark.parametrize(
    "factory", [gradtx.scale_by_adam, gradtx.scale_by_amsgrad, gradtx.scale_by_adamax]
)
def test_adam_is_invariant_to_the_scale_of_the_gradient(factory):
    tx = factory(eps=0.0)
    small, large = jnp.ones(3), jnp.ones(3)
    states = tx.init(small), tx.init(large)
    for g in np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32):
        small, small_state = tx.update(jnp.asarray(g), states[0])
        # A power of two changes no digit of the mantissa.
        large, large_state = tx.update(jnp.asarray(g * 2.0**20), states[1])
        states = small_state, large_state
        np.testing.assert_array_equal(small, large)


def test_amsgrad_never_forgets_the_largest_gradient():
    tx = gradtx.scale_by_amsgrad(b1=0.0, b2=0.5, eps=0.0, bias_correction_nu=False)
    state = tx.init(jnp.zeros(1))
    for g in (8.0, *[1.0] * 20):
        updates, state = tx.update(jnp.array([g]), state)
    # v_max is still (1 - b2) * 8^2 = 32.
    np.testing.assert_allclose(updates, [32**-0.5], rtol=1e-6)


def test_adam_forgets_it():
    tx = gradtx.scale_by_adam(b1=0.0, b2=0.5, eps=0.0)
    state = tx.init(jnp.zeros(1))
    for g in (8.0, *[1.0] * 40):
        updates, state = tx.update(jnp.array([g]), state)
    np.testing.assert_allclose(updates, [1.0], rtol=1e-6)


@pytest.mark.parametrize("factory", [gradtx.scale_by_adam, gradtx.scale_by_amsgrad])
def test_storage_dtype_of_the_first_moment(factory):
    tx = factory(b1=0.5, mu_dtype=jnp.bfloat16)
    state = tx.init(jnp.zeros(2))
    for g, expected in (([8.0, -4.0], [4.0, -2.0]), ([1.0, 1.0], [2.5, -0.5])):
        _, state = tx.update(jnp.array(g), state)
        assert state.mu.dtype == jnp.bfloat16
        assert state.nu.dtype == jnp.float32
        np.testing.assert_array_equal(state.mu.astype(jnp.float32), expected)


ADAM = {"b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.scale_by_adam, {}, **ADAM, eps_root=NON_NEGATIVE, mu_dtype=("float99",)
        ),
        *wrong_arguments(
            gradtx.scale_by_amsgrad, {}, **ADAM, eps_root=NON_NEGATIVE, mu_dtype=("float99",)
        ),
        *wrong_arguments(gradtx.scale_by_adamax, {}, **ADAM),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
