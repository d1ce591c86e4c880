"""Gradients so large that what an equation makes of them, such as a square, would be infinite."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradtx.lengths import clip_to_norm
from gradtx.norms import length
from gradtx.trees import compute_dtype, real_dtype


def bounded(x: jax.Array, what: str, kept: Iterable[DTypeLike] = ()) -> jax.Array:
    """A gradient of which something else is finite too, see `gradtx.kernel.Kernel.bounded`.

    In float32, the elements are at most 2^104 for sums, 2^63.9 for squares and 2^62 for squares of
    differences, and the norm is at most 2^62. Infinity and NaN stay what they are.

    Args:
        x: the gradient.
        what: what is to be finite.
        kept: the dtypes in which that is kept; those below 32 bits count as float32, because what
            they can hold depends on which average it is.
    """
    dtype = real_dtype(compute_dtype(x.dtype))
    ends = [jnp.finfo(compute_dtype(own)).maxexp for own in (dtype, *kept)]
    exponent = _EXPONENTS[what](int(min(ends)))
    if dtype.itemsize > jnp.finfo(x.dtype).dtype.itemsize:
        x = x.astype(dtype)
    if what == "norm":
        return clip_to_norm(x, length(x), 2.0**exponent)
    return limited(x, 2.0**exponent)


@functools.partial(jax.jit, static_argnums=1)
def bounded_each(gradients: list[jax.Array], what: str) -> list[jax.Array]:
    """`bounded` of several gradients."""
    return [bounded(g, what) for g in gradients]


# The largest exponents of two that leave room, from that where the numbers of a dtype end.
_EXPONENTS: dict[str, Callable[[int], float]] = {
    "sums": lambda end: end - 24,
    "squares": lambda end: end / 2 - 0.1,
    "differences": lambda end: end / 2 - 2,
    "norm": lambda end: end / 2 - 2,
}


def limited(x: jax.Array, limit: float) -> jax.Array:
    """X with finite elements of at most this size, which keep their direction."""
    if not jnp.iscomplexobj(x):
        low, high = (lax.full_like(x, bound) for bound in (-limit, limit))
        # XLA takes longer to compile a clamp.
        return lax.select(lax.is_finite(x), lax.max(lax.min(x, high), low), x)
    size = jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag))
    share = limit / jnp.maximum(size, limit)
    return lax.select(lax.is_finite(size), x * share.astype(x.dtype), x)
