"""Polyak's step on an average of losses and gradients, in Adam's metric: MoMo-Adam."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import MomoAdamState

from gradtx import norms
from gradtx.arguments import check, check_flag, check_hyperparameter
from gradtx.kernel import ANY_NUMBER, DECAY, NON_NEGATIVE, Slot
from gradtx.kernels.arithmetic import safe_divide, sum_of_weights
from gradtx.kernels.momo import MOMO, mixed, shrunk
from gradtx.lift import lift


def _metric(average_of_squares, weights, eps):
    return lax.sqrt(average_of_squares / weights) + eps


def _momo_adam_squares(g, exp_avg, exp_avg_sq, beta, b2, eps, t):
    """<d, d / D> with the new average d."""
    numbers = [[number] * len(g) for number in (beta, b2, eps, sum_of_weights(b2, t))]
    return norms.sum_of(_squares_in_metric, exp_avg, exp_avg_sq, g, *numbers)


def _squares_in_metric(average, average_of_squares, g, beta, b2, eps, weights):
    size = jnp.abs(mixed(average, g, beta))
    average_of_squares = mixed(average_of_squares, norms.abs_squared(g), b2)
    real = average_of_squares.dtype
    metric = _metric(average_of_squares, weights.astype(real), eps.astype(real))
    # Not the square over the metric, because both are infinite where a square overflows.
    return jnp.sum(size * safe_divide(size, metric))


def _momo_adam(g, *, p, exp_avg, exp_avg_sq, length, learning_rate, beta, b2, eps, weight_decay, t):
    exp_avg = beta * exp_avg + (1 - beta) * g
    exp_avg_sq = b2 * exp_avg_sq + (1 - b2) * norms.abs_squared(g)
    direction = safe_divide(exp_avg, _metric(exp_avg_sq, sum_of_weights(b2, t), eps))
    return shrunk(length * direction, p, learning_rate, weight_decay), exp_avg, exp_avg_sq


MOMO_ADAM = replace(
    MOMO,
    name="momo_adam",
    step=_momo_adam,
    slots=(Slot("exp_avg"), Slot("exp_avg_sq", real=True, non_negative=True)),
    measures={**MOMO.measures, "squares": _momo_adam_squares},
    hyperparameters={**MOMO.hyperparameters, "b2": DECAY, "eps": NON_NEGATIVE},
    state=MomoAdamState,
    source="Schaipp et al. 2023, Algorithm 2",
)


def momo_adam(
    learning_rate: ScalarOrSchedule = 1e-2,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    lower_bound: ArrayLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    adapt_lower_bound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """MoMo-Adam: Adam with a step size from the gap of the averaged loss to a lower bound.

        f_avg <- b1 * f_avg + (1 - b1) * f,          gamma likewise of <g, p>, d of g
        v <- b2 * v + (1 - b2) * g^2,   D = eps + sqrt(v / (1 - b2^t))
        c = 1 + learning_rate * weight_decay,   rho = 1 - b1^t
        tau = min(learning_rate / rho,
                  max(c * (f_avg - gamma - rho * lb) + <d, p>, 0) / <d, d / D>)
        p <- (p - tau * d / D) / c

    The averages start at zero. With adapt_lower_bound lb changes as in `momo`, with rho * lb in
    place of lb, rho * lower_bound in place of lower_bound, and <d, d / D> in place of ||d||^2.

    Args:
        learning_rate: the largest step size, >= 0; a number, a scalar array or a schedule.
        b1: the decay rate of the averages, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        lower_bound: a lower bound of the loss, any number but NaN.
        weight_decay: the strength of the penalty weight_decay / 2 * <p, D p>, >= 0. (optax does not
            divide tau * d / D by c.)
        adapt_lower_bound: whether the bound is estimated.

    Returns:
        The transformation, with the state
        `MomoAdamState(exp_avg, exp_avg_sq, barf, gamma, lb, count)`; its update needs `params` and
        `value`, the loss f at which g was computed. A direction of zero gives no step. (optax takes
        none where <d, d / D> <= 2.2e-16.)

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `value` is missing.

    Source:
        Schaipp et al. 2023, "MoMo: momentum models for adaptive learning rates", Algorithm 2,
        equations (15) and (16); section 4 and the authors' code for the bound.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([3.0])
        >>> tx = gradtx.momo_adam(learning_rate=0.5)
        >>> value, gradient = jnp.sum(params**2), 2 * params
        >>> print(tx.update(gradient, tx.init(params), params, value=value)[0])
        [-0.5]
    """
    # Under its own name here, because the kernel calls it beta, as MoMo does.
    b1 = check_hyperparameter("momo_adam", "b1", b1, DECAY)
    lower_bound = check("momo_adam", "lower_bound", lower_bound, ANY_NUMBER)
    return lift(
        MOMO_ADAM,
        learning_rate=learning_rate,
        beta=b1,
        b2=b2,
        eps=eps,
        lower_bound=lower_bound,
        weight_decay=weight_decay,
        adapt_lower_bound=check_flag("momo_adam", "adapt_lower_bound", adapt_lower_bound),
        starts_at_zero=True,
    )
