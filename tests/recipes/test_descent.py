"""Gradient descent, sign descent and Newton's method: equations and predicted rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    COUNT,
    DECAY,
    KEPT,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)


def halving(count):
    return 0.5**count


CASES = [
    *cases(
        gradtx.sgd,
        {"learning_rate": 0.1},
        {"learning_rate": halving, "momentum": 0.9},
        {"learning_rate": 0.1, "momentum": 0.5, "nesterov": True},
        {"learning_rate": 0.1, "momentum": 0.7, "dampening": 0.7},
        {"learning_rate": 0.3, "momentum": 0.8, "nesterov": True, "dampening": 0.2},
    ),
    *cases(
        gradtx.sign_sgd,
        {"learning_rate": halving},
        {"learning_rate": 0.1},
    ),
    *cases(
        gradtx.signum,
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "beta": 0.6},
    ),
    *cases(
        gradtx.lion,
        {"learning_rate": 1e-3, "weight_decay": 1e-3},
        {"learning_rate": 0.1, "b1": 0.6, "b2": 0.8, "weight_decay": 0.2},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


CURVATURES = np.array([0.1, 1.0, 3.0, 9.0])


def descend_quadratic(tx, steps):
    """The path on 1/2 sum(curvature * x^2) from x = 1, in double precision."""
    with jax.enable_x64(True):
        x = jnp.ones(len(CURVATURES))
        state, update, path = tx.init(x), jax.jit(tx.update), [np.asarray(x)]
        for _ in range(steps):
            updates, state = update(jnp.asarray(CURVATURES) * x, state, x)
            x = gradtx.apply_updates(x, updates)
            path.append(np.asarray(x))
    return np.array(path)


@pytest.mark.parametrize("learning_rate", [0.05, 0.2, 0.23])
def test_gradient_descent_contracts_by_one_minus_rate_times_curvature(learning_rate):
    path = descend_quadratic(gradtx.sgd(learning_rate), 30)
    powers = np.arange(31)[:, None]
    np.testing.assert_allclose(path, (1 - learning_rate * CURVATURES) ** powers, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.85, 0.9, 0.99])
def test_heavy_ball_contracts_by_the_root_of_beta(beta):
    # Where (1 - sqrt(rate * curvature))^2 < beta the characteristic roots of
    # x_{t+1} = (1 + beta - rate * curvature) x_t - beta x_{t-1} are a complex pair z, conj(z).
    learning_rate, steps = 0.1, 400
    middle = (1 + beta - learning_rate * CURVATURES) / 2
    z = middle + 1j * np.sqrt(beta - middle**2)
    np.testing.assert_allclose(np.abs(z), np.sqrt(beta), rtol=1e-12)

    path = descend_quadratic(gradtx.sgd(learning_rate, momentum=beta), steps)
    # x_t = Re(c z^t), with x_0 = 1 and x_1 = 1 - rate * curvature.
    c = 1 + 1j * (middle + learning_rate * CURVATURES - 1) / z.imag
    closed_form = (c * z ** np.arange(steps + 1)[:, None]).real
    envelope = np.abs(c) * np.sqrt(beta) ** np.arange(steps + 1)[:, None]
    np.testing.assert_array_less(np.abs(path - closed_form) / envelope, 1e-9)
    # The determinant of two successive states falls by exactly beta, that of the iteration.
    area = path[2:] * path[:-2] - path[1:-1] ** 2
    np.testing.assert_allclose(area[1:] / area[:-1], beta, rtol=1e-9)


def test_momentum_with_dampening_is_slower_by_the_same_factor():
    # A low-pass filter is a heavy ball whose learning rate is (1 - beta) times as large.
    low_pass = descend_quadratic(gradtx.sgd(1.0, momentum=0.9, dampening=0.9), 50)
    heavy_ball = descend_quadratic(gradtx.sgd(0.1, momentum=0.9), 50)
    np.testing.assert_allclose(low_pass, heavy_ball, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factory", [gradtx.sign_sgd, gradtx.signum, gradtx.lion])
def test_steps_by_sign_have_the_size_of_the_learning_rate(factory):
    options = {"weight_decay": 0.0} if factory is gradtx.lion else {}
    tx = factory(0.25, **options)
    g = jnp.array([1e-20, -1e20, 3.0])
    updates, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(updates, [-0.25, 0.25, -0.25])


def test_decay_of_lion_stays_inside_its_mask():
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = gradtx.lion(0.5, weight_decay=0.5, mask=gradtx.select("kernel"))
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], np.full((2, 2), -1.0))
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def newton_path(tx, loss, start, steps):
    """The points of Newton's method from a start."""
    x = jnp.asarray(start)
    state, path = tx.init(x), [np.asarray(x)]
    step = jax.jit(lambda x, state: tx.update(jax.grad(loss)(x), state, x, value_fn=loss))
    for _ in range(steps):
        updates, state = step(x, state)
        x = gradtx.apply_updates(x, updates)
        path.append(np.asarray(x))
    return path


