"""Wrappers and compositions."""

import jax.numpy as jnp
import optax

from .way import (
    FALLING,
    RATE,
    SHAPES,
    On,
    Stored,
    falling,
    labels_of,
    matrices_of,
    mean_size,
    rising,
)

WAYS = {
    "apply_if_finite": [
        lambda lib: {"inner": lib.sgd(0.1, momentum=0.9), "max_consecutive_errors": 2},
        lambda lib: {"inner": lib.sgd(0.1, momentum=0.9), "max_consecutive_errors": 0},
        lambda lib: {"inner": lib.sgd(falling), "max_consecutive_errors": 5},
    ],
    "chain": [
        lambda lib: [lib.sgd(0.1, momentum=0.9)],
        lambda lib: [lib.clip_by_global_norm(1.0), lib.adamw(falling)],
        lambda lib: [lib.trace(0.9), lib.chain(lib.scale(2.0), lib.identity())],
    ],
    "conditionally_mask": [
        lambda lib: {"inner": lib.adam(0.1), "should_transform_fn": lambda step: step > 1},
        lambda lib: {"inner": lib.scale(2.0), "should_transform_fn": lambda step: step < 2},
        lambda lib: {
            "inner": lib.sgd(falling),
            "should_transform_fn": lambda step, value, **extra: value > 0.5,
            "forward_extra_args": True,
        },
    ],
    "conditionally_transform": [
        lambda lib: {"inner": lib.adam(0.1), "should_transform_fn": lambda step: step > 1},
        lambda lib: {"inner": lib.scale(2.0), "should_transform_fn": lambda step: step < 2},
        lambda lib: {
            "inner": lib.sgd(falling),
            "should_transform_fn": lambda step, value, **extra: value > 0.5,
            "forward_extra_args": True,
        },
    ],
    "flatten": [
        lambda lib: {"inner": lib.sgd(0.1, momentum=0.9)},
        lambda lib: {"inner": lib.sgd(falling, momentum=0.9)},
        lambda lib: {"inner": lib.adamw(0.1, weight_decay=0.1)},
    ],
    "freeze": [{"mask": matrices_of}, {"mask": True}, {"mask": False}],
    "inject_hyperparams": [
        lambda lib: ([lib.adam], RATE),
        lambda lib: ([lib.adamw], {**FALLING, "b1": 0.5, "mask": matrices_of}),
        lambda lib: ([lib.clip_by_global_norm], {"max_norm": 0.5}),
    ],
    "inject_stateful_hyperparams": [
        lambda lib: ([lib.adam], RATE),
        lambda lib: ([lib.sgd], {**FALLING, "momentum": 0.9}),
        lambda lib: ([lib.lion], {**RATE, "b1": rising, "mask": matrices_of}),
    ],
    "lookahead": [
        lambda lib: {"fast_optimizer": lib.sgd(0.1), "sync_period": 2, "slow_step_size": 0.5},
        lambda lib: {
            "fast_optimizer": lib.adam(0.1),
            "sync_period": 3,
            "slow_step_size": 0.1,
            "reset_state": True,
        },
        lambda lib: {"fast_optimizer": lib.adam(falling), "sync_period": 1, "slow_step_size": 1.0},
    ],
    "masked": [
        lambda lib: {"inner": lib.sgd(0.1, momentum=0.9), "mask": matrices_of},
        lambda lib: {"inner": lib.sgd(falling), "mask": {"matrix": True, "rest": False}},
        lambda lib: {"inner": lib.adam(0.1), "mask": False},
    ],
    "monitor": [
        {"measures": {"size": mean_size}},
        lambda lib: {"measures": {"norm": lib.global_norm, "size": mean_size}},
        lambda lib: {"measures": {"norm": lib.measure_with_ema(mean_size, 0.9)}},
    ],
    "multi_transform": [
        lambda lib: {
            "transforms": {"a": lib.sgd(0.1, momentum=0.9), "b": lib.sgd(0.1)},
            "param_labels": labels_of,
        },
        lambda lib: {
            "transforms": {"a": lib.set_to_zero(), "b": lib.sgd(falling)},
            "param_labels": labels_of,
        },
        lambda lib: {"transforms": {"a": lib.adam(0.1)}, "param_labels": "a"},
    ],
    "MultiSteps": [
        lambda lib: {"opt": lib.adam(0.1), "every_k_schedule": 2},
        lambda lib: {"opt": lib.sgd(falling), "every_k_schedule": 3, "use_grad_mean": False},
        lambda lib: {
            "opt": lib.sgd(0.1, momentum=0.9),
            "every_k_schedule": lambda step: jnp.where(step < 1, 1, 2),
            "should_skip_update_fn": lib.skip_not_finite,
        },
        Stored(
            lambda lib: {
                "opt": lib.sgd(0.1),
                "every_k_schedule": 2,
                "accumulator_dtype": jnp.bfloat16,
            }
        ),
        On(
            SHAPES,
            lambda lib: {"opt": lib.sgd(0.1), "every_k_schedule": 2},
            dtype=jnp.complex64,
        ),
    ],
    "named_chain": [
        lambda lib: [("one", lib.sgd(0.1, momentum=0.9))],
        lambda lib: [("clip", lib.clip(0.5)), ("adam", lib.adamw(falling))],
        lambda lib: [("z", lib.trace(0.9)), ("a", lib.scale(-0.1))],
    ],
    "partition": [
        lambda lib: {
            "transforms": {"a": lib.sgd(0.1, momentum=0.9), "b": lib.sgd(0.1)},
            "param_labels": labels_of,
        },
        lambda lib: {
            "transforms": {"a": lib.set_to_zero(), "b": lib.sgd(falling)},
            "param_labels": labels_of,
        },
        lambda lib: {"transforms": {"a": lib.adam(0.1)}, "param_labels": "a"},
    ],
    "reduce_on_plateau": [
        {},
        {"factor": 0.5, "patience": 1, "atol": 0.3, "rtol": 0.0},
        {"patience": 1, "cooldown": 1, "accumulation_size": 2, "min_scale": 0.05},
        {"patience": 1, "rtol": 0.5},
    ],
    "sam": [
        lambda lib: {
            "optimizer": lib.sgd(0.1),
            "adv_optimizer": lib.sgd(0.05),
        },
        lambda lib: {
            "optimizer": lib.adam(0.1),
            "adv_optimizer": lib.sgd(0.05, momentum=0.9),
            "sync_period": 3,
            "reset_state": False,
        },
        lambda lib: {
            "optimizer": lib.adam(falling),
            "adv_optimizer": lib.chain(lib.normalize(), lib.sgd(0.05)),
            "opaque_mode": True,
        },
        lambda lib: {
            "optimizer": lib.sgd(0.1),
            "adv_optimizer": lib.sgd(0.05),
            "sync_period": 1,
        },
    ],
    "selective_transform": [
        lambda lib: {"optimizer": lib.adam(0.1), "freeze_mask": {"matrix": True, "rest": False}},
        lambda lib: {"optimizer": lib.sgd(falling), "freeze_mask": False},
        lambda lib: {"optimizer": lib.sgd(0.1), "freeze_mask": True},
        lambda lib: {"optimizer": lib.adam(0.1), "freeze_mask": matrices_of},
    ],
    "snapshot": [
        {"measure_name": "size", "measure": mean_size},
        lambda lib: {"measure_name": "norm", "measure": lib.global_norm},
        {"measure_name": "all", "measure": lambda updates: (updates["matrix"], updates["rest"])},
    ],
    "split_real_and_imaginary": [
        lambda lib: {"inner": lib.sgd(0.1, momentum=0.9)},
        lambda lib: {"inner": lib.sgd(falling)},
    ],
    "with_extra_args_support": [
        lambda lib: {"tx": lib.sgd(0.1, momentum=0.9)},
        lambda lib: {"tx": optax.GradientTransformation(*lib.sgd(falling))},
    ],
}
