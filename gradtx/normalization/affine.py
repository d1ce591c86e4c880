"""The last step of every normalization, and the one that starts from given statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradtx.normalization._arguments import (
    Axis,
    Scalar,
    along_axes,
    as_floating,
    canonical_axes,
    check_epsilon,
    statistics_dtype,
)


def normalize(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    epsilon: Scalar = 1e-5,
) -> jax.Array:
    """A given mean and variance applied to an array.

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    Together with `moments` and `merge_moments` this is a batch normalization whose statistics
    come from elsewhere: from several micro-batches, another mask, another data set.

    Args:
        x: real floating-point array of any shape.
        mean: the mean, of shape [x.shape[a] for a in axis].
        var: the variance, of the same shape.
        scale: factor gamma, of the same shape; None: 1.
        bias: summand beta, of the same shape; None: 0.
        axis: the axes that all of these run along, taken in the order of `x`: the axes that the
            statistics were not taken over.
        epsilon: added to the variance. With 0 a variance of 0 divides by zero.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64.

    Raises:
        ValueError: if an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x`, or `epsilon` is negative or not finite.

    Source:
        Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by reducing
        internal covariate shift", Algorithm 1.

    Example:
        >>> from gradtx.normalization import merge_moments, moments
        >>> first, second = jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])
        >>> both = merge_moments(moments(first, axis=0), moments(second, axis=0))
        >>> print(normalize(first, both.mean, both.variance(), epsilon=0.0).ravel())
        [-1.3416407 -0.4472136]
    """
    check_epsilon("normalize", epsilon)
    array = as_floating("normalize", "x", x)
    axes = canonical_axes("normalize", axis, array.ndim)
    return normalized("normalize", array, mean, var, scale, bias, axes, epsilon)


def normalized(
    owner: str,
    array: jax.Array,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    axes: tuple[int, ...],
    epsilon: Scalar,
) -> jax.Array:
    """`normalize` for the function `owner`, which has checked the array, axes and epsilon."""
    dtype = statistics_dtype(array.dtype)
    # Half the difference of two finite numbers is finite.
    center = along_axes(owner, "mean", mean, array, axes).astype(dtype)
    half = array.astype(dtype) / 2 - center / 2
    variance = along_axes(owner, "var", var, array, axes).astype(dtype)
    inverse = _inverse_square_root(variance + jnp.asarray(epsilon, dtype))
    return affine(owner, half * (2 * inverse), scale, bias, array, axes)


@jax.custom_jvp
def _inverse_square_root(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(x)


@_inverse_square_root.defjvp
def _inverse_square_root_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The derivative -r^3 / 2, one factor after the other, since the cube of r may overflow."""
    inverse = _inverse_square_root(*primals)
    return inverse, -tangents[0] / 2 * inverse * inverse * inverse


def affine(
    owner: str,
    standardized: jax.Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    x: jax.Array,
    axes: tuple[int, ...],
) -> jax.Array:
    """`scale * standardized + bias` with both along `axes`, in the dtype of the input `x`."""
    y = standardized
    if scale is not None:
        y = y * along_axes(owner, "scale", scale, x, axes).astype(y.dtype)
    if bias is not None:
        y = y + along_axes(owner, "bias", bias, x, axes).astype(y.dtype)
    return y.astype(x.dtype)