SOLVERS = ("dense", "cg")


@pytest.mark.parametrize("solver", SOLVERS)
def test_newton_solves_a_quadratic_in_one_step(solver):
    rng = np.random.default_rng(0)
    root, b = rng.normal(size=(8, 8)), rng.normal(size=8)
    a = root @ root.T + np.eye(8)

    def loss(x):
        return 0.5 * x @ jnp.asarray(a) @ x - jnp.asarray(b) @ x

    with jax.enable_x64(True):
        tx = gradtx.newton(solver=solver, tolerance=1e-13)
        path = newton_path(tx, loss, rng.normal(size=8), 1)
    np.testing.assert_allclose(path[1], np.linalg.solve(a, b), rtol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_newton_squares_its_error(solver):
    # On x - log(x) the step is x <- x (2 - x): the distance to 1 is squared, exactly.
    def loss(x):
        return jnp.sum(x - jnp.log(x))

    start = np.array([0.3, 0.9, 1.5])
    with jax.enable_x64(True):
        path = newton_path(gradtx.newton(solver=solver, tolerance=1e-15), loss, start, 6)
    for k, x in enumerate(path):
        # CG stops a little earlier than a direct solution.
        np.testing.assert_allclose(1 - x, (1 - start) ** (2**k), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("schedule", [False, True], ids=["numbers", "schedules"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_damped_newton_follows_numpy_on_a_logistic_regression(solver, schedule):
    rng = np.random.default_rng(5)
    features, labels = rng.normal(size=(40, 5)), np.sign(rng.normal(size=40))

    def loss(x):
        margins = jnp.asarray(labels) * (jnp.asarray(features) @ x)
        return jnp.mean(jax.nn.softplus(-margins)) + 0.005 * jnp.sum(x**2)

    def numpy_step(x, learning_rate, damping):
        p = 1 / (1 + np.exp(labels * (features @ x)))
        gradient = -features.T @ (labels * p) / 40 + 0.01 * x
        hessian = features.T @ ((p * (1 - p))[:, None] * features) / 40 + 0.01 * np.eye(5)
        return x - learning_rate * np.linalg.solve(hessian + damping * np.eye(5), gradient)

    def learning_rate(count):
        return 0.25 + count / 64

    def damping(count):
        return 0.5 / (1 + count)

    hyperparameters = {"learning_rate": 0.5, "damping": 0.1}
    if schedule:
        hyperparameters = {"learning_rate": learning_rate, "damping": damping}
    with jax.enable_x64(True):
        tx = gradtx.newton(solver=solver, tolerance=1e-14, **hyperparameters)
        path = newton_path(tx, loss, np.ones(5), 20)
    x = np.ones(5)
    for count, ours in enumerate(path[1:]):
        now = (learning_rate(count), damping(count)) if schedule else (0.5, 0.1)
        x = numpy_step(x, *now)
        np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12, err_msg=f"step {count + 1}")


VALID = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.sgd, VALID, learning_rate=ANY_NUMBER),
        *wrong_arguments(
            gradtx.sgd,
            VALID | {"momentum": 0.9},
            momentum=KEPT,
            dampening=DECAY,
            accumulator_dtype=("float99",),
        ),
        *wrong_arguments(gradtx.sign_sgd, VALID, learning_rate=ANY_NUMBER),
        *wrong_arguments(
            gradtx.signum,
            VALID,
            learning_rate=ANY_NUMBER,
            beta=DECAY,
            accumulator_dtype=("float99",),
        ),
        *wrong_arguments(
            gradtx.lion,
            VALID,
            learning_rate=ANY_NUMBER,
            b1=DECAY,
            b2=DECAY,
            mu_dtype=("float99",),
            weight_decay=NON_NEGATIVE,
        ),
        *wrong_arguments(
            gradtx.newton,
            {},
            learning_rate=ANY_NUMBER,
            solver=("lu",),
            damping=NON_NEGATIVE,
            tolerance=NON_NEGATIVE,
            max_iterations=COUNT,
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
