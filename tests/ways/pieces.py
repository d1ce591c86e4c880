"""Pieces of a chain."""

import jax
import jax.numpy as jnp

from .way import FALLING, NO_SCALAR, RATE, On, Stored, falling, matrices_of

WAYS = {
    "adaptive_grad_clip": [
        {"clipping": 0.1},
        {"clipping": 0.5, "eps": 0.1},
        On(NO_SCALAR, {"clipping": 0.1, "axis": -1}),
    ],
    "add_decayed_weights": [
        {},
        {"weight_decay": 0.1, "mask": matrices_of},
        {"weight_decay": falling},
    ],
    "add_noise": [
        {"eta": 0.1, "gamma": 0.5, "key": 0},
        {"eta": 0.0, "gamma": 0.0, "key": 3},
        {"eta": 2.0, "gamma": 0.1, "key": jax.random.key(1)},
    ],
    "centralize": [{}],
    "clip": [{"max_delta": 0.5}, {"max_delta": 0.0}, {"max_delta": 1e30}],
    "clip_by_block_rms": [{"threshold": 0.5}, {"threshold": 1e-20}, {"threshold": 1e30}],
    "clip_by_global_norm": [{"max_norm": 1.0}, {"max_norm": 0.0}, {"max_norm": 1e30}],
    "ema": [
        {"decay": 0.9},
        {"decay": 0.5, "debias": False},
        {"decay": 0.99},
        Stored({"decay": 0.9, "accumulator_dtype": jnp.bfloat16}),
    ],
    "identity": [{}],
    "keep_params_nonnegative": [{}],
    "normalize": [{}],
    "normalize_by_update_norm": [{}, {"scale_factor": 3.0}, {"eps": 0.5}],
    "scale": [{"step_size": -0.1}, {"step_size": 0.0}, {"step_size": 1e20}],
    "scale_by_learning_rate": [RATE, FALLING, {**RATE, "flip_sign": False}],
    "scale_by_param_block_norm": [{}, {"min_scale": 1.0}, {"min_scale": 0.0}],
    "scale_by_param_block_rms": [{}, {"min_scale": 1.0}, {"min_scale": 0.0}],
    "scale_by_schedule": [{"step_size_fn": falling}, {"step_size_fn": lambda count: -count}],
    "scale_by_trust_ratio": [
        {},
        {"min_norm": 1.0, "trust_coefficient": 0.1},
        {"eps": 0.1},
    ],
    "set_to_zero": [{}],
    "stateless": [
        {"f": lambda updates, params: jax.tree.map(lambda g: 2 * g, updates)},
        {"f": lambda updates, params: params},
    ],
    "stateless_with_tree_map": [{"f": lambda g, p: g + p}, {"f": lambda g, p: 2 * g}],
    "trace": [
        {"decay": 0.9},
        {"decay": 0.5, "nesterov": True},
        {"decay": 0.0},
        Stored({"decay": 0.9, "accumulator_dtype": jnp.bfloat16}),
    ],
    "zero_nans": [{}],
    "apply_every": [{}, {"k": 2}, {"k": 3}],
}
