"""Slots in half precision are judged by their dtype, and nothing else is."""

import jax
import jax.numpy as jnp
import optax
import pytest

from gradtx.testing import ConformanceError, check_transformation

from .broken import is_traced

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 8)}
AS_ALWAYS = ["jit", "vmap", "scan"]


def momentum(traced_factor, *, reads_the_slot=True):
    """Momentum in bfloat16 with updates that are off by a factor if they are traced."""

    def update(updates, state, params=None):
        wide = jax.tree.map(lambda m, g: 0.9 * m.astype(g.dtype) + g, state, updates)
        factor = jnp.float32(traced_factor if is_traced(updates) else 1.0)
        source = wide if reads_the_slot else updates
        return jax.tree.map(lambda m: m * factor, source), jax.tree.map(
            lambda m: m.astype(jnp.bfloat16), wide
        )

    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params), update
    )


@pytest.mark.parametrize("traced_factor", [1.0, 1 + 2**-8])
def test_a_rounding_of_a_narrow_slot_is_no_difference(traced_factor):
    check_transformation(momentum(traced_factor), PARAMS, clauses=AS_ALWAYS)


@pytest.mark.parametrize("arguments", [{"traced_factor": 1.05}, {"traced_factor": -1.0}])
def test_more_than_a_rounding_is_a_difference(arguments):
    with pytest.raises(ConformanceError, match="expected the result of compiled step 1 to be"):
        check_transformation(momentum(**arguments), PARAMS, clauses=AS_ALWAYS)


def test_what_does_not_depend_on_a_narrow_slot_is_judged_as_always():
    tx = momentum(1 + 2**-8, reads_the_slot=False)
    with pytest.raises(ConformanceError, match="expected the result of compiled step 1 to be"):
        check_transformation(tx, PARAMS, clauses=AS_ALWAYS)
