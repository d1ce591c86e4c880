"""Wrappers for parameters in half precision."""

import jax.numpy as jnp

import gradtx

from .export import Export

NARROW = {
    "weight": jnp.linspace(-2, 2, 12, dtype=jnp.bfloat16).reshape(4, 3),
    "bias": jnp.linspace(0.5, 1, 3, dtype=jnp.float16),
    "scale": jnp.float32(1.5),
}
# States and steps of other kinds than those of AdamW, around which all wrappers go too: slots in
# other shapes than their parameters, and steps that look at whole matrices.
INSIDE = {
    "adafactor": lambda: gradtx.adafactor(0.1, min_dim_size_to_factor=2),
    "muon": lambda: gradtx.muon(0.1),
}
WRAPPERS = {
    "with_kahan_sum": gradtx.with_kahan_sum,
    "with_master_weights": gradtx.with_master_weights,
    "with_stochastic_rounding": lambda tx: gradtx.with_stochastic_rounding(tx, 0),
}


def quantized(tx):
    # All of the kit's parameters are small.
    return gradtx.quantize_state(tx, min_size=1)


EXPORTS = {
    "cast_state": Export(lambda: gradtx.cast_state(gradtx.adamw(0.1))),
    "cast_state-nearest": Export(lambda: gradtx.cast_state(gradtx.adamw(0.1), stochastic=False)),
    **{
        f"cast_state-around_{inner}": Export(lambda make=make: gradtx.cast_state(make()))
        for inner, make in INSIDE.items()
    },
    "quantize_state": Export(lambda: quantized(gradtx.adamw(0.1))),
    **{
        f"quantize_state-around_{inner}": Export(lambda make=make: quantized(make()))
        for inner, make in INSIDE.items()
    },
    **{
        name: Export(
            lambda wrapper=wrapper: wrapper(gradtx.adamw(0.1)),
            params=NARROW,
            begins_with_values=name == "with_master_weights",
        )
        for name, wrapper in WRAPPERS.items()
    },
    **{
        f"{name}-around_{inner}": Export(
            lambda wrapper=wrapper, make=make: wrapper(make()),
        )
        for name, wrapper in WRAPPERS.items()
        for inner, make in INSIDE.items()
    },
}
