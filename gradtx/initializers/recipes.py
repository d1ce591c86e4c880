"""LeCun's, Glorot's and He's rules: `variance_scaling` with the constants of each paper.

Every rule comes in a normal version, truncated at two standard deviations before scaling as in
`jax.nn.initializers`, and in a uniform one.
"""

from gradtx.initializers.initializer import DType, Initializer
from gradtx.initializers.scaling import Axes, variance_scaling


def lecun_normal(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Keeps the variance of activations through linear units, and through tanh near zero.

    Equation: Var w = 1 / fan_in.

    Args:
        in_axis: Axis or axes that index inputs.
        out_axis: Axis or axes that index outputs.
        batch_axis: Axis or axes that index independent layers.
        dtype: Default dtype of the result, real or complex; None is jax's default float.
        count_bias: Whether the bias counts as one more input: Var w = 1 / (1 + fan_in).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: On call, if the shape lacks a named axis.

    Source:
        LeCun, Bottou, Orr and Müller (1998), "Efficient BackProp", section 4.6, equation (16).

    Example:
        >>> import jax
        >>> w = lecun_normal()(jax.random.key(0), (100, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    return variance_scaling(
        1.0,
        "fan_in",
        "truncated_normal",
        in_axis,
        out_axis,
        batch_axis,
        dtype,
        count_bias=count_bias,
    )


def lecun_uniform(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """LeCun's rule with uniform weights.

    Equation: w ~ U[-L, L) with L = sqrt(3 / fan_in).

    Args:
        in_axis: Axis or axes that index inputs.
        out_axis: Axis or axes that index outputs.
        batch_axis: Axis or axes that index independent layers.
        dtype: Default dtype of the result, real or complex; None is jax's default float.
        count_bias: Whether the bias counts as one more input: L = sqrt(3 / (1 + fan_in)).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: On call, if the shape lacks a named axis.

    Source:
        LeCun, Bottou, Orr and Müller (1998), "Efficient BackProp", section 4.6, equation (16).

    Example:
        >>> import jax
        >>> w = lecun_uniform()(jax.random.key(0), (100, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    return variance_scaling(
        1.0,
        "fan_in",
        "uniform",
        in_axis,
        out_axis,
        batch_axis,
        dtype,
        count_bias=count_bias,
    )


def glorot_normal(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Compromises between keeping activations and keeping gradients, for linear units and tanh.

    Equation: Var w = 2 / (fan_in + fan_out).

    Args:
        in_axis: Axis or axes that index inputs.
        out_axis: Axis or axes that index outputs.
        batch_axis: Axis or axes that index independent layers.
        dtype: Default dtype of the result, real or complex; None is jax's default float.
        count_bias: Whether the bias counts as one more input: Var w = 2 / (1 + fan_in + fan_out).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: On call, if the shape lacks a named axis.

    Source:
        Glorot and Bengio (2010), "Understanding the difficulty of training deep feedforward
        neural networks", section 4.2.1, equation (12).

    Example:
        >>> import jax
        >>> w = glorot_normal()(jax.random.key(0), (120, 80))
        >>> round(float(w.std()), 2)
        0.1
    """
    return variance_scaling(
        1.0,
        "fan_avg",
        "truncated_normal",
        in_axis,
        out_axis,
        batch_axis,
        dtype,
        count_bias=count_bias,
    )


def glorot_uniform(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Glorot's rule with uniform weights.

    Equation: w ~ U[-L, L) with L = sqrt(6 / (fan_in + fan_out)).

    Args:
        in_axis: Axis or axes that index inputs.
        out_axis: Axis or axes that index outputs.
        batch_axis: Axis or axes that index independent layers.
        dtype: Default dtype of the result, real or complex; None is jax's default float.
        count_bias: Whether the bias counts as one more input: L = sqrt(6 / (1 + fan_in + fan_out)).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: On call, if the shape lacks a named axis.

    Source:
        Glorot and Bengio (2010), "Understanding the difficulty of training deep feedforward
        neural networks", section 4.2.1, equation (16).

    Example:
        >>> import jax
        >>> w = glorot_uniform()(jax.random.key(0), (120, 80))
        >>> round(float(w.std()), 2)
        0.1
    """
    return variance_scaling(
        1.0,
        "fan_avg",
        "uniform",
        in_axis,
        out_axis,
        batch_axis,
        dtype,
        count_bias=count_bias,
    )


def he_normal(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """Keeps the variance of activations through rectifiers, which pass half of it on.

    Equation: Var w = 2 / fan_in.

    Args:
        in_axis: Axis or axes that index inputs.
        out_axis: Axis or axes that index outputs.
        batch_axis: Axis or axes that index independent layers.
        dtype: Default dtype of the result, real or complex; None is jax's default float.
        count_bias: Whether the bias counts as one more input: Var w = 2 / (1 + fan_in).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: On call, if the shape lacks a named axis.

    Source:
        He, Zhang, Ren and Sun (2015), "Delving Deep into Rectifiers", section 2.2, equation
        (10).

    Example:
        >>> import jax
        >>> w = he_normal()(jax.random.key(0), (200, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    return variance_scaling(
        2.0,
        "fan_in",
        "truncated_normal",
        in_axis,
        out_axis,
        batch_axis,
        dtype,
        count_bias=count_bias,
    )


def he_uniform(
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DType = None,
    *,
    count_bias: bool = False,
) -> Initializer:
    """He's rule with uniform weights.

    Equation: w ~ U[-L, L) with L = sqrt(6 / fan_in).

    Args:
        in_axis: Axis or axes that index inputs.
        out_axis: Axis or axes that index outputs.
        batch_axis: Axis or axes that index independent layers.
        dtype: Default dtype of the result, real or complex; None is jax's default float.
        count_bias: Whether the bias counts as one more input: L = sqrt(6 / (1 + fan_in)).

    Returns:
        An initializer, as from `variance_scaling`.

    Raises:
        ValueError: On call, if the shape lacks a named axis.

    Source:
        He, Zhang, Ren and Sun (2015), "Delving Deep into Rectifiers", section 2.2, equation
        (10).

    Example:
        >>> import jax
        >>> w = he_uniform()(jax.random.key(0), (200, 50))
        >>> round(float(w.std()), 2)
        0.1
    """
    return variance_scaling(
        2.0,
        "fan_in",
        "uniform",
        in_axis,
        out_axis,
        batch_axis,
        dtype,
        count_bias=count_bias,
    )


xavier_normal = glorot_normal
xavier_uniform = glorot_uniform
kaiming_normal = he_normal
kaiming_uniform = he_uniform
