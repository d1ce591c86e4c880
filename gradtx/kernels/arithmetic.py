"""The few formulas that the papers' equations share."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradtx import trees


def debias(average: jax.Array, decay: Any, t: jax.Array) -> jax.Array:
    """Divide an average that started at zero by the sum of its weights."""
    return average / sum_of_weights(decay, t)


def sum_of_weights(decay: Any, t: jax.Array) -> jax.Array:
    """1 - decay^t: the sum of the weights in an average that started at zero.

    It is formed without its cancellation, which for decay = 0.999 would cost the first steps four
    digits in float32.
    """
    return -jnp.expm1(t * log_decay(decay))


def log_decay(decay: Any) -> Any:
    """log(decay), in double precision for a Python number."""
    if isinstance(decay, float):
        return math.log(decay) if decay > 0 else -math.inf
    return jnp.log1p(decay - 1)


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divide, with 0 / 0 = 0 and a finite derivative there."""
    is_zero = (numerator == 0) & (denominator == 0)
    return numerator / jnp.where(is_zero, 1.0, denominator)


def root_mean_square(x: jax.Array, axis: int | None = None) -> jax.Array:
    """The root mean square of all elements, or along an axis; the axes are kept with length 1."""
    number = x.size if axis is None else x.shape[axis]
    return trees.norm(x, axis) / math.sqrt(max(number, 1))


def direction(g: jax.Array, norm: jax.Array) -> jax.Array:
    """Divide g by its norm; g itself where that is 0."""
    # XLA may multiply by the inverse of the norm, which must not be subnormal.
    unit = jnp.where(norm > 2.0 ** (jnp.finfo(norm.dtype).maxexp - 8), 2.0**-8, 1.0)
    return g * unit / jnp.where(norm == 0, 1.0, norm * unit)


def clip_factor(norm: jax.Array, max_norm: Any) -> jax.Array:
    """min(1, max_norm / norm), also where the norm is 0; NaN where it is NaN."""
    is_within = norm <= max_norm
    # The quotient that is not taken has a derivative too, which must not overflow.
    return jnp.where(is_within, 1.0, max_norm / jnp.where(is_within, 1.0, norm))


def clip_to_norm(g: jax.Array, norm: jax.Array, max_norm: Any) -> jax.Array:
    """Multiply g by min(1, max_norm / norm), also where that is too small for its dtype."""
    factor = clip_factor(norm, max_norm)
    # XLA takes subnormal numbers for zero; powers of two are exact.
    is_tiny = factor < 2.0 ** (jnp.finfo(factor.dtype).minexp + 1)
    down, up = jnp.where(is_tiny, 2.0**-32, 1.0), jnp.where(is_tiny, 2.0**32, 1.0)
    # The quotient that is not taken has a derivative too, which must not overflow.
    return g * down * jnp.where(is_tiny, max_norm * up / jnp.where(is_tiny, norm, 1.0), factor)
