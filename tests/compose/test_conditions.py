"""Transformations that act only at some steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

PARAMS = {"w": jnp.array([1.0, -2.0])}


@pytest.mark.parametrize(
    ("wrapper", "idle", "state_type"),
    [
        (gradtx.conditionally_transform, 1.0, optax.transforms.ConditionallyTransformState),
        (gradtx.conditionally_mask, 0.0, optax.transforms.ConditionallyMaskState),
    ],
    ids=["transform", "mask"],
)
def test_inner_transformation_runs_in_its_steps_only(wrapper, idle, state_type):
    tx = wrapper(gradtx.ema(0.5, debias=False), lambda step: step % 2 == 1)
    state = tx.init(PARAMS)
    assert isinstance(state, state_type)
    seen = []
    update = jax.jit(tx.update)
    for _ in range(4):
        # The condition does not see what else is given.
        updates, state = update(PARAMS, state, value=1.0)
        seen.append(float(updates["w"][0]))
    np.testing.assert_allclose(seen, [idle, 0.5, idle, 0.75])
    assert state.step == 4
    assert state.inner_state.count == 2


def test_condition_may_depend_on_extra_arguments():
    def lossy(step, *, value, **extra):
        return value > 1.0

    tx = gradtx.conditionally_mask(gradtx.scale(2.0), lossy, forward_extra_args=True)
    state = tx.init(PARAMS)
    for value, expected in ((2.0, 2.0), (0.5, 0.0)):
        updates, state = tx.update(PARAMS, state, value=value)
        assert float(updates["w"][0]) == expected


def test_a_state_of_something_else_is_refused():
    tx = gradtx.conditionally_mask(gradtx.scale(2.0), lambda step: step > 0)
    with pytest.raises(ValueError, match=r"conditionally_mask: expected a state .*'inner_state'"):
        tx.update(PARAMS, optax.EmptyState())


def test_state_dtypes_survive_half_precision():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    tx = gradtx.conditionally_transform(gradtx.adam(0.1), lambda step: step > 0)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        assert updates["w"].dtype == jnp.bfloat16
    assert state.inner_state[0].nu["w"].dtype == jnp.float32
