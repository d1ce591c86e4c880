"""Gradients extrapolated from the previous one: optimistic methods for games."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from gradtx.kernel import ANY_NUMBER, Kernel, Scalar, Slot, state_class
from gradtx.lift import lift

# optax keeps the class of this state private, so it is read off an abstract value.
_State = state_class(optax.scale_by_optimistic_gradient())


def _optimistic_gradient(g, *, previous_gradient, starts, alpha, beta):
    previous_gradient = jnp.where(starts, g, previous_gradient)
    return alpha * g + beta * (g - previous_gradient), g


def _no_longer_initial(is_initial_step):
    return {"is_initial_step": jnp.array(False), "starts": is_initial_step}


OPTIMISTIC_GRADIENT = Kernel(
    "scale_by_optimistic_gradient",
    _optimistic_gradient,
    slots=(Slot("previous_gradient"),),
    scalars=(Scalar("is_initial_step", fill=True, dtype=bool),),
    scalar_step=_no_longer_initial,
    factors=("starts",),
    hyperparameters={"alpha": ANY_NUMBER, "beta": ANY_NUMBER},
    state=_State,
    degree=1,
    factor="alpha",
    decay="mixes",
    source="Mokhtari et al. 2020, section 3",
)


def scale_by_optimistic_gradient(
    alpha: ScalarOrSchedule = 1.0, beta: ScalarOrSchedule = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Add the change since the last step to the gradient, as a prediction of the next change.

        u_t = (alpha + beta) * g_t - beta * g_{t-1},    g_0 = g_1

    Args:
        alpha: the weight of the current gradient; a number, a scalar array or a schedule.
        beta: the weight of the change since the last step. It is a negative momentum.

    Returns:
        The transformation, with optax's state (is_initial_step, previous_gradient).

    Raises:
        ValueError: if an argument is NaN or not a scalar.

    Source:
        Mokhtari, Ozdaglar & Pattathil 2020, "A unified analysis of extra-gradient and optimistic
        gradient methods for saddle point problems", the generalized update of section 3; Popov
        1980. Daskalakis et al. 2018 start from g_0 = 0 instead, which doubles the first step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_optimistic_gradient()
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (3.0, 4.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        ...     print(updates)
        [3.]
        [5.]
    """
    return lift(OPTIMISTIC_GRADIENT, alpha=alpha, beta=beta)
