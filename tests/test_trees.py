"""Trees that differ are described by the place where they differ."""

import jax
import jax.numpy as jnp
import pytest

from gradtx import trees

CONTAINERS = {
    "tuple": (
        {"a": [{"b": 1.0}, 2.0]},
        {"a": ({"b": 1.0}, 2.0)},
        "'a': list in params, tuple in u",
    ),
    "deep": ((1.0, [{"0": 1.0}]), (1.0, [[1.0]]), "'1/0': dict in params, list in u"),
    "root": ([1.0], (1.0,), "'': list in params, tuple in u"),
    "static": (
        {"a": jax.tree_util.Partial(jnp.sin, 1.0)},
        {"a": jax.tree_util.Partial(jnp.cos, 1.0)},
        "'a': Partial with other static parts in params",
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_differ_are_named(name):
    params, updates, place = CONTAINERS[name]
    with pytest.raises(ValueError, match="f: params and updates have the same paths") as error:
        trees.flatten_like("f", "updates", updates, "params", params)
    assert f"in different containers at {place}" in str(error.value)
