"""Optimizers by name, hyperparameters in the state, and transformations that watch others."""

import jax.numpy as jnp

import gradtx

from .export import Export, groups, halved

EXPORTS = {
    "make": Export(lambda: gradtx.make("sgd", learning_rate=0.1)),
    "with_hyperparams": Export(
        lambda: gradtx.with_hyperparams(gradtx.adamw, learning_rate=halved, b2=0.99)
    ),
    "with_hyperparams-clip": Export(
        lambda: gradtx.with_hyperparams(gradtx.clip_by_global_norm, jnp.float32(1.0))
    ),
    "snapshot": Export(lambda: gradtx.snapshot("norm", gradtx.global_norm)),
    "monitor": Export(lambda: gradtx.monitor({"norm": gradtx.global_norm})),
    "measure_with_ema-in_a_monitor": Export(
        lambda: gradtx.monitor({"norm": gradtx.measure_with_ema(gradtx.global_norm, 0.9)}),
    ),
    "with_metrics": Export(
        lambda: gradtx.with_metrics(
            gradtx.partition({"matrices": gradtx.adam(halved), "others": gradtx.sgd(0.1)}, groups)
        )
    ),
}
