"""Shampoo against its paper, and where its steps are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.testing import references

from ..trajectory import COUNT, DECAY, NON_NEGATIVE, check_refused, updates_of, wrong_arguments
from .test_muon import gradients

SHAPES = {"matrix": (3, 5), "tensor": (2, 3, 2), "vector": (3,), "number": ()}


CASES = {
    "sums": {},
    "averages": {"b1": 0.0, "b2": 0.8, "eps": 1e-2},
    "old-roots-and-diagonals": {"update_interval": 3, "max_dimension": 4, "b2": 0.9, "b1": 0.5},
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_equation(arguments):
    gs = gradients(5, SHAPES)
    with jax.enable_x64(True):
        tx = gradtx.scale_by_shampoo(**arguments)
        update, state = jax.jit(tx.update), tx.init(jax.tree.map(jnp.asarray, gs[0]))
        steps = updates_of(references.scale_by_shampoo(**arguments), gs)
        for g, expected in zip(gs, steps, strict=True):
            updates, state = update(jax.tree.map(jnp.asarray, g), state)
            for name, value in expected.items():
                np.testing.assert_allclose(updates[name], value, rtol=0, atol=1e-9)


def test_hyperparameters_may_be_arrays_and_schedules():
    gs = gradients(3, {"matrix": (2, 2)})
    for convert in (jnp.float32, lambda value: lambda count: value + 0 * count):
        for b2 in (1.0, 0.5):
            tx = gradtx.scale_by_shampoo(convert(0.5), convert(b2), convert(1e-2))
            state = tx.init(jnp.zeros((2, 2)))
            steps = updates_of(references.scale_by_shampoo(b1=0.5, b2=b2, eps=1e-2), gs)
            for g, expected in zip(gs, steps, strict=True):
                updates, state = tx.update(jnp.float32(g["matrix"]), state)
                np.testing.assert_allclose(updates, expected["matrix"], rtol=1e-5, atol=1e-5)


def test_without_momentum_none_is_kept():
    g = jnp.float32(gradients(1, {"matrix": (2, 3)})[0]["matrix"])
    kept, none = gradtx.scale_by_shampoo(b1=0.0), gradtx.scale_by_shampoo(b1=None)
    expected, _ = kept.update(g, kept.init(g))
    updates, state = none.update(g, none.init(g))
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert jax.tree.leaves(state.mu) == []


def random_orthogonal(seed, n):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def test_equal_gradients_give_their_polar_factor():
    # L = t U S^2 U^T and R = t V S^2 V^T, so that the update of U S V^T is U V^T / sqrt(t).
    u, v = random_orthogonal(0, 4), random_orthogonal(1, 4)
    g = jnp.float32(u * np.array([0.5, 1.0, 3.0, 20.0]) @ v.T)
    tx = gradtx.scale_by_shampoo(eps=0.0)
    state = tx.init(g)
    for t in range(1, 5):
        updates, state = tx.update(g, state)
        np.testing.assert_allclose(updates, u @ v.T / np.sqrt(t), atol=1e-4)


def test_rotated_gradients_give_rotated_updates():
    gs = [jnp.float32(g["matrix"]) for g in gradients(3, {"matrix": (3, 4)})]
    u, v = jnp.float32(random_orthogonal(2, 3)), jnp.float32(random_orthogonal(3, 4))
    tx = gradtx.scale_by_shampoo(eps=1e-3)
    state, rotated_state = tx.init(gs[0]), tx.init(gs[0])
    for g in gs:
        updates, state = tx.update(g, state)
        rotated, rotated_state = tx.update(u @ g @ v.T, rotated_state)
        np.testing.assert_allclose(rotated, u @ updates @ v.T, atol=1e-5)


def test_complex_matrices_give_their_polar_factor():
    rng = np.random.default_rng(4)
    g = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))
    u, _, vh = np.linalg.svd(g)
    tx = gradtx.scale_by_shampoo(eps=0.0)
    updates, _ = tx.update(jnp.complex64(g), tx.init(jnp.complex64(g)))
    np.testing.assert_allclose(updates, u @ vh, atol=1e-4)


def test_in_a_rotated_ravine_every_direction_takes_the_steps_of_adagrad():
    # The loss sum(a_i d_i^2) / 2 in the bases U and V: L^(-1/4) and R^(-1/4) together divide by
    # AdaGrad's root in these, and AdaGrad does not see a constant factor a_i.
    u, v = jnp.float32(random_orthogonal(5, 4)), jnp.float32(random_orthogonal(6, 4))
    curvature = jnp.array([1.0, 3.0, 10.0, 100.0])
    tx = gradtx.chain(gradtx.scale_by_shampoo(b1=0.0, eps=0.0), gradtx.scale(-0.5))
    d, squares, expected = 1.0, 0.0, []
    for _ in range(10):
        squares += d**2
        d -= 0.5 * d / np.sqrt(squares)
        expected.append(d)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(u @ (curvature[:, None] * (u.T @ w @ v)) @ v.T, state)
        return (w + updates, state), jnp.diag(u.T @ (w + updates) @ v)

    w = u @ v.T
    _, errors = jax.lax.scan(step, (w, tx.init(w)), length=10)
    # L has the condition number 10^4, of which the fourth root keeps all but a digit.
    np.testing.assert_allclose(errors, np.outer(expected, np.ones(4)), atol=1e-3)
    assert expected[-1] < 0.02


@pytest.mark.parametrize("size", [1e-30, 0.0, 1e15])
def test_gradients_of_every_size_give_finite_updates(size):
    g = jnp.full((2, 3), size, jnp.float32)
    tx = gradtx.scale_by_shampoo(update_interval=2)
    state = tx.init(g)
    for _ in range(3):
        updates, state = tx.update(g, state)
        assert jnp.all(jnp.isfinite(updates))


SHAMPOO = {
    "b1": DECAY,
    "b2": (1.5, *NON_NEGATIVE),
    "eps": NON_NEGATIVE,
    "update_interval": COUNT,
    "max_dimension": COUNT,
}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(gradtx.scale_by_shampoo, {}, **SHAMPOO),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
