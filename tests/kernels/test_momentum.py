"""Momentum and moving averages against their equations, and against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    COUNT,
    DECAY,
    KEPT,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)

CASES = [
    *cases(
        gradtx.trace,
        {"decay": 0.9},
        {"decay": 0.0, "nesterov": True},
        {"decay": 0.99, "dampening": 0.99},
        {"decay": 0.6, "dampening": 0.3, "nesterov": True},
    ),
    *cases(
        gradtx.ema,
        {"decay": 0.5, "debias": False},
        {"decay": 0.0},
        {"decay": 0.9999},
        {"decay": 0.9},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_complex_gradients():
    complex_gradients(CASES[0])


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_simple_moving_average_is_the_mean_of_the_last_gradients(window):
    tx = gradtx.simple_moving_average(window)
    gradients, state, update = [], tx.init(jnp.zeros(3)), jax.jit(tx.update)
    rng = np.random.default_rng(3)
    for t in range(1, 25):
        gradients.append(rng.normal(size=3).astype(np.float32))
        updates, state = update(jnp.asarray(gradients[-1]), state)
        last = np.float64(gradients[-window:])
        np.testing.assert_allclose(updates, np.mean(last, axis=0), rtol=0, atol=1e-6)
        assert state.count == t
        np.testing.assert_array_equal(state.history[-min(t, window) :], last)


def test_a_sum_of_the_last_gradients_may_be_too_large_for_float32():
    tx, gradient = gradtx.simple_moving_average(2), jnp.array([2e38, -3e38])
    state = tx.init(gradient)
    for _ in range(3):
        updates, state = tx.update(gradient, state)
        np.testing.assert_allclose(updates, gradient, rtol=1e-6)


def impulse_response(tx, steps):
    """The updates after a gradient of 1 followed by zeros."""
    state, response = tx.init(jnp.zeros([])), []
    for t in range(steps):
        update, state = tx.update(jnp.array(1.0 if t == 0 else 0.0), state)
        response.append(float(update))
    return np.array(response)


def step_response(tx, steps):
    """The updates after gradients of 1 at all times: the impulse response's running sum."""
    state, response = tx.init(jnp.zeros([])), []
    for _ in range(steps):
        update, state = tx.update(jnp.array(1.0), state)
        response.append(float(update))
    return np.array(response)


T = np.arange(1, 31)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_step_responses(beta):
    low_pass = gradtx.trace(beta, dampening=beta)
    average = gradtx.ema(beta, debias=False)
    for tx in (low_pass, average):
        np.testing.assert_allclose(step_response(tx, 30), 1 - beta**T, rtol=3e-6)
    np.testing.assert_allclose(step_response(gradtx.ema(beta), 30), 1, rtol=3e-6)
    heavy_ball = step_response(gradtx.trace(beta), 30)
    np.testing.assert_allclose(heavy_ball, (1 - beta**T) / (1 - beta), rtol=3e-6)
    nesterov = step_response(gradtx.trace(beta, nesterov=True), 30)
    np.testing.assert_allclose(nesterov, (1 - beta ** (T + 1)) / (1 - beta), rtol=3e-6)


def test_impulse_responses():
    np.testing.assert_allclose(impulse_response(gradtx.trace(0.9), 30), 0.9 ** (T - 1), rtol=3e-6)
    box = impulse_response(gradtx.simple_moving_average(4), 6)
    np.testing.assert_allclose(box, [1, 1 / 2, 1 / 3, 1 / 4, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("factory", [gradtx.trace, gradtx.ema])
def test_storage_dtype_of_the_accumulator(factory):
    tx = factory(0.5, accumulator_dtype=jnp.bfloat16)
    state = tx.init(jnp.zeros(2))
    for g in ([8.0, -4.0], [1.0, 3.0]):
        updates, state = tx.update(jnp.array(g), state)
    assert updates.dtype == jnp.float32
    accumulator = state.trace if factory is gradtx.trace else state.ema
    assert accumulator.dtype == jnp.bfloat16
    expected = [5.0, 1.0] if factory is gradtx.trace else [2.5, 0.5]
    np.testing.assert_array_equal(accumulator.astype(jnp.float32), expected)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.trace,
            {"decay": 0.9},
            decay=KEPT,
            dampening=DECAY,
            accumulator_dtype=("float99",),
        ),
        *wrong_arguments(gradtx.ema, {"decay": 0.9}, decay=DECAY, accumulator_dtype=("float99",)),
        *wrong_arguments(gradtx.simple_moving_average, {}, window=COUNT),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
