"""Step lengths that follow the size of each leaf, and constraints on steps."""

import jax

import gradtx

from .export import Export, halved, matrices

EXPORTS = {
    "apply_every": Export(lambda: gradtx.apply_every(2)),
    "fromage": Export(lambda: gradtx.fromage(0.1)),
    "keep_params_nonnegative": Export(gradtx.keep_params_nonnegative),
    "lamb": Export(lambda: gradtx.lamb(0.1, weight_decay=0.1)),
    "lars": Export(lambda: gradtx.lars(0.1, weight_decay=halved, weight_decay_mask=matrices)),
    "noisy_sgd": Export(lambda: gradtx.noisy_sgd(0.1, key=jax.random.key(0))),
    "normalize": Export(gradtx.normalize),
    "novograd": Export(lambda: gradtx.novograd(0.1)),
    "scale_by_novograd": Export(lambda: gradtx.scale_by_novograd(weight_decay=0.1)),
    "scale_by_param_block_norm": Export(gradtx.scale_by_param_block_norm),
    "scale_by_param_block_rms": Export(gradtx.scale_by_param_block_rms),
    "scale_by_trust_ratio": Export(gradtx.scale_by_trust_ratio),
}
