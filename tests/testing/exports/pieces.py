"""Clipping, scaling, noise and weight decay."""

import jax

import gradtx

from .export import Export, halved

EXPORTS = {
    "adaptive_grad_clip": Export(lambda: gradtx.adaptive_grad_clip(0.1)),
    "add_decayed_weights": Export(lambda: gradtx.add_decayed_weights(0.1)),
    "add_decayed_weights-schedule": Export(lambda: gradtx.add_decayed_weights(halved)),
    "add_noise": Export(lambda: gradtx.add_noise(0.1, 0.55, jax.random.key(0))),
    "centralize": Export(gradtx.centralize),
    "centralize-torch": Export(lambda: gradtx.centralize(layout="torch")),
    "clip": Export(lambda: gradtx.clip(0.5)),
    "clip_by_block_rms": Export(lambda: gradtx.clip_by_block_rms(0.5)),
    "clip_by_global_norm": Export(lambda: gradtx.clip_by_global_norm(1.0)),
    "normalize_by_update_norm": Export(gradtx.normalize_by_update_norm),
    "scale": Export(lambda: gradtx.scale(-0.5)),
    "scale_by_learning_rate": Export(lambda: gradtx.scale_by_learning_rate(0.1)),
    "scale_by_schedule": Export(lambda: gradtx.scale_by_schedule(halved)),
    "zero_nans": Export(gradtx.zero_nans),
}
