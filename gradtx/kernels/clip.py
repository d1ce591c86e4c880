"""Limits on the size of updates, by element, norm or block, and removal of NaNs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.kernel import ANY_NUMBER, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.arithmetic import root_mean_square
from gradtx.kernels.unitwise import as_axes, unit_axes
from gradtx.lengths import (
    Length,
    clip_room,
    clip_to_norm,
    direction,
    shortened,
    shortening,
)
from gradtx.lift import lift


def _clip(g, *, max_delta):
    if jnp.iscomplexobj(g):
        raise ValueError(f"clip: complex numbers have no order; updates are {g.dtype}")
    # Subnormal numbers would not survive the comparison.
    return jnp.where(jnp.abs(g) <= max_delta, g, jnp.clip(g, -max_delta, max_delta))


CLIP = Kernel(
    "clip",
    _clip,
    hyperparameters={"max_delta": NON_NEGATIVE},
    degree="between",
    decay="limits",
)


def clip(max_delta: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Clip each element of the updates.

        u = min(max(g, -max_delta), max_delta)

    Args:
        max_delta: the largest absolute value, >= 0; a number, a scalar array or a schedule.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `max_delta` is negative, NaN or not a scalar; in `update`, if an update is
            complex.

    Source:
        Goodfellow, Bengio & Courville 2016, "Deep learning", section 10.11.1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.clip(1.0)
        >>> print(tx.update(jnp.array([-3.0, 0.5]), tx.init(None))[0])
        [-1.   0.5]
    """
    return lift(CLIP, max_delta=max_delta)


def length_of_gradients(
    gradients: Sequence[jax.Array], axis_name: norms.AxisName | None, axis_reduction: str
) -> Length:
    """The measure of a kernel whose options are those that `mapped_axes` returns."""
    return norms.length_of_leaves(gradients, axis_name=axis_name, axis_reduction=axis_reduction)


def mapped_axes(
    owner: str, axis_name: norms.AxisName | None, axis_reduction: str
) -> dict[str, Any]:
    """The options of a kernel that measures `length_of_gradients`, checked.

    Raises:
        ValueError: if `axis_reduction` is unknown.
    """
    norms.check_axis_reduction(owner, axis_reduction)
    # Options must be hashable, because the compiled step is looked up by them.
    axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
    return {"axis_name": axis_name, "axis_reduction": axis_reduction}


def _clip_factor(*, length, max_norm):
    return {"factor": shortening(length, max_norm, clip_room(max_norm))}


def _clip_by_global_norm(g, *, factor, length, max_norm):
    return shortened(g, factor, length, max_norm, clip_room(max_norm))


CLIP_BY_GLOBAL_NORM = Kernel(
    "clip_by_global_norm",
    _clip_by_global_norm,
    hyperparameters={"max_norm": NON_NEGATIVE},
    measures={"length": length_of_gradients},
    options=("axis_name", "axis_reduction"),
    scalar_step=_clip_factor,
    factors=("factor",),
    degree="between",
    decay="limits",
    source="Pascanu et al. 2013, Algorithm 1",
)


def clip_by_global_norm(
    max_norm: ScalarOrSchedule,
    *,
    axis_name: norms.AxisName | None = None,
    axis_reduction: str = "sum",
) -> optax.GradientTransformationExtraArgs:
    """Scale all updates down together so that their global norm is at most `max_norm`.

        u = min(1, max_norm / ||g||) * g,    ||g|| = sqrt(sum_i sum_j g_ij^2)

    Args:
        max_norm: the largest global norm, >= 0; a number, a scalar array or a schedule.
        axis_name: a mapped axis over which the gradient is spread, see `gradtx.global_norm`.
        axis_reduction: "sum" for the norm of the pieces together, "mean" for their mean norm.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `max_norm` is negative, NaN or not a scalar, or `axis_reduction` unknown.

    Source:
        Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural
        networks", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.clip_by_global_norm(1.0)
        >>> print(tx.update(jnp.array([3.0, 4.0]), tx.init(None))[0])
        [0.6 0.8]
    """
    axes = mapped_axes("clip_by_global_norm", axis_name, axis_reduction)
    return lift(CLIP_BY_GLOBAL_NORM, max_norm=max_norm, **axes)


def _normalize_by_update_norm(g, *, length, scale_factor, eps):
    return direction(g, length.plus(eps)) * scale_factor


NORMALIZE_BY_UPDATE_NORM = Kernel(
    "normalize_by_update_norm",
    _normalize_by_update_norm,
    hyperparameters={"scale_factor": ANY_NUMBER, "eps": NON_NEGATIVE},
    measures={"length": length_of_gradients},
    options=("axis_name", "axis_reduction"),
    degree=0,
    factor="scale_factor",
    decay="keeps",
    source="Hazan et al. 2015, Algorithm 1",
)


