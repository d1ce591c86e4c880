"""Functions that make no transformation: what they return, from arguments of several kinds."""

from typing import Any

import jax
import jax.numpy as jnp

import gradtx

TREE = {"a": jnp.array([[3.0, -4.0], [0.5, 2.0]]), "b": jnp.float32(-0.25)}
OTHER = {"a": jnp.array([[0.1, 0.2], [-0.3, 7.0]]), "b": jnp.float32(1.5)}
NARROW, NARROW_OTHER = (
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for tree in (TREE, OTHER)
)
WITH_NONE = {**TREE, "b": None}
HUGE = jax.tree.map(lambda x: 1e30 * x, TREE)
WITH_NAN = {**TREE, "b": jnp.float32(jnp.nan)}
ZERO = jax.tree.map(jnp.zeros_like, TREE)
EXAMPLES = [jnp.arange(12.0).reshape(3, 2, 2) - 5, jnp.array([0.1, -2.0, 0.0])]
STATE = gradtx.ScheduleFreeState(
    b1=jnp.float32(0.9),
    weight_sum=jnp.float32(2.0),
    step_count=jnp.int32(3),
    max_lr=jnp.float32(0.1),
    base_optimizer_state=gradtx.EmptyState(),
    z=OTHER,
)

CALLS: dict[str, list[Any]] = {
    "apply_updates": [
        lambda lib: lib.apply_updates(TREE, OTHER),
        lambda lib: lib.apply_updates(NARROW, OTHER),
        lambda lib: lib.apply_updates(TREE, {**OTHER, "b": None}),
        lambda lib: lib.apply_updates(WITH_NONE, OTHER),
        lambda lib: lib.apply_updates({"n": jnp.arange(3)}, {"n": jnp.array([2, -1, 0])}),
    ],
    "global_norm": [
        lambda lib: lib.global_norm(TREE),
        lambda lib: lib.global_norm({"a": None, "b": (jnp.arange(3), 2.0)}),
        lambda lib: lib.global_norm(HUGE),
    ],
    "safe_norm": [
        lambda lib: lib.safe_norm(TREE["a"], 0.5),
        lambda lib: lib.safe_norm(NARROW["a"], 1.0, 2, 0),
        lambda lib: lib.safe_norm(TREE["a"], 5.0, axis=1, keepdims=True),
        lambda lib: lib.safe_norm(HUGE["a"], 0.5),
    ],
    "safe_root_mean_squares": [
        lambda lib: lib.safe_root_mean_squares(TREE["a"], 0.5),
        lambda lib: lib.safe_root_mean_squares(NARROW["a"], 50.0),
        lambda lib: lib.safe_root_mean_squares(HUGE["a"], 0.5),
    ],
    "incremental_update": [
        lambda lib: lib.incremental_update(TREE, OTHER, 0.1),
        lambda lib: lib.incremental_update(NARROW, NARROW_OTHER, 1.0),
        lambda lib: lib.incremental_update(WITH_NONE, {**OTHER, "b": None}, jnp.float32(0.5)),
        lambda lib: lib.incremental_update({"n": jnp.arange(3)}, {"n": jnp.ones(3, int)}, 0.5),
    ],
    "periodic_update": [
        lambda lib: lib.periodic_update(TREE, OTHER, jnp.int32(4), 2),
        lambda lib: lib.periodic_update(TREE, OTHER, jnp.int32(5), 2),
        lambda lib: lib.periodic_update(TREE, OTHER, jnp.int32(0), 1),
    ],
    "per_example_global_norm_clip": [
        lambda lib: lib.per_example_global_norm_clip(EXAMPLES, 1.0),
        lambda lib: lib.per_example_global_norm_clip(EXAMPLES, 1e3),
        lambda lib: lib.per_example_global_norm_clip(EXAMPLES, 0.0),
    ],
    "per_example_layer_norm_clip": [
        lambda lib: lib.per_example_layer_norm_clip(EXAMPLES, 1.0),
        lambda lib: lib.per_example_layer_norm_clip(EXAMPLES, 3.0, uniform=False),
        lambda lib: lib.per_example_layer_norm_clip(EXAMPLES, 1e3),
    ],
    "schedule_free_eval_params": [
        lambda lib: lib.schedule_free_eval_params(STATE, TREE),
        lambda lib: lib.schedule_free_eval_params(STATE._replace(b1=jnp.float32(0.5)), TREE),
    ],
    "skip_large_updates": [
        lambda lib: lib.skip_large_updates(TREE, jnp.int32(1), None, max_squared_norm=1.0),
        lambda lib: lib.skip_large_updates(TREE, jnp.int32(1), None, max_squared_norm=1e3),
        lambda lib: lib.skip_large_updates(WITH_NAN, jnp.int32(1), None, max_squared_norm=1e3),
    ],
    "skip_not_finite": [
        lambda lib: lib.skip_not_finite(TREE, jnp.int32(1), None),
        lambda lib: lib.skip_not_finite(WITH_NAN, jnp.int32(1), None),
        lambda lib: lib.skip_not_finite({"a": jnp.array([jnp.inf, jnp.inf])}, jnp.int32(1), None),
    ],
    "unitwise_clip": [
        lambda lib: lib.unitwise_clip(TREE["a"], OTHER["a"], TREE["a"]),
        lambda lib: lib.unitwise_clip(TREE["a"], OTHER["a"], OTHER["a"], div_eps=0.1),
    ],
    "unitwise_norm": [
        lambda lib: lib.unitwise_norm(TREE["a"]),
        lambda lib: lib.unitwise_norm(EXAMPLES[0]),
        lambda lib: lib.unitwise_norm(EXAMPLES[0], axis=(0, 2)),
    ],
}
