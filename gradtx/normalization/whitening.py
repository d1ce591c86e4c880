"""Statistics removed from data: `standardize` each feature, `whiten` all of them together."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from gradtx.normalization._arguments import (
    Axis,
    Scalar,
    as_floating,
    canonical_axes,
    check_epsilon,
    statistics_dtype,
)
from gradtx.normalization._measure import Over, power_of_two
from gradtx.normalization._standardize import standardize_over

# Accelerators multiply float32 matrices with fewer bits unless told otherwise.
_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def standardize(x: ArrayLike, axis: Axis, epsilon: Scalar = 1e-5) -> jax.Array:
    """An array with mean 0 and variance 1 over the given axes.

        y = (x - mu) / sqrt(var + epsilon),  mu and biased var over `axis`

    Args:
        x: real floating-point array of any shape.
        axis: the axis that the statistics run over, or several: 0 standardizes the columns of a
            data set.
        epsilon: added to the variance.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64.

    Raises:
        ValueError: if `x` is not real floating point, `axis` names no axis of it, or `epsilon` is
            negative or not finite.

    Source:
        The standard score; with the argument names of `jax.nn.standardize`.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import standardize
        >>> print(standardize(jnp.array([[1.0, 10.0], [3.0, 30.0]]), axis=0, epsilon=0.0))
        [[-1. -1.]
         [ 1.  1.]]
    """
    check_epsilon("standardize", epsilon)
    array = as_floating("standardize", "x", x)
    axes = canonical_axes("standardize", axis, array.ndim)
    return standardize_over(array, epsilon, Over(axes)).astype(array.dtype)


def whiten(x: ArrayLike, epsilon: Scalar = 1e-5) -> jax.Array:
    """Samples with mean 0 and covariance I, as close to the originals as possible.

        y = (x - mu) (S + epsilon I)^(-1/2),  S = (x - mu)^T (x - mu) / n

    Of all whitening transformations this one, ZCA or Mahalanobis whitening, keeps the samples
    closest. First derivatives are exact and finite, even where eigenvalues of the covariance S
    coincide or vanish.

    Args:
        x: real floating-point array of shape (samples, features).
        epsilon: added to the eigenvalues of the (biased) covariance. With fewer samples than
            features some of them are 0, and epsilon must be positive.

    Returns:
        y, in the shape and dtype of `x`; computed in float32, or float64 for float64.

    Raises:
        ValueError: if `x` is not real floating point or not a matrix, or `epsilon` is negative or
            not finite.

    Source:
        Kessy, Lewin & Strimmer 2018, "Optimal whitening and decorrelation", ZCA whitening; Higham
        2008, "Functions of matrices", theorem 3.11 (Daleckii and Krein), for the derivative.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import whiten
        >>> x = jnp.array([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0], [-4.0, -3.0]])
        >>> y = whiten(x, epsilon=0.0)
        >>> print((y.T @ y / 4).round(3))
        [[1. 0.]
         [0. 1.]]
    """
    check_epsilon("whiten", epsilon)
    array = as_floating("whiten", "x", x)
    if array.ndim != 2:
        raise ValueError(f"whiten: x must have shape (samples, features), got shape {array.shape}")
    dtype = statistics_dtype(array.dtype)
    scaled, added = _in_units(array.astype(dtype), jnp.asarray(epsilon, dtype))
    centered = _centered(
        _centered(scaled)
    )  # the second time removes what rounding left of the mean
    covariance = _product(centered.T, centered) / max(len(array), 1)
    return _product(centered, _inverse_square_root(covariance, added)).astype(array.dtype)


def _in_units(values: jax.Array, epsilon: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values and epsilon divided by a power of two that keeps cubes of deviations in range.

    To that end an epsilon far below what rounding leaves of vanishing eigenvalues is raised too.
    """
    largest = jnp.max(jnp.abs(values), initial=0)
    scale = 1 / power_of_two(lax.stop_gradient(jnp.maximum(largest, jnp.sqrt(epsilon))))
    least = 2.0 ** -(jnp.finfo(values.dtype).maxexp * 5 // 8)
    return values * scale, jnp.maximum(epsilon * scale * scale, least)


def _centered(values: jax.Array) -> jax.Array:
    return values - jnp.sum(values, 0, keepdims=True) / max(len(values), 1)


@jax.custom_jvp
def _inverse_square_root(covariance: jax.Array, epsilon: jax.Array) -> jax.Array:
    """(S + epsilon I)^(-1/2) for a symmetric S without negative eigenvalues."""
    deviations, directions = _principal_deviations(covariance, epsilon)
    return _product(directions / deviations[None, :], directions.T)


@_inverse_square_root.defjvp
def _inverse_square_root_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The derivative V (D * V^T dS V) V^T, with D the divided differences of s^(-1/2).

    Those are -1 / (a b (a + b)) between eigenvalues a^2 and b^2, where nothing cancels and a = b is
    not a special case. The derivative of the eigenvectors, which is infinite there, is
    never formed.
    """
    covariance, epsilon = primals
    change = tangents[0] + tangents[1] * jnp.eye(len(covariance), dtype=covariance.dtype)
    deviations, directions = _principal_deviations(covariance, epsilon)
    a, b = deviations[:, None], deviations[None, :]
    rotated = _product(_product(directions.T, change), directions)
    derivative = _product(_product(directions, -rotated / (a * b * (a + b))), directions.T)
    return _inverse_square_root(covariance, epsilon), derivative


def _principal_deviations(covariance: jax.Array, epsilon: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Standard deviations along the eigenvectors of S + epsilon I, and these as columns."""
    variances, directions = jnp.linalg.eigh(covariance)
    # Rounding can leave a variance of 0 more negative than epsilon is positive.
    return jnp.sqrt(jnp.maximum(variances, 0) + epsilon), directions
