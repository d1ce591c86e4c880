"""AdEMAMix and its simplified form against their papers."""

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

CASES = [
    *cases(
        gradtx.scale_by_ademamix,
        {},
        {"b1": 0.5, "b2": 0.9, "b3": 0.95, "alpha": 2.0, "eps": 1e-2, "eps_root": 1e-2},
    ),
    *cases(
        gradtx.scale_by_simplified_ademamix,
        {},
        {"b1": 0.5, "b2": 0.9, "alpha": 2.0, "eps": 1e-2, "eps_root": 1e-2},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("case", CASES[1::2], ids=["ademamix", "simplified"])
def test_complex_gradients(case):
    complex_gradients(case)


def test_without_the_slow_average_it_is_adam():
    trajectories = [
        run(tx, *inputs(STEPS))
        for tx in (gradtx.scale_by_ademamix(alpha=0.0), gradtx.scale_by_adam())
    ]
    for (ours, _), (adam, _) in zip(*trajectories, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, adam)


def test_only_the_averages_of_the_gradient_are_stored_narrowly():
    state = gradtx.scale_by_ademamix(mu_dtype="bfloat16").init(jnp.zeros(2))
    assert (state.m1.dtype, state.m2.dtype, state.nu.dtype) == ("bfloat16", "bfloat16", "float32")


def test_a_constant_gradient_gives_the_sum_of_the_weights():
    ademamix = gradtx.scale_by_ademamix(b3=0.9, alpha=5.0, eps=0.0)
    simplified = gradtx.scale_by_simplified_ademamix(b1=0.9, alpha=5.0, eps=0.0)
    g = jnp.array([3.0, -1e-3, 0.0])
    states = ademamix.init(g), simplified.init(g)
    for t in range(1, 6):
        updates, first = ademamix.update(g, states[0])
        np.testing.assert_allclose(updates, (1 + 5 * (1 - 0.9**t)) * np.sign(g), rtol=1e-6)
        updates, second = simplified.update(g, states[1])
        np.testing.assert_allclose(updates, ((1 - 0.9**t) / 0.1 + 5) * np.sign(g), rtol=1e-6)
        states = first, second


# A divisor that is eps leaves a linear recurrence of position and memory on a quadratic.
EPS = 2.0**60
RATE, KEPT, ALPHA, CURVATURE = 0.1, 0.95, 2.0, 0.5
SLOW_AVERAGE = (
    gradtx.scale_by_ademamix(b1=0.0, b3=KEPT, alpha=ALPHA, eps=EPS),
    # m' = b3 * m + (1 - b3) * h * x,    x' = x - rate * (h * x + alpha * m')
    np.array([[1.0, -RATE * ALPHA], [0.0, 1.0]])
    @ np.array([[1 - RATE * CURVATURE, 0.0], [(1 - KEPT) * CURVATURE, KEPT]]),
)
SUM = (
    gradtx.scale_by_simplified_ademamix(b1=KEPT, alpha=ALPHA, eps=EPS),
    # m' = b1 * m + h * x,    x' = x - rate * (m' + alpha * h * x)
    np.array([[1.0, -RATE], [0.0, 1.0]])
    @ np.array([[1 - RATE * ALPHA * CURVATURE, 0.0], [CURVATURE, KEPT]]),
)


@pytest.mark.parametrize(("tx", "transition"), [SLOW_AVERAGE, SUM], ids=["ademamix", "simplified"])
def test_descent_on_a_quadratic_is_the_power_of_a_matrix(tx, transition):
    with jax.enable_x64(True):
        tx = gradtx.chain(tx, gradtx.scale_by_learning_rate(RATE * EPS))

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(CURVATURE * x, state)
            return (x + updates, state), x

        start = jnp.ones(())
        _, path = jax.lax.scan(step, (start, tx.init(start)), None, 200)
    assert max(abs(np.linalg.eigvals(transition))) < 1
    expected = [np.linalg.matrix_power(transition, t)[0, 0] for t in range(200)]
    np.testing.assert_allclose(path, expected, atol=1e-12)


ADAM = {"b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE, "eps_root": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.scale_by_ademamix,
            {},
            **ADAM,
            b3=DECAY,
            alpha=ANY_NUMBER,
            mu_dtype=("int32",),
        ),
        *wrong_arguments(gradtx.scale_by_simplified_ademamix, {}, **ADAM, alpha=ANY_NUMBER),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
