"""Arrays kept in 8 bits per element, with a scale for each block of them.

Each element is a code for its size in relation to the largest of its block. The levels lie close
together near zero, as the numbers of a gradient do, and a code is never further from its number
than a few per cent:

    signed        x = scale * sign(c) * (|c| / 127)^4,    c = -127 ... 127
    non-negative  x = scale * (c / 255)^8,                c = 0 ... 255

A fourth power covers 28 octaves with steps of 3% at the top and 30% at a ten-thousandth of it;
squares of such numbers need twice the octaves, and so the eighth power. A root law with 127 levels
is better by a third where all elements of a block are alike, and many times worse where some are a
hundred times smaller than others.

Codes are rounded up or down at random, so that they are right on average. A moving average moves by
a small part of a step between levels: to nearest, it would stand still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.explicit import laid_out_as
from gradtx.precision.blocks import (
    in_blocks,
    out_of_blocks,
    placed_as,
    placed_beside,
    scales_shape,
    with_whole_blocks,
)
from gradtx.precision.narrow import is_narrow
from gradtx.precision.rounding import random_bits

SIGNED, NON_NEGATIVE = "signed", "non_negative"
# The integers that hold the codes tell the law.
_CODES = {SIGNED: jnp.dtype(jnp.int8), NON_NEGATIVE: jnp.dtype(jnp.uint8)}


class _Coded(trees.Stored):
    """What both forms of an array in blocks can do."""

    __slots__ = ()
    codes: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array."""
        return self.scales.dtype

    @property
    def rows_shape(self) -> tuple[int, int] | None:
        """The number of blocks and the length of each; None if the last ones are shorter."""
        size, number = math.prod(self.shape), math.prod(self.scales.shape)
        return None if not size or size % number else (number, size // number)

    def decoded(self) -> jax.Array:
        """The array."""
        return _decoded(self.codes, self.scales)

    def rows(self) -> tuple[jax.Array, ...]:
        """The codes with a block in each row, and the scales."""
        number = math.prod(self.scales.shape)
        return self.codes.reshape(number, -1), self.scales.reshape(number, 1)

    def with_rows(self, arrays: tuple[jax.Array, ...]) -> Quantized:
        """An array with these codes and scales."""
        codes, scales = arrays
        return Quantized(codes.reshape(self.shape), scales.reshape(self.scales.shape))


class _Arrays(NamedTuple):
    codes: jax.Array
    scales: jax.Array


class Quantized(_Arrays, _Coded):
    """An array in 8 bits per element.

    Attributes:
        codes: one for each element, in the shape of the array: int8 under the signed law, uint8
            under the non-negative one.
        scales: the largest absolute value of each block, in the dtype of the array. The blocks are
            equal parts of the last axes: of shape [*codes.shape[:k], number of parts].
    """

    __slots__ = ()

    def encoded(self, array: jax.Array) -> Quantized:
        """Another array in the same form, its codes rounded to nearest."""
        new = _encoded(array, self.codes.dtype, self.scales.shape, self.dtype)
        return Quantized(*map(placed_as, new, self))


class _SeededArrays(NamedTuple):
    codes: jax.Array
    scales: jax.Array
    seed: jax.Array


class Seeded(_SeededArrays, _Coded):
    """A `Quantized` during a step, with what the rounding of its new codes depends on.

    Attributes:
        codes: those of `Quantized`.
        scales: those of `Quantized`.
        seed: the numbers of the step, of the array and of the part of it, uint32.
    """

    __slots__ = ()
    is_open = True

    @property
    def unchanged(self) -> Quantized:
        """The array without the seed, if there was no step."""
        return Quantized(self.codes, self.scales)

    def part(self, arrays: tuple[jax.Array, ...], number: jax.Array) -> Seeded:
        """An array of some of the blocks, whose rounding is its own."""
        codes, scales = arrays
        return Seeded(codes, scales, self.seed.at[2].set(number.astype(jnp.uint32) + 1))

    def encoded(self, array: jax.Array) -> Quantized:
        """Another array in the same form, its codes rounded at random."""
        new = _encoded(array, self.codes.dtype, self.scales.shape, self.dtype, self.seed)
        return Quantized(*map(placed_as, new, self[:2]))


def quantized(array: jax.Array, law: str, block_size: int) -> Quantized:
    """An array in 8 bits, its codes rounded to nearest.

    Args:
        array: of a floating dtype.
        law: `SIGNED` or `NON_NEGATIVE`.
        block_size: how many elements share a scale, at most.

    Returns:
        The codes, which lie as the array does, and the scales.
    """
    shape = scales_shape(array.shape, block_size)
    stored = _encoded(array, _CODES[law], shape, array.dtype)
    return Quantized(*placed_beside(*stored, array))


def in_full(state: Any) -> Any:
    """A state with arrays in full, also one that was restored without its classes."""

    def is_restored(node: Any) -> bool:
        if not isinstance(node, Mapping):
            return False
        # A parameter may be called "values", but its moments are not narrow.
        is_cast = {*node} == {"values"} and is_narrow(node["values"])
        return is_cast or {*node} == {*Quantized._fields}

    def restored(node: Any) -> Any:
        if "values" in node:
            return jnp.asarray(node["values"]).astype(jnp.float32)
        return Quantized(*map(jnp.asarray, map(node.get, Quantized._fields)))

    return trees.decoded(
        jax.tree.map(
            lambda node: restored(node) if is_restored(node) else node,
            state,
            is_leaf=lambda node: node is None or is_restored(node) or trees.is_stored(node),
        )
    )


def _decoded(codes: jax.Array, scales: jax.Array) -> jax.Array:
    parts = in_blocks(codes, scales.shape).astype(jnp.float32)
    levels = _levels(parts, codes.dtype)
    wide = trees.compute_dtype(scales.dtype)
    array = levels.astype(wide) * scales.astype(wide)[..., None]
    array = out_of_blocks(array, codes.shape).astype(scales.dtype)
    return laid_out_as(array, codes)


def _encoded(
    array: jax.Array,
    codes_dtype: np.dtype,
    shape: tuple[int, ...],
    dtype: np.dtype,
    seed: jax.Array | None = None,
) -> Quantized:
    wide = trees.compute_dtype(dtype)
    array = with_whole_blocks(array, shape)
    parts = in_blocks(array.astype(wide), shape)
    is_signed = codes_dtype == _CODES[SIGNED]
    sizes = jnp.abs(parts) if is_signed else jnp.maximum(parts, 0)
    scales = jnp.max(sizes, -1)
    divisors = jnp.where(scales > 0, scales, jnp.ones_like(scales))
    ratios = (sizes / divisors[..., None]).astype(jnp.float32)
    top = _top(codes_dtype)
    root = jnp.sqrt(jnp.sqrt(ratios))
    low = jnp.floor(top * (root if is_signed else jnp.sqrt(root)))
    below, above = _levels(low, codes_dtype), _levels(low + 1, codes_dtype)
    threshold = 0.5 if seed is None else in_blocks(_thresholds(seed, array), shape)
    codes = low + (ratios - below > threshold * (above - below)).astype(jnp.float32)
    codes = jnp.minimum(codes, top)
    if is_signed:
        codes = jnp.where(parts < 0, -codes, codes)
    else:
        # What is not zero stays so, because it may be a divisor.
        codes = jnp.where(ratios > 0, jnp.maximum(codes, 1), 0)
    codes = out_of_blocks(codes.astype(codes_dtype), array.shape)
    return Quantized(codes, scales.astype(dtype))


def _top(codes_dtype: np.dtype) -> np.float32:
    return np.float32(127 if codes_dtype == _CODES[SIGNED] else 255)


def _levels(codes: jax.Array, codes_dtype: np.dtype) -> jax.Array:
    """The numbers that codes stand for, in relation to the largest."""
    share = codes * (1 / _top(codes_dtype))
    square = share * share
    if codes_dtype == _CODES[SIGNED]:
        return square * (share * jnp.abs(share))
    return (square * square) * (square * square)


def _thresholds(seed: jax.Array, array: jax.Array) -> jax.Array:
    """Random numbers, uniform between 0 and 1 but not so close to these as a rounding error."""
    step, number, part = seed
    sharding = explicit_sharding(array)
    bits = random_bits(part[None], step, number, array.shape, out_sharding=sharding)
    return (bits >> np.uint32(16)).astype(jnp.float32) * np.float32(2**-16) + np.float32(2**-17)


def explicit_sharding(array: jax.Array) -> Any:
    """The sharding of an array where mesh axes are explicit."""
    sharding = jax.typeof(array).sharding
    return sharding if sharding.mesh.explicit_axes else None
