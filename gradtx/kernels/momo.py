"""Polyak's step on an average of losses and gradients: MoMo."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import MomoState

from gradtx import norms
from gradtx.arguments import check, check_flag
from gradtx.kernel import ANY_NUMBER, DECAY, NON_NEGATIVE, Kernel, Scalar, Slot
from gradtx.kernels.arithmetic import quotient, sum_of_weights
from gradtx.lift import lift


def mixed(average, new, keep):
    """The new average: keep * average + (1 - keep) * new."""
    keep = jnp.asarray(keep).astype(average.dtype)
    return keep * average + (1 - keep) * new


def _gradient_product(g, p):
    """<g, p> of two lists of arrays."""
    return norms.sum_of(norms.inner_product, g, p)


def _penalty(learning_rate, weight_decay):
    """learning_rate * weight_decay, 0 without decay even if a step may be infinitely long."""
    return jnp.where(weight_decay == 0, 0.0, learning_rate * weight_decay)


def shrunk(step, p, learning_rate, weight_decay):
    """The update to (p - step) / (1 + learning_rate * weight_decay)."""
    decay = _penalty(learning_rate, weight_decay)
    return -(step + decay * p) / (1 + decay)


def _keep(beta, t, starts_at_zero):
    """The weight of the old average, 0 in the first step of averages that do not start at zero."""
    return beta if starts_at_zero else jnp.where(t == 1, 0.0, beta)


def _product(g, exp_avg, p, beta, t, starts_at_zero):
    """<d, p> with the new average d."""
    keep = _keep(beta, t, starts_at_zero)
    return norms.sum_of(_product_of_average, exp_avg, g, [keep] * len(g), p)


def _product_of_average(average, g, keep, p):
    return norms.inner_product(mixed(average, g, keep), p)


def _squares(g, exp_avg, beta, t, starts_at_zero):
    """||d||^2 with the new average d."""
    keep = _keep(beta, t, starts_at_zero)
    return norms.sum_of(_squares_of_average, exp_avg, g, [keep] * len(g))


def _squares_of_average(average, g, keep):
    return jnp.sum(norms.abs_squared(mixed(average, g, keep)))


def _length_and_bound(
    *,
    barf,
    gamma,
    lb,
    value,
    gradient_product,
    product,
    squares,
    learning_rate,
    beta,
    lower_bound,
    weight_decay,
    adapt_lower_bound,
    starts_at_zero,
    t,
):
    """The averages, the step length along d, and the new lower bound of the loss.

    `squares` is the squared norm of d in the metric of the step.
    """
    keep = _keep(beta, t, starts_at_zero)
    weights = sum_of_weights(beta, t) if starts_at_zero else 1.0
    barf = mixed(barf, value, keep)
    gamma = mixed(gamma, gradient_product, keep)
    growth = 1 + _penalty(learning_rate, weight_decay)
    model = growth * (barf - gamma) + product
    if adapt_lower_bound:
        # Half of a negative value would lie above that value, and end all steps.
        below = (model - jnp.abs(model) / 2) / (growth * weights)
        lb = jnp.where(model < growth * weights * lb, jnp.maximum(below, lower_bound), lb)
    gap = jnp.maximum(model - growth * weights * lb, 0)
    # Where the squares underflow the step is as long as it may be; a gradient of zero has none.
    longest = jnp.where((gap > 0) & jnp.isfinite(learning_rate), jnp.inf, 0.0)
    length = jnp.minimum(learning_rate / weights, quotient(gap, squares, at_zero=longest))
    if adapt_lower_bound:
        lb = jnp.maximum((barf - gamma + product - length * squares / 2) / weights, lower_bound)
    return {"barf": barf, "gamma": gamma, "lb": lb, "length": length}


def _momo(g, *, p, exp_avg, length, learning_rate, beta, weight_decay, t, starts_at_zero):
    exp_avg = mixed(exp_avg, g, _keep(beta, t, starts_at_zero))
    return shrunk(length * exp_avg, p, learning_rate, weight_decay), exp_avg


MOMO = Kernel(
    "momo",
    _momo,
    slots=(Slot("exp_avg"),),
    scalars=(Scalar("barf"), Scalar("gamma"), Scalar("lb", fill="lower_bound")),
    scalar_step=_length_and_bound,
    factors=("length",),
    measures={"gradient_product": _gradient_product, "product": _product, "squares": _squares},
    extras=("value",),
    hyperparameters={
        "learning_rate": NON_NEGATIVE,
        "beta": DECAY,
        "lower_bound": ANY_NUMBER,
        "weight_decay": NON_NEGATIVE,
    },
    options=("adapt_lower_bound", "starts_at_zero"),
    state=MomoState,
    sense=-1,
    factor="learning_rate",
    hidden="finds its own step size",
    source="Schaipp et al. 2023, Algorithm 1",
    bounded="squares",
)


def momo(
    learning_rate: ScalarOrSchedule = 1.0,
    beta: ScalarOrSchedule = 0.9,
    lower_bound: ArrayLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    adapt_lower_bound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """MoMo: momentum with a step size from the gap of the averaged loss to a lower bound.

        f_avg <- beta * f_avg + (1 - beta) * f,          gamma likewise of <g, p>, d of g
        c = 1 + learning_rate * weight_decay
        tau = min(learning_rate, max(c * (f_avg - gamma - lb) + <d, p>, 0) / ||d||^2)
        p <- (p - tau * d) / c

    The averages start at the first values. With adapt_lower_bound the bound changes too: with
    h = f_avg - gamma + <d, p>,

        before tau:  lb <- max((b - |b| / 2) / c, lower_bound)    if b < c * lb,
                     with b = c * (f_avg - gamma) + <d, p>
        after tau:   lb <- max(h - tau * ||d||^2 / 2, lower_bound)

    where the authors and optax take b / (2 * c), which is the same for a positive loss, but lies
    above a negative one. Products and norms are those of the whole tree.

    Args:
        learning_rate: the largest step size, >= 0; a number, a scalar array or a schedule.
        beta: the decay rate of the averages, in [0, 1).
        lower_bound: a lower bound of the loss, any number but NaN.
        weight_decay: the strength of the penalty weight_decay / 2 * ||p||^2, >= 0. (optax does not
            divide tau * d by c.)
        adapt_lower_bound: whether the bound is estimated.

    Returns:
        The transformation, with the state `MomoState(exp_avg, barf, gamma, lb, count)`; its update
        needs `params` and `value`, the loss f at which g was computed. A direction of zero gives no
        step. (optax takes none where ||d||^2 <= 2.2e-16.)

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `value` is missing.

    Source:
        Schaipp et al. 2023, "MoMo: momentum models for adaptive learning rates", Algorithm 1,
        equations (15) and (16); section 4 and the authors' code for the bound.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([3.0, 4.0])
        >>> tx = gradtx.momo()
        >>> value, gradient = jnp.sum(params**2), 2 * params
        >>> print(tx.update(gradient, tx.init(params), params, value=value)[0])
        [-1.5 -2. ]
    """
    lower_bound = check("momo", "lower_bound", lower_bound, ANY_NUMBER)
    return lift(
        MOMO,
        learning_rate=learning_rate,
        beta=beta,
        lower_bound=lower_bound,
        weight_decay=weight_decay,
        adapt_lower_bound=check_flag("momo", "adapt_lower_bound", adapt_lower_bound),
        starts_at_zero=False,
    )
