"""Masks, partitions and frozen leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

PARAMS = {"body": {"w": jnp.array([1.0, 2.0])}, "head": jnp.array([3.0])}
BODY = {"body": {"w": True}, "head": False}


def step(tx, gradients=PARAMS, params=PARAMS):
    return tx.update(gradients, tx.init(params), params)


@pytest.mark.parametrize(
    "mask",
    [BODY, {"body": True, "head": False}, lambda tree: BODY, gradtx.select("body")],
    ids=["tree", "prefix", "function", "select"],
)
def test_masked_leaves_pass_and_own_no_state(mask):
    tx = gradtx.masked(gradtx.trace(0.9), mask)
    state = tx.init(PARAMS)
    assert isinstance(state, optax.MaskedState)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(2,)]
    updates, _ = gradtx.chain(gradtx.masked(gradtx.scale(-1.0), mask)).update(
        PARAMS, (optax.MaskedState(optax.EmptyState()),)
    )
    np.testing.assert_array_equal(updates["body"]["w"], [-1.0, -2.0])
    np.testing.assert_array_equal(updates["head"], [3.0])


def test_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="masked: mask and the tree differ at 'neck'"):
        gradtx.masked(gradtx.scale(1.0), {"neck": True}).init(PARAMS)
    with pytest.raises(ValueError, match="scalar booleans as leaves, got 'yes'"):
        gradtx.masked(gradtx.scale(1.0), {"body": "yes", "head": False}).init(PARAMS)


def test_masks_nest():
    inner = gradtx.masked(gradtx.scale(2.0), gradtx.select("w"))
    tx = gradtx.masked(inner, gradtx.select("body"))
    updates, _ = step(tx)
    np.testing.assert_array_equal(updates["body"]["w"], [2.0, 4.0])
    np.testing.assert_array_equal(updates["head"], [3.0])


def test_missing_gradients_under_a_mask_stay_missing():
    tx = gradtx.masked(gradtx.adam(0.1), gradtx.select("body"))
    updates, _ = tx.update({"body": {"w": None}, "head": jnp.ones(1)}, tx.init(PARAMS), PARAMS)
    assert updates["body"]["w"] is None


def test_predicate_on_leaves_sees_parameters_not_gradients():
    tx = gradtx.masked(gradtx.scale(0.0), gradtx.select(lambda path, leaf: leaf[0] == 3.0))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = step(tx, ones)
    np.testing.assert_array_equal(updates["head"], [0.0])
    np.testing.assert_array_equal(updates["body"]["w"], [1.0, 1.0])


def test_extra_arguments_of_the_same_structure_can_be_masked():
    def update(updates, state, params=None, *, other, **extra):
        return jax.tree.map(jnp.add, updates, other), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = gradtx.masked(inner, BODY, mask_compatible_extra_args=True)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, other=PARAMS)
    np.testing.assert_array_equal(updates["body"]["w"], [2.0, 4.0])
    np.testing.assert_array_equal(updates["head"], [3.0])


def test_partition_transforms_each_group_in_its_own_way():
    labels = {"body": {"w": "slow"}, "head": "fast"}
    for param_labels in (labels, lambda tree: labels, {"body": "slow", "head": "fast"}):
        tx = gradtx.partition({"slow": gradtx.sgd(0.1), "fast": gradtx.adam(1.0)}, param_labels)
        updates, state = step(tx)
        np.testing.assert_allclose(updates["body"]["w"], [-0.1, -0.2], rtol=1e-6)
        np.testing.assert_allclose(updates["head"], [-1.0], rtol=1e-6)
        assert isinstance(state, optax.transforms.PartitionState)
        assert set(state.inner_states) == {"slow", "fast"}
    assert gradtx.multi_transform is gradtx.partition


def test_label_without_a_transformation_is_refused():
    tx = gradtx.partition({"a": gradtx.sgd(0.1)}, {"body": "a", "head": "z"})
    with pytest.raises(ValueError, match=r"no transformation for the labels \['z'\].*\['a'\]"):
        tx.init(PARAMS)


def test_frozen_leaves_do_not_move_and_own_no_state():
    frozen = gradtx.chain(gradtx.sgd(1.0), gradtx.freeze(gradtx.select("body")))
    selective = gradtx.selective_transform(gradtx.adam(1.0), freeze_mask=gradtx.select("body"))
    for tx in (frozen, selective):
        updates, _ = step(tx)
        np.testing.assert_array_equal(updates["body"]["w"], [0.0, 0.0])
        assert float(updates["head"][0]) < 0
    moments = [leaf for leaf in jax.tree.leaves(selective.init(PARAMS)) if leaf.ndim]
    assert [leaf.shape for leaf in moments] == [(1,), (1,)]


def test_frozen_gradients_do_not_shorten_the_steps_of_the_others():
    optimizer = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(1.0, momentum=0.9))
    tx = gradtx.selective_transform(optimizer, freeze_mask=gradtx.select("body"))
    gradients = {"body": {"w": jnp.array([600.0, 800.0])}, "head": jnp.array([1.0])}
    updates, state = step(tx, gradients)
    np.testing.assert_array_equal(updates["body"]["w"], [0.0, 0.0])
    np.testing.assert_array_equal(updates["head"], [-1.0])
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(1,)]
    # A chain with the same transformations sees all gradients, and clips to a norm of 1 of 1000.
    after = gradtx.chain(optimizer, gradtx.freeze(gradtx.select("body")))
    np.testing.assert_allclose(step(after, gradients)[0]["head"], [-1e-3], rtol=1e-5)


def test_frozen_leaves_do_not_decay():
    tx = gradtx.selective_transform(gradtx.adamw(0.5), freeze_mask=gradtx.select("body"))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = step(tx, zeros)
    np.testing.assert_array_equal(updates["body"]["w"], [0.0, 0.0])
    # adamw's default decay of 1e-4.
    np.testing.assert_allclose(updates["head"], [-0.5 * 1e-4 * 3.0], rtol=1e-6)
