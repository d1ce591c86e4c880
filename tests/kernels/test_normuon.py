"""NorMuon against its paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import DECAY, NON_NEGATIVE, wrong_arguments
from .test_muon import NEWTON_SCHULZ, gradients, on_matrices, orthogonalized


def paper(gs, *, beta=0.95, b2=0.95, eps=1e-8, consistent_rms=0.2):
    """The updates of each step: Algorithm 1 with rows for columns."""
    mu, nu = ({name: 0.0 * g for name, g in gs[0].items()} for _ in range(2))
    nu = {name: v[..., 0, :] for name, v in nu.items()}
    for g in gs:
        updates = {}
        for name in g:
            mu[name] = beta * mu[name] + (1 - beta) * g[name]
            o = on_matrices(functools.partial(orthogonalized, eps=eps), mu[name])
            nu[name] = b2 * nu[name] + (1 - b2) * np.mean(o**2, axis=-2)
            n = o / (np.sqrt(nu[name])[..., None, :] + eps)
            norm = np.sqrt(np.sum(n**2, axis=(-2, -1), keepdims=True))
            updates[name] = consistent_rms * np.sqrt(n.shape[-2] * n.shape[-1]) * n / norm
        yield updates, nu


@pytest.mark.parametrize(
    "arguments",
    [{}, {"beta": 0.5, "b2": 0.8, "eps": 1e-3, "consistent_rms": 1.0}],
    ids=["defaults", "all-changed"],
)
def test_equation(arguments):
    gs = gradients(4)
    with jax.enable_x64(True):
        tx = gradtx.scale_by_normuon(**arguments)
        update, state = jax.jit(tx.update), tx.init(jax.tree.map(jnp.asarray, gs[0]))
        for g, (expected, nu) in zip(gs, paper(gs, **arguments), strict=True):
            updates, state = update(jax.tree.map(jnp.asarray, g), state)
            for name, value in expected.items():
                np.testing.assert_allclose(state.nu[name], nu[name], rtol=1e-11)
                np.testing.assert_allclose(updates[name], value, rtol=0, atol=1e-11)


def test_at_first_all_neurons_move_by_the_same_length():
    g = jnp.float32(gradients(1)[0]["stack"])
    tx = gradtx.scale_by_normuon(eps=0.0)
    updates, _ = tx.update(g, tx.init(g))
    # Each of 4 columns of 3 elements has the root mean square of the whole.
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates**2, axis=1)), 0.2, rtol=1e-5)


def test_neurons_of_each_head():
    x = jnp.float32(gradients(1, {"attention": (6, 2, 4)})[0]["attention"])
    tx = gradtx.scale_by_normuon(weight_dimension_numbers=gradtx.MuonDimensionNumbers(0, 2))
    plain = gradtx.scale_by_normuon()
    heads = x.transpose(1, 0, 2)
    expected, _ = plain.update(heads, plain.init(heads))
    updates, state = tx.update(x, tx.init(x), x)
    np.testing.assert_allclose(updates.transpose(1, 0, 2), expected, atol=1e-6)
    assert state.nu.shape == (2, 4)
    zero, _ = tx.update(0 * x, tx.init(x))
    np.testing.assert_array_equal(zero, 0 * x)


NORMUON = {"beta": DECAY, "b2": DECAY, "eps": NON_NEGATIVE, "consistent_rms": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(gradtx.scale_by_normuon, {}, **NORMUON, **NEWTON_SCHULZ),
)
def test_wrong_argument(factory, arguments, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        factory(**arguments)
