"""The few formulas that the papers' equations share."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradtx import norms
from gradtx.lengths import Length


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


def finite_sum(total: jax.Array, change: jax.Array) -> jax.Array:
    """The sum of two numbers >= 0, but the largest number where it would be infinite."""
    return jnp.minimum(total + change, jnp.finfo(total.dtype).max)


def quotient(numerator: jax.Array, denominator: jax.Array, at_zero: Any = 0.0) -> jax.Array:
    """Divide, with the value `at_zero` and a finite derivative where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, at_zero, numerator / jnp.where(is_zero, 1.0, denominator))


def root_mean_square(x: jax.Array) -> Length:
    """The root mean square of all elements; the axes are kept with length 1."""
    return norms.length(x).times(1 / math.sqrt(max(x.size, 1)))
