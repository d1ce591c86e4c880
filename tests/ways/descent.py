"""Descent, adaptive and preconditioned."""

import jax
import jax.numpy as jnp

import gradtx

from .way import FALLING, MATRICES, NO_SCALAR, RATE, On, Stored, matrices_of

WAYS = {
    "adadelta": [RATE, {}, {**FALLING, "rho": 0.5, "eps": 1e-2, "weight_decay": 0.1}],
    "adafactor": [
        RATE,
        {"min_dim_size_to_factor": 2, "momentum": 0.9, "weight_decay_rate": 0.1},
        {
            **FALLING,
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
            "decay_rate": 0.5,
            "decay_offset": 3,
            "eps": 1e-3,
        },
        Stored({"momentum": 0.9, "dtype_momentum": jnp.bfloat16}),
    ],
    "adagrad": [RATE, {**RATE, "initial_accumulator_value": 0.0}, {**FALLING, "eps": 0.1}],
    "fromage": [RATE, {**RATE, "min_norm": 1.0}, FALLING],
    "galore": [
        {**RATE, "rank": 2},
        {**RATE, "rank": 2, "update_proj_gap": 2, "scale": 0.5, "weight_decay": 0.1},
        lambda lib: {**FALLING, "rank": 2, "base_optimizer": lib.trace(0.9)},
    ],
    "lars": [
        RATE,
        {**RATE, "weight_decay": 0.1, "trust_coefficient": 0.1, "weight_decay_mask": matrices_of},
        {**FALLING, "trust_ratio_mask": matrices_of, "momentum": 0.5, "nesterov": True, "eps": 0.1},
    ],
    "lion": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8},
        {**FALLING, "weight_decay": 0.1, "mask": matrices_of},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "muon": [
        RATE,
        {**RATE, "beta": 0.5, "weight_decay": 0.1, "nesterov": False, "consistent_rms": 0.2},
        {**FALLING, "adaptive": True, "ns_steps": 3, "adam_learning_rate": 0.01},
        Stored({**RATE, "mu_dtype": jnp.bfloat16}),
    ],
    "noisy_sgd": [
        {**RATE, "key": 0},
        {**RATE, "eta": 0.0, "gamma": 0.0, "key": 3},
        {**FALLING, "eta": 2.0, "gamma": 0.1, "key": jax.random.key(1)},
    ],
    "optimistic_gradient_descent": [RATE, {**RATE, "alpha": 0.5, "beta": 0.3}, FALLING],
    "rmsprop": [
        RATE,
        {**RATE, "centered": True, "momentum": 0.9, "nesterov": True},
        {**FALLING, "eps_in_sqrt": False, "initial_scale": 1.0, "bias_correction": True},
    ],
    "rprop": [RATE, {**RATE, "eta_minus": 0.1, "eta_plus": 3.0}, {**RATE, "max_step_size": 0.11}],
    "sgd": [
        RATE,
        {**RATE, "momentum": 0.9, "nesterov": True},
        {**FALLING, "momentum": 0.5},
        Stored({**RATE, "momentum": 0.9, "accumulator_dtype": jnp.bfloat16}),
    ],
    "sign_sgd": [RATE, FALLING],
    "signum": [
        RATE,
        {**RATE, "beta": 0.5},
        FALLING,
        Stored({**RATE, "accumulator_dtype": jnp.bfloat16}),
    ],
    "sm3": [RATE, On(NO_SCALAR, {**RATE, "momentum": 0.5}), On(NO_SCALAR, {"learning_rate": 3.0})],
    "sophia": [
        RATE,
        {**RATE, "b1": 0.5, "b2": 0.8, "update_interval": 2, "weight_decay": 0.1},
        {**FALLING, "gamma": 1.0, "clip_threshold": 0.5, "update_interval": 1},
    ],
    "hutchinson_estimator_diag_hessian": [
        {"random_seed": jax.random.key(0)},
        {"random_seed": jax.random.key(3)},
    ],
    "scale_by_adadelta": [{}, {"rho": 0.5}, {"eps": 0.1}],
    "scale_by_factored_rms": [
        {},
        {"min_dim_size_to_factor": 2, "decay_rate": 0.5},
        {"factored": False, "step_offset": 3, "epsilon": 1e-3},
    ],
    "scale_by_galore": [
        {"rank": 2},
        lambda lib: {"rank": 1, "update_proj_gap": 2, "base_optimizer": lib.trace(0.9)},
        {"rank": 99, "scale": 0.5},
    ],
    "scale_by_lion": [
        {},
        {"b1": 0.5, "mode": "smooth", "smooth_beta": 3.0},
        {"mode": "refined"},
        Stored({"mu_dtype": jnp.bfloat16}),
    ],
    "scale_by_muon": [
        On(MATRICES, {}),
        On(MATRICES, {"beta": 0.5, "nesterov": False, "ns_steps": 3}),
        On(MATRICES, {"adaptive": True, "preconditioning": "schatten"}),
        Stored(
            On(
                MATRICES,
                {
                    "mu_dtype": jnp.bfloat16,
                    "weight_dimension_numbers": lambda params: jax.tree.map(
                        lambda _: gradtx.MuonDimensionNumbers(), params
                    ),
                },
            )
        ),
    ],
    "scale_by_optimistic_gradient": [{}, {"alpha": 0.5, "beta": 0.3}, {"beta": 0.0}],
    "scale_by_rms": [
        {},
        {"decay": 0.5, "eps_in_sqrt": False, "initial_scale": 1.0},
        {"bias_correction": True, "eps": 0.1},
    ],
    "scale_by_rprop": [
        RATE,
        {**RATE, "eta_minus": 0.1, "eta_plus": 3.0},
        {**RATE, "max_step_size": 0.11},
    ],
    "scale_by_rss": [{}, {"initial_accumulator_value": 0.0}, {"eps": 0.1}],
    "scale_by_sign": [{}],
    "scale_by_sm3": [{}, On(NO_SCALAR, {"b1": 0.5, "b2": 0.8}), On(NO_SCALAR, {"eps": 0.1})],
    "scale_by_stddev": [
        {},
        {"decay": 0.5, "eps_in_sqrt": False, "initial_scale": 1.0},
        {"bias_correction": True, "eps": 0.1},
    ],
}
