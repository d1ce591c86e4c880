"""Masks and labels as users make them: numbers, prefixes, trees of other containers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradtx

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 0.3]]), "b": jnp.array([0.5, -0.25])}
GRADS = {"w": jnp.array([[3.0, -4.0], [12.0, 0.5]]), "b": jnp.array([-1.0, 2.0])}


def assert_trees_equal(found, expected, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected)


@pytest.mark.parametrize("one", [1, 1.0, np.int8(1), np.float32(1), jnp.int32(1), True, np.True_])
def test_masks_of_the_numbers_0_and_1_work(one):
    mask = {"w": one, "b": one * 0}
    updates, _ = gradtx.masked(gradtx.scale(2.0), mask).update(GRADS, optax.MaskedState(None))
    assert_trees_equal(updates, {"w": 2 * GRADS["w"], "b": GRADS["b"]})
    tx = gradtx.adamw(1.0, weight_decay=0.5, mask=mask)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    assert_trees_equal(updates, {"w": -0.5 * PARAMS["w"], "b": zeros["b"]})


def test_masks_of_other_numbers_are_refused():
    with pytest.raises(ValueError, match="mask must have scalar booleans as leaves, got 2"):
        gradtx.masked(gradtx.scale(2.0), {"w": 2, "b": 0}).init(PARAMS)


def test_a_mask_made_from_an_nnx_state_fits_the_pure_tree_of_the_same_leaves():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(2, 3, rngs=rngs)
            self.outer = nnx.Linear(3, 2, use_bias=False, rngs=rngs)

    def decayed(make):
        model = Model(nnx.Rngs(0))
        params = nnx.state(model, nnx.Param)
        before = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
        optimizer = nnx.Optimizer(model, make(params), wrt=nnx.Param)
        optimizer.update(model, jax.tree.map(jnp.zeros_like, params))
        after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        return before, after

    def mask(params):
        return jax.tree.map(lambda leaf: len(leaf.shape) > 1, params)

    def labels(params):
        return jax.tree.map(lambda flag: "decayed" if flag else "kept", mask(params))

    groups = {"decayed": gradtx.adamw(0.5, weight_decay=0.5), "kept": gradtx.adam(0.5)}
    for make in (
        lambda params: gradtx.adamw(0.5, weight_decay=0.5, mask=mask(params)),
        lambda params: gradtx.partition(groups, labels(params)),
    ):
        before, after = decayed(make)
        for layer in ("inner", "outer"):
            np.testing.assert_allclose(
                after[layer]["kernel"], 0.75 * before[layer]["kernel"], rtol=1e-6
            )
        np.testing.assert_array_equal(after["inner"]["bias"], before["inner"]["bias"])


BLOCKS = {f"block_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(12)}


MISFIT = {name: {"kernel": True, "bias": False} for name in BLOCKS}


MISFIT["block_7"] = {"kernel": True, "offset": False}


CHOOSING = {
    "masked": lambda: gradtx.masked(gradtx.scale(2.0), MISFIT),
    "adamw": lambda: gradtx.adamw(1.0, weight_decay=0.1, mask=MISFIT),
    "add_decayed_weights": lambda: gradtx.add_decayed_weights(0.1, mask=MISFIT),
    "lars": lambda: gradtx.lars(0.1, weight_decay_mask=MISFIT),
    "adan": lambda: gradtx.adan(0.1, mask=MISFIT),
    "freeze": lambda: gradtx.freeze(MISFIT),
    "selective_transform": lambda: gradtx.selective_transform(gradtx.sgd(0.1), freeze_mask=MISFIT),
    "partition": lambda: gradtx.partition({True: gradtx.sgd(0.1), False: gradtx.sgd(0.2)}, MISFIT),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_a_mask_that_does_not_fit_is_named_with_its_place_and_function(name):
    tx = CHOOSING[name]()
    with pytest.raises(ValueError, match=r"'block_7/(bias|offset)'") as refusal:
        tx.update(BLOCKS, tx.init(BLOCKS), BLOCKS)
    message = str(refusal.value)
    assert message.startswith(f"{name}: ")
    assert len(message) < 300


def test_a_mask_of_more_leaves_fits_where_updates_have_none():
    mask = {"w": {"a": True, "b": False}, "b": True}
    params = {"w": {"a": jnp.ones(2), "b": jnp.ones(2)}, "b": jnp.ones(2)}
    tx = gradtx.masked(gradtx.scale(2.0), mask)
    updates, _ = tx.update({"w": None, "b": jnp.ones(2)}, tx.init(params))
    assert updates["w"] is None
    np.testing.assert_array_equal(updates["b"], [2.0, 2.0])


@pytest.mark.parametrize("mask", [{"w": False, "b": True}, False], ids=["subtree", "whole"])
def test_a_prefix_makes_the_states_that_it_makes_in_optax(mask):
    params = {"w": {"a": jnp.ones(2), "b": jnp.ones(2)}, "b": jnp.ones(2)}
    labels = jax.tree.map(lambda flag: "yes" if flag else "no", mask)
    for make in (
        lambda lib: lib.masked(lib.adam(0.1), mask),
        lambda lib: lib.multi_transform({"yes": lib.adam(0.1), "no": lib.set_to_zero()}, labels),
        lambda lib: lib.adamw(lambda count: 0.1, mask=mask),
    ):
        ours, theirs = make(gradtx), make(optax)
        assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))
        found = ours.update(params, theirs.init(params), params)
        with jax.numpy_dtype_promotion("standard"):
            expected = theirs.update(params, theirs.init(params), params)
        # optax's 1 - 0.999^t loses three digits.
        assert_trees_equal(found, expected, rtol=2e-5)


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray, bool], ids=["jax", "numpy", "python"])
def test_a_mask_of_concrete_arrays_works_under_jit(kind):
    mask = {"w": kind(1), "b": kind(0)}
    for make in (
        lambda lib: lib.masked(lib.scale(-2.0), mask),
        lambda lib: lib.adamw(0.5, weight_decay=0.5, mask=mask),
        lambda lib: lib.selective_transform(lib.sgd(0.5), freeze_mask=mask),
    ):
        tx = make(gradtx)
        updates, _ = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
        with jax.numpy_dtype_promotion("standard"):
            theirs = make(optax)
            expected, _ = theirs.update(GRADS, theirs.init(PARAMS), PARAMS)
        assert_trees_equal(updates, expected, rtol=2e-5)


def test_what_a_mask_lacks_is_named():
    with pytest.raises(ValueError, match="masked: mask has None at 'b', where the tree has leaves"):
        gradtx.masked(gradtx.scale(1.0), {"w": True, "b": None}).init(PARAMS)
    with pytest.raises(ValueError, match=r"scalar booleans as leaves, got .*bool\[2\] at 'b'"):
        gradtx.masked(gradtx.scale(1.0), {"w": True, "b": np.ones(2, bool)}).init(PARAMS)

    def traced(flag):
        return gradtx.masked(gradtx.scale(1.0), {"w": flag, "b": True}).init(PARAMS)

    with pytest.raises(ValueError, match="got a traced value; make the mask outside jit at 'w'"):
        jax.jit(traced)(jnp.array(True))


def test_what_is_masked_must_be_a_transformation():
    with pytest.raises(ValueError, match=r"masked: inner must be .*0\.5"):
        gradtx.masked(0.5, True)
