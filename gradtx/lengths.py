"""Norms that may lie beyond the range of their dtype, and what is divided by them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Length:
    """A norm, which is size / unit: many elements of 3e38 have one that float32 cannot hold.

    Attributes:
        size: the norm in multiples of 1 / unit; a real number or an array of them.
        unit: 1, but a small power of two where the norm is so large that its inverse, or itself,
            would not be an ordinary number. It has no derivative.
    """

    size: jax.Array
    unit: jax.Array

    @property
    def norm(self) -> jax.Array:
        """The norm itself; infinite where its dtype cannot hold it."""
        return self.size / lax.stop_gradient(self.unit)

    def is_at_most(self, number: Any) -> jax.Array:
        """Whether the norm is at most a number; not so if it is NaN."""
        return self.size <= number * self.unit

    def is_more_than(self, number: Any) -> jax.Array:
        """Whether the norm is more than a number; not so if it is NaN."""
        return self.size > number * self.unit

    def plus(self, number: Any) -> Length:
        """The length of the norm plus a number."""
        return Length(self.size + number * lax.stop_gradient(self.unit), self.unit)

    def at_least(self, number: Any) -> Length:
        """The length of the norm, or of a number where that is larger."""
        return Length(jnp.maximum(self.size, number * lax.stop_gradient(self.unit)), self.unit)

    def times(self, factor: Any) -> Length:
        """The length of the norm times a factor of moderate size."""
        return Length(self.size * factor, self.unit)

    def and_also(self, other: Length) -> Length:
        """The length of the sum of two norms."""
        unit = lax.stop_gradient(jnp.minimum(self.unit, other.unit))
        return Length(self.size_in(unit) + other.size_in(unit), unit)

    def size_in(self, unit: jax.Array) -> jax.Array:
        """The size in another unit, which must not be larger."""
        return self.size * (unit / lax.stop_gradient(self.unit))

    def astype(self, dtype: Any) -> Length:
        """The length in another real dtype."""
        return Length(self.size.astype(dtype), self.unit.astype(dtype))


def in_its_unit(size: jax.Array, scale: Any = 1.0, exponent: int | None = None) -> Length:
    """The length of a norm that is given as size / scale, in the unit that it should have.

    Args:
        size: an array of a dtype that can hold it in this scale.
        scale: a power of two, or an array of them.
        exponent: 2^exponent is where the numbers end of the dtype that the result is stored in;
            None: that of `size`.
    """
    if exponent is None:
        exponent = int(jnp.finfo(size.dtype).maxexp)
    scale = jnp.broadcast_to(jnp.asarray(scale, size.dtype), size.shape)
    # In float32 a norm above 2^96 is measured in multiples of 2^64.
    limit = lax.full_like(size, 2.0 ** (exponent * 3 // 4))
    is_large = lax.gt(size, lax.mul(scale, limit))
    one, large = lax.full_like(size, 1.0), lax.full_like(size, 2.0 ** (exponent // 2))
    unit = lax.div(one, lax.select(is_large, large, one))  # once for all, see `clip_factor`
    return Length(lax.mul(size, lax.div(unit, scale)), lax.stop_gradient(unit))


def direction(g: jax.Array, length: Length) -> jax.Array:
    """Divide g by its norm; g itself where that is 0."""
    return _direction(g, length.size, lax.stop_gradient(length.unit))


@jax.custom_jvp
def _direction(g: jax.Array, size: jax.Array, unit: jax.Array) -> jax.Array:
    return _real_multiple(g, unit) / _divisor(size).astype(g.dtype)


def multiplied(x: jax.Array, length: Length) -> jax.Array:
    """Multiply x by a norm."""
    return _real_multiple(x, length.size) / lax.stop_gradient(length.unit).astype(x.dtype)


# Not what JAX would derive: the square of the norm may overflow where its quotients do not.
@_direction.defjvp
def _direction_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    (g, size, unit), (g_change, size_change, _) = primals, tangents
    result = _direction(g, size, unit)
    change = _direction(g_change, size, unit)
    return result, change - _real_multiple(result, size_change / _divisor(size))


def clip_factor(length: Length, max_norm: Any, room: Any = 1.0, within: float = 1.0) -> jax.Array:
    """min(within, max_norm / norm) times a factor, also where the norm is 0; NaN where it is NaN.

    Where it is less than 1 it is that of a gradient which was multiplied by the length's unit.
    """
    size = length.size
    one = lax.full_like(size, 1.0)
    limit = jnp.broadcast_to(jnp.asarray(max_norm, size.dtype), size.shape)
    is_within = length.is_at_most(limit)
    # The quotient that is not selected has a derivative too, which must not overflow.
    # The last operation is a division, which XLA does once, and not again for each reader.
    most = lax.select(is_within, lax.full_like(size, within), limit)
    return most * room / lax.select(is_within, one, size)


def clip_room(max_norm: Any, above: int = -29) -> Any:
    """The power of two to multiply a `clip_factor` with, so that it is not subnormal.

    XLA flushes subnormal numbers to zero. max_norm times the room is at least 2^-29, which is
    divided by sizes of at most 2^96, and so small that its square does not overflow. The room of
    all usual limits is 1. Of a Python number it is one too.

    Args:
        max_norm: the largest norm.
        above: max_norm times the room is at least 2 to this power.
    """
    most = 99 + min(above, 27)
    if isinstance(max_norm, float):
        exponent = math.frexp(max_norm)[1]
        return 1.0 if max_norm >= 2.0**above else 2.0 ** min(max(above + 1 - exponent, 0), most)
    exponent = jnp.clip(above + 1 - jnp.frexp(max_norm)[1], 0, most)
    room = jnp.ldexp(jnp.ones_like(max_norm), exponent)
    return jnp.where(max_norm >= 2.0**above, jnp.ones_like(room), room)


def clip_to_norm(g: jax.Array, length: Length, max_norm: Any) -> jax.Array:
    """Multiply g by min(1, max_norm / norm), even where that is too small for its dtype."""
    room = clip_room(max_norm)
    return shortened(g, shortening(length, max_norm, room), length, max_norm, room)


def shortening(length: Length, max_norm: Any, room: Any) -> jax.Array:
    """`clip_factor`, but negative where the norm is within its limit, as `shortened` takes it.

    Many leaves read from this one number whether they are shortened. If each of them compared the
    norm with its limit again, XLA would take half as long again to compile them.
    """
    return clip_factor(length, max_norm, room, -1.0)


def shortened(g: jax.Array, factor: jax.Array, length: Length, max_norm: Any, room: Any) -> Any:
    """Multiply g by min(1, max_norm / norm); below its limit it stays as it is, bit by bit.

    Args:
        g: the gradient, or a part of it.
        factor: `shortening` of these arguments.
        length: the length of the gradient.
        max_norm: the largest norm.
        room: the power of two that the factor was multiplied by.
    """
    limit = jnp.broadcast_to(jnp.asarray(max_norm, length.size.dtype), length.size.shape)
    constants = (lax.stop_gradient(factor), lax.stop_gradient(length.unit), room)
    return _shortened(g, length.size, limit, *constants)


@jax.custom_jvp
def _shortened(g, size, limit, factor, unit, room):
    # Subnormal numbers would not survive a product.
    multiple = _real_multiple(_real_multiple(g, unit), factor) / room
    return jnp.where(factor < 0, g, multiple)


@_shortened.defjvp
def _shortened_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    g, size, limit, factor, unit, room = primals
    constants = (factor, unit, room)
    g_change, size_change, limit_change, *_ = tangents
    result = _shortened(*primals)
    change = _shortened(g_change, size, limit, *constants)
    turned = _real_multiple(_direction(g, size, unit), limit_change)
    turned -= _real_multiple(result, size_change / _divisor(size))
    return result, change + jnp.where(factor < 0, jnp.zeros_like(turned), turned)


def _real_multiple(x: jax.Array, factor: jax.Array) -> jax.Array:
    return x * jnp.asarray(factor).astype(x.dtype)


def _divisor(size: jax.Array) -> jax.Array:
    return lax.select(lax.eq(size, lax.full_like(size, 0.0)), lax.full_like(size, 1.0), size)
