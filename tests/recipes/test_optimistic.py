"""Optimistic methods: equations, and the game x * y, on which plain descent diverges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gradtx

from ..trajectory import (
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)
from ..wrappers.changing_hands import check_changes_hands

# As in optax, which is asked for its warning below.
pytestmark = pytest.mark.filterwarnings("ignore:.optimistic_adam. is deprecated:DeprecationWarning")

CASES = [
    *cases(
        gradtx.optimistic_gradient_descent,
        {"learning_rate": 0.1, "alpha": 0.3, "beta": 2.0},
    ),
    *cases(
        gradtx.optimistic_adam,
        {"learning_rate": 0.1, "optimism": 0.7, "b1": 0.5, "b2": 0.8, "nesterov": False},
    ),
    *cases(
        gradtx.optimistic_adam_v2,
        {"learning_rate": 0.1, "alpha": 0.3, "beta": 2.0, "b1": 0.5, "b2": 0.8, "eps": 0.1},
    ),
]

# Arrays reach the pieces as numbers do.
TESTS = equation_tests(CASES)


@pytest.mark.parametrize(("check", "case"), [test for test in TESTS if "arrays" not in test.id])
def test_equation(check, case):
    check(case)


def play(tx, steps):
    """The path x + iy of the game min_x max_y x * y from (1, 2), the start included."""

    def step(carry, _):
        (x, y), state = carry
        updates, state = tx.update((y, -x), state, (x, y))
        point = gradtx.apply_updates((x, y), updates)
        return (point, state), point

    with jax.enable_x64(True):
        start = (jnp.float64(1.0), jnp.float64(2.0))
        _, (x, y) = lax.scan(step, (start, tx.init(start)), length=steps)
    return np.array([1 + 2j, *(np.asarray(x) + 1j * np.asarray(y))])


def optimistic_path(rate, alpha, beta, steps):
    """The closed form of that path, and the modulus of its larger root.

    The gradient is -i z, so that z_{t+1} = z_t + i rate ((alpha + beta) z_t - beta z_{t-1}), with
    z_{-1} = z_0.
    """
    roots = np.roots([1, -(1 + 1j * rate * (alpha + beta)), 1j * rate * beta])
    z0, z1 = 1 + 2j, (1 + 1j * rate * alpha) * (1 + 2j)
    weights = np.linalg.solve(np.vander(roots, 2, increasing=True).T, [z0, z1])
    return roots ** np.arange(steps + 1)[:, None] @ weights, np.max(np.abs(roots))


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_plain_descent_spirals_out_of_the_game(rate):
    found = np.abs(play(gradtx.sgd(rate), 60))
    growth = np.sqrt(1 + rate**2) ** np.arange(61)
    np.testing.assert_allclose(found, np.sqrt(5) * growth, rtol=1e-12)


@pytest.mark.parametrize(
    ("rate", "alpha", "beta"), [(0.1, 1.0, 1.0), (0.4, 1.0, 1.0), (1.0, 0.2, 0.3)]
)
def test_optimistic_descent_finds_the_saddle_at_the_predicted_rate(rate, alpha, beta):
    expected, modulus = optimistic_path(rate, alpha, beta, 200)
    assert modulus < 1
    found = play(gradtx.optimistic_gradient_descent(rate, alpha, beta), 200)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    # The smaller root has died out, so that each step contracts by the larger one.
    np.testing.assert_allclose(np.abs(found[101:] / found[100:-1]), modulus, rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: gradtx.optimistic_adam_v2(0.4 * size, b1=0.0, b2=0.0, eps=size),
        lambda size: gradtx.optimistic_adam(0.4 * size, b1=0.0, b2=0.0, eps=size),
    ],
    ids=["v2", "optimism-None"],
)
def test_optimistic_adam_with_a_large_eps_is_optimistic_descent(make):
    expected, _ = optimistic_path(0.4, 1.0, 1.0, 100)
    np.testing.assert_allclose(play(make(1e12), 100), expected, rtol=1e-9)


WARMUP = optax.linear_schedule(0.0, 0.1, 5)
SHARED = {
    "optimistic_gradient_descent": lambda lib: lib.optimistic_gradient_descent(WARMUP, 0.7, 0.5),
    "optimistic_adam_v2": lambda lib: lib.optimistic_adam_v2(WARMUP, beta=0.5, b2=0.9),
    "optimistic_adam": lambda lib: lib.optimistic_adam(0.1, 0.05, b2=0.9),
}


@pytest.mark.parametrize("name", SHARED)
def test_run_changes_hands(name):
    make = SHARED[name]
    check_changes_hands(make(gradtx), make(optax), at=4, steps=8)


@pytest.mark.parametrize("lib", [gradtx, optax])
def test_optimistic_adam_is_deprecated(lib):
    with pytest.warns(DeprecationWarning, match="use `optimistic_adam_v2` instead") as warned:
        lib.optimistic_adam(0.1)
    assert lib is optax or warned[0].filename == __file__


# Each argument reaches the piece that refuses all kinds of wrong values.
NAN = (float("nan"),)
WRONG = (-1.0, *NAN)
ADAM = {"b1": WRONG, "b2": WRONG, "eps": WRONG, "eps_root": WRONG, "mu_dtype": ("float99",)}
VALID = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.optimistic_gradient_descent,
            VALID,
            learning_rate=NAN,
            alpha=NAN,
            beta=NAN,
        ),
        *wrong_arguments(gradtx.optimistic_adam, VALID, learning_rate=NAN, optimism=NAN, **ADAM),
        *wrong_arguments(
            gradtx.optimistic_adam_v2, VALID, learning_rate=NAN, alpha=NAN, beta=NAN, **ADAM
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
