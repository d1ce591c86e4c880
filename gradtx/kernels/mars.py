"""MARS: gradients with less variance, for any optimizer that follows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.kernel import ANY_NUMBER, DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.adan import change_of
from gradtx.lengths import clip_to_norm
from gradtx.lift import lift


class ScaleByMarsState(NamedTuple):
    """The state of `scale_by_mars`.

    Attributes:
        count: number of steps taken, int32.
        previous_gradient: the gradient of the previous step.
    """

    count: jax.Array
    previous_gradient: Any


def _mars(g, *, previous_gradient, t, b1, gamma, max_norm):
    # In small units, because the largest gradients differ by more than their dtype can hold.
    unit = 2.0**-5
    small = g * unit
    c = small + gamma * b1 / (1 - b1) * change_of(small, previous_gradient * unit, t)
    return clip_to_norm(c, norms.length(c), max_norm * unit) / unit, g


MARS = Kernel(
    "scale_by_mars",
    _mars,
    slots=(Slot("previous_gradient"),),
    hyperparameters={"b1": DECAY, "gamma": ANY_NUMBER, "max_norm": NON_NEGATIVE},
    state=ScaleByMarsState,
    elementwise=False,
    degree="between",
    source="Yuan et al. 2024, Algorithm 1",
)


def scale_by_mars(
    b1: ScalarOrSchedule = 0.95,
    gamma: ScalarOrSchedule = 0.025,
    *,
    max_norm: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Correct the gradient by a multiple of its change to reduce its variance: MARS's correction.

        c = g_t + gamma * b1 / (1 - b1) * (g_t - g_{t-1}),    g_1 at the first step
        u = c * min(1, max_norm / ||c||)

    Put it before an optimizer whose first moment has the same b1:
    `chain(scale_by_mars(b1), scale_by_adam(b1, ...), ...)`.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
            It should be that of the optimizer after it.
        gamma: the strength of the correction. With 1 the first moment is that of STORM.
        max_norm: the largest norm of each leaf, >= 0. With infinity there is no bound. To bound the
            norm of the whole tree instead, put `clip_by_global_norm` after it.

    Returns:
        The transformation, with the state `ScaleByMarsState(count, previous_gradient)`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Yuan et al. 2024, "MARS: unleashing the power of variance reduction for training large
        models", Algorithm 1, in the approximate form: g_{t-1} is the gradient of the previous step,
        not that of the previous parameters on this step's data. The norm is each leaf's, as in the
        authors' code; that code corrects the first gradient too, as if the one before it were zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_mars(b1=0.5, gamma=0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (0.5, 0.25):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> print(updates)
        [0.125]
    """
    return lift(MARS, b1=b1, gamma=gamma, max_norm=max_norm)
