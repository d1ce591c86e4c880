"""Count, mean and sum of squared deviations: masked, merged, across devices."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradtx.normalization._arguments import (
    Axis,
    aligned_mask,
    as_floating,
    canonical_axes,
    statistics_dtype,
)
from gradtx.normalization._measure import Measured, Over, measure
from gradtx.normalization._standardize import mean_and_variance


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations: all that is needed to merge two sets of data.

    Attributes:
        count: how many values entered, in the dtype and shape of `mean`.
        mean: their mean; 0 where none entered.
        m2: the sum of (value - mean)^2; infinite where it overflows its dtype.
        var: m2 / count, which may be finite where `m2` is not; 0 where none entered. If it is not
            given, it is computed from the other two.
    """

    count: jax.Array
    mean: jax.Array
    m2: jax.Array
    var: Any = None

    def __post_init__(self) -> None:
        """Complete moments that are given as three numbers, or a tree of three specifications."""
        if self.var is None:
            are_numbers = isinstance(self.m2, float | np.ndarray | np.floating | jax.Array)
            var = self.m2 / jnp.maximum(self.count, 1) if are_numbers else self.m2
            object.__setattr__(self, "var", var)

    def variance(self, *, unbiased: bool = False) -> jax.Array:
        """The variance: m2 / count, or m2 / (count - 1).

        Args:
            unbiased: divide by count - 1 instead of count.

        Returns:
            The variance, in the shape of `mean`; infinite where it overflows its dtype.
            The divisor is at least 1, so that the variance of one value (which has no
            unbiased estimate) and that of none are 0.

        Example:
            >>> float(moments(jnp.array([1.0, 2.0, 3.0]), axis=0).variance(unbiased=True))
            1.0
        """
        return self.var * (self.count / jnp.maximum(self.count - 1, 1)) if unbiased else self.var


def moments(
    x: ArrayLike,
    axis: Axis,
    *,
    mask: ArrayLike | None = None,
    axis_name: Hashable | None = None,
) -> Moments:
    """Count, mean and sum of squared deviations over one axis or several.

        n = number of values,  mean = sum x / n,  m2 = sum (x - mean)^2

    Each result is right wherever it fits its dtype, even if intermediate results would not: the
    mean of all finite values, the variance of values up to 1e19 in float32.

    Args:
        x: real floating-point array of any shape.
        axis: the axes that the sums run over; they are removed from the result.
        mask: boolean array of the rank of `x`, each size that of `x` or 1; only positions where
            it is True enter. None: all.
        axis_name: a name, or a tuple of names, of axes mapped by `vmap` or `shard_map`; the
            moments are then those of all their slices together, each weighted by its count.

    Returns:
        `Moments` with the axes of `x` that `axis` leaves out, in float32, or float64 for float64.

    Raises:
        ValueError: if `x` is not real floating point, `axis` names no axis of it, or `mask` is not
            boolean or does not fit.

    Source:
        Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance: analysis and
        recommendations", the corrected two-pass algorithm.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import moments
        >>> x = jnp.array([[1.0, 2.0, 60.0], [4.0, 4.0, 4.0]])
        >>> seen = moments(x, axis=1, mask=x < 50.0)
        >>> print(seen.count, seen.mean, seen.m2)
        [2. 3.] [1.5 4. ] [0.5 0. ]
    """
    array = as_floating("moments", "x", x)
    axes = canonical_axes("moments", axis, array.ndim)
    aligned = None if mask is None else aligned_mask("moments", mask, array)
    values = array.astype(statistics_dtype(array.dtype))
    over = Over(axes, axis_name)
    # Nothing is divided by the deviation here, so any epsilon will do.
    measured = measure(values, aligned, jnp.ones((), values.dtype), over)
    return moments_of(values, aligned, measured, over)


def moments_of(
    values: jax.Array, mask: jax.Array | None, measured: Measured, over: Over
) -> Moments:
    """The moments of values that have been measured, without the axes of size 1."""
    mean, variance = mean_and_variance(values, mask, measured, over)
    count, mean, variance = (
        jnp.squeeze(field, over.axes) for field in (measured.count, mean, variance)
    )
    return Moments(count, mean, variance * count, variance)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of data together, from the moments of each.

        n = n_a + n_b,  d = mean_b - mean_a
        mean = mean_a + d n_b / n,  m2 = m2_a + m2_b + d^2 n_a n_b / n

    Args:
        a: moments of the first set.
        b: moments of the second set, of the same shapes; either may be empty.

    Returns:
        The moments of the union. Merging is exact: micro-batches of any sizes, merged in any
        order, give the statistics of the whole batch up to rounding, wherever these fit.

    Raises:
        ValueError: if the two have different shapes.

    Source:
        Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
        variances", the pairwise formulae.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import merge_moments, moments
        >>> first, second = jnp.array([1.0, 2.0]), jnp.array([6.0])
        >>> whole = merge_moments(moments(first, axis=0), moments(second, axis=0))
        >>> print(whole.count, whole.mean, whole.variance())
        3.0 3.0 4.6666665
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"merge_moments: b must have the shapes of a: its mean has shape {b.mean.shape}, "
            f"that of a has {a.mean.shape}"
        )
    count = a.count + b.count
    held = jnp.maximum(count, 1)
    share_a, share_b = a.count / held, b.count / held
    # Half the difference of two finite numbers is finite; the shares come before the square.
    half = b.mean / 2 - a.mean / 2
    mean = a.mean + half * (2 * share_b)
    between = 4 * (half * share_a) * (half * share_b)
    variance = a.var * share_a + b.var * share_b + between
    return Moments(count, mean, variance * count, variance)
