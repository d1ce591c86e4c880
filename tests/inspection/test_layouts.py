"""States move between leaves in stacks and leaves by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import gradtx

from ..wrappers.test_grouped import tree

OPTIMIZERS = {
    "adamw": lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1)),
    "adafactor": lambda: gradtx.adafactor(0.1, min_dim_size_to_factor=2),
    "muon": lambda: gradtx.muon(0.1, ns_steps=2),
    "soap": lambda: gradtx.soap(0.1),
    "hyperparameters": lambda: gradtx.inject_hyperparams(gradtx.lion)(0.1),
}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def after_a_step(tx, params):
    return tx.update(tree(1), tx.init(params), params)[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_goes_into_groups_and_comes_back_as_it_was(name):
    params, tx = tree(0), OPTIMIZERS[name]()
    grouped, state = gradtx.grouped(tx, group_size=2), after_a_step(tx, params)
    in_groups, report = gradtx.migrate(state, grouped, params)
    arguments = {f"hyperparams/{name}" for name in gradtx.tree.get(state, "hyperparams", {})}
    assert {*report.fresh} == {f"inner_state/{name}" for name in arguments} | {"places"}
    assert {*report.dropped} == arguments
    assert jax.tree.structure(in_groups) == jax.tree.structure(grouped.init(params))
    assert_equal(in_groups, after_a_step(grouped, params))
    back, report = gradtx.migrate(in_groups, tx, params)
    assert {*report.fresh} == arguments
    assert_equal(back, state)


def test_other_groups_take_over():
    params = [jnp.full(2, 1.0 + i) for i in range(7)]
    tx = gradtx.sgd(0.1, momentum=0.9)
    small, large = gradtx.grouped(tx, group_size=2), gradtx.grouped(tx, group_size=4)
    _, state = small.update(params, small.init(params), params)
    moved, _ = gradtx.migrate(state, large, params)
    np.testing.assert_array_equal(moved.places, [0, 0, 0, 0, 4, 4, 4])
    np.testing.assert_array_equal(moved.inner_state[0].trace[4][:, 0], [5, 6, 7, 0])


def test_groups_behind_masks_are_found():
    params = tree(0)
    of_matrices = gradtx.select(lambda path, leaf: leaf.ndim > 1)

    def by_kind(wrap):
        transforms = {
            "matrices": wrap(gradtx.muon(0.1, ns_steps=2)),
            "others": wrap(gradtx.adam(0.1)),
        }
        return gradtx.partition(
            transforms, gradtx.select.groups({"matrices": of_matrices}, rest="others")
        )

    grouped, plain = by_kind(gradtx.grouped), by_kind(lambda tx: tx)
    state = after_a_step(plain, params)
    moved, _ = gradtx.migrate(state, grouped, params)
    assert_equal(moved, after_a_step(grouped, params))
    assert_equal(gradtx.migrate(moved, plain, params)[0], state)
    decay = gradtx.masked(gradtx.trace(0.5), of_matrices)
    tx = gradtx.chain(gradtx.adam(0.1), decay)
    state = after_a_step(tx, params)
    moved, _ = gradtx.migrate(state, gradtx.grouped(tx), params)
    assert_equal(gradtx.migrate(moved, tx, params)[0], state)


def test_parameters_that_are_a_tuple_are_not_taken_for_a_chain():
    params = (jnp.ones(2), jnp.full(2, 2.0))
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.ema(0.9))
    _, state = tx.update(params, tx.init(params))
    moved, _ = gradtx.migrate(state, gradtx.grouped(tx), params)
    np.testing.assert_array_equal(moved.inner_state[0].trace[0], [[1, 1], [2, 2]])
    assert_equal(gradtx.migrate(moved, tx, params)[0], state)


def test_optax_continues_from_groups_and_the_other_way_round():
    params = {name: jnp.full(2, 1.0 + i) for i, name in enumerate("abc")}
    theirs, ours = optax.adam(0.1), gradtx.grouped(gradtx.adam(0.1))
    with jax.numpy_dtype_promotion("standard"):
        _, state = theirs.update(params, theirs.init(params), params)
        moved, report = gradtx.migrate(state, ours, params)
    assert list(report.fresh) == ["places"]
    assert_equal(gradtx.migrate(moved, theirs, params)[0], state)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_checkpoint_resumes_with_and_without_groups(tmp_path):
    params, gradient = tree(0), tree(2)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))
    grouped = gradtx.grouped(tx, group_size=2)
    state = after_a_step(grouped, params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = checkpointer.restore(tmp_path / "state", like)
        plain = checkpointer.restore(tmp_path / "state")
    assert_equal(restored, state)
    assert_equal(
        grouped.update(gradient, restored, params), grouped.update(gradient, state, params)
    )
    assert isinstance(plain, dict)
    expected, _ = gradtx.migrate(state, tx, params)
    found, report = gradtx.migrate(plain, tx, params)
    assert_equal(found, expected)
    assert not report.fresh


def test_explain_gives_each_leaf_its_bytes_and_counts_the_padding():
    params = {**{f"layer{i}": jnp.ones(64) for i in range(5)}, "head": jnp.ones((2, 2))}
    tx = gradtx.adam(0.1)
    plain, grouped = (gradtx.explain(own, params) for own in (tx, gradtx.grouped(tx, group_size=3)))
    assert [row.state_bytes for row in grouped.rows] == [row.state_bytes for row in plain.rows]
    assert [row.rules for row in grouped.rows] == [row.rules for row in plain.rows]
    assert {str(row.learning_rate) for row in grouped.rows} == {"0.1"}
    # Two groups of three, one of which has a padding of 64 numbers in each moment; six places.
    assert grouped.shared_bytes - plain.shared_bytes == 2 * 64 * 4 + 6 * 4
    state = jax.eval_shape(gradtx.grouped(tx, group_size=3).init, params)
    assert grouped.state_bytes == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
