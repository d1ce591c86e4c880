"""Layer and root-mean-square normalization: each example separately, over its features."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from gradtx.normalization._arguments import (
    Axis,
    Scalar,
    as_floating,
    canonical_axes,
    check_epsilon,
)
from gradtx.normalization._measure import Over
from gradtx.normalization._standardize import standardize_over
from gradtx.normalization.affine import affine


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    epsilon: Scalar = 1e-5,
    unbiased: bool = False,
) -> jax.Array:
    """An array with mean 0 and variance 1 along the given axes, then scaled and shifted.

        y = scale (x - mu) / sqrt(var + epsilon) + bias,  mu and var over `axis`

    Args:
        x: real floating-point array of any shape.
        scale: gain g, of shape [x.shape[a] for a in axis]; None: 1.
        bias: summand b, of the same shape; None: 0.
        axis: the axis to normalize over, or several, taken in the order of `x`.
        epsilon: added to the variance.
        unbiased: whether the variance has divisor n - 1 (but never 0) instead of n.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64. Finite
        values of any size are normalized, even where their squares overflow the dtype.

    Raises:
        ValueError: if an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x`, or `epsilon` is negative or not finite.

    Source:
        Ba, Kiros & Hinton 2016, "Layer normalization", equation (3).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import layer_norm
        >>> print(layer_norm(jnp.array([1.0, 2.0, 3.0]), epsilon=0.0).round(4))
        [-1.2247  0.      1.2247]
    """
    check_epsilon("layer_norm", epsilon)
    array = as_floating("layer_norm", "x", x)
    axes = canonical_axes("layer_norm", axis, array.ndim)
    y = standardize_over(array, epsilon, Over(axes, unbiased=unbiased))
    return affine("layer_norm", y, scale, bias, array, axes)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    epsilon: Scalar = 1e-5,
) -> jax.Array:
    """An array with mean square 1 along the given axes, then scaled and shifted.

        y = scale x / sqrt(mean(x^2) + epsilon) + bias,  the mean over `axis`

    Args:
        x: real floating-point array of any shape.
        scale: gain g, of shape [x.shape[a] for a in axis]; None: 1.
        bias: summand b, of the same shape; None: 0.
        axis: the axis to normalize over, or several, taken in the order of `x`.
        epsilon: added to the mean square.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64. Finite
        values of any size are normalized, even where their squares overflow the dtype.

    Raises:
        ValueError: if an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x`, or `epsilon` is negative or not finite.

    Source:
        Zhang & Sennrich 2019, "Root mean square layer normalization", equation (4).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import rms_norm
        >>> print(rms_norm(jnp.array([3.0, 4.0, 0.0, 0.0]), epsilon=0.0))
        [1.2 1.6 0.  0. ]
    """
    check_epsilon("rms_norm", epsilon)
    array = as_floating("rms_norm", "x", x)
    axes = canonical_axes("rms_norm", axis, array.ndim)
    y = standardize_over(array, epsilon, Over(axes, centered=False))
    return affine("rms_norm", y, scale, bias, array, axes)
