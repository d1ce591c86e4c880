"""LeCun's, Glorot's and He's rules: `variance_scaling` with the constants of each paper.

Every rule comes in a normal version, truncated at two standard deviations before scaling as in
`jax.nn.initializers`, and in a uniform one.
"""

from __future__ import annotations

from gradtx.initializers.initializer import DType, Initializer
from gradtx.initializers.scaling import Axes, scaled_by_fans


def lecun_normal(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """LeCun's rule: preserves the variance of activations in linear layers, and tanh near zero.

        Var w = 1 / fan_in

    Args:
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. Then Var w = 1 / (1 + fan_in).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: on call, if the shape lacks a named axis.

    Source:
        LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.6, equation (16).

    Example:
        >>> import jax
        >>> from gradtx.initializers import lecun_normal
        >>> w = lecun_normal()(jax.random.key(0), (100, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans(
        "lecun_normal", 1.0, "fan_in", "truncated_normal", axes, dtype, count_bias
    )


def lecun_uniform(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """LeCun's rule, with uniform weights.

        w ~ U[-L, L),    L = sqrt(3 / fan_in)

    Args:
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. Then L = sqrt(3 / (1 + fan_in)).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: on call, if the shape lacks a named axis.

    Source:
        LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.6, equation (16).

    Example:
        >>> import jax
        >>> from gradtx.initializers import lecun_uniform
        >>> w = lecun_uniform()(jax.random.key(0), (100, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans("lecun_uniform", 1.0, "fan_in", "uniform", axes, dtype, count_bias)


def glorot_normal(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Glorot's rule: a compromise between preserving activations and preserving gradients.

        Var w = 2 / (fan_in + fan_out)

    Args:
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. Then Var w = 2 / (1 + fan_in +
            fan_out).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: on call, if the shape lacks a named axis.

    Source:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", section 4.2.1, equation (12).

    Example:
        >>> import jax
        >>> from gradtx.initializers import glorot_normal
        >>> w = glorot_normal()(jax.random.key(0), (120, 80))
        >>> round(float(w.std()), 2)
        0.1
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans(
        "glorot_normal", 1.0, "fan_avg", "truncated_normal", axes, dtype, count_bias
    )


def glorot_uniform(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Glorot's rule, with uniform weights.

        w ~ U[-L, L),    L = sqrt(6 / (fan_in + fan_out))

    Args:
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. Then L = sqrt(6 / (1 + fan_in +
            fan_out)).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: on call, if the shape lacks a named axis.

    Source:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", section 4.2.1, equation (16).

    Example:
        >>> import jax
        >>> from gradtx.initializers import glorot_uniform
        >>> w = glorot_uniform()(jax.random.key(0), (120, 80))
        >>> round(float(w.std()), 2)
        0.1
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans("glorot_uniform", 1.0, "fan_avg", "uniform", axes, dtype, count_bias)


def he_normal(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """He's rule: preserves the size of activations through relu, which passes on half of it.

        Var w = 2 / fan_in

    Args:
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. Then Var w = 2 / (1 + fan_in).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: on call, if the shape lacks a named axis.

    Source:
        He, Zhang, Ren & Sun 2015, "Delving deep into rectifiers", section 2.2, equation (10).

    Example:
        >>> import jax
        >>> from gradtx.initializers import he_normal
        >>> w = he_normal()(jax.random.key(0), (200, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans("he_normal", 2.0, "fan_in", "truncated_normal", axes, dtype, count_bias)


def he_uniform(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """He's rule, with uniform weights.

        w ~ U[-L, L),    L = sqrt(6 / fan_in)

    Args:
        in_axis: axis or axes that index inputs.
        out_axis: axis or axes that index outputs.
        batch_axis: axis or axes that index independent layers.
        dtype: default dtype of the result, real or complex; None is jax's default float.
        count_bias: whether the bias counts as one more input. Then L = sqrt(6 / (1 + fan_in)).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: on call, if the shape lacks a named axis.

    Source:
        He, Zhang, Ren & Sun 2015, "Delving deep into rectifiers", section 2.2, equation (10).

    Example:
        >>> import jax
        >>> from gradtx.initializers import he_uniform
        >>> w = he_uniform()(jax.random.key(0), (200, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    axes = (in_axis, out_axis, batch_axis)
    return scaled_by_fans("he_uniform", 2.0, "fan_in", "uniform", axes, dtype, count_bias)


xavier_normal = glorot_normal
xavier_uniform = glorot_uniform
kaiming_normal = he_normal
kaiming_uniform = he_uniform
