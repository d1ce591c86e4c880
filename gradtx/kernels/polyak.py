"""Polyak's step size: the gap between the loss and its minimum, over the squared gradient."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.kernel import ANY_NUMBER, NON_NEGATIVE, Kernel
from gradtx.kernels.arithmetic import quotient
from gradtx.lengths import direction
from gradtx.lift import lift
from gradtx.messages import shown

_VARIANTS = ("sps", "sps+")


def _norm(g):
    return norms.length_of_leaves(g)


def _polyak_reach(*, value, norm, f_min, max_learning_rate, eps, variant):
    """The length of the step; the square of the norm may lie outside the range of its dtype."""
    gap = value - f_min
    if variant == "sps+":
        gap = jnp.maximum(gap, 0)
    length = norm.norm
    longest = quotient(gap, length + quotient(eps, length))
    # A learning rate of infinity is no limit, and a gradient of zero no direction.
    limit = jnp.where(length == 0, 0.0, max_learning_rate * length)
    return {"reach": jnp.minimum(longest, limit)}


def _stretch(g, *, norm, reach):
    return reach * direction(g, norm)


POLYAK = Kernel(
    "scale_by_polyak",
    _stretch,
    scalar_step=_polyak_reach,
    factors=("reach",),
    measures={"norm": _norm},
    extras=("value",),
    hyperparameters={
        "f_min": ANY_NUMBER,
        "max_learning_rate": NON_NEGATIVE,
        "eps": NON_NEGATIVE,
    },
    options=("variant",),
    hidden="finds its own step size",
    source="Loizou et al. 2021, equation (3)",
)


def scale_by_polyak(
    f_min: ScalarOrSchedule = 0.0,
    max_learning_rate: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 0.0,
    variant: str = "sps",
) -> optax.GradientTransformationExtraArgs:
    """Multiply the gradient by Polyak's step size.

        u = min((f - f_min) / (||g||^2 + eps), max_learning_rate) * g

    With variant "sps+" a negative f - f_min counts as 0. The norm is that of the whole tree.

    Args:
        f_min: the minimum of the loss, any number but NaN; a number, a scalar array or a schedule.
        max_learning_rate: the largest step size, >= 0.
        eps: added to the squared norm, >= 0.
        variant: "sps" or "sps+".

    Returns:
        The transformation; its update needs `value`, the loss f at which g was computed. Its state
        is empty, or counts steps for a schedule. A gradient of zero gives no step. (optax takes
        none once ||g||^2 + eps <= 2.2e-16, which may be far from the minimum of a small loss.)

    Raises:
        ValueError: if a number lies outside its range or `variant` is unknown; in `update`, if
            `value` is missing.

    Source:
        Loizou et al. 2021, "Stochastic Polyak step-size for SGD", equation (3) with c = 1;
        Garrigos et al. 2023, "Function value learning", for "sps+".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_polyak()
        >>> params = jnp.array([3.0, 4.0])
        >>> value, gradient = jnp.sum(params**2), 2 * params
        >>> print(tx.update(gradient, tx.init(params), params, value=value)[0])
        [1.5 2. ]
    """
    if variant not in _VARIANTS:
        raise ValueError(
            f"scale_by_polyak: variant must be one of {_VARIANTS}, got {shown(variant)}"
        )
    return lift(POLYAK, f_min=f_min, max_learning_rate=max_learning_rate, eps=eps, variant=variant)
