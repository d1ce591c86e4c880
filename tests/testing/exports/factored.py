"""Factored second moments."""

import jax.numpy as jnp

import gradtx

from .export import Export, halved, matrices

EXPORTS = {
    "adafactor": Export(
        lambda: gradtx.adafactor(
            halved,
            min_dim_size_to_factor=2,
            momentum=0.9,
            dtype_momentum=jnp.bfloat16,
            weight_decay_rate=0.1,
            weight_decay_mask=matrices,
        )
    ),
    "adafactor-unclipped": Export(
        lambda: gradtx.adafactor(
            multiply_by_parameter_scale=False, clipping_threshold=None, factored=False
        )
    ),
    "scale_by_factored_rms": Export(lambda: gradtx.scale_by_factored_rms(min_dim_size_to_factor=1)),
    "scale_by_factored_rms-no_epsilon": Export(
        lambda: gradtx.scale_by_factored_rms(min_dim_size_to_factor=0, epsilon=0.0)
    ),
    "scale_by_sm3": Export(gradtx.scale_by_sm3),
    "scale_by_sm3-average": Export(lambda: gradtx.scale_by_sm3(b2=0.9, eps=0.0)),
    "sm3": Export(lambda: gradtx.sm3(halved)),
}
