"""The few formulas that the papers' equations share."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradtx import norms
from gradtx.norms import direction as direction


def debias(average: jax.Array, decay: Any, t: jax.Array) -> jax.Array:
    """Divide an average that started at zero by the sum of its weights."""
    return average / sum_of_weights(decay, t)


def sum_of_weights(decay: Any, t: jax.Array) -> jax.Array:
    """1 - decay^t: the sum of the weights in an average that started at zero.

    It is computed without cancellation, which for decay = 0.999 would cost the first steps four
    digits in float32.
    """
    exponent = lax.mul(t, jnp.asarray(log_decay(decay), t.dtype))
    return lax.neg(lax.expm1(exponent))


def bias_correction(decay: Any, t: jax.Array) -> jax.Array:
    """1 / (1 - decay^t); as a factor of the kernel it is calculated once for all leaves."""
    return 1.0 / sum_of_weights(decay, t)


def bias_corrections(*, t: jax.Array, b1: Any, b2: Any) -> dict[str, jax.Array]:
    """The bias corrections of a first and a second moment, calculated once for all leaves."""
    return {"correction1": bias_correction(b1, t), "correction2": bias_correction(b2, t)}


def log_decay(decay: Any) -> Any:
    """log(decay), in double precision for a Python number."""
    if isinstance(decay, float):
        return math.log(decay) if decay > 0 else -math.inf
    return jnp.log1p(decay - 1)


def safe_divide(numerator: jax.Array, denominator: jax.Array, at_least: Any = 0.0) -> jax.Array:
    """Divide, with 0 / 0 = 0 and a finite derivative there.

    Args:
        numerator: an array.
        denominator: an array of its dtype.
        at_least: a lower bound of the denominator; if it is a number above zero, nothing has to be
            tested.
    """
    if isinstance(at_least, float) and at_least >= jnp.finfo(denominator.dtype).tiny:
        return numerator / denominator
    is_zero = (numerator == 0) & (denominator == 0)
    return numerator / jnp.where(is_zero, 1.0, denominator)


def quotient(numerator: jax.Array, denominator: jax.Array, at_zero: Any = 0.0) -> jax.Array:
    """Divide, with the value `at_zero` and a finite derivative where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, at_zero, numerator / jnp.where(is_zero, 1.0, denominator))


def root_mean_square(x: jax.Array) -> jax.Array:
    """The root mean square of all elements; the axes are kept with length 1."""
    return norms.norm(x) / math.sqrt(max(x.size, 1))


def clip_factor(norm: jax.Array, max_norm: Any, room: Any = 1.0) -> jax.Array:
    """min(1, max_norm / norm) times a factor, also where the norm is 0; NaN where it is NaN."""
    one = lax.full_like(norm, 1.0)
    limit = jnp.broadcast_to(jnp.asarray(max_norm, norm.dtype), norm.shape)
    is_within = lax.le(norm, limit)
    # The quotient that is not selected has a derivative too, which must not overflow.
    return lax.select(is_within, one, limit) * room / lax.select(is_within, one, norm)


def clip_room(max_norm: Any) -> Any:
    """The power of two to multiply a `clip_factor` with, so that it is not subnormal.

    XLA flushes subnormal numbers to zero. max_norm times the room is at least 8, which max_norm /
    norm is divided by at the largest norm, and at most 16, so that squares do not overflow. Of a
    Python number the room is one too.
    """
    if isinstance(max_norm, float):
        exponent = math.frexp(max_norm)[1]
        return 1.0 if max_norm >= 8 else 2.0 ** min(max(4 - exponent, 0), _MOST)
    exponent = jnp.clip(4 - jnp.frexp(max_norm)[1], 0, _MOST)
    room = jnp.ldexp(jnp.ones_like(max_norm), exponent)
    return jnp.where(max_norm >= 8, jnp.ones_like(room), room)


_MOST = 102


def clip_to_norm(g: jax.Array, norm: jax.Array, max_norm: Any) -> jax.Array:
    """Multiply g by min(1, max_norm / norm), even where that is too small for its dtype."""
    room = clip_room(max_norm)
    return g * clip_factor(norm, max_norm, room) / room
