"""How every normalization ends: divide by a standard deviation, then scale and shift."""

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
    compute_dtype,
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

    With `moments` and `merge_moments` this makes a batch normalization over statistics that
    come from elsewhere: several micro-batches, another mask, another data set.

    Args:
        x: real floating-point array of any shape.
        mean: the mean, of shape [x.shape[a] for a in axis].
        var: the variance, of the same shape.
        scale: factor gamma, of the same shape; None: 1.
        bias: summand beta, of the same shape; None: 0.
        axis: the axes that all of these run along, taken in the order of `x`: the axes that the
            statistics were not taken over.
        epsilon: added to the variance; 0 divides by zero where the variance is 0.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64.

    Raises:
        ValueError: an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x`, or `epsilon` is negative or not finite.

    Source:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015, Algorithm 1.

    Example:
        >>> from gradtx.normalization import merge_moments, moments
        >>> first, second = jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])
        >>> both = merge_moments(moments(first, axis=0), moments(second, axis=0))
        >>> print(normalize(first, both.mean, both.variance(), epsilon=0.0).ravel())
        [-1.3416407 -0.4472136]
    """
    check_epsilon(epsilon)
    array = as_floating("x", x)
    axes = canonical_axes(axis, array.ndim)
    dtype = compute_dtype(array.dtype)
    centred = array.astype(dtype) - along_axes("mean", mean, array, axes).astype(dtype)
    variance = along_axes("var", var, array, axes).astype(dtype)
    return affine(divide_by_deviation(centred, variance, epsilon), scale, bias, array, axes)


def divide_by_deviation(centred: jax.Array, variance: jax.Array, epsilon: Scalar) -> jax.Array:
    """`centred / sqrt(variance + epsilon)`: finite, with finite derivatives, at variance 0."""
    return centred * jax.lax.rsqrt(variance + jnp.asarray(epsilon, variance.dtype))


def affine(
    standardized: jax.Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    x: jax.Array,
    axes: tuple[int, ...],
) -> jax.Array:
    """`scale * standardized + bias` with both along `axes`, in the dtype of the input `x`."""
    y = standardized
    if scale is not None:
        y = y * along_axes("scale", scale, x, axes).astype(y.dtype)
    if bias is not None:
        y = y + along_axes("bias", bias, x, axes).astype(y.dtype)
    return y.astype(x.dtype)
