"""Everything that gradtx exports can be explained, and migrated to itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.testing import hostile_parameters

from ..testing.test_exports import EXPORTS

# One of each kind of state; their numbers are compared one by one.
CARRIED = ("adamw", "lamb", "rprop", "add_noise", "with_hyperparams", "partition", "sam")


def parts_of_export(name):
    export = EXPORTS[name]
    return export.make(), hostile_parameters() if export.params is None else export.params


@pytest.mark.parametrize("name", EXPORTS)
def test_memory_is_exact(name):
    tx, params = parts_of_export(name)
    explanation = gradtx.explain(tx, params)
    state = jax.tree.leaves(jax.eval_shape(tx.init, params))
    assert explanation.state_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in state)
    assert len(explanation.rows) == len(jax.tree.leaves(params))
    assert str(explanation).endswith(explanation.total)


@pytest.mark.parametrize("name", CARRIED)
def test_a_state_is_carried_to_itself(name):
    tx, params = parts_of_export(name)
    # Numbers other than those of init, so that a reset would be noticed.
    state = jax.tree.map(
        lambda leaf: leaf + leaf.dtype.type(3) if is_number(leaf) else leaf, tx.init(params)
    )
    migrated, report = gradtx.migrate(state, tx, params)
    assert set(report.fresh.values()) <= {"set by the new optimizer"}
    assert list(report.dropped) == list(report.fresh)
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    for (path, old), new in zip(named, jax.tree.leaves(migrated), strict=True):
        if jax.tree_util.keystr(path, simple=True, separator="/") in report.carried:
            np.testing.assert_array_equal(*(x if is_number(x) else key_data(x) for x in (old, new)))


def is_number(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.number)


def key_data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
