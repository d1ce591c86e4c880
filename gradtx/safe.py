"""Norms of one array for equations of one's own: of any size, with a derivative at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from gradtx.messages import shown
from gradtx.norms import abs_squared
from gradtx.trees import compute_dtype, is_parameter, real_dtype


def safe_norm(
    x: ArrayLike,
    min_norm: ArrayLike,
    ord: int | float | str | None = None,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """The norm of an array, but at least `min_norm`, with a derivative everywhere.

        n = max(||x||, min_norm)

    It is calculated in at least float32, and no power of an element overflows or underflows. Where
    the norm is at most `min_norm`, its derivative is zero.

    Args:
        x: an array of any shape.
        min_norm: the lower bound, >= 0; a number or a scalar array.
        ord: the order of the norm, as in `jnp.linalg.norm`; None: the root of the sum of squares.
        axis: the axis of vectors, or the two axes of matrices; None: all of the array.
        keepdims: whether these axes stay, with length 1.

    Returns:
        The norms, real numbers of the precision of `x`. NaN and infinities pass.

    Raises:
        ValueError: if there is no norm of this order for this number of axes, or `ord` or `axis` is
            something else.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> print(gradtx.safe_norm(jnp.array([3e30, 4e30]), 1e-6))
        5e+30
        >>> print(jax.grad(gradtx.safe_norm)(jnp.zeros(2), 1e-6))
        [0. 0.]
    """

    def norm(array: jax.Array) -> jax.Array:
        return jnp.linalg.norm(array, ord=ord, axis=axis, keepdims=True)

    for argument, value in (("ord", ord), ("axis", axis)):
        if not isinstance(value, int | float | str | tuple | None):
            raise ValueError(f"safe_norm: {argument} is unknown, got {shown(value)}")
    x = jnp.asarray(x)
    # A norm of order 0 counts, and does not grow with its vector.
    result = _guarded(norm, x, min_norm, lambda wide: 1.0 if ord == 0 else _scale(wide, axis))
    return result if keepdims else jnp.squeeze(result, axis)


def safe_root_mean_squares(x: ArrayLike, min_rms: ArrayLike) -> jax.Array:
    """The root mean square of all elements, but at least `min_rms`, with a derivative everywhere.

        r = max(sqrt(mean(|x|^2)), min_rms)

    It is calculated in at least float32, and no square overflows or underflows. Where the root is
    at most `min_rms`, its derivative is zero.

    Args:
        x: an array of any shape; without elements its root mean square is 0.
        min_rms: the lower bound, >= 0.

    Returns:
        A real number of the precision of `x`. NaN and infinities pass.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> print(gradtx.safe_root_mean_squares(jnp.array([3e-30, 3e-30]), 1e-36))
        3e-30
    """

    def root(array: jax.Array) -> jax.Array:
        return lax.sqrt(jnp.sum(abs_squared(array)) / max(array.size, 1))

    return _guarded(root, jnp.asarray(x), min_rms, _scale).reshape(())


def _guarded(
    norm: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    least: ArrayLike,
    scale_of: Callable[[jax.Array], Any],
) -> jax.Array:
    """A norm that grows with its array, of the array times a scale and divided by that again."""
    x = x if is_parameter(x) else x.astype(jnp.float32)
    wide = x.astype(compute_dtype(x.dtype))
    scale = scale_of(wide)
    scaled = wide * jnp.asarray(scale, wide.dtype)
    least = jnp.asarray(least, real_dtype(wide.dtype))
    is_least = norm(scaled) / scale <= least
    # What is not selected has a derivative too, which must not be NaN.
    proper = norm(jnp.where(is_least, jnp.ones_like(scaled), scaled)) / scale
    return jnp.where(is_least, least, proper).astype(real_dtype(x.dtype))


def _scale(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The power of two that brings the largest element along these axes near 1."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0)
    is_ordinary = (largest > 0) & jnp.isfinite(largest)
    most = int(jnp.finfo(largest.dtype).maxexp) - 2
    exponent = jnp.clip(-jnp.frexp(jnp.where(is_ordinary, largest, 1.0))[1], -most, most)
    return lax.stop_gradient(jnp.ldexp(jnp.ones_like(largest), exponent))
