"""Each mistake is found by one clause and no other, and its message says what is wrong."""

import jax
import jax.numpy as jnp
import pytest

from gradtx.testing import ConformanceError, check_transformation, clauses, gradients_like

from . import (
    broken_declared,
    broken_effects,
    broken_inputs,
    broken_keys,
    broken_late,
    broken_order,
)
from .broken import GOOD
from .test_clauses import BROKEN as BREAKING_SEVERAL

BROKEN = {
    name: one
    for module in (
        broken_declared,
        broken_effects,
        broken_inputs,
        broken_keys,
        broken_late,
        broken_order,
    )
    for name, one in module.BROKEN.items()
}


# Two shapes and two dtypes, because the tests spend their time compiling.
SMALL = gradients_like(
    {
        "bias": jax.ShapeDtypeStruct((3,), jnp.float32),
        "kernel": jax.ShapeDtypeStruct((8, 3), jnp.float32),
        "scale": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    }
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_found_by_one_clause(name):
    broken = BROKEN[name]
    with pytest.raises(ConformanceError) as caught:
        check_transformation(broken.make(), SMALL)
    assert list(caught.value.causes) == [broken.clause], str(caught.value)
    assert broken.says in caught.value.failures[broken.clause]


@pytest.mark.parametrize("tx", [GOOD, broken_keys.GOOD, broken_keys.COUNTED])
def test_the_good_ones_break_nothing(tx):
    check_transformation(tx, SMALL)


def test_every_clause_is_broken_by_something():
    several = {name for broken in BREAKING_SEVERAL.values() for name in broken.clauses}
    assert several | {broken.clause for broken in BROKEN.values()} == set(clauses())
