"""Variance scaling: how large weights must be for a signal to pass through many layers unchanged.

`variance_scaling` is the rule; LeCun's, Glorot's and He's are choices of its scale and mode, each
in a normal (truncated at two standard deviations before scaling) and a uniform version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from gradtx.initializers.arguments import (
    checked_axes,
    checked_shape,
    require_flag,
    require_nonnegative,
    shown,
)
from gradtx.initializers.initializer import (
    Bounded,
    DType,
    Initializer,
    Scalar,
    Shape,
    initializer,
    rescale,
)
from gradtx.initializers.truncated import sample_truncated, truncated_deviation

Axes: TypeAlias = int | Sequence[int]
Mode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Distribution: TypeAlias = Literal["truncated_normal", "normal", "uniform"]

_TRUNCATION = 2.0


def compute_fans(
    shape: Sequence[int], in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> tuple[int, int]:
    """How many inputs one output sums over, and how many outputs one input reaches.

        fan_in  = the product of the sizes of all axes but out_axis and batch_axis
        fan_out = the product of the sizes of all axes but in_axis and batch_axis

    Axes that are not named are the receptive field of a convolution and count in both.

    Args:
        shape: shape of the kernel.
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.

    Returns:
        `(fan_in, fan_out)`.

    Raises:
        ValueError: if `shape` lacks a named axis.

    Source:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", section 4.2.1; He, Zhang, Ren & Sun 2015, "Delving deep into rectifiers",
        section 2.2, for convolutions.

    Example:
        >>> from gradtx.initializers import compute_fans
        >>> compute_fans((3, 3, 16, 32))
        (144, 288)
        >>> compute_fans((64, 4, 16), in_axis=0, out_axis=(1, 2))
        (64, 64)
    """
    owner = "compute_fans"
    axes = _checked_axes(owner, (in_axis, out_axis, batch_axis))
    return _fans(owner, checked_shape(owner, shape), *axes)


def _checked_axes(owner: str, axes: Sequence[Axes]) -> list[tuple[int, ...]]:
    names = ("in_axis", "out_axis", "batch_axis")
    return [checked_axes(owner, *each) for each in zip(names, axes, strict=True)]


def _fans(
    owner: str,
    shape: Shape,
    in_axis: tuple[int, ...],
    out_axis: tuple[int, ...],
    batch_axis: tuple[int, ...],
) -> tuple[int, int]:
    rank, named = len(shape), (in_axis, out_axis, batch_axis)
    if any(not -rank <= axis < rank for axes in named for axis in axes):
        texts = [str(axes[0] if len(axes) == 1 else axes) for axes in named]
        raise ValueError(
            f"{owner}: shape={shape} has {rank} axes and lacks some of in_axis={texts[0]}, "
            f"out_axis={texts[1]}, batch_axis={texts[2]}"
        )
    inputs, outputs, batch = ({axis % rank for axis in axes} for axes in named)
    fan_in = math.prod(size for axis, size in enumerate(shape) if axis not in outputs | batch)
    fan_out = math.prod(size for axis, size in enumerate(shape) if axis not in inputs | batch)
    return fan_in, fan_out


def variance_scaling(
    scale: Scalar,
    mode: Mode,
    distribution: Distribution,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Zero-mean weights whose variance is inversely proportional to the size of the layer.

        Var w = scale / n

    The mode decides what n is:

        "fan_in"              fan_in                    preserves activations
        "fan_out"             fan_out                   preserves gradients
        "fan_avg"             (fan_in + fan_out) / 2    a compromise between the two
        "fan_geo_avg"         sqrt(fan_in * fan_out)    another compromise

    The distribution of w is one of these:

        "uniform"             U[-L, L) with L = sqrt(3 * scale / n)
        "normal"              N(0, scale / n)
        "truncated_normal"    a normal that is truncated at two standard deviations, then
                              widened so that its variance is scale / n

    Complex weights have E|w|^2 = scale / n; "uniform" is uniform on a disk, and the truncation
    applies to the modulus. (`jax.nn.initializers` widens them too far: its complex truncated
    normal has variance 1.019 * scale / n. Otherwise the numbers are the same.)

    Args:
        scale: the factor of the variance, >= 0: 1 for a linear layer, 2 before a relu.
        mode: "fan_in", "fan_out", "fan_avg" or "fan_geo_avg".
        distribution: "truncated_normal", "normal" or "uniform".
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. It is a weight on an input that is
            always 1, so that "fan_avg" divides by (1 + fan_in + fan_out) / 2; it passes no gradient
            on to an input, so fan_out is the same either way.

    Returns:
        An initializer for kernels in which the named axes exist.

    Raises:
        ValueError: if `scale` is negative or not finite, or `mode` or `distribution` is unknown; on
            call, if the shape lacks a named axis.

    Source:
        He, Zhang, Ren & Sun 2015, "Delving deep into rectifiers", section 2.2, equations (10) and
        (14); Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward
        neural networks", equation (12), for the average.

    Example:
        >>> import jax
        >>> from gradtx.initializers import variance_scaling
        >>> init = variance_scaling(2.0, "fan_in", "normal")
        >>> round(float(init(jax.random.key(0), (200, 100)).var()), 3)
        0.01
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans("variance_scaling", scale, mode, distribution, axes, dtype, count_bias)


def scaled_by_fans(
    owner: str,
    scale: Scalar,
    mode: Mode,
    distribution: Distribution,
    axes: tuple[Axes, Axes, Axes],
    dtype: DType,
    count_bias: bool,
) -> Initializer:
    """`variance_scaling` for the function `owner`, whose name opens the messages."""
    require_nonnegative(owner, "scale", scale)
    require_flag(owner, "count_bias", count_bias)
    named_axes = _checked_axes(owner, axes)
    if mode not in [*_DIVISORS]:
        raise ValueError(f"{owner}: mode must be one of {sorted(_DIVISORS)}, got {shown(mode)}")
    if distribution not in [*_NOISES]:
        raise ValueError(
            f"{owner}: distribution must be one of {sorted(_NOISES)}, got {shown(distribution)}"
        )
    divisor, noise = _DIVISORS[mode], _NOISES[distribution]

    def sample(key: jax.Array, shape: Shape, dtype: Any) -> jax.Array | Bounded:
        fan_in, fan_out = _fans(owner, shape, *named_axes)
        # The fans are zero only for an empty array, which has no elements to scale.
        variance = scale / max(divisor(fan_in + count_bias, fan_out), 1)
        samples, deviation = noise(key, shape, dtype)
        factor = variance**0.5 / deviation
        if distribution not in _BOUNDS or jnp.issubdtype(dtype, jnp.complexfloating):
            return rescale(samples, factor)
        bound = jnp.asarray(factor, dtype) * _BOUNDS[distribution]
        return Bounded(
            rescale(samples, factor), -bound, bound, reaches_lower=distribution == "uniform"
        )

    return initializer(owner, sample, dtype)


_DIVISORS = {
    "fan_in": lambda fan_in, fan_out: fan_in,
    "fan_out": lambda fan_in, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
}


def _uniform(key: jax.Array, shape: Shape, dtype: Any) -> tuple[jax.Array, float]:
    """Samples of zero mean, and their standard deviation, as for every noise below."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        radius_key, phase_key = jax.random.split(key)
        radius = jnp.sqrt(2 * jax.random.uniform(radius_key, shape, jnp.finfo(dtype).dtype))
        return _with_random_phase(phase_key, radius), 1.0
    return jax.random.uniform(key, shape, dtype, -1, 1), math.sqrt(1 / 3)


