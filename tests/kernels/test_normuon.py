"""NorMuon against its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.testing import references

from ..trajectory import DECAY, NON_NEGATIVE, wrong_arguments
from .test_muon import NEWTON_SCHULZ, gradients


@pytest.mark.parametrize(
    "arguments",
    [{}, {"beta": 0.5, "b2": 0.8, "eps": 1e-3, "consistent_rms": 1.0}],
    ids=["defaults", "all-changed"],
)
def test_equation(arguments):
    gs = gradients(4)
    leaves = [list(g.values()) for g in gs]
    steps = references.scale_by_normuon(**arguments).run(leaves, leaves)
    with jax.enable_x64(True):
        tx = gradtx.scale_by_normuon(**arguments)
        update, state = jax.jit(tx.update), tx.init(jax.tree.map(jnp.asarray, gs[0]))
        for g, (expected, slots) in zip(gs, steps, strict=True):
            updates, state = update(jax.tree.map(jnp.asarray, g), state)
            for name, value, slot in zip(g, expected, slots, strict=True):
                np.testing.assert_allclose(state.nu[name], slot["nu"], rtol=1e-11)
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