def normalize_by_update_norm(
    scale_factor: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-6,
    *,
    axis_name: norms.AxisName | None = None,
    axis_reduction: str = "sum",
) -> optax.GradientTransformationExtraArgs:
    """Divide all updates by their global norm.

        u = scale_factor * g / (||g|| + eps)

    Args:
        scale_factor: the norm of the result; a number, a scalar array or a schedule.
        eps: added to the denominator, >= 0.
        axis_name: a mapped axis over which the gradient is spread, see `gradtx.global_norm`.
        axis_reduction: "sum" for the norm of the pieces together, "mean" for their mean norm.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `eps` is negative, an argument is NaN or not a scalar, or `axis_reduction` is
            unknown.

    Source:
        Hazan, Levy & Shalev-Shwartz 2015, "Beyond convexity", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.normalize_by_update_norm(scale_factor=10.0, eps=0.0)
        >>> print(tx.update(jnp.array([3.0, 4.0]), tx.init(None))[0])
        [6. 8.]
    """
    axes = mapped_axes("normalize_by_update_norm", axis_name, axis_reduction)
    return lift(NORMALIZE_BY_UPDATE_NORM, scale_factor=scale_factor, eps=eps, **axes)


def _clip_by_block_rms(g, *, threshold):
    return clip_to_norm(g, root_mean_square(g), threshold)


CLIP_BY_BLOCK_RMS = Kernel(
    "clip_by_block_rms",
    _clip_by_block_rms,
    hyperparameters={"threshold": NON_NEGATIVE},
    elementwise=False,
    degree="between",
    decay="limits",
    source="Shazeer & Stern 2018, section 6",
)


def clip_by_block_rms(threshold: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Scale each leaf down so that its root mean square is at most `threshold`.

        u = g / max(1, RMS(g) / threshold),    RMS(g) = sqrt(mean(g^2))

    Args:
        threshold: the largest root mean square of a leaf, >= 0; a number, a scalar array or a
            schedule.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `threshold` is negative, NaN or not a scalar.

    Source:
        Shazeer & Stern 2018, "Adafactor", section 6, "update clipping".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.clip_by_block_rms(1.0)
        >>> updates, _ = tx.update({"a": jnp.full(4, 5.0), "b": jnp.full(4, 0.5)}, tx.init(None))
        >>> print(updates["a"], updates["b"])
        [1. 1. 1. 1.] [0.5 0.5 0.5 0.5]
    """
    return lift(CLIP_BY_BLOCK_RMS, threshold=threshold)


def _adaptive_grad_clip(g, *, p, clipping, eps, axis):
    axis = unit_axes("adaptive_grad_clip", p.shape) if axis is None else axis
    max_norm = clipping * jnp.maximum(norms.norm(p, axis), eps)
    return clip_to_norm(g, norms.length(g, axis), max_norm)


ADAPTIVE_GRAD_CLIP = Kernel(
    "adaptive_grad_clip",
    _adaptive_grad_clip,
    hyperparameters={"clipping": NON_NEGATIVE, "eps": NON_NEGATIVE},
    options=("axis",),
    elementwise=False,
    degree="between",
    decay="limits",
    source="Brock et al. 2021, equation (3)",
)


def adaptive_grad_clip(
    clipping: ScalarOrSchedule,
    eps: ScalarOrSchedule = 1e-3,
    axis: int | tuple[int, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each unit's gradient to a multiple of the norm of its weights.

        u_i = min(1, clipping * max(||p_i||, eps) / ||g_i||) * g_i

    A unit i is a column of a matrix, an output channel of a kernel, or a whole vector; a matrix
    of one row or column counts as a vector.

    Args:
        clipping: the largest ratio of the norms, >= 0; a number, a scalar array or a schedule.
        eps: the lower bound of the weights' norm, >= 0. It lets weights of zero grow.
        axis: the axes that a unit's norm sums over; None: all of a vector, axis 0 of a matrix or
            a stack of matrices, all but the last of a kernel of 4 or 5 axes.

    Returns:
        The transformation; its update needs `params`.

    Raises:
        ValueError: if a number is negative, NaN or not a scalar, or `axis` is not made of integers;
            in `update`, if a parameter has more than 5 axes and `axis` is None.

    Source:
        Brock et al. 2021, "High-performance large-scale image recognition without
        normalization", equation (3).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.adaptive_grad_clip(0.5)
        >>> params = jnp.array([0.6, 0.8])
        >>> print(tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0])
        [0.3 0.4]
    """
    axes = as_axes("adaptive_grad_clip", axis)
    return lift(ADAPTIVE_GRAD_CLIP, clipping=clipping, eps=eps, axis=axes)


def _zero_nans(g):
    is_nan = jnp.isnan(g)
    return jnp.where(is_nan, 0.0, g), jnp.any(is_nan)


ZERO_NANS = Kernel(
    "zero_nans",
    _zero_nans,
    slots=(
        Slot("found_nan", fill=False, dtype=bool, real=True, shape=lambda shape: (), is_read=False),
    ),
    state=optax.ZeroNansState,
    elementwise=False,
    degree=1,
)


def zero_nans() -> optax.GradientTransformationExtraArgs:
    """Replace each NaN in the updates by zero.

        u = 0 where g is NaN, else g

    Returns:
        The transformation, with the state `ZeroNansState(found_nan)`: for each leaf a boolean,
        whether the last gradient had a NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.zero_nans()
        >>> updates, state = tx.update(jnp.array([jnp.nan, 2.0]), tx.init(jnp.zeros(2)))
        >>> print(updates, state.found_nan)
        [0. 2.] True
    """
    return lift(ZERO_NANS)
