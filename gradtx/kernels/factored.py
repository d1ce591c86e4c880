"""Second moments of matrices, kept as one number for each row and one for each column."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.arguments import check, check_flag, check_hyperparameter, check_static
from gradtx.kernel import COUNT_OR_ZERO, DECAY, NON_NEGATIVE, Kernel, Range, Slot
from gradtx.kernels.arithmetic import safe_divide
from gradtx.lift import lift
from gradtx.messages import for_static, shown

STEP = Range(
    "a whole number >= 0 and < 2^31", lambda value: 0 <= value < 2**31 and value.is_integer()
)


def power_decay(step: ArrayLike, exponent: ArrayLike = 0.8) -> jax.Array:
    """The decay rate of Adafactor's second moment, which grows from 0 towards 1.

        decay_t = 1 - t^(-exponent),    t = step + 1

    Args:
        step: the number of steps taken, >= 0.
        exponent: c in the paper, >= 0; with 1 the second moment is the mean of all squares.

    Returns:
        A scalar in [0, 1), in double precision if jax is.

    Source:
        Shazeer & Stern 2018, "Adafactor", section 7.2.

    Example:
        >>> from gradtx.kernels.factored import power_decay
        >>> print(power_decay(0), power_decay(3, 0.5))
        0.0 0.5
    """
    # A float before 1 is added, because the largest counter would overflow.
    t = jnp.asarray(step, float) + 1
    # 1 - t^-c without cancellation.
    return 0.0 - jnp.expm1(-jnp.asarray(exponent, float) * jnp.log(t))


def factored_axes(
    shape: tuple[int, ...], factored: bool, min_dim_size_to_factor: int
) -> tuple[int, int] | None:
    """The second longest and the longest axis; None if the leaf is not factored.

    Among axes of equal length the later ones count as longer.
    """
    if not factored or len(shape) < 2:
        return None
    second, longest = np.argsort(shape, kind="stable")[-2:].tolist()
    return None if shape[second] < min_dim_size_to_factor else (second, longest)


def _without(
    axis: int, shape: tuple[int, ...], factored: bool, min_dim_size_to_factor: int
) -> tuple[int, ...]:
    """The shape without one of the factored axes, 0 for the first; (1,) if there are none."""
    axes = factored_axes(shape, factored, min_dim_size_to_factor)
    return (1,) if axes is None else shape[: axes[axis]] + shape[axes[axis] + 1 :]


def _whole(shape: tuple[int, ...], factored: bool, min_dim_size_to_factor: int) -> tuple[int, ...]:
    return shape if factored_axes(shape, factored, min_dim_size_to_factor) is None else (1,)


def _factored_rms(
    g, *, v_row, v_col, v, decay, epsilon, factored, min_dim_size_to_factor
) -> tuple[jax.Array, ...]:
    def averaged(moment, square):
        # A square that overflows must not stay in the average forever.
        largest = 0.99 * jnp.finfo(square.dtype).max
        return decay * moment + (1 - decay) * jnp.minimum(square + epsilon, largest)

    axes = factored_axes(g.shape, factored, min_dim_size_to_factor)
    if axes is None:
        v = averaged(v, norms.abs_squared(g))
        return g * _inverse_root(v), v_row, v_col, v
    second, longest = axes
    rows = averaged(jnp.expand_dims(v_row, longest), norms.mean_square(g, longest))
    columns = averaged(jnp.expand_dims(v_col, second), norms.mean_square(g, second))
    of_row, of_column = _inverse_root(rows), _inverse_root(columns)
    largest = jnp.max(rows, second, keepdims=True, initial=0.0)
    shares = safe_divide(rows, largest)
    mean_root = lax.sqrt(largest) * lax.sqrt(jnp.mean(shares, second, keepdims=True))
    # The larger factor first, and the mean with the smaller, so that nothing in between overflows.
    update = g * jnp.maximum(of_row, of_column) * (mean_root * jnp.minimum(of_row, of_column))
    return update, jnp.squeeze(rows, longest), jnp.squeeze(columns, second), v


def _inverse_root(v: jax.Array) -> jax.Array:
    """1 / sqrt(v), and 0 where v is 0: without an estimate there is no step."""
    is_zero = v < jnp.finfo(v.dtype).tiny
    return jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, v)))


FACTORED_RMS = Kernel(
    "scale_by_factored_rms",
    _factored_rms,
    slots=(
        Slot("v_row", real=True, non_negative=True, shape=functools.partial(_without, 1)),
        Slot("v_col", real=True, non_negative=True, shape=functools.partial(_without, 0)),
        Slot("v", real=True, non_negative=True, shape=_whole),
    ),
    hyperparameters={"decay": DECAY, "epsilon": NON_NEGATIVE},
    options=("factored", "min_dim_size_to_factor"),
    state=optax.FactoredState,
    elementwise=False,
    degree=0,
    source="Shazeer & Stern 2018, Algorithm 4",
    bounded="squares",
)


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: ScalarOrSchedule = 0.8,
    step_offset: ArrayLike = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: ScalarOrSchedule = 1e-30,
    decay_rate_fn: Callable[[Any, Any], ArrayLike] = power_decay,
) -> optax.GradientTransformationExtraArgs:
    """Divide by the root of a second moment of rank one: Adafactor's scaling.

        decay_t = 1 - t^(-decay_rate)
        r <- decay_t * r + (1 - decay_t) * (mean over a row of g^2 + epsilon)
        c <- decay_t * c + (1 - decay_t) * (mean over a column of g^2 + epsilon)
        u_ij = g_ij / sqrt(v_ij),    v_ij = r_i * c_j / mean(r)

    A matrix of n rows and m columns needs n + m numbers. An array that is not factored has

        v <- decay_t * v + (1 - decay_t) * (g^2 + epsilon)
        u = g / sqrt(v)

    An array with more axes is a stack of matrices in its two longest axes (the later ones among
    axes of equal length): r averages over the longest, c over the second longest. A stack of many
    layers of small matrices may therefore be factored across the layers. optax leaves the choice
    among axes of equal length to NumPy's sort, which for more than three axes depends on the
    processor.

    Args:
        factored: whether to factor at all.
        decay_rate: the exponent of the decay rate, >= 0; a number, a scalar array or a schedule.
        step_offset: the step at which t starts from 1 again, a whole number >= 0. A run that
            resumes from a checkpoint with other data forgets its old second moments; before that
            step t is 1.
        min_dim_size_to_factor: the smallest length of the second longest axis at which an array is
            factored, >= 0.
        epsilon: added to the squared gradients, >= 0. With 0 there is no step where v is 0.
        decay_rate_fn: function from the number of steps taken since `step_offset` and decay_rate
            to decay_t; a bound on it keeps the second moment from freezing (Zhai et al. 2021,
            "Scaling vision transformers", section 3.4).

    Returns:
        The transformation, with the state `FactoredState(count, v_row, v_col, v)`, whose fields
        have shape (1,) where a leaf does not need them.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost",
        Algorithm 4 and section 7.2. optax computes the decay rate in single precision whatever the
        dtype, and returns NaN before `step_offset` and at the largest counter.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> g = jnp.outer(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5, 1.0]))
        >>> tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2)
        >>> updates, state = tx.update(g, tx.init(g))
        >>> print(updates.round(5))
        [[ 1.  1.  1.]
         [-1. -1. -1.]]
        >>> print(state.v_row.shape, state.v_col.shape, state.v.shape)
        (2,) (3,) (1,)
    """
    owner = "scale_by_factored_rms"
    decay_rate = check_hyperparameter(owner, "decay_rate", decay_rate, NON_NEGATIVE)
    step_offset = check(owner, "step_offset", step_offset, STEP)
    min_dim_size_to_factor = check_static(
        owner, "min_dim_size_to_factor", min_dim_size_to_factor, COUNT_OR_ZERO
    )
    if not callable(decay_rate_fn):
        raise ValueError(
            f"{owner}: decay_rate_fn must be a function, got {shown(decay_rate_fn)}"
            f"{for_static('decay_rate_fn', decay_rate_fn)}"
        )

    def decay(count: jax.Array) -> Any:
        rate = decay_rate(count) if callable(decay_rate) else decay_rate
        # As integers, which are exact however large the offset.
        return decay_rate_fn(jnp.maximum(count - step_offset, 0), rate)

    return lift(
        FACTORED_RMS,
        decay=decay,
        epsilon=epsilon,
        factored=check_flag("scale_by_factored_rms", "factored", factored),
        min_dim_size_to_factor=min_dim_size_to_factor,
    )
