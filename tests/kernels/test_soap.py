"""SOAP against its paper, and against Adam where it is Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.testing import references
from gradtx.testing.references.matrices import unfolded

from ..trajectory import COUNT, DECAY, NON_NEGATIVE, check_refused, updates_of, wrong_arguments
from .test_muon import gradients
from .test_shampoo import random_orthogonal

SHAPES = {"matrix": (3, 4), "tensor": (2, 3, 2), "vector": (3,)}


CASES = {
    "defaults": {},
    "every-second-step": {"precondition_frequency": 2, "b1": 0.5, "b2": 0.8, "eps": 1e-2},
    "one-sided": {"max_precond_dim": 3, "precondition_frequency": 3, "shampoo_beta": 0.5},
}


def full_rank_gradients(steps):
    """Gradients whose second moments along each axis have no null space and no equal eigenvalues.

    The eigenvectors of the first gradient would otherwise be a matter of rounding.
    """
    gs = gradients(steps, SHAPES)
    spread = np.diag([4.0, 1.0, 0.25])
    gs[0]["matrix"] = random_orthogonal(7, 3) @ spread @ random_orthogonal(8, 4)[:3]
    return gs


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_equation(arguments):
    gs = full_rank_gradients(6)
    with jax.enable_x64(True):
        tx = gradtx.scale_by_soap(**arguments)
        update, state = jax.jit(tx.update), tx.init(jax.tree.map(jnp.asarray, gs[0]))
        steps = updates_of(references.scale_by_soap(**arguments), gs)
        for g, expected in zip(gs, steps, strict=True):
            updates, state = update(jax.tree.map(jnp.asarray, g), state)
            for name, value in expected.items():
                np.testing.assert_allclose(updates[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 3), (3, 6)], ids=str)
def test_only_a_null_space_leaves_the_basis_open(shape, monkeypatch):
    # As it is in another layout, where products round in another way.
    gs = [g["matrix"] for g in gradients(3, {"matrix": shape})]
    eigh = np.linalg.eigh

    def turned(statistic):
        values, vectors = eigh(statistic)
        null = values < 1e-10 * values.max()
        vectors[:, null] = vectors[:, null] @ random_orthogonal(5, null.sum())
        return values, vectors

    reference = references.scale_by_soap()
    usual = reference(gs, 0.0)
    monkeypatch.setattr(np.linalg, "eigh", turned)
    expected = reference(gs, 0.0)
    difference = np.abs(np.subtract(usual, expected)).max()
    assert difference > 0.1 if shape == (3, 6) else difference < 1e-9
    with jax.enable_x64(True):
        tx = gradtx.scale_by_soap()
        _, state = tx.update(jnp.asarray(gs[0]), tx.init(jnp.asarray(gs[0])))
        # From the very bits of the paper's sums: those of the state are off by roundings.
        sums = [(1 - 0.95) * unfolded(gs[0], i) @ unfolded(gs[0], i).T for i in (0, 1)]
        state = state._replace(basis=[jnp.asarray(turned(x)[1][:, ::-1]) for x in sums])
        for g, value in zip(gs[1:], expected[1:], strict=True):
            updates, state = tx.update(jnp.asarray(g), state)
            np.testing.assert_allclose(updates, value, rtol=0, atol=1e-9)


def test_without_axes_that_are_short_enough_it_is_adam():
    gs = gradients(4, {"matrix": (2, 3)})
    tx = gradtx.scale_by_soap(max_precond_dim=1)
    state = tx.init(jnp.zeros((2, 3)))
    old = dict.fromkeys(("mu", "nu"), 0.0)
    for t, g in enumerate(gs):
        updates, state = tx.update(jnp.float32(g["matrix"]), state)
        if t:
            expected, old = references.scale_by_adam.step(
                t, g["matrix"], 0.0, old, b1=0.95, b2=0.95
            )
            np.testing.assert_allclose(updates, expected, rtol=2e-6, atol=2e-6)
        else:
            np.testing.assert_array_equal(updates, 0)


def test_rotated_gradients_give_rotated_updates():
    gs = [jnp.float32(g["matrix"]) for g in gradients(6, {"matrix": (3, 3)})]
    u, v = jnp.float32(random_orthogonal(2, 3)), jnp.float32(random_orthogonal(3, 3))
    tx = gradtx.scale_by_soap(precondition_frequency=2)
    update = jax.jit(tx.update)
    state, rotated_state = tx.init(gs[0]), tx.init(gs[0])
    for g in gs:
        updates, state = update(g, state)
        rotated, rotated_state = update(u @ g @ v.T, rotated_state)
        np.testing.assert_allclose(rotated, u @ updates @ v.T, atol=1e-4)
    assert jnp.max(jnp.abs(updates)) > 0.1


def ravine(tx, steps, u, v, curvature):
    """The errors in the bases U and V under the loss sum(a_i d_i^2) / 2, from d_i = 1."""

    def step(carry, _):
        w, state = carry
        g = u @ (curvature[:, None] * (u.T @ w @ v)) @ v.T
        updates, state = tx.update(g, state, w)
        return (w + updates, state), jnp.diag(u.T @ (w + updates) @ v)

    w = u @ v.T
    return jax.lax.scan(step, (w, tx.init(w)), length=steps)[1]


CURVATURE = np.array([1.0, 3.0, 10.0, 100.0])
# With the rate 0.05 an eps above 2.5 keeps the rounding of zeros small, which without gradients
# to divide by moves as in gradient descent by 0.05 / eps.
ADAM = {"b1": 0.9, "b2": 0.9, "eps": 5.0}


def test_in_a_rotated_ravine_it_takes_adams_steps_of_the_straight_one():
    d, old, expected = np.ones(4), dict.fromkeys(("mu", "nu"), 0.0), [np.ones(4)]
    for t in range(1, 41):
        update, old = references.scale_by_adam.step(t, CURVATURE * d, d, old, **ADAM)
        d = d - 0.05 * update
        expected.append(d)
    with jax.enable_x64(True):
        # In double precision, because L has the square of the condition number.
        u, v = jnp.asarray(random_orthogonal(5, 4)), jnp.asarray(random_orthogonal(6, 4))
        curvature = jnp.asarray(CURVATURE)
        errors = ravine(gradtx.soap(0.05, **ADAM, weight_decay=0.0), 41, u, v, curvature)
    np.testing.assert_allclose(errors, expected, atol=1e-6)


def test_rounding_does_not_grow_to_steps():
    # A gradient of rank one is zero in its basis but for one element; Adam would divide the
    # rounding of the zeros by its own size.
    g = jnp.float32(np.outer([1.0, 2.0, 0.5], [3.0, -1.0, 1.0, 0.1]))
    tx = gradtx.scale_by_soap()
    state = tx.init(g)
    for _ in range(3):
        updates, state = tx.update(g, state)
    np.testing.assert_allclose(updates, g / jnp.linalg.norm(g), atol=1e-2)


@pytest.mark.parametrize("size", [1e-30, 0.0, 1e15])
def test_gradients_of_every_size_give_finite_updates(size):
    tx = gradtx.scale_by_soap(precondition_frequency=1)
    for g in (jnp.full((2, 3), size), size * (1 + 1j) * jnp.ones((2, 2), jnp.complex64)):
        state = tx.init(g)
        for _ in range(3):
            updates, state = tx.update(g, state)
            assert jnp.all(jnp.isfinite(updates))


SOAP = {
    "b1": DECAY,
    "b2": DECAY,
    "shampoo_beta": DECAY,
    "eps": NON_NEGATIVE,
    "precondition_frequency": COUNT,
    "max_precond_dim": COUNT,
}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"), wrong_arguments(gradtx.scale_by_soap, {}, **SOAP)
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
