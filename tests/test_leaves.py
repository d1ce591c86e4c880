"""Trees aligned leaf by leaf, and equations on what takes part."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.leaves import Aligned, equation, map_leaves

PAIR = {
    "updates": {"a": jnp.ones(2), "b": None, "c": 3},
    "params": {"a": jnp.zeros(2), "b": [], "c": 4},
}


def test_a_function_is_mapped_over_the_leaves_that_take_part_and_the_others_stay():
    both = map_leaves(lambda u, p: (u + p, u - p), "owner", PAIR, rests=("updates", "params"))
    np.testing.assert_array_equal([tree.pop("a") for tree in both], jnp.ones((2, 2)))
    assert both == ({"b": None, "c": 3}, {"b": [], "c": 4})
    nothing_else = map_leaves(lambda u, p: u, "owner", PAIR, rests=None)
    assert (nothing_else["b"], nothing_else["c"]) == (None, None)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": jnp.zeros(2), "b": 0, "d": 0}, "owner: updates and params differ at 'c': .*no leaf"),
        (
            {"a": jnp.zeros(3), "b": 0, "c": 0},
            r"owner: shapes differ at 'a': updates has shape \(2,\), params has shape \(3,\)",
        ),
        ({"a": None, "b": 0, "c": 0}, r"owner: params has none at 'a'.* shape \(2,\)"),
    ],
)
def test_trees_that_do_not_agree_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        Aligned("owner", PAIR | {"params": params})


def test_an_equation_calculates_in_full_precision_and_is_stored_as_its_arrays_are():
    dtypes = []

    @equation(1, 0)
    def exchanged(x, y, *, factor):
        dtypes.append((x.dtype, y.dtype, factor.dtype))
        return factor * x, y

    small, large = exchanged(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float16), factor=2)
    assert dtypes == [(jnp.float32,) * 3]
    assert (small.dtype, large.dtype) == (jnp.float16, jnp.bfloat16)
    assert equation()(lambda x: x)(jnp.ones(1, jnp.float16)).dtype == jnp.float16
