"""Mean and sum of squared deviations: centred before squaring, masked, merged, across devices.

The mean of float32 data near 1e4 is itself only known to about 5e-4, and squares of `x - mean`
would carry that error. The data are therefore centred twice: once on a first mean, which need
only be near, and once more on the mean of what is left. This is the corrected two-pass
algorithm, with the correction applied to the deviations instead of to the sum of their squares.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradtx.normalization._arguments import (
    Axis,
    aligned_mask,
    as_floating,
    canonical_axes,
    compute_dtype,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations: all that is needed to merge two sets of data.

    Attributes:
        count: how many values entered, in the dtype and shape of `mean`.
        mean: their mean; 0 where none entered.
        m2: the sum of (value - mean)^2.
    """

    count: jax.Array
    mean: jax.Array
    m2: jax.Array

    def variance(self, *, unbiased: bool = False) -> jax.Array:
        """The variance: m2 / count, or m2 / (count - 1).

        Args:
            unbiased: divide by count - 1 instead of count.

        Returns:
            The variance, in the shape of `mean`. The divisor is held at 1 or more, so that the
            variance of one value (which has no unbiased estimate) and that of none are 0.

        Example:
            >>> float(moments(jnp.array([1.0, 2.0, 3.0]), axis=0).variance(unbiased=True))
            1.0
        """
        return self.m2 / jnp.maximum(self.count - 1 if unbiased else self.count, 1)


def moments(
    x: ArrayLike,
    axis: Axis,
    *,
    mask: ArrayLike | None = None,
    axis_name: Hashable | None = None,
) -> Moments:
    """Count, mean and sum of squared deviations over one axis or several.

        n = number of values,  mean = sum x / n,  m2 = sum (x - mean)^2

    Args:
        x: real floating-point array of any shape.
        axis: the axes that the sums run over; they are gone from the result.
        mask: boolean array of the rank of `x`, each size that of `x` or 1; only positions where
            it is True enter. None: all of them.
        axis_name: a name, or a tuple of names, of axes mapped by `vmap` or `shard_map`; the
            moments are then those of all their slices together, each weighted by its count.

    Returns:
        `Moments` with the axes of `x` that `axis` leaves out, in float32, or float64 for float64.

    Raises:
        ValueError: `x` is not real floating point, `axis` names no axis of it, or `mask` is not
            boolean or does not fit.

    Source:
        Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance: Analysis and
        Recommendations", The American Statistician 37(3), 1983: the corrected two-pass algorithm.

    Example:
        >>> x = jnp.array([[1.0, 2.0, 60.0], [4.0, 4.0, 4.0]])
        >>> seen = moments(x, axis=1, mask=x < 50.0)
        >>> print(seen.count, seen.mean, seen.m2)
        [2. 3.] [1.5 4. ] [0.5 0. ]
    """
    array = as_floating("x", x)
    axes = canonical_axes(axis, array.ndim)
    aligned = None if mask is None else aligned_mask(mask, array)
    return without_axes(centre(array, axes, aligned, axis_name)[1], axes)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of data together, from those of each.

        n = n_a + n_b,  d = mean_b - mean_a
        mean = mean_a + d n_b / n,  m2 = m2_a + m2_b + d^2 n_a n_b / n

    Args:
        a: moments of the first set.
        b: moments of the second set, of the same shapes; either may be empty.

    Returns:
        The moments of the union. Merging is exact: micro-batches of any sizes, merged in any
        order, give the statistics of the whole batch up to rounding.

    Raises:
        ValueError: the two have different shapes.

    Source:
        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", Stanford report STAN-CS-79-773, 1979: the pairwise formulae.

    Example:
        >>> first, second = jnp.array([1.0, 2.0]), jnp.array([6.0])
        >>> whole = merge_moments(moments(first, axis=0), moments(second, axis=0))
        >>> print(whole.count, whole.mean, whole.variance())
        3.0 3.0 4.6666665
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"b must have the shapes of a: its mean has shape {b.mean.shape}, "
            f"that of a has {a.mean.shape}"
        )
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    difference = b.mean - a.mean
    mean = a.mean + difference * share
    return Moments(count, mean, a.m2 + b.m2 + jnp.square(difference) * a.count * share)


def centre(
    x: jax.Array,
    axes: tuple[int, ...],
    mask: jax.Array | None = None,
    axis_name: Hashable | None = None,
) -> tuple[jax.Array, Moments]:
    """`x - mean` and the moments over `axes`, which stay in the moments with size 1.

    This `x - mean` is more accurate than a subtraction of the returned mean: it is what should
    be normalized. A mask limits what enters the moments, not `x - mean`.
    """
    values = x.astype(compute_dtype(x.dtype))

    def total(terms: jax.Array) -> jax.Array:
        counted = terms if mask is None else jnp.where(mask, terms, 0)
        local = jnp.sum(counted, axes, keepdims=True)
        return local if axis_name is None else jax.lax.psum(local, axis_name)

    count = _count(values, axes, mask, axis_name)
    divisor = jnp.maximum(count, 1)
    # Any shift leaves mathematics and derivatives as they are, so this one needs no derivative.
    shift = jax.lax.stop_gradient(total(values) / divisor)
    deviations = values - shift
    correction = total(deviations) / divisor
    centred = deviations - correction
    return centred, Moments(count, shift + correction, total(jnp.square(centred)))


def without_axes(kept: Moments, axes: tuple[int, ...]) -> Moments:
    """The moments without the axes of size 1 that `centre` leaves in them."""
    return jax.tree.map(lambda field: jnp.squeeze(field, axes), kept)


def _count(
    x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None, axis_name: Hashable | None
) -> jax.Array:
    """How many values enter each sum, found without expanding the mask to the shape of `x`."""
    if mask is None:
        local = jnp.asarray(math.prod(x.shape[a] for a in axes), x.dtype)
    else:
        repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
        # Integers count exactly where float32 sums of ones would stop at 2^24.
        local = jnp.sum(mask, axes, keepdims=True, dtype=jnp.int32).astype(x.dtype) * repeats
    count = local if axis_name is None else jax.lax.psum(local, axis_name)
    return jnp.broadcast_to(count, [1 if a in axes else n for a, n in enumerate(x.shape)])
