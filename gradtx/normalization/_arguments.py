"""The checks that every normalization makes of its arguments, and the dtype it computes in.

`owner` is the function that the user called; its name opens the messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Axis = int | Sequence[int]
Scalar = float | jax.Array


def as_floating(owner: str, name: str, value: ArrayLike) -> jax.Array:
    """The argument as an array of real floating-point numbers."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{owner}: {name} must hold real floating-point numbers, got dtype {array.dtype}"
        )
    return array


def statistics_dtype(*dtypes: DTypeLike) -> DTypeLike:
    """The dtype of statistics of such data: float64 for float64, float32 for everything else."""
    return jnp.float64 if jnp.float64 in dtypes else jnp.float32


def canonical_axes(owner: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes as increasing, non-negative numbers."""
    axes = np.atleast_1d(axis).tolist()
    names_axes = all(isinstance(a, int) and -ndim <= a < ndim for a in axes)
    if not axes or not names_axes or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(
            f"{owner}: axis must name distinct axes of an array of rank {ndim}, got {axis!r}"
        )
    return tuple(sorted(a % ndim for a in axes))


def other_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes of an array of that rank that `axes` leaves out."""
    return tuple(a for a in range(ndim) if a not in axes)


def along_axes(
    owner: str, name: str, value: ArrayLike, x: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """A parameter that runs along `axes` of `x`, given the rank of `x` to broadcast with it."""
    parameter = as_floating(owner, name, value)
    expected = tuple(x.shape[a] for a in axes)
    if parameter.shape != expected:
        raise ValueError(
            f"{owner}: {name} must have shape {expected}, the sizes of axes {axes} of x with shape "
            f"{x.shape}, got shape {parameter.shape}"
        )
    return jnp.expand_dims(parameter, other_axes(axes, x.ndim))


def aligned_mask(
    owner: str, mask: ArrayLike, x: jax.Array, left_out: tuple[int, ...] = ()
) -> jax.Array:
    """The mask with the rank of `x`; it may lack the axes `left_out`."""
    given = jnp.asarray(mask)
    if given.dtype != jnp.bool_:
        raise ValueError(f"{owner}: mask must be boolean, got dtype {given.dtype}")
    aligned = given
    if left_out and given.ndim == x.ndim - len(left_out):
        aligned = jnp.expand_dims(given, left_out)
    fits = aligned.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(aligned.shape, x.shape, strict=True)
    )
    if not fits:
        without = f", with or without axes {left_out}" if left_out else ""
        raise ValueError(
            f"{owner}: mask must have the shape {x.shape} of x{without}, or size 1 in place of any "
            f"size, got shape {given.shape}"
        )
    return aligned


def check_epsilon(owner: str, epsilon: Scalar) -> None:
    """Refuse a negative, infinite or NaN epsilon; a traced one cannot be checked."""
    if not isinstance(epsilon, Tracer) and not 0 <= epsilon < float("inf"):
        raise ValueError(f"{owner}: epsilon must be non-negative and finite, got {epsilon!r}")


def check_momentum(owner: str, momentum: Scalar) -> None:
    """Refuse a momentum outside [0, 1); a traced one cannot be checked."""
    if not isinstance(momentum, Tracer) and not 0 <= momentum < 1:
        raise ValueError(f"{owner}: momentum must lie in [0, 1), got {momentum!r}")
