"""Methods that find their own step size, and private ones."""

import jax
import jax.numpy as jnp

from .way import FALLING, RATE, SHAPES, On, Stored, falling, rising

WAYS = {
    "cocob": [{}, {"alpha": 2.0, "eps": 0.1}, {"learning_rate": falling, "weight_decay": 0.1}],
    "dadapt_adamw": [
        {},
        {"learning_rate": 0.1, "betas": (0.5, 0.8), "estim_lr0": 1e-2},
        {"learning_rate": falling, "weight_decay": 0.1, "eps": 1e-3, "estim_lr0": 1e-2},
    ],
    "dog": [
        {},
        {"init_step": ("distance", 0.1), "weight_decay": 0.1},
        {"learning_rate": 0.5, "init_step": ("learning_rate", 0.1), "eps": 0.1},
        On(SHAPES, {"init_step": ("learning_rate", 0.1)}, scales=(0.0, 1.0, 1.0, 1.0, 1.0)),
    ],
    "dowg": [{}, {"init_estim_sq_dist": 0.1, "weight_decay": 0.1}, {**FALLING, "eps": 0.1}],
    "momo": [
        {},
        {"learning_rate": 0.1, "beta": 0.5, "lower_bound": 0.2, "weight_decay": 0.1},
        {"learning_rate": falling, "adapt_lower_bound": True},
        On(SHAPES, {}, scales=(1e-9,) * 5),
    ],
    "momo_adam": [
        {},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.8, "lower_bound": 0.2, "weight_decay": 0.1},
        {"learning_rate": falling, "adapt_lower_bound": True, "eps": 0.1},
    ],
    "polyak_sgd": [
        {},
        {"max_learning_rate": 0.1, "f_min": 0.3, "eps": 0.1},
        {"scaling": 0.5, "variant": "sps+", "f_min": 0.5},
    ],
    "prodigy": [
        {},
        {
            "learning_rate": 0.5,
            "betas": (0.5, 0.8),
            "beta3": 0.9,
            "estim_lr0": 1e-2,
            "estim_lr_coef": 2.0,
        },
        {
            "learning_rate": falling,
            "weight_decay": 0.1,
            "safeguard_warmup": True,
            "eps": 1e-3,
            "estim_lr0": 1e-2,
        },
    ],
    "mechanize": [
        lambda lib: {"base_optimizer": lib.sgd(0.1)},
        lambda lib: {"base_optimizer": lib.adam(0.1), "weight_decay": 0.0, "s_init": 1e-3},
        lambda lib: {"base_optimizer": lib.sgd(falling), "num_betas": 3, "s_init": 0.1},
    ],
    "schedule_free": [
        lambda lib: {"base_optimizer": lib.sgd(0.1), "learning_rate": 0.1},
        lambda lib: {
            "base_optimizer": lib.adam(0.1, b1=0.0),
            "learning_rate": 0.1,
            "b1": 0.5,
            "weight_lr_power": 0.0,
        },
        lambda lib: {"base_optimizer": lib.sgd(rising), "learning_rate": rising},
    ],
    "schedule_free_adamw": [
        {},
        {"learning_rate": 0.1, "warmup_steps": 3, "weight_decay": 0.1},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.8, "weight_lr_power": 1.0},
    ],
    "schedule_free_sgd": [
        {},
        {"learning_rate": 0.1, "warmup_steps": 3, "weight_decay": 0.1},
        {"learning_rate": 0.1, "b1": 0.5, "weight_lr_power": 1.0},
        Stored({"state_dtype": jnp.bfloat16}),
    ],
    "scale_by_cocob": [{}, {"alpha": 2.0}, {"eps": 0.1}],
    "scale_by_distance_over_gradients": [
        {},
        {"reps_rel": 0.1, "eps": 0.1},
        {"global_scale": -0.1},
        Stored({"param_dtype": jnp.bfloat16}),
    ],
    "scale_by_polyak": [
        {},
        {"max_learning_rate": 0.1, "f_min": 0.3, "eps": 0.1},
        {"variant": "sps+", "f_min": 0.5},
        On(SHAPES, {}, scales=(1e-9,) * 5),
    ],
    "differentially_private_aggregate": [
        {"l2_norm_clip": 1.0, "noise_multiplier": 0.1, "key": 0},
        {"l2_norm_clip": 0.5, "noise_multiplier": 0.0, "key": 3},
        {"l2_norm_clip": 1e3, "noise_multiplier": 1.0, "key": jax.random.key(1)},
    ],
    "dpsgd": [
        {**RATE, "l2_norm_clip": 1.0, "noise_multiplier": 0.1, "seed": 0},
        {**RATE, "l2_norm_clip": 0.5, "noise_multiplier": 0.0, "seed": 3, "momentum": 0.9},
        {
            **FALLING,
            "l2_norm_clip": 9.0,
            "noise_multiplier": 1.0,
            "seed": 1,
            "momentum": 0.5,
            "nesterov": True,
        },
    ],
}
