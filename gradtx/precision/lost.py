"""How many updates of narrow parameters leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradtx.precision.narrow import WIDE, nearest


def share_lost(parameters: Sequence[jax.Array], updates: Sequence[jax.Array]) -> jax.Array:
    """The share of elements whose update is lost when it is added.

        sum_i [u_i != 0 and round(p_i + u_i) = p_i] / sum_i [u_i != 0]

    Args:
        parameters: narrow arrays.
        updates: one for each of them, of its shape.

    Returns:
        A number in [0, 1], float32; 0 if no update moves anything.
    """
    counts = [_counts(*pair) for pair in zip(parameters, updates, strict=True)]
    lost, all_ = jnp.sum(jnp.stack([jnp.zeros(2, WIDE), *counts]), axis=0)
    return lost / jnp.maximum(all_, 1)


@jax.jit
def _counts(parameter: jax.Array, update: jax.Array) -> jax.Array:
    p = parameter.astype(WIDE)
    acts = update != 0
    stays = nearest(p + update.astype(WIDE), parameter.dtype) == p
    return jnp.stack([_number(acts & stays), _number(acts)])


def _number(flags: jax.Array) -> jax.Array:
    # One by one, float32 counts to 2^24 only, and 32 bits to 2^31.
    rows = jnp.sum(jnp.atleast_1d(flags), axis=-1, dtype=jnp.int32)
    return jnp.sum(rows.astype(WIDE))
