"""Names of leaves, and what is in the boxes of flax."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from gradtx import boxes


class Gain(NamedTuple):
    value: float


class Pair(NamedTuple):
    value: float | None
    other: float | dict | None


def test_boxes_have_no_part_in_names():
    tree = {
        "param": nnx.Param(jnp.ones(2)),
        "partitioned": nn.Partitioned(jnp.ones(2), names=("data",)),
        "array": jnp.ones(2),
    }
    assert boxes.names(tree) == ["array", "param", "partitioned"]
    assert jax.tree.structure(boxes.opened(tree)) == jax.tree.structure(dict.fromkeys(tree, 1.0))


def test_a_value_beside_others_keeps_its_name():
    for other in (1.0, {"deep": 1.0}):
        assert boxes.names([Pair(1.0, other)])[0] == "0/value"
    # None holds the place of an array that another tree has there.
    assert boxes.names([Pair(1.0, None), Pair(None, 1.0)]) == ["0/value", "1/other"]
    assert boxes.names({"value": {"value": 1.0}}) == ["value/value"]


def test_only_boxes_of_flax_are_opened():
    tree = [Gain(1.0), Gain(2.0)]
    assert boxes.names(tree) == ["0/value", "1/value"]
    assert boxes.opened(tree) == tree


def test_variables_of_users_are_boxes_and_may_be_empty_or_hold_trees():
    class Mine(nnx.Param):
        pass

    assert boxes.names({"a": Mine(jnp.ones(2)), "b": nnx.Param(None)}) == ["a"]
    assert boxes.names({"c": Mine({"d": jnp.ones(2)})}) == ["c/value/d"]
    assert boxes.map_named(lambda name, _: name, {"a": Mine(jnp.ones(2))})["a"].get_value() == "a"


def test_a_map_over_names_leaves_none_where_it_is():
    assert boxes.map_named(lambda name, leaf: name, {"a": [1.0, None]}) == {"a": ["a/0", None]}
