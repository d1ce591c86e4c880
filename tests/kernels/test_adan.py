"""Adan against its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.kernels.adan import PROXIMAL_DESCENT
from gradtx.testing import references

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    STEPS,
    assert_close,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    inputs,
    run,
    wrong_arguments,
)

CASES = cases(
    gradtx.scale_by_adan,
    {},
    {"b1": 0.8, "b2": 0.7, "b3": 0.9, "eps": 1e-2, "eps_root": 1e-2},
)


@pytest.mark.parametrize(
    ("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.scale_by_adan])
)
def test_equation(check, case):
    check(case)


def test_complex_gradients():
    complex_gradients(CASES[1])


def test_a_run_of_optax_goes_on_by_the_papers_equation():
    gradients, params = inputs(STEPS)
    with jax.numpy_dtype_promotion("standard"):
        *_, (_, state) = run(optax.scale_by_adan(), gradients[:7], params[:7])
    tx = gradtx.scale_by_adan()
    updates, _ = tx.update(jax.tree.map(jnp.asarray, gradients[7]), state)
    for leaf, g in gradients[7].items():
        old = {name: getattr(state, name)[leaf].astype(np.float64) for name in "mvng"}
        expected, _ = references.scale_by_adan.step(8, g, params[7][leaf], old)
        assert_close({leaf: updates[leaf]}, {leaf: expected}, 2e-6, "updates")


def test_a_constant_gradient_gives_steps_of_its_sign():
    tx = gradtx.scale_by_adan(eps=0.0)
    state, update = tx.init(jnp.zeros(3)), jax.jit(tx.update)
    for _ in range(5):
        updates, state = update(jnp.array([3.0, -1e-3, 0.0]), state)
        np.testing.assert_allclose(updates, [1, -1, 0], rtol=1e-6)


def test_without_adaptivity_it_is_nesterovs_accelerated_gradient():
    # With b1 = b2 = b and a divisor that is eps, Nesterov's recurrence on curvature h is
    # x' = (1 + b) * (1 - rate * h) * x - b * (1 - rate * h) * x_before.
    b, rate, eps = 0.8, 0.05, 2.0**60
    curvature = np.array([0.1, 1.0, 8.0])

    def learning_rate(count):
        return rate * eps * (1 - b ** (count + 1.0)) / (1 - b)

    with jax.enable_x64(True):
        tx = gradtx.chain(
            gradtx.scale_by_adan(b1=b, b2=b, b3=0.0, eps=eps),
            gradtx.scale_by_learning_rate(learning_rate),
        )

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(curvature * x, state)
            return (x + updates, state), x

        start = jnp.array([1.0, -2.0, 3.0])
        _, path = jax.lax.scan(step, (start, tx.init(start)), None, 100)
    x = np.asarray(path)
    expected = (1 - rate * curvature) * ((1 + b) * x[1:-1] - b * x[:-2])
    np.testing.assert_allclose(x[2:], expected, atol=1e-12)
    # The slowest mode decays as the larger root of z^2 - (1 + b) c z + b c, c = 1 - rate * h.
    roots = np.roots([1, -(1 + b) * (1 - rate * 0.1), b * (1 - rate * 0.1)])
    np.testing.assert_allclose(x[-1, 0] / x[-2, 0], max(roots), rtol=1e-3)


ADAN = {"b1": DECAY, "b2": DECAY, "b3": DECAY, "eps": NON_NEGATIVE, "eps_root": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"), wrong_arguments(gradtx.scale_by_adan, {}, **ADAN)
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_the_rate_that_is_reported_is_that_of_the_proximal_step():
    assert PROXIMAL_DESCENT.factor(0.5, 2.0, True) == 0.25
    assert PROXIMAL_DESCENT.factor(0.5, 2.0, False) == 0.5
