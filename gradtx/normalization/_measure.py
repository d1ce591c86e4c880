"""What is measured of data before they are normalized, for values of any size.

The squares of float32 numbers above 1e19 overflow and those of numbers below 1e-19 vanish,
although the result, a number divided by a deviation, is of ordinary size. Such data are therefore
measured in a unit: a power of two near the largest of them, so that dividing by it rounds nothing.

The mean of float32 data near 1e4 is itself only known to about 5e-4, and squares of `x - mean`
would carry that error. The data are therefore centered twice: on a first mean, which need only
be close, and then on the mean of what is left. This is the corrected two-pass
algorithm, with the correction applied to the deviations instead of to the sum of their squares.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True)
class Over:
    """Which values belong together, and how their variance is defined.

    Attributes:
        axes: the axes that sums run over; they stay in every result, with size 1.
        axis_name: mapped axes that sums run over as well, or None.
        centered: whether deviations are from the mean (True) or from zero.
        unbiased: whether the divisor of the variance is count - 1 instead of count.
    """

    axes: tuple[int, ...]
    axis_name: Hashable | None = None
    centered: bool = True
    unbiased: bool = False

    def total(self, terms: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The sum of all terms inside the mask."""
        counted = terms if mask is None else jnp.where(mask, terms, 0)
        local = jnp.sum(counted, self.axes, keepdims=True)
        return local if self.axis_name is None else lax.psum(local, self.axis_name)

    def largest(self, values: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The largest absolute value inside the mask; 0 if there is none."""
        sizes = jnp.abs(values if mask is None else jnp.where(mask, values, 0))
        local = jnp.max(sizes, self.axes, keepdims=True, initial=0)
        return local if self.axis_name is None else lax.pmax(local, self.axis_name)

    def count(self, like: jax.Array, values: jax.Array, mask: jax.Array | None) -> jax.Array:
        """How many values enter each sum, in the shape of `like`, without expanding the mask."""
        if mask is None:
            local = jnp.full_like(like, math.prod(values.shape[a] for a in self.axes))
        else:
            repeats = math.prod(values.shape[a] for a in self.axes if mask.shape[a] == 1)
            # Integers count exactly, where a float32 sum of ones would stop at 2^24.
            counted = jnp.sum(mask, self.axes, keepdims=True, dtype=jnp.int32)
            local = jnp.zeros_like(like) + counted.astype(like.dtype) * repeats
        return local if self.axis_name is None else lax.psum(local, self.axis_name)

    def mean(self, terms: jax.Array, mask: jax.Array | None, count: jax.Array) -> jax.Array:
        """The mean of all terms inside the mask, whose count is known."""
        return self.total(terms, mask) / jnp.maximum(count, 1)

    def divisor(self, count: jax.Array) -> jax.Array:
        """The divisor of a sum of squared deviations; never 0."""
        return jnp.maximum(count - 1 if self.unbiased else count, 1)


class Measured(NamedTuple):
    """Statistics, and what standardizes values: `((values * own - shift) - correction) * factor`.

    Attributes:
        count: how many values entered.
        unit: a power of two near the largest value; 1 where squares are in range.
        squares: the sum of squared deviations of the values divided by `unit`.
        own: 1 where variance + epsilon is in range without the unit, so that epsilon keeps its
            bits; elsewhere 1 / `unit`.
        shift: the mean of the values times `own`, rounded to one number.
        correction: the rest of that mean.
        inverse: 1 / sqrt(variance + epsilon) of the values times `own`.
        factor: the same; 0 where all values are equal and `deviations` are rounding errors.
    """

    count: jax.Array
    unit: jax.Array
    squares: jax.Array
    own: jax.Array
    shift: jax.Array
    correction: jax.Array
    inverse: jax.Array
    factor: jax.Array

    def deviations(self, values: jax.Array, over: Over) -> jax.Array:
        """What `factor` multiplies; more accurate than subtracting the mean."""
        scaled = values * self.own
        return (scaled - self.shift) - self.correction if over.centered else scaled


def measure(values: jax.Array, mask: jax.Array | None, epsilon: jax.Array, over: Over) -> Measured:
    """Measure values of at least 32 bits. Derivatives stop here; `_standardize` defines them."""
    return _measure(lax.stop_gradient(values), mask, lax.stop_gradient(epsilon), over)


@functools.partial(jax.jit, static_argnames="over")
def _measure(values: jax.Array, mask: jax.Array | None, epsilon: jax.Array, over: Over) -> Measured:
    """A CPU measures without a unit first, which suffices for data of ordinary size.

    An accelerator would have to wait to learn whether it does, and finds the largest value in a
    pass over memory that it makes anyway, so it always uses a unit.
    """

    def always() -> Measured:
        unit = power_of_two(over.largest(values, mask))
        return _by_unit(_sums(values * (1 / unit), mask, over), unit, epsilon, over)

    def as_needed() -> Measured:
        count, shift, correction, squares = sums = _sums(values, mask, over)
        inverse = lax.rsqrt(squares / over.divisor(count) + epsilon)
        one = jnp.ones_like(count)
        plain = Measured(count, one, squares, one, shift, correction, inverse, inverse)
        return lax.cond(_anywhere(jnp.any(_needs_unit(sums, epsilon))), always, lambda: plain)

    return lax.platform_dependent(cpu=as_needed, default=always)


def _sums(values: jax.Array, mask: jax.Array | None, over: Over) -> tuple[jax.Array, ...]:
    """The count, shift, correction and squares of `Measured`, of values in their own unit."""
    if not over.centered:
        squares = over.total(jnp.square(values), mask)
        zero = jnp.zeros_like(squares)
        return over.count(squares, values, mask), zero, zero, squares
    first = over.total(values, mask)
    count = over.count(first, values, mask)
    shift = first / jnp.maximum(count, 1)
    deviations = values - shift
    correction = over.mean(deviations, mask, count)
    return count, shift, correction, over.total(jnp.square(deviations - correction), mask)


def _by_unit(
    sums: tuple[jax.Array, ...], unit: jax.Array, epsilon: jax.Array, over: Over
) -> Measured:
    count, shift, correction, squares = sums
    are_equal = _are_equal(shift, squares)
    squares = jnp.where(are_equal, 0, squares)
    variance = squares / over.divisor(count)
    # Products, because XLA merges two divisions into one, by a square that may overflow.
    original = variance * unit * unit + epsilon
    fits = (original > _least(unit)) & (original < 1 / _least(unit))
    back, own = jnp.where(fits, unit, 1), jnp.where(fits, 1, 1 / unit)
    inverse = lax.rsqrt(variance * back * back + epsilon * own * own)
    factor = jnp.where(are_equal, 0, inverse)
    return Measured(count, unit, squares, own, shift * back, correction * back, inverse, factor)


def _needs_unit(sums: tuple[jax.Array, ...], epsilon: jax.Array) -> jax.Array:
    """Whether squares overflowed, or lost significant digits to underflow or rounding.

    If all of them underflowed, the variance is below the range of the dtype, and 0 will do unless
    something is divided by it.
    """
    count, shift, _, squares = sums
    variance = squares / jnp.maximum(count, 1)
    is_large_enough = (variance > _least(count)) & ~_are_equal(shift, squares)
    is_harmless = (squares == 0) & (epsilon > _least(count))
    ordinary = 2.0 ** (jnp.finfo(count.dtype).maxexp * 9 // 16)
    return ~((is_large_enough | is_harmless) & (variance < ordinary))


def _are_equal(shift: jax.Array, squares: jax.Array) -> jax.Array:
    """Whether deviations are too small for numbers that differ, and so are rounding errors."""
    return squares < jnp.square(shift * (jnp.finfo(shift.dtype).eps / 16))


def _least(like: jax.Array) -> float:
    """The smallest variance down to which sums of squares are accurate."""
    return 2.0 ** -(jnp.finfo(like.dtype).maxexp * 25 // 32)


def power_of_two(largest: jax.Array) -> jax.Array:
    """A power of two near the largest value, whose inverse and sums stay in range."""
    info = jnp.finfo(largest.dtype)
    held = jnp.clip(largest, _least(largest), 2.0 ** (info.maxexp - 2))
    return lax.reduce_precision(held, exponent_bits=info.nexp, mantissa_bits=0)


@jax.custom_batching.custom_vmap
def _anywhere(flag: jax.Array) -> jax.Array:
    """The flag; under `vmap`, whether it holds anywhere, so that a condition stays a condition."""
    return flag


@_anywhere.def_vmap
def _anywhere_in_a_batch(
    _size: int, _is_batched: list[bool], flags: jax.Array
) -> tuple[jax.Array, bool]:
    return _anywhere(jnp.any(flags, 0)), False
