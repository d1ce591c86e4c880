"""Steps as bets on the outcome of coin flips: COCOB."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule
from optax.contrib import COCOBState

from gradtx.kernel import NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.arithmetic import safe_divide
from gradtx.lift import lift


def _cocob(g, *, p, init_particles, cumulative_gradients, scale, subgradients, reward, alpha):
    scale = jnp.maximum(scale, jnp.abs(g))
    subgradients = subgradients + jnp.abs(g)
    reward = jnp.maximum(reward - jnp.real(jnp.conj(g) * (p - init_particles)), 0)
    cumulative_gradients = cumulative_gradients - g
    # (scale + reward) / scale is computed first: the square of the scale could underflow.
    share = safe_divide(cumulative_gradients, jnp.maximum(subgradients + scale, alpha * scale))
    wealth = 1 + safe_divide(reward, scale)
    target = init_particles + share * wealth
    return target - p, init_particles, cumulative_gradients, scale, subgradients, reward


COCOB = Kernel(
    "scale_by_cocob",
    _cocob,
    slots=(
        Slot("init_particles", fill="p"),
        Slot("cumulative_gradients"),
        Slot("scale", fill="eps", real=True, non_negative=True),
        Slot("subgradients", real=True, non_negative=True),
        Slot("reward", real=True, non_negative=True),
    ),
    hyperparameters={"alpha": NON_NEGATIVE, "eps": NON_NEGATIVE},
    state=COCOBState,
    degree=0,
    sense=-1,
    hidden="finds its own step size",
    source="Orabona & Tommasi 2017, Algorithm 2",
    bounded="sums",
)


def scale_by_cocob(
    alpha: ScalarOrSchedule = 100.0, eps: ScalarOrSchedule = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Bet a share of all rewards so far on the sign of the next gradient: COCOB's steps.

        L <- max(L, |g|),                         L_0 = eps
        G <- G + |g|
        reward <- max(reward - g * (p - p_0), 0)
        theta <- theta - g
        u = p_0 + theta / (L * max(G + L, alpha * L)) * (L + reward) - p

    all element by element. The updates are complete: no learning rate belongs after them.

    Args:
        alpha: roughly the number of steps for which the bets stay small, >= 0; a number, a scalar
            array or a schedule.
        eps: the initial value of L, the largest gradient so far, >= 0. The paper has 0.

    Returns:
        The transformation, with the state
        `COCOBState(init_particles, cumulative_gradients, scale, subgradients, reward)`; its update
        needs `params`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Orabona & Tommasi 2017, "Training deep networks without learning rates through coin
        betting", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([4.0])
        >>> tx = gradtx.scale_by_cocob(alpha=1.0)
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [0.5]
    """
    return lift(COCOB, alpha=alpha, eps=eps)
