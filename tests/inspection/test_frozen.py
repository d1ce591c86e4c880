"""Leaves that never move are shown as frozen, and have no state where they need none."""

import jax
import optax
import pytest

import gradtx

from .measure import PARAMS, last_update, on_w

chain, scale, sgd, adam = gradtx.chain, gradtx.scale, gradtx.sgd, gradtx.adam
clip_norm = gradtx.clip_by_global_norm


def set_to_zero():
    """Does not do what its name says."""
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params=None: (updates, state)
    )


FROZEN = {
    "selective": gradtx.selective_transform(gradtx.adamw(0.1), freeze_mask=on_w),
    "partition": gradtx.partition(
        {"x": gradtx.set_to_zero(), "y": gradtx.adamw(0.1)}, {"w": "x", "b": "y"}
    ),
    "partition_with_optax": gradtx.partition(
        {"x": optax.set_to_zero(), "y": optax.adamw(0.1)}, {"w": "x", "b": "y"}
    ),
    "selective_of_optax": optax.selective_transform(
        optax.adamw(0.1), freeze_mask={"w": True, "b": False}
    ),
    "partition_of_optax": optax.partition(
        {"x": optax.set_to_zero(), "y": optax.adamw(0.1)}, lambda tree: {"w": "x", "b": "y"}
    ),
    "in_a_wrapper": gradtx.MultiSteps(
        gradtx.selective_transform(sgd(0.1, momentum=0.9), freeze_mask=on_w), 1
    ),
    "in_a_chain": chain(
        clip_norm(1.0), gradtx.selective_transform(gradtx.lion(0.1), freeze_mask=on_w)
    ),
}
WITH_STATE = {
    "freeze": chain(gradtx.adamw(0.1, weight_decay=0.1), gradtx.freeze(on_w)),
    "freeze_of_optax": chain(adam(0.1), optax.freeze({"w": True, "b": False})),
    "freeze_in_a_chain_of_optax": optax.chain(
        optax.adam(0.1), optax.masked(optax.set_to_zero(), on_w)
    ),
    "freeze_before_adam": chain(gradtx.freeze(on_w), adam(0.1), scale(2.0)),
    "freeze_before_momentum": chain(gradtx.freeze(on_w), sgd(0.1, momentum=0.9), clip_norm(1.0)),
}


@pytest.mark.parametrize("name", FROZEN | WITH_STATE)
def test_a_leaf_that_never_moves_is_frozen(name):
    tx = (FROZEN | WITH_STATE)[name]
    explanation = gradtx.explain(tx, PARAMS)
    rows = {row.path: row for row in explanation.rows}
    assert (rows["w"].kind, rows["b"].kind) == ("frozen", "trained")
    assert (rows["w"].learning_rate.number, rows["w"].weight_decay) == (0.0, ())
    for calls in (1, 2, 3):
        updates = last_update(tx, calls)
        assert not updates["w"].any()
        assert updates["b"].all()
    (line,) = [line for line in str(explanation).splitlines() if line.startswith("    w ")]
    assert line.split()[3:5] == ["frozen", "–"]
    state = jax.tree.leaves(tx.init(PARAMS))
    assert explanation.state_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in state)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_leaves_own_no_state(name):
    # The accumulated gradient of MultiSteps is not the optimizer's.
    explanation = gradtx.explain(FROZEN[name], PARAMS)
    rows = {row.path: row for row in explanation.rows}
    assert rows["w"].state_bytes == (16 if name == "in_a_wrapper" else 0)
    assert ("selective_transform" in explanation.total) == (name == "in_a_wrapper")
    assert rows["b"].state_bytes > 0


@pytest.mark.parametrize("name", WITH_STATE)
def test_state_of_frozen_leaves_shows(name):
    explanation = gradtx.explain(WITH_STATE[name], PARAMS)
    rows = {row.path: row for row in explanation.rows}
    memory = 4 * 4 * (1 if name == "freeze_before_momentum" else 2)
    assert rows["w"].state_bytes == memory
    assert f"{memory} for frozen ones, see selective_transform" in str(explanation)


MOVING = {
    "by_its_name_only": chain(sgd(0.1), set_to_zero()),
    "behind_a_rule_of_the_user": chain(
        gradtx.set_to_zero(), gradtx.stateless(lambda updates, params: params), sgd(0.1)
    ),
    "noise": chain(gradtx.set_to_zero(), gradtx.add_noise(0.1, 0.5, 0), sgd(0.1)),
    "decay": chain(gradtx.freeze(on_w), gradtx.adamw(0.5, weight_decay=0.1)),
    "decay_of_lars": chain(gradtx.freeze(on_w), gradtx.lars(0.5, weight_decay=0.1)),
    "gradient_of_sam": chain(
        gradtx.set_to_zero(), gradtx.sam(sgd(0.1), sgd(7.0), opaque_mode=True)
    ),
    "projection": chain(gradtx.set_to_zero(), gradtx.keep_params_nonnegative()),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_leaf_that_moves_is_not_frozen(name):
    assert last_update(MOVING[name])["w"].any()
    rows = {row.path: row for row in gradtx.explain(MOVING[name], PARAMS).rows}
    assert rows["w"].kind == "trained"
