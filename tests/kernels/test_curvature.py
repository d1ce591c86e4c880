"""Newton's direction against NumPy's solution of the same linear system."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import gradtx

from ..trajectory import COUNT, NON_NEGATIVE, check_refused, wrong_arguments

SOLVERS = ("dense", "cg")


def quadratic(size=7, seed=0):
    """A loss 1/2 x'Ax - b'x with A positive definite, on a tree of two leaves, with A and b."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    a, b = root @ root.T / size + np.eye(size), rng.normal(size=size)

    def loss(params):
        x = jnp.concatenate([params["u"], params["v"].reshape(-1)])
        matrix, vector = jnp.asarray(a, x.dtype), jnp.asarray(b, x.dtype)
        return 0.5 * x @ matrix @ x - vector @ x

    return loss, a, b


def as_tree(x):
    return {"u": jnp.asarray(x[:3]), "v": jnp.asarray(x[3:]).reshape(-1, 1)}


def as_array(tree):
    return np.concatenate([np.asarray(tree["u"]), np.asarray(tree["v"])[:, 0]])


def direction(tx, params, loss, gradients=None):
    """The update for the loss's own gradient, or for another one."""

    def step(p):
        g = jax.grad(loss)(p) if gradients is None else gradients
        return tx.update(g, tx.init(p), p, value_fn=loss)[0]

    return jax.jit(step)(params)


@pytest.mark.parametrize("damping", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_direction(solver, damping):
    loss, a, b = quadratic()
    x = np.random.default_rng(1).normal(size=7)
    expected = np.linalg.solve(a + damping * np.eye(7), a @ x - b)
    # The condition number of A is 6, and the rounding of the gradient is multiplied by it.
    ours = direction(gradtx.scale_by_newton(solver=solver, damping=damping), as_tree(x), loss)
    np.testing.assert_allclose(as_array(ours), expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    with jax.enable_x64(True):
        tx = gradtx.scale_by_newton(solver=solver, damping=damping, tolerance=1e-13)
        ours = direction(tx, as_tree(x), loss)
        np.testing.assert_allclose(as_array(ours), expected, rtol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_is_solved_in_single(solver):
    curvature = jnp.array([1.0, 3.0])
    start = jnp.array([2.0, -1.0], jnp.bfloat16)
    g = curvature.astype(jnp.bfloat16) * start

    def loss(p):
        return 0.5 * jnp.sum(curvature * jnp.square(p.astype(jnp.float32)))

    tx = gradtx.scale_by_newton(solver=solver)
    updates, _ = tx.update(g, tx.init(start), start, value_fn=loss)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates, start)


@pytest.mark.parametrize("solver", SOLVERS)
def test_right_hand_side_is_the_update_that_comes_in(solver):
    loss, a, _ = quadratic()
    g = np.random.default_rng(2).normal(size=7)
    tx = gradtx.scale_by_newton(solver=solver)
    ours = direction(tx, as_tree(np.zeros(7)), loss, as_tree(g))
    np.testing.assert_allclose(as_array(ours), np.linalg.solve(a, g), rtol=2e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_damping_as_an_array_and_as_a_schedule(solver):
    loss, a, b = quadratic()
    x, params = np.ones(7), as_tree(np.ones(7))

    def expected(damping):
        return np.linalg.solve(a + damping * np.eye(7), a @ x - b)

    ours = direction(gradtx.scale_by_newton(solver=solver, damping=jnp.array(0.8)), params, loss)
    np.testing.assert_allclose(as_array(ours), expected(0.8), rtol=2e-5)
    tx = gradtx.scale_by_newton(solver=solver, damping=lambda count: 0.8 / (1 + count))
    update = jax.jit(lambda state: tx.update(jax.grad(loss)(params), state, params, value_fn=loss))
    state = tx.init(params)
    for count in range(4):
        ours, state = update(state)
        np.testing.assert_allclose(as_array(ours), expected(0.8 / (1 + count)), rtol=2e-5)


def test_dense_solver_takes_the_least_norm_where_the_loss_is_flat():
    def loss(x):
        return (x[0] + x[1] - 2.0) ** 2

    x = jnp.zeros(2)
    np.testing.assert_allclose(direction(gradtx.scale_by_newton(), x, loss), [-1, -1], rtol=1e-6)


def test_dense_solver_goes_to_a_saddle():
    def loss(x):
        return x[0] ** 2 - 3 * x[1] ** 2 + x[0] * x[1]

    x = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(direction(gradtx.scale_by_newton(), x, loss), x, rtol=1e-6)


def test_one_iteration_of_cg_is_the_best_step_along_the_gradient():
    loss, a, b = quadratic()
    x = np.ones(7)
    g = a @ x - b
    tx = gradtx.scale_by_newton(solver="cg", max_iterations=1)
    ours = as_array(direction(tx, as_tree(x), loss))
    np.testing.assert_allclose(ours, g * (g @ g) / (g @ a @ g), rtol=1e-5)


def test_cg_stops_at_its_tolerance():
    loss, a, b = quadratic(size=40)
    x, residuals = np.ones(40), []
    g = a @ x - b
    for tolerance in (0.3, 0.03, 0.003):
        tx = gradtx.scale_by_newton(solver="cg", tolerance=tolerance)
        ours = as_array(direction(tx, as_tree(x), loss))
        residuals.append(np.linalg.norm(a @ ours - g) / np.linalg.norm(g))
        assert residuals[-1] < tolerance
    # A looser tolerance stops earlier.
    assert residuals[0] > residuals[1] > residuals[2]


def largest_array(jaxpr):
    """The number of elements of the largest array that a jaxpr computes, inner jaxprs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [np.prod(out.aval.shape, dtype=int) for out in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, ClosedJaxpr):
                    sizes.append(largest_array(inner.jaxpr))
                elif isinstance(inner, Jaxpr):
                    sizes.append(largest_array(inner))
    return max(sizes)


def test_cg_never_forms_the_hessian():
    n = 50

    def loss(x):
        return jnp.sum(jnp.cosh(x)) + jnp.sum((x[1:] - x[:-1]) ** 2)

    def largest(solver):
        tx = gradtx.scale_by_newton(solver=solver)
        step = jax.make_jaxpr(lambda x: tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss))
        return largest_array(step(jnp.zeros(n)).jaxpr)

    assert largest("cg") == n
    assert largest("dense") >= n * n


@pytest.mark.parametrize("solver", SOLVERS)
def test_leaves_without_a_gradient_stay_out_of_the_system(solver):
    def loss(params):
        return 2 * jnp.sum(params["w"] ** 2) + params["w"][0] * params["frozen"] ** 2

    params = {"w": jnp.array([3.0, 4.0]), "frozen": jnp.array(0.0)}
    gradients = {"w": jnp.array([12.0, 16.0]), "frozen": None}
    updates = direction(gradtx.scale_by_newton(solver=solver), params, loss, gradients)
    assert updates["frozen"] is None
    np.testing.assert_allclose(updates["w"], [3, 4], rtol=1e-6)


@pytest.mark.parametrize("missing", ["params", "value_fn"])
def test_missing_argument_of_update(missing):
    tx, x = gradtx.scale_by_newton(), jnp.ones(2)
    given = {"params": x, "value_fn": jnp.sum}
    del given[missing]
    with pytest.raises(ValueError, match=missing):
        tx.update(x, tx.init(x), **given)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_newton,
        {},
        solver=("lu", None),
        damping=NON_NEGATIVE,
        tolerance=NON_NEGATIVE,
        max_iterations=COUNT,
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
