"""Products of matrices, and of matrices with arrays along one of their axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply matrices in the last two axes, in full precision also on accelerators."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def adjoint(x: jax.Array) -> jax.Array:
    """The conjugate transposes of matrices in the last two axes."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def gram_along(x: jax.Array, axis: int) -> jax.Array:
    """X X^H for the unfolding X of an array along an axis, whose rows are the slices there."""
    unfolded = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], x.size // x.shape[axis])
    return product(unfolded, adjoint(unfolded))


def squares_along(x: jax.Array, axis: int) -> jax.Array:
    """The diagonal of `gram_along`."""
    others = tuple(other for other in range(x.ndim) if other != axis)
    return jnp.sum(jnp.real(x * jnp.conj(x)), axis=others)


def multiply_along(matrix: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Multiply the unfolding of an array along an axis by a matrix from the left."""
    moved = jnp.tensordot(matrix, x, axes=(1, axis), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(moved, 0, axis)


def matrix_axes_up_to(shape: tuple[int, ...], largest: int) -> list[int]:
    """The axes to keep a square matrix for: those of at most this size, and none of a vector."""
    return [axis for axis, size in enumerate(shape) if len(shape) > 1 and size <= largest]


def square_shapes(shape: tuple[int, ...], largest: int) -> list[tuple[int, ...]]:
    """The shapes of these matrices."""
    return [(shape[axis],) * 2 for axis in matrix_axes_up_to(shape, largest)]
