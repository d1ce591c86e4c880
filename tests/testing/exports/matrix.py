"""Optimizers that see the matrices in the parameters."""

import jax.numpy as jnp

import gradtx

from .export import Export, halved, matrices

MATRICES = {
    "kernel": jnp.eye(8, 3),
    "layers": [jnp.ones((2, 3, 3), jnp.bfloat16), jnp.ones((0, 2))],
}
# Eigenvectors and inverse roots of a matrix of full rank are well defined; those of a rounding
# error are not.
FULL_RANK = {
    "kernel": jnp.eye(2),
    "layers": [jnp.ones(8), jnp.bfloat16(2)],
    "empty": jnp.ones((0, 2)),
}

EXPORTS = {
    "graft": Export(lambda: gradtx.graft(gradtx.trace(0.9), gradtx.scale_by_adam())),
    "muon": Export(
        lambda: gradtx.muon(halved, ns_steps=2, weight_decay=0.1, weight_decay_mask=matrices)
    ),
    "normuon": Export(lambda: gradtx.normuon(0.1, ns_steps=2, consistent_rms=None)),
    "scale_by_muon": Export(lambda: gradtx.scale_by_muon(ns_steps=2), params=MATRICES),
    "scale_by_normuon": Export(lambda: gradtx.scale_by_normuon(ns_steps=2), params=MATRICES),
    "scale_by_shampoo": Export(gradtx.scale_by_shampoo, params=FULL_RANK),
    "scale_by_shampoo-no_average": Export(
        lambda: gradtx.scale_by_shampoo(None, 0.9), params=FULL_RANK
    ),
    "scale_by_soap": Export(gradtx.scale_by_soap, params=FULL_RANK),
    "shampoo": Export(
        lambda: gradtx.shampoo(0.1, grafting=gradtx.scale_by_rss()), params=FULL_RANK
    ),
    "soap": Export(lambda: gradtx.soap(0.1), params=FULL_RANK),
}
