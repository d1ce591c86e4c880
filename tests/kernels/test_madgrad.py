"""MADGRAD against its paper."""

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
    complex_gradients,
    equation_tests,
    wrong_arguments,
)

CASES = cases(
    gradtx.scale_by_madgrad,
    {"learning_rate": 1e-2},
    {"learning_rate": 0.1, "momentum": 0.5, "eps": 1e-2},
)


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_complex_gradients():
    complex_gradients(CASES[1])


def descend(tx, gradient, start, steps):
    def step(carry, _):
        x, state = carry
        updates, state = tx.update(gradient(x), state, x)
        return (x + updates, state), x + updates

    return np.asarray(jax.lax.scan(step, (start, tx.init(start)), None, steps)[1])


def test_without_momentum_it_is_dual_averaging():
    # With a constant gradient p_0 - p is lr^(2/3) * cbrt(g) * (sum of sqrt(i))^(2/3).
    g = np.array([1.0, -8.0, 0.0])
    with jax.enable_x64(True):
        tx = gradtx.scale_by_madgrad(0.1, momentum=0.0, eps=0.0)
        path = descend(tx, lambda x: jnp.asarray(g), jnp.zeros(3), 20)
    way = (0.1 * np.cumsum(np.sqrt(np.arange(1, 21)))) ** (2 / 3)
    np.testing.assert_allclose(path, -np.outer(way, np.cbrt(g)), rtol=1e-12)


def test_momentum_averages_the_points_of_dual_averaging():
    # The constant gradient again: p <- momentum * p + (1 - momentum) * z.
    with jax.enable_x64(True):
        tx = gradtx.scale_by_madgrad(0.1, momentum=0.75, eps=0.0)
        path = descend(tx, jnp.ones_like, jnp.zeros(()), 20)
    z = -((0.1 * np.cumsum(np.sqrt(np.arange(1, 21)))) ** (2 / 3))
    expected = [sum(0.25 * 0.75 ** (t - i) * z[i] for i in range(t + 1)) for t in range(20)]
    np.testing.assert_allclose(path, expected, rtol=1e-12)


def test_the_weighted_sum_of_gradients_vanishes_at_the_solution():
    # p = p_0 - s / cbrt(v) can only rest at 1 if s does not move, whatever the scale of the loss.
    for scale in (1e-2, 1e2):
        tx = gradtx.scale_by_madgrad(0.1, momentum=0.9)
        path = descend(tx, lambda x, scale=scale: scale * (x - 1.0), jnp.zeros(2), 1000)
        np.testing.assert_allclose(path[-1], 1, atol=1e-3)


def test_needs_the_parameters():
    tx = gradtx.scale_by_madgrad(0.1)
    with pytest.raises(ValueError, match="scale_by_madgrad: needs the parameters"):
        tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_madgrad,
        {"learning_rate": 0.1},
        learning_rate=NON_NEGATIVE,
        momentum=DECAY,
        eps=NON_NEGATIVE,
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
