"""Initializers for biases, besides `zeros` and `constant(0.01)`."""

from __future__ import annotations

from gradtx.initializers.arguments import require_at_least
from gradtx.initializers.distributions import normal_for
from gradtx.initializers.initializer import DType, Initializer, Scalar


def bias_normal(fan_in: int, dtype: DType = None) -> Initializer:
    """Normal with the variance of LeCun's rule, where the bias counts as one more input.

        b ~ N(0, 1 / (fan_in + 1))

    Together with a kernel from `lecun_normal(count_bias=True)`, a unit with fan_in inputs of
    variance 1 has variance 1.

    Args:
        fan_in: the number of inputs of the unit that the bias belongs to, >= 1; it cannot be read
            from the shape of a bias.
        dtype: default dtype of the result, real or complex; None is jax's default float.

    Returns:
        An initializer.

    Raises:
        ValueError: if `fan_in` is below 1 or not finite.

    Source:
        LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.6, equation (16), with
        m = fan_in + 1 connections.

    Example:
        >>> import jax
        >>> from gradtx.initializers import bias_normal
        >>> b = bias_normal(fan_in=99)(jax.random.key(0), (10_000,))
        >>> round(float(b.std()), 2)
        0.1
    """
    require_at_least(1, "bias_normal", "fan_in", fan_in)
    return normal_for("bias_normal", (fan_in + 1) ** -0.5, dtype)


def small_random(stddev: Scalar = 1e-2, dtype: DType = None) -> Initializer:
    """Small normal numbers, just large enough to break the symmetry between units.

        b ~ N(0, stddev^2)

    Args:
        stddev: the standard deviation, >= 0.
        dtype: default dtype of the result, real or complex; None is jax's default float.

    Returns:
        An initializer.

    Raises:
        ValueError: if `stddev` is negative or not finite.

    Source:
        Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with deep convolutional
        neural networks", section 5, where stddev = 0.01.

    Example:
        >>> import jax
        >>> from gradtx.initializers import small_random
        >>> b = small_random()(jax.random.key(0), (10_000,))
        >>> round(float(b.std()), 3)
        0.01
    """
    return normal_for("small_random", stddev, dtype)
