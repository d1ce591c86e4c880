"""The trees of the kit, and that the kit runs on all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.testing import (
    cast_parameters,
    check_transformation,
    clauses,
    gradients_like,
    hostile_parameters,
    hostile_trees,
)


def test_the_default_tree_has_every_shape_and_kind_of_container():
    leaves = jax.tree.leaves(hostile_parameters())
    assert {leaf.ndim for leaf in leaves} == {0, 1, 2}
    assert {str(leaf.dtype) for leaf in leaves} == {"float32", "bfloat16"}
    assert sorted(leaf.size for leaf in leaves)[0] == 0
    nodes = str(jax.tree.structure(hostile_parameters()))
    assert all(word in nodes for word in ("namedtuple", "[", "{"))


def test_gradients_are_seeded_and_differ():
    params = hostile_parameters()
    first, again, other = (gradients_like(params, seed) for seed in (1, 1, 2))
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.size == 0 or not np.array_equal(a, c)


def test_gradients_are_standard_normal():
    numbers = gradients_like({"w": jax.ShapeDtypeStruct((100_000,), jnp.float32)}, seed=3)["w"]
    assert abs(np.mean(numbers)) < 4 / np.sqrt(numbers.size)
    assert abs(np.var(numbers) - 1) < 4 * np.sqrt(2 / numbers.size)


def test_only_inexact_leaves_get_gradients():
    gradients = gradients_like(hostile_trees()["not_parameters"])
    assert gradients["steps"] is None
    assert gradients["is_training"] is None
    assert gradients["trained"].shape == (3,)


def test_casting_leaves_alone_what_is_not_real():
    tree = {"w": jnp.ones(2), "phase": jnp.ones(2, jnp.complex64), "steps": jnp.int32(3)}
    cast = cast_parameters(tree, jnp.float16)
    dtypes = {name: str(leaf.dtype) for name, leaf in cast.items()}
    assert dtypes == {"w": "float16", "phase": "complex64", "steps": "int32"}


@pytest.mark.parametrize("name", hostile_trees())
def test_the_kit_runs_on_odd_trees(name):
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(0.1, momentum=0.9))
    check_transformation(tx, hostile_trees()[name])


def test_unknown_clauses_are_refused():
    with pytest.raises(ValueError, match="skip has the unknown names"):
        check_transformation(gradtx.identity(), skip=["typ"])
    with pytest.raises(ValueError, match="clauses has the unknown names"):
        check_transformation(gradtx.identity(), clauses=["typ"])


def test_what_is_not_a_transformation_is_refused():
    with pytest.raises(ValueError, match="tx must be a gradient transformation"):
        check_transformation(gradtx.adam)


def test_clauses_have_the_names_of_their_functions():
    for name, clause in clauses().items():
        assert clause.__name__ == f"check_{name}"
        assert clause is getattr(gradtx.testing, clause.__name__)
