"""Batch normalization, as a function of its running statistics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from gradtx.normalization._arguments import (
    Axis,
    Scalar,
    aligned_mask,
    along_axes,
    as_floating,
    canonical_axes,
    check_epsilon,
    check_momentum,
    other_axes,
    statistics_dtype,
)
from gradtx.normalization._measure import Over, measure
from gradtx.normalization._standardize import standardized
from gradtx.normalization.affine import affine, normalized
from gradtx.normalization.statistics import Moments, moments_of


class BatchStats(NamedTuple):
    """Running statistics of a batch normalization.

    Attributes:
        mean: running mean of each feature.
        var: running variance of each feature.
    """

    mean: jax.Array
    var: jax.Array


def init_batch_stats(
    num_features: int | Sequence[int], dtype: DTypeLike = jnp.float32
) -> BatchStats:
    """Running statistics before the first batch: mean 0 and variance 1.

    Args:
        num_features: size of the feature axis, or the sizes of several.
        dtype: floating-point dtype in which the statistics are kept from step to step.

    Returns:
        `BatchStats` of shape (num_features,).

    Raises:
        ValueError: if a size is not a positive integer, or `dtype` is not floating point.

    Source:
        PyTorch's initial values; Ioffe & Szegedy 2015 do not give any.

    Example:
        >>> from gradtx.normalization import init_batch_stats
        >>> print(init_batch_stats(2).var)
        [1. 1.]
    """
    sizes = np.atleast_1d(num_features).tolist()
    if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(
            f"init_batch_stats: num_features must be a positive integer, got {num_features!r}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"init_batch_stats: dtype must be a real floating-point dtype, got {dtype!r}"
        )
    return BatchStats(jnp.zeros(sizes, dtype), jnp.ones(sizes, dtype))


def batch_norm(
    x: ArrayLike,
    stats: BatchStats,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    training: bool,
    momentum: Scalar = 0.9,
    epsilon: Scalar = 1e-5,
    unbiased: bool = False,
    unbiased_running: bool | None = None,
    axis: Axis = -1,
    axis_name: Hashable | None = None,
    mask: ArrayLike | None = None,
) -> tuple[jax.Array, BatchStats]:
    """Every feature normalized over all axes but its own, and the running statistics.

        training:    y = scale (x - mu_B) / sqrt(var_B + epsilon) + bias
                     mean <- momentum mean + (1 - momentum) mu_B
                     var  <- momentum var  + (1 - momentum) var_B
        evaluation:  y = scale (x - mean) / sqrt(var + epsilon) + bias

    Args:
        x: real floating-point array of any shape with a feature axis.
        stats: running statistics, of shape (num_features,), or the sizes of several feature
            axes; see `init_batch_stats`.
        scale: factor gamma, of the same shape; None: 1.
        bias: summand beta, of the same shape; None: 0.
        training: whether to normalize with the statistics of `x` and track them (True), or with
            the running ones (False). A Python bool, and so a static argument
            under `jit`.
        momentum: the decay rate of the running statistics, in [0, 1). PyTorch's `momentum` is 1
            minus this one.
        epsilon: added to the variance.
        unbiased: whether the variance that normalizes has divisor count - 1 instead of count.
        unbiased_running: the same for the variance that is tracked; None: as `unbiased`. PyTorch's
            convention is False and True, in this order. Both divisors are at least 1.
        axis: the feature axis, or several, taken in the order of `x`.
        axis_name: a name, or a tuple of names, of axes mapped by `vmap` or `shard_map`. The
            batch then extends over them, and every value has the same weight, however unequal
            the masks are.
        mask: boolean array, True at the positions that enter the statistics. Its shape is that
            of `x` with or without the feature axes; any size may be 1 instead, and is then
            broadcast. Positions outside it are normalized too, with the statistics of the others;
            gradients need finite numbers there.

    Returns:
        The pair of y, in the shape and dtype of `x`, and the running statistics, in their own
        dtypes. In evaluation they are returned as given; in training they keep their values
        where no position enters. Statistics are computed in float32, or float64 for float64.
        Values of any size are normalized; a running statistic that would overflow its dtype is
        held at the largest finite number, from which later batches bring it back.

    Raises:
        ValueError: if an array is not real floating point or has the wrong shape, `axis` names no
            axis of `x`, `mask` is not boolean or does not fit, `training` is not a bool,
            `momentum` is outside [0, 1), or `epsilon` is negative or not finite.

    Source:
        Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by reducing
        internal covariate shift", Algorithm 1 (training) and Algorithm 2 (evaluation, with an
        unbiased tracked variance).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.normalization import batch_norm, init_batch_stats
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> y, stats = batch_norm(x, init_batch_stats(2), training=True)
        >>> print(y.round(3))
        [[-1. -1.]
         [ 1.  1.]]
        >>> print(stats.mean, stats.var)
        [0.2 2. ] [ 1.  10.9]
    """
    owner = "batch_norm"
    check_momentum(owner, momentum)
    check_epsilon(owner, epsilon)
    if not isinstance(training, bool | np.bool_):
        raise ValueError(
            f"{owner}: training must be a Python bool, got {training!r}: it selects which program "
            "is compiled; under jax.jit list it in static_argnames"
        )
    array = as_floating(owner, "x", x)
    axes = canonical_axes(owner, axis, array.ndim)
    for name, running in zip(("stats.mean", "stats.var"), stats, strict=True):
        along_axes(owner, name, running, array, axes)
    if not training:
        return normalized(owner, array, *stats, scale, bias, axes, epsilon), stats

    aligned = None if mask is None else aligned_mask(owner, mask, array, left_out=axes)
    values = array.astype(statistics_dtype(array.dtype))
    added = jnp.asarray(epsilon, values.dtype)
    over = Over(other_axes(axes, array.ndim), axis_name, unbiased=unbiased)
    measured = measure(values, aligned, added, over)
    y, _ = standardized(values, added, aligned, measured, over)
    batch = moments_of(values, aligned, measured, over)
    track_unbiased = unbiased if unbiased_running is None else unbiased_running
    running = _tracked(stats, batch, momentum, track_unbiased)
    return affine(owner, y, scale, bias, array, axes), running


def _tracked(stats: BatchStats, batch: Moments, momentum: Scalar, unbiased: bool) -> BatchStats:
    """The running statistics after one more batch, unchanged where the batch is empty."""

    def mixed(running: ArrayLike, new: jax.Array) -> jax.Array:
        old = jnp.asarray(running)
        dtype = statistics_dtype(old.dtype, new.dtype)
        kept = jnp.asarray(momentum, dtype) * old.astype(dtype)
        added = jnp.asarray(1 - momentum, dtype) * new.astype(dtype)
        # An infinity would never go away: any share of it is infinite.
        largest = float(jnp.finfo(old.dtype).max)
        held = jnp.clip(kept + added, -largest, largest)
        return jnp.where(batch.count > 0, held.astype(old.dtype), old)

    return BatchStats(
        mixed(stats.mean, batch.mean), mixed(stats.var, batch.variance(unbiased=unbiased))
    )
