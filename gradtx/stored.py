"""From the dtype that is calculated in to the one that is stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

# Where XLA rounds whenever a program says so. Elsewhere it may leave out a cast to a narrow dtype
# and back, as it takes the additional digits for a gain: a compiled run of several steps would then
# differ from the same steps one by one.
_PLATFORMS_THAT_ROUND = ("cpu",)


def to_store(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """An array in the dtype to store it in, rounded to it also where XLA would leave that out."""
    dtype = jnp.dtype(dtype)
    is_rounded = jax.default_backend() in _PLATFORMS_THAT_ROUND or x.dtype == dtype
    if not is_rounded and all(jnp.issubdtype(own, jnp.floating) for own in (x.dtype, dtype)):
        x = rounded(x, dtype) if dtype.itemsize < min(x.dtype.itemsize, 4) else x
    return x.astype(dtype)


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The nearest numbers of a narrower dtype, ties to even, as if it had no largest number.

    Args:
        x: an array of at least 32 bits.
        dtype: the dtype whose precision is meant.

    Returns:
        An array of the dtype of `x`.
    """
    info, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    result = lax.reduce_precision(x, own.nexp, info.nmant)
    if info.minexp > own.minexp:
        # Below the smallest normal number the neighbours keep their distance.
        scale = np.asarray(2.0 ** (info.nmant - info.minexp), x.dtype)
        steps = lax.round(x * scale, lax.RoundingMethod.TO_NEAREST_EVEN)
        smallest = np.asarray(2.0**info.minexp, x.dtype)
        result = jnp.where(jnp.abs(x) < smallest, steps / scale, result)
    return result