def _normal(key: jax.Array, shape: Shape, dtype: Any) -> tuple[jax.Array, float]:
    return jax.random.normal(key, shape, dtype), 1.0


def _truncated_normal(key: jax.Array, shape: Shape, dtype: Any) -> tuple[jax.Array, float]:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        # |z|² of a complex normal of variance 1 is exponential, here given |z|² < t.
        t = _TRUNCATION**2
        radius_key, phase_key = jax.random.split(key)
        probability = jax.random.uniform(radius_key, shape, jnp.finfo(dtype).dtype)
        radius = jnp.sqrt(-jnp.log1p(probability * math.expm1(-t)))
        return _with_random_phase(phase_key, radius), math.sqrt(1 - t / math.expm1(t))
    samples = sample_truncated(key, -_TRUNCATION, _TRUNCATION, shape, dtype)
    return samples, truncated_deviation(-_TRUNCATION, _TRUNCATION)


def _with_random_phase(key: jax.Array, radius: jax.Array) -> jax.Array:
    phase = 2 * math.pi * jax.random.uniform(key, radius.shape, radius.dtype)
    return jax.lax.complex(radius * jnp.cos(phase), radius * jnp.sin(phase))


# The largest absolute value of the real noises that have one.
_BOUNDS = {"truncated_normal": _TRUNCATION, "uniform": 1.0}
_NOISES = {"truncated_normal": _truncated_normal, "normal": _normal, "uniform": _uniform}
