"""One of two branches, with the types that a conditional needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.wrappers.branches import copied, either, zeros_like

UPDATES = {"w": jnp.ones(2, jnp.bfloat16), "steps": jnp.int32(3), "name": jnp.tanh, "none": None}
STATE = (jnp.zeros(2), jnp.int32(0))


def doubled():
    # In other dtypes than those of the updates and of the state.
    return {**UPDATES, "w": jnp.full(2, 2.0)}, (jnp.ones(2, jnp.bfloat16), jnp.int32(1))


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("condition", [True, False])
def test_each_branch_gives_the_same_types(condition, jitted):
    def of_arrays(condition):
        updates, state = either(
            "test", condition, doubled, lambda: (zeros_like(UPDATES), STATE), UPDATES, STATE
        )
        assert (updates["name"], updates["none"]) == (jnp.tanh, None)
        return updates["w"], updates["steps"], state

    function = jax.jit(of_arrays) if jitted else of_arrays
    w, steps, (vector, count) = function(jnp.array(condition))
    assert (w.dtype, vector.dtype, count.dtype) == (jnp.bfloat16, jnp.float32, jnp.int32)
    np.testing.assert_array_equal(w, jnp.full(2, 2.0 * condition, jnp.bfloat16))
    np.testing.assert_array_equal(vector, np.full(2, condition, np.float32))
    assert (int(count), int(steps)) == (condition, 3)


def test_updates_of_another_structure_are_refused():
    with pytest.raises(ValueError, match=r"test: .*the inner updates"):
        either("test", jnp.array(True), lambda: ({}, ()), lambda: (UPDATES, ()), UPDATES, ())


def test_a_copy_of_a_mere_shape_is_zero():
    shape = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
    np.testing.assert_array_equal(copied(shape), jnp.zeros(2, jnp.bfloat16), strict=True)
    np.testing.assert_array_equal(copied(shape, jnp.float32), np.zeros(2, np.float32), strict=True)
