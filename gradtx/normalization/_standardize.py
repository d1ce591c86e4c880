"""Functions of data and their measured statistics, with derivatives.

Statistics are functions of the data, and the rules here take that into account. They are written
in terms of the standardized values, which are of order one however large the data are, so that
no derivative overflows on the way to a result that is in range. All of them are exact and can be
differentiated again, to any order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gradtx.normalization._arguments import Scalar, statistics_dtype
from gradtx.normalization._measure import Measured, Over, measure


def standardize_over(x: jax.Array, epsilon: Scalar, over: Over) -> jax.Array:
    """`(x - mean) / sqrt(variance + epsilon)`, in the dtype of the computation."""
    values = x.astype(statistics_dtype(x.dtype))
    added = jnp.asarray(epsilon, values.dtype)
    measured = measure(values, None, added, over)
    return standardized(values, added, None, measured, over)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def standardized(
    values: jax.Array,
    epsilon: jax.Array,
    mask: jax.Array | None,
    measured: Measured,
    over: Over,
) -> tuple[jax.Array, jax.Array]:
    """`(values - mean) / sqrt(variance + epsilon)`, and `measured.inverse` as it changes with x."""
    del epsilon, mask
    return measured.deviations(values, over) * measured.factor, measured.inverse


@standardized.defjvp
def _standardized_jvp(over: Over, primals: tuple, tangents: tuple) -> tuple:
    """The changes of the two results, y and r.

    With u = `measured.own`, a constant, and since the mean of y is 0 for every x:

        t = u r dx,  s = sum(y t) / divisor + (u r)^2 depsilon / 2
        dr = -r s,  dy = t - mean(t) - y s
    """
    values, epsilon, mask, measured = primals
    change, epsilon_change = tangents[:2]
    own = measured.own
    y, inverse = standardized(values, epsilon, mask, measured, over)
    # Compiled programs take the inverse of the largest deviations for 0, this is in range; and they
    # would cancel a constant.
    raised = jnp.where(own < 1, own.dtype.type(4), own.dtype.type(1))
    steep = raised * own * inverse
    moved = change / raised * steep
    # About zero, y is a product of the values. If it is written in two ways, XLA computes it
    # again instead of keeping it in memory.
    again = y if over.centered else values * own * inverse
    half_of_epsilon = epsilon_change / (2 * raised * raised) * steep * steep
    shrinkage = -(over.total(again * moved, mask) / over.divisor(measured.count) + half_of_epsilon)
    if over.centered:
        y_change = moved - over.mean(moved, mask, measured.count) + y * shrinkage
    else:
        y_change = moved + values * own * (inverse * shrinkage)
    return (y, inverse), (y_change, inverse * shrinkage)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def mean_and_variance(
    values: jax.Array, mask: jax.Array | None, measured: Measured, over: Over
) -> tuple[jax.Array, jax.Array]:
    """The mean and the variance (with divisor count) without a unit, infinite where it overflows.

    The variance may be finite where the sum of squares is not.
    """
    del values, mask, over
    mean = (measured.shift + measured.correction) / measured.own
    variance = measured.squares / jnp.maximum(measured.count, 1)
    return mean, variance * measured.unit * measured.unit


@mean_and_variance.defjvp
def _mean_and_variance_jvp(over: Over, primals: tuple, tangents: tuple) -> tuple:
    """The change is centered too, which removes what rounding leaves of the mean in `x - mean`.

    Half of `x - mean` is finite for every finite x.
    """
    values, mask, measured = primals
    change = tangents[0]
    mean, variance = mean_and_variance(values, mask, measured, over)
    mean_change = over.mean(change, mask, measured.count)
    products = (values / 2 - mean / 2) * (4 * (change - mean_change))
    return (mean, variance), (mean_change, over.mean(products, mask, measured.count))
