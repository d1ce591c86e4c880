"""Group and instance normalization: each example separately, over positions and some features."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from gradtx.normalization._arguments import (
    Scalar,
    as_floating,
    canonical_axes,
    check_epsilon,
    other_axes,
)
from gradtx.normalization._measure import Over
from gradtx.normalization._standardize import standardize_over
from gradtx.normalization.affine import affine


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: int,
    axis: int = -1,
    epsilon: Scalar = 1e-5,
) -> jax.Array:
    """Every example normalized over its positions and the features of one group.

        y = scale (x - mu) / sqrt(var + epsilon) + bias
        mu and var over all axes but the batch, with the features in `groups` runs of equal length

    Args:
        x: real floating-point array of shape (batch, ...) with the feature axis among the
            others. Without a batch axis: `group_norm(x[None], ...)[0]`.
        scale: factor gamma, of shape (num_features,); None: 1.
        bias: summand beta, of shape (num_features,); None: 0.
        groups: number of groups G, a divisor of the number of features. 1 puts all
            features into one group, num_features each into its own.
        axis: the feature axis; not 0, which is the batch.
        epsilon: added to the variance.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64. Finite
        values of any size are normalized, even where their variance overflows the dtype.

    Raises:
        ValueError: if an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x` or the batch, `groups` does not divide the features, or `epsilon` is
            negative or not finite.

    Source:
        Wu & He 2018, "Group normalization", equations (1), (2) and (7).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import group_norm
        >>> x = jnp.array([[1.0, 3.0, 20.0, 60.0]])
        >>> print(group_norm(x, groups=2, epsilon=0.0))
        [[-1.  1. -1.  1.]]
    """
    owner = "group_norm"
    check_epsilon(owner, epsilon)
    array = as_floating(owner, "x", x)
    feature_axis = _feature_axis(owner, array, axis)
    features = array.shape[feature_axis]
    if not isinstance(groups, int) or groups < 1 or features % groups:
        raise ValueError(
            f"{owner}: groups must divide the {features} features of x, got {groups!r}"
        )
    grouped = array
    if groups < features:
        before, after = array.shape[:feature_axis], array.shape[feature_axis + 1 :]
        grouped = array.reshape(*before, groups, features // groups, *after)
    y = standardize_over(grouped, epsilon, Over(other_axes((0, feature_axis), grouped.ndim)))
    return affine(owner, y.reshape(array.shape), scale, bias, array, (feature_axis,))


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    epsilon: Scalar = 1e-5,
) -> jax.Array:
    """Every feature of every example normalized over its positions.

        y = scale (x - mu) / sqrt(var + epsilon) + bias,  mu and var over all axes but two

    Args:
        x: real floating-point array of shape (batch, ...) with the feature axis and at least
            one axis of positions among the others.
        scale: factor gamma, of shape (num_features,); None: 1.
        bias: summand beta, of shape (num_features,); None: 0.
        axis: the feature axis; not 0, which is the batch.
        epsilon: added to the variance.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64. Finite
        values of any size are normalized, even where their variance overflows the dtype.

    Raises:
        ValueError: if an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x` or the batch, or `epsilon` is negative or not finite.

    Source:
        Ulyanov, Vedaldi & Lempitsky 2016, "Instance normalization: the missing ingredient for fast
        stylization", section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import instance_norm
        >>> x = jnp.array([[[1.0, 20.0], [3.0, 60.0]]])
        >>> print(instance_norm(x, epsilon=0.0)[0])
        [[-1. -1.]
         [ 1.  1.]]
    """
    owner = "instance_norm"
    check_epsilon(owner, epsilon)
    array = as_floating(owner, "x", x)
    if array.ndim < 3:
        raise ValueError(
            f"{owner}: x must have a batch axis, a feature axis and positions, "
            f"got shape {array.shape}"
        )
    feature_axis = _feature_axis(owner, array, axis)
    y = standardize_over(array, epsilon, Over(other_axes((0, feature_axis), array.ndim)))
    return affine(owner, y, scale, bias, array, (feature_axis,))


def _feature_axis(owner: str, x: jax.Array, axis: int) -> int:
    """The feature axis, which is not the batch axis."""
    axes = canonical_axes(owner, axis, x.ndim)
    if len(axes) != 1 or axes[0] == 0:
        raise ValueError(
            f"{owner}: axis must be one axis of x with shape {x.shape} other than 0, the batch; "
            f"got {axis!r}"
        )
    return axes[0]
