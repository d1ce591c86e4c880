"""Adam and its variants."""

import jax.numpy as jnp

import gradtx

from .export import Export, halved, matrices

EXPORTS = {
    "adabelief": Export(lambda: gradtx.adabelief(0.1)),
    "adam": Export(lambda: gradtx.adam(0.1)),
    "adam-nesterov": Export(lambda: gradtx.adam(0.1, nesterov=True)),
    "adam-schedules": Export(lambda: gradtx.adam(halved, b2=lambda count: 1 - 0.1 / (1 + count))),
    "adam-arrays": Export(lambda: gradtx.adam(jnp.float32(0.1), b1=jnp.float32(0.9))),
    "adam-bfloat16": Export(lambda: gradtx.adam(0.1, mu_dtype=jnp.bfloat16)),
    "adamax": Export(lambda: gradtx.adamax(0.1)),
    "adamaxw": Export(lambda: gradtx.adamaxw(0.1)),
    "adamw": Export(lambda: gradtx.adamw(0.1)),
    "adamw-mask": Export(lambda: gradtx.adamw(0.1, mask=matrices)),
    "amsgrad": Export(lambda: gradtx.amsgrad(0.1)),
    "nadam": Export(lambda: gradtx.nadam(0.1)),
    "nadamw": Export(lambda: gradtx.nadamw(0.1)),
    "radam": Export(lambda: gradtx.radam(0.1)),
    "scale_by_adam": Export(gradtx.scale_by_adam),
    "scale_by_adamax": Export(gradtx.scale_by_adamax),
    "scale_by_amsgrad": Export(gradtx.scale_by_amsgrad),
    "scale_by_belief": Export(gradtx.scale_by_belief),
    "scale_by_radam": Export(gradtx.scale_by_radam),
    "scale_by_yogi": Export(gradtx.scale_by_yogi),
    "yogi": Export(lambda: gradtx.yogi(0.1)),
}
