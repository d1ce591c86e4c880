"""Norms and clipping by unit: by the weights that feed one neuron or output channel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradtx import norms, trees
from gradtx.arguments import NON_NEGATIVE, check
from gradtx.messages import for_static, shown
from gradtx.stored import to_store


def unit_axes(owner: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that feed one unit: all of a vector (None), all but the last of a kernel."""
    rank = len(shape)
    if sum(size != 1 for size in shape) <= 1:
        return None
    if rank > 5:
        raise ValueError(
            f"{owner}: an array of shape {shape} has more than 5 axes; pass as axis those that "
            "feed one unit"
        )
    return (0,) if rank <= 3 else tuple(range(rank - 1))


def as_axes(owner: str, axis: Any) -> tuple[int, ...] | None:
    """The argument `axis` as a tuple, None as it is.

    Raises:
        ValueError: if it is neither an integer nor a sequence of integers.
    """
    if axis is None:
        return None
    axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    if not all(isinstance(a, int) for a in axes):
        raise ValueError(
            f"{owner}: axis must be an integer or several, got {shown(axis)}"
            f"{for_static('axis', axis)}"
        )
    return axes


def unitwise_norm(x: ArrayLike, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The Euclidean norm of each unit, at the place of each of its elements.

        n_ij = sqrt(sum_k |x_kj|^2)

    It is computed in at least float32, and no intermediate result overflows or underflows.

    Args:
        x: an array of weights or gradients.
        axis: the axes that a unit's norm sums over; None: all of a vector, axis 0 of a matrix or
            a stack of matrices, all but the last of a kernel of 4 or 5 axes.

    Returns:
        Real numbers of the shape and precision of `x`.

    Raises:
        ValueError: if `x` has more than 5 axes and `axis` is None.

    Source:
        Brock et al. 2021, "High-performance large-scale image recognition without
        normalization", section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> print(gradtx.unitwise_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])))
        [[5. 2.]
         [5. 2.]]
    """
    x = jnp.asarray(x)
    if not trees.is_parameter(x):
        x = x.astype(jnp.float32)
    axis = unit_axes("unitwise_norm", x.shape) if axis is None else axis
    norm = norms.norm(x.astype(trees.compute_dtype(x.dtype)), axis)
    return jnp.broadcast_to(norm.astype(trees.real_dtype(x.dtype)), x.shape)


def unitwise_clip(
    g_norm: ArrayLike, max_norm: ArrayLike, grad: ArrayLike, div_eps: ArrayLike = 1e-6
) -> jax.Array:
    """Scale each unit's gradient down to a maximum norm.

        u = g                                        where ||g|| < max_norm
        u = g * max_norm / max(||g||, div_eps)       elsewhere

    Args:
        g_norm: the norm of each element's unit, as `unitwise_norm` returns it.
        max_norm: the largest norm of each element's unit, in the same shape.
        grad: the gradient, in the same shape.
        div_eps: the lower bound of the denominator, >= 0.

    Returns:
        The clipped gradient, in its own dtype.

    Raises:
        ValueError: if the shapes differ, or `div_eps` is negative, NaN or not a scalar.

    Source:
        Brock et al. 2021, equation (3).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> g = jnp.array([3.0, 4.0])
        >>> print(gradtx.unitwise_clip(gradtx.unitwise_norm(g), jnp.full(2, 2.5), g))
        [1.5 2. ]
    """
    div_eps = check("unitwise_clip", "div_eps", div_eps, NON_NEGATIVE)
    for name, other in (("g_norm", g_norm), ("max_norm", max_norm)):
        if np.shape(other) != np.shape(grad):
            raise ValueError(
                f"unitwise_clip: {name} must have the gradient's shape {np.shape(grad)}, got "
                f"{np.shape(other)}"
            )
    grad = jnp.asarray(grad)
    dtype = trees.compute_dtype(grad.dtype)
    real = trees.real_dtype(dtype)
    norm, largest = jnp.asarray(g_norm).astype(real), jnp.asarray(max_norm).astype(real)
    is_within = norm < largest
    divisor = jnp.maximum(norm, jnp.asarray(div_eps, real))
    # With div_eps = 0 a gradient of zero gives 0 / 0, and stays zero.
    ratio = largest / jnp.where(is_within | (divisor == 0), 1.0, divisor)
    factor = jnp.where(is_within, 1.0, ratio).astype(dtype)
    return to_store(factor * grad.astype(dtype), grad.dtype)
