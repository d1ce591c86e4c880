"""Initializers that draw every element from the same distribution, whatever the shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradtx.initializers.arguments import require_flag, require_nonnegative, require_number
from gradtx.initializers.initializer import (
    Bounded,
    DType,
    Initializer,
    Scalar,
    Shape,
    Sharding,
    initializer,
    rescale,
)
from gradtx.initializers.truncated import (
    concrete_bounds,
    sample_truncated,
    truncated_deviation,
)


def zeros(
    key: jax.Array, shape: Shape, dtype: DType = None, out_sharding: Sharding = None
) -> jax.Array:
    """An array of zeros: the usual initial bias.

        w = 0

    Args:
        key: ignored.
        shape: shape of the result.
        dtype: any dtype; None is jax's default, float32 unless `jax_enable_x64` is set.
        out_sharding: a NamedSharding or PartitionSpec of the result, or None.

    Returns:
        Array of the given shape and dtype.

    Source:
        jax.nn.initializers.zeros.

    Example:
        >>> import jax
        >>> from gradtx.initializers import zeros
        >>> zeros(jax.random.key(0), (3,))
        Array([0., 0., 0.], dtype=float32)
    """
    return _constant("zeros", 0, None)(key, shape, dtype, out_sharding)


def ones(
    key: jax.Array, shape: Shape, dtype: DType = None, out_sharding: Sharding = None
) -> jax.Array:
    """An array of ones: the usual initial scale of a normalization layer.

        w = 1

    Args:
        key: ignored.
        shape: shape of the result.
        dtype: any dtype; None is jax's default, float32 unless `jax_enable_x64` is set.
        out_sharding: a NamedSharding or PartitionSpec of the result, or None.

    Returns:
        Array of the given shape and dtype.

    Source:
        jax.nn.initializers.ones.

    Example:
        >>> import jax
        >>> from gradtx.initializers import ones
        >>> ones(jax.random.key(0), (3,))
        Array([1., 1., 1.], dtype=float32)
    """
    return _constant("ones", 1, None)(key, shape, dtype, out_sharding)


def constant(value: jax.typing.ArrayLike, dtype: DType = None) -> Initializer:
    """The same value everywhere; as a bias, `constant(0.01)` keeps relu units active at first.

        w = value

    Args:
        value: a number, or an array that broadcasts to the requested shape.
        dtype: default dtype of the result; None is jax's default float.

    Returns:
        An initializer, which ignores its key.

    Raises:
        ValueError: if `value` holds no numbers.

    Source:
        jax.nn.initializers.constant.

    Example:
        >>> import jax
        >>> from gradtx.initializers import constant
        >>> constant(0.5)(jax.random.key(0), (2,))
        Array([0.5, 0.5], dtype=float32)
    """
    return _constant("constant", value, dtype)


def _constant(owner: str, value: jax.typing.ArrayLike, dtype: DType) -> Initializer:
    """`constant` for the function `owner`, whose name opens the messages."""
    require_number(owner, "value", value)

    def sample(_key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> jax.Array:
        return jnp.full(shape, jnp.asarray(value, dtype))

    return initializer(owner, sample, dtype, uses_key=False)


def uniform(scale: Scalar = 1e-2, dtype: DType = None) -> Initializer:
    """Uniform between zero and an upper bound.

        w ~ U[0, scale)

    The mean is scale / 2 and the variance scale^2 / 12.

    Args:
        scale: the upper bound, >= 0, which is never reached, in any dtype.
        dtype: default dtype of the result, real; None is jax's default float.

    Returns:
        An initializer.

    Raises:
        ValueError: if `scale` is negative or not finite; on call, if the dtype is not real.

    Source:
        jax.nn.initializers.uniform.

    Example:
        >>> import jax
        >>> from gradtx.initializers import uniform
        >>> w = uniform(10.0)(jax.random.key(0), (1000,))
        >>> bool((w >= 0).all() and (w < 10).all())
        True
    """
    require_nonnegative("uniform", "scale", scale)

    def sample(key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> Bounded:
        samples = rescale(jax.random.uniform(key, shape, dtype), scale)
        upper = jnp.asarray(scale, dtype)
        return Bounded(samples, jnp.zeros_like(upper), upper, reaches_lower=True)

    return initializer("uniform", sample, dtype)


def uniform_symmetric(limit: Scalar, dtype: DType = None) -> Initializer:
    """Uniform in an interval that is symmetric about zero.

        w ~ U[-limit, limit)

    The mean is 0 and the variance limit^2 / 3.

    Args:
        limit: the largest absolute value, >= 0, which is never exceeded, in any dtype.
        dtype: default dtype of the result, real; None is jax's default float.

    Returns:
        An initializer.

    Raises:
        ValueError: if `limit` is negative or not finite; on call, if the dtype is not real.

    Source:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", section 2.3, equation (1), where limit = 1 / sqrt(fan_in).

    Example:
        >>> import jax
        >>> from gradtx.initializers import uniform_symmetric
        >>> w = uniform_symmetric(0.1)(jax.random.key(0), (1000,))
        >>> bool((abs(w) <= 0.1).all() and (w < 0).any())
        True
    """
    require_nonnegative("uniform_symmetric", "limit", limit)

    def sample(key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> Bounded:
        samples = rescale(jax.random.uniform(key, shape, dtype, -1, 1), limit)
        upper = jnp.asarray(limit, dtype)
        return Bounded(samples, -upper, upper, reaches_lower=True)

    return initializer("uniform_symmetric", sample, dtype)


def normal(stddev: Scalar = 1e-2, dtype: DType = None) -> Initializer:
    """Normal with mean zero.

        w ~ N(0, stddev^2)

    For a complex dtype the real and the imaginary part each have variance stddev^2 / 2, so that
    E|w|^2 = stddev^2.

    Args:
        stddev: the standard deviation, >= 0.
        dtype: default dtype of the result, real or complex; None is jax's default float.

    Returns:
        An initializer.

    Raises:
        ValueError: if `stddev` is negative or not finite.

    Source:
        jax.nn.initializers.normal.

    Example:
        >>> import jax
        >>> from gradtx.initializers import normal
        >>> w = normal(0.02)(jax.random.key(0), (10_000,))
        >>> round(float(w.std()), 3)
        0.02
    """
    return normal_for("normal", stddev, dtype)


def normal_for(owner: str, stddev: Scalar, dtype: DType) -> Initializer:
    """`normal` for the function `owner`, whose name opens the messages."""
    require_nonnegative(owner, "stddev", stddev)

    def sample(key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> jax.Array:
        return rescale(jax.random.normal(key, shape, dtype), stddev)

    return initializer(owner, sample, dtype)


def truncated_normal(
    stddev: Scalar = 1e-2,
    dtype: DType = None,
    lower: Scalar = -2.0,
    upper: Scalar = 2.0,
    *,
    exact_stddev: bool = False,
) -> Initializer:
    """Normal numbers between two bounds.

        w = stddev * z,        z ~ N(0, 1) given lower < z < upper
        w = stddev * z / s     with exact_stddev

    The bounds are in units of `stddev`, the standard deviation before truncation. That of w is
    smaller: 0.88 stddev with the default bounds. With `exact_stddev` it is `stddev`, and w lies
    in (lower, upper) * stddev / s. With the normal density φ, its distribution function Φ and
    Z = Φ(upper) - Φ(lower),

        m   = (φ(lower) - φ(upper)) / Z
        s^2 = 1 + (lower φ(lower) - upper φ(upper)) / Z - m^2

    With asymmetric bounds the mean is not 0 but stddev * m, or stddev * m / s.

    The numbers are those of `jax.nn.initializers.truncated_normal`, but more accurate in the
    tails, and finite even if the bounds are infinite.

    Args:
        stddev: the standard deviation before truncation or, with `exact_stddev`, of the samples,
            >= 0.
        dtype: default dtype of the result, real; None is jax's default float.
        lower: the lower bound or -inf, at most 12. Traced numbers, and arrays that broadcast with
            the samples, are passed on to `jax.random.truncated_normal`.
        upper: the upper bound or inf, above `lower` and at least -12; otherwise like `lower`.
        exact_stddev: whether the samples themselves have the standard deviation `stddev`. The
            bounds must then be concrete numbers.

    Returns:
        An initializer.

    Raises:
        ValueError: if `stddev` is negative or not finite, if `lower` is not below `upper`, if
            no part of the interval is within 12 of zero, or if `exact_stddev` is set and the
            bounds are not concrete numbers; on call, if the dtype is not real.

    Source:
        jax.nn.initializers.truncated_normal; Johnson, Kotz & Balakrishnan 1994, "Continuous
        univariate distributions", volume 1, chapter 13, section 10.1, for s.

    Example:
        >>> import jax
        >>> from gradtx.initializers import truncated_normal
        >>> w = truncated_normal(1.0)(jax.random.key(0), (10_000,))
        >>> round(float(w.std()), 1), round(float(abs(w).max()), 2)
        (0.9, 2.0)
        >>> w = truncated_normal(1.0, exact_stddev=True)(jax.random.key(0), (10_000,))
        >>> round(float(w.std()), 1), round(float(abs(w).max()), 2)
        (1.0, 2.27)
    """
    require_nonnegative("truncated_normal", "stddev", stddev)
    require_flag("truncated_normal", "exact_stddev", exact_stddev)
    bounds = concrete_bounds(lower, upper)
    if exact_stddev and bounds is None:
        raise ValueError(
            "truncated_normal: exact_stddev needs bounds that are concrete numbers, "
            f"got lower={lower} and upper={upper}"
        )
    deviation = truncated_deviation(*bounds) if exact_stddev and bounds else 1.0

    def sample(key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> Bounded:
        if bounds is None:
            z = jax.random.truncated_normal(key, lower, upper, shape, dtype)
        else:
            z = sample_truncated(key, *bounds, shape, dtype)
        factor = jnp.asarray(stddev / deviation, dtype)
        low, high = (jnp.asarray(bound, dtype) * factor for bound in (lower, upper))
        return Bounded(rescale(z, factor), low, high, reaches_lower=False)

    return initializer("truncated_normal", sample, dtype)
