"""Stochastic rounding, and random bits that cost little more than writing them.

A rounding that is right on average needs random bits for each element, but none that withstand
a statistician: a hash of the element's number, under a key that changes with step and leaf, is
enough, and much faster than the generators of `jax.random`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WIDE = (jnp.float32, jnp.float64)
_NARROW = (
    jnp.float32,
    jnp.float16,
    jnp.bfloat16,
    jnp.float8_e3m4,
    jnp.float8_e4m3,
    jnp.float8_e4m3fn,
    jnp.float8_e5m2,
)


def random_bits(
    key: jax.Array | np.ndarray,
    step: Any,
    leaf_number: Any,
    shape: Sequence[int],
    *,
    out_sharding: Any = None,
) -> jax.Array:
    """Random bits for each element of an array, from a hash of its place.

        bits_i = hash(a * i + b),    i the number of the element, a odd

    a and b are hashes of key, step and leaf. The bits depend on nothing else; in particular not on
    how the array is laid out on devices.

    Args:
        key: a PRNG key, typed or as raw data.
        step: the number of the step, an integer scalar.
        leaf_number: the number of the leaf in its tree, an integer scalar.
        shape: the shape of the array.
        out_sharding: the sharding of the result where mesh axes are explicit; None: each device
            has all of it.

    Returns:
        An array of uint32, each uniform over all 2^32 values.

    Source:
        Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", for a Weyl
        sequence through a finalizer; Wellons 2018, "Prospecting for hash functions", for the
        finalizer.
    """
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = [*(jax.random.key_data(key) if is_typed else key), step, leaf_number]
    factor, offset = _hash_of(words, 1) | np.uint32(1), _hash_of(words, 2)
    axes = range(len(shape))
    place = [lax.broadcasted_iota(np.uint32, shape, i, out_sharding=out_sharding) for i in axes]
    # 32 bits can number the elements of the last axes; the axes before them number groups of these.
    split = sum(math.prod(shape[axis:]) > 2**32 for axis in axes)
    if split:
        offset = _hashed(offset ^ _number(place[:split], shape[:split]))
    return _hashed(_number(place[split:], shape[split:]) * factor + offset)


def _number(place: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
    """The number of each element in the order of the axes, from its index on each of them."""
    strides = [np.uint32(math.prod(shape[axis + 1 :]) % 2**32) for axis in range(len(shape))]
    return functools.reduce(operator.add, map(operator.mul, place, strides), jnp.uint32(0))


def _hash_of(words: Sequence[Any], start: int) -> jax.Array:
    """The hash of several words; those with different starts are independent."""
    return functools.reduce(
        lambda hash_, word: _hashed(hash_ ^ jnp.asarray(word).astype(np.uint32)),
        words,
        _hashed(jnp.uint32(start)),
    )


def _hashed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97)
    return x ^ (x >> np.uint32(15))


def round_stochastically(x: jax.Array, dtype: Any, bits: jax.Array) -> jax.Array:
    """Round to a narrower dtype, up or down at random, so that the mean of the result is x.

        P(up) = (x - down) / (up - down),    down <= x <= up the neighbours in the narrower dtype

    Args:
        x: an array of float32 or float64.
        dtype: the narrower dtype: float32, float16, bfloat16, or a float8 with a mantissa and a
            negative zero. To any other, and from any other, it is rounded to nearest.
        bits: random bits, uint32, of the shape of `x`; P is rounded down to a multiple of 2^-32.
            The largest bits round up.

    Returns:
        The rounded array. What is exact in the narrower dtype, infinite or NaN is what a cast makes
        of it. A finite number stays finite: beyond the largest one it becomes that.

    Source:
        Croci et al. 2022, "Stochastic rounding: implementation, error analysis and applications",
        mode 1.
    """
    dtype = jnp.dtype(dtype)
    if x.dtype not in _WIDE or dtype not in _NARROW or dtype == x.dtype:
        return x.astype(dtype)
    wide, narrow = jnp.finfo(x.dtype), jnp.finfo(dtype)
    word, narrow_word = (np.dtype(f"uint{info.bits}") for info in (wide, narrow))

    def number(value: int) -> Any:
        return np.asarray(value, word)

    bits = bits.astype(word)
    pattern = lax.bitcast_convert_type(x, word)
    sign, magnitude = pattern >> number(wide.bits - 1), pattern & number(2 ** (wide.bits - 1) - 1)
    # Adding random bits to those that are cut off carries into the others as often as it should.
    cut = wide.nmant - narrow.nmant
    lower = number((narrow.minexp - wide.minexp) << wide.nmant)
    added = bits >> number(32 - cut) if cut <= 32 else bits << number(cut - 32)
    rounded = (magnitude - lower + added) >> number(cut)
    if narrow.minexp > wide.minexp:
        # Below the smallest normal number the neighbours keep their distance.
        steps = jnp.abs(x) * np.asarray(2.0 ** (narrow.nmant - narrow.minexp), x.dtype)
        down = jnp.floor(steps)
        chance = ((steps - down) * np.asarray(2.0**32, x.dtype)).astype(word)
        is_normal = magnitude >= lower + number(1 << wide.nmant)
        is_up = number(2**32 - 1) - bits < chance
        rounded = jnp.where(is_normal, rounded, down.astype(word) + is_up.astype(word))
    largest = np.asarray(narrow.max, dtype).view(narrow_word).astype(word)
    result = jnp.minimum(rounded, largest) | (sign << number(narrow.bits - 1))
    result = lax.bitcast_convert_type(result.astype(narrow_word), dtype)
    return jnp.where(jnp.isfinite(x), result, x.astype(dtype))
