"""Initializers that preserve lengths: orthogonal matrices, and convolutions that act like them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gradtx.initializers.arguments import (
    require_axis,
    require_nonnegative,
    require_number,
)
from gradtx.initializers.initializer import (
    DType,
    Initializer,
    Scalar,
    Shape,
    initializer,
    rescale,
)


def orthogonal(scale: Scalar = 1.0, column_axis: int = -1, dtype: DType = None) -> Initializer:
    """A matrix drawn uniformly from the orthogonal (for complex dtypes: unitary) group.

        W = scale * Q diag(sign(diag(R))),    Q R = A,    A_ij ~ N(0, 1)

    The signs make the decomposition unique; without them the result would not be uniform (Haar
    distributed). All axes but `column_axis` are flattened into rows. W^T W = scale^2 I if there
    are at least as many rows as columns, otherwise W W^T = scale^2 I.

    Args:
        scale: the length of every row or column, >= 0.
        column_axis: the axis that indexes columns.
        dtype: default dtype of the result, real or complex; None is jax's default float.

    Returns:
        An initializer for shapes of rank 2 and above.

    Raises:
        ValueError: if `scale` is negative or not finite; on call, if the shape has fewer
            than two axes or no axis `column_axis`.

    Source:
        Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in
        deep linear neural networks", section 3; Mezzadri 2007, "How to generate random matrices
        from the classical compact groups", section 5, for the signs.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx.initializers import orthogonal
        >>> w = orthogonal()(jax.random.key(0), (4, 2))
        >>> bool(jnp.allclose(w.T @ w, jnp.eye(2), atol=1e-6))
        True
    """
    return _orthogonal("orthogonal", scale, column_axis, dtype)


def _orthogonal(owner: str, scale: Scalar, column_axis: int, dtype: DType) -> Initializer:
    """`orthogonal` for the function `owner`, whose name opens the messages."""
    require_nonnegative(owner, "scale", scale)
    require_axis(owner, "column_axis", column_axis)

    def sample(key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> jax.Array:
        rank = len(shape)
        if rank < 2 or not -rank <= column_axis < rank:
            raise ValueError(
                f"{owner}: the shape must have at least two axes, column_axis among them, "
                f"got shape={shape} and column_axis={column_axis}"
            )
        if 0 in shape:
            return jnp.zeros(shape, dtype)
        columns = shape[column_axis]
        matrix = jax.random.orthogonal(key, math.prod(shape) // columns, (), dtype, columns)
        row_axes = [size for axis, size in enumerate(shape) if axis != column_axis % rank]
        rows_first = matrix.reshape(*row_axes, columns)
        return rescale(jnp.moveaxis(rows_first, -1, column_axis), scale)

    return initializer(owner, sample, dtype)


def delta_orthogonal(
    scale: Scalar = 1.0, column_axis: int = -1, dtype: DType = None
) -> Initializer:
    """A convolution kernel that is an orthogonal matrix at its center tap and zero elsewhere.

        K[center] = W from `orthogonal`,    K[other taps] = 0

    With fan_in <= fan_out, which is required, and padding "SAME", the convolution multiplies the
    length of every signal by `scale`.

    Args:
        scale: the factor that lengths are multiplied by, >= 0.
        column_axis: the axis of W that indexes columns.
        dtype: default dtype of the result, real or complex; None is jax's default float.

    Returns:
        An initializer for kernels (*space, fan_in, fan_out) with one to three spatial axes. The
        center of an even number k of taps is tap k/2 - 1, as in padding "SAME".

    Raises:
        ValueError: if `scale` is negative or not finite; on call, if the rank is not 3, 4 or 5
            or fan_in exceeds fan_out.

    Source:
        Xiao, Bahri, Sohl-Dickstein, Schoenholz & Pennington 2018, "Dynamical isometry and a mean
        field theory of CNNs", algorithm 2.

    Example:
        >>> import jax
        >>> from gradtx.initializers import delta_orthogonal
        >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 2, 2))
        >>> abs(kernel).sum((1, 2)) > 0
        Array([False,  True, False], dtype=bool)
    """
    draw_matrix = _orthogonal("delta_orthogonal", scale, column_axis, None)

    def sample(key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> jax.Array:
        if len(shape) not in (3, 4, 5):
            raise ValueError(
                f"delta_orthogonal: the shape must have 3, 4 or 5 axes, got shape={shape}"
            )
        fan_in, fan_out = shape[-2:]
        if fan_in > fan_out:
            raise ValueError(
                "delta_orthogonal: with fewer outputs than inputs no kernel preserves lengths, "
                f"got fan_in={fan_in} and fan_out={fan_out} in shape={shape}"
            )
        return _at_center(draw_matrix(key, (fan_in, fan_out), dtype), shape)

    return initializer("delta_orthogonal", sample, dtype)


def identity(scale: float = 1.0, dtype: DType = None) -> Initializer:
    """A layer that passes on its input unchanged: an identity matrix, or a Dirac kernel.

        W_ij = scale if i = j else 0

    A convolution kernel has this matrix at its center tap and zeros elsewhere. Rectangular
    matrices copy the first min(fan_in, fan_out) inputs.

    Args:
        scale: the factor that the input is multiplied by, of either sign.
        dtype: default dtype of the result; None is jax's default float.

    Returns:
        An initializer, which ignores its key, for matrices (fan_in, fan_out) and for kernels
        (*space, fan_in, fan_out) with one to three spatial axes. The center of an even number k
        of taps is tap k/2 - 1, as in padding "SAME".

    Raises:
        ValueError: if `scale` is not a number; on call, if the rank is not 2, 3, 4 or 5.

    Source:
        Le, Jaitly & Hinton 2015, "A simple way to initialize recurrent networks of rectified
        linear units", section 2; Zagoruyko & Komodakis 2017, "DiracNets: training very deep neural
        networks without skip-connections", section 3, for convolutions.

    Example:
        >>> import jax
        >>> from gradtx.initializers import identity
        >>> identity(2.0)(jax.random.key(0), (2, 3))
        Array([[2., 0., 0.],
               [0., 2., 0.]], dtype=float32)
    """
    require_number("identity", "scale", scale)

    def sample(_key: jax.Array, shape: Shape, dtype: jax.typing.DTypeLike) -> jax.Array:
        if len(shape) not in (2, 3, 4, 5):
            raise ValueError(f"identity: the shape must have 2 to 5 axes, got shape={shape}")
        return _at_center(rescale(jnp.eye(*shape[-2:], dtype=dtype), scale), shape)

    return initializer("identity", sample, dtype, uses_key=False)


def _at_center(matrix: jax.Array, shape: Shape) -> jax.Array:
    if 0 in shape:
        return jnp.zeros(shape, matrix.dtype)
    center = tuple((taps - 1) // 2 for taps in shape[:-2])
    return jnp.zeros(shape, matrix.dtype).at[center].set(matrix)
