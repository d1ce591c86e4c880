"""Adam and its relatives."""

import jax.numpy as jnp

from .way import FALLING, RATE, Stored, falling, matrices_of, rising

WAYS = {
    "acprop": [RATE, {**RATE, "b1": 0.5, "b2": 0.8, "weight_decay": 0.1}, {**FALLING, "eps": 1e-3}],
    "adabelief": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "nesterov": True},
        {**FALLING, "eps_root": 1e-3},
    ],
    "adam": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "nesterov": True},
        {**FALLING, "eps": 0.1, "eps_root": 0.01},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "adamax": [RATE, {**RATE, "b1": 0.5, "b2": 0.8}, {**FALLING, "eps": 0.1}],
    "adamaxw": [RATE, {**RATE, "weight_decay": 0.1, "mask": matrices_of}, {**FALLING, "eps": 0.1}],
    "adamw": [
        RATE,
        {**RATE, "weight_decay": 0.1, "mask": matrices_of},
        {**FALLING, "weight_decay": falling, "nesterov": True},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "adan": [RATE, {**RATE, "b1": 0.5, "b2": 0.8, "b3": 0.6}, {**FALLING, "weight_decay": 0.1}],
    "ademamix": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "b3": 0.9, "alpha": 2.0, "weight_decay": 0.1},
        {**FALLING, "eps": 0.1, "eps_root": 0.01},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "adopt": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "use_clipping": False},
        {**FALLING, "b2": 0.9, "nesterov": True, "clip_value_fn": lambda t: t + 1.0},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "amsgrad": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "bias_correction_mu": False},
        {**FALLING, "eps_root": 0.01, "bias_correction_nu": False},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "lamb": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "weight_decay": 0.1},
        {**FALLING, "eps_root": 0.01},
    ],
    "madgrad": [RATE, {**RATE, "momentum": 0.0, "weight_decay": 0.1}, {**FALLING, "eps": 1e-3}],
    "nadam": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8},
        {**FALLING, "eps_root": 0.01},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "nadamw": [
        RATE,
        {**RATE, "b1": 0.5, "weight_decay": 0.1, "mask": matrices_of},
        {**FALLING, "eps": 0.1},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "novograd": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "weight_decay": 0.1},
        {**FALLING, "eps_root": 0.01},
    ],
    "optimistic_adam": [
        RATE,
        {**RATE, "optimism": 0.3, "b1": 0.5},
        {**RATE, "nesterov": False, "eps": 0.1},
    ],
    "optimistic_adam_v2": [
        RATE,
        {**RATE, "alpha": 0.5, "beta": 0.3, "nesterov": False},
        {**FALLING, "b1": 0.5, "b2": 0.8},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "radam": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "threshold": 4.5, "nesterov": True},
        {**FALLING, "eps_root": 0.01},
    ],
    "simplified_ademamix": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "alpha": 2.0, "weight_decay": 0.1},
        {**FALLING, "eps": 0.1, "eps_root": 0.01},
    ],
    "yogi": [RATE, {**RATE, "b1": 0.5, "b2": 0.8}, {**FALLING, "eps": 0.1}],
    "scale_by_acprop": [{}, {"b1": 0.5, "b2": 0.8}, {"eps": 1e-3, "eps_root": 1e-3}],
    "scale_by_adam": [
        {},
        {"b1": 0.5, "b2": 0.8, "nesterov": True},
        {"b1": 0.0, "eps": 0.1, "eps_root": 0.01},
        Stored({"mu_dtype": jnp.bfloat16}),
    ],
    "scale_by_adamax": [{}, {"b1": 0.5, "b2": 0.8}, {"eps": 0.1}],
    "scale_by_adan": [{}, {"b1": 0.5, "b2": 0.8, "b3": 0.6}, {"eps": 0.1, "eps_root": 0.01}],
    "scale_by_ademamix": [
        {},
        {"b1": 0.5, "b2": 0.8, "b3": 0.9, "alpha": 2.0},
        {"b3": rising, "alpha": rising},
        Stored({"mu_dtype": jnp.bfloat16}),
    ],
    "scale_by_adopt": [
        {},
        {"b1": 0.5, "b2": 0.8, "use_clipping": False},
        {"nesterov": True, "eps": 0.1},
        Stored({"mu_dtype": jnp.bfloat16}),
    ],
    "scale_by_amsgrad": [
        {},
        {"b1": 0.5, "b2": 0.8, "bias_correction_mu": False},
        {"bias_correction_nu": False},
        Stored({"mu_dtype": jnp.bfloat16}),
    ],
    "scale_by_belief": [{}, {"b1": 0.5, "b2": 0.8, "nesterov": True}, {"eps_root": 1e-3}],
    "scale_by_madgrad": [RATE, {**RATE, "momentum": 0.0}, {**RATE, "eps": 1e-2}],
    "scale_by_novograd": [
        {},
        {"b1": 0.5, "b2": 0.8, "weight_decay": 0.1},
        {"eps_root": 0.01},
        Stored({"mu_dtype": jnp.bfloat16}),
    ],
    "scale_by_radam": [{}, {"b1": 0.5, "b2": 0.8, "threshold": 4.5}, {"nesterov": True}],
    "scale_by_simplified_ademamix": [
        {},
        {"b1": 0.5, "b2": 0.8, "alpha": 2.0},
        {"eps": 0.1, "eps_root": 0.01},
    ],
    "scale_by_yogi": [{}, {"b1": 0.5, "b2": 0.8}, {"initial_accumulator_value": 0.1}],
}
