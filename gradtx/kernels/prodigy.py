"""Prodigy: D-Adaptation with an estimate that grows faster."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import ProdigyState

from gradtx import norms
from gradtx.arguments import check, check_flag
from gradtx.kernel import DECAY, NON_NEGATIVE, POSITIVE, Kernel, Scalar, Slot
from gradtx.kernels.arithmetic import quotient, safe_divide
from gradtx.kernels.dadaptation import (
    ADAM,
    GROWTH,
    adam_rate,
    check_betas,
    l1_norm_of_sum,
    root,
)
from gradtx.lift import lift


class ProdigyGrowthState(NamedTuple):
    """The state of `prodigy` with a limit on the growth of its estimate: that of optax, and d_max.

    Attributes:
        exp_avg: the average m of the gradients.
        exp_avg_sq: the average v of their squares.
        grad_sum: the weighted sum s of the gradients.
        params0: the initial parameters.
        estim_lr: the current estimate d.
        numerator_weighted: the numerator r of the estimates.
        count: number of steps taken, int32.
        estim_lr_max: the largest estimate so far, which d grows towards.
    """

    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    params0: Any
    estim_lr: jax.Array
    numerator_weighted: jax.Array
    count: jax.Array
    estim_lr_max: jax.Array


def _decay(beta3, is_squared):
    """The decay rate of r and s, which may be given by its square."""
    return root(beta3) if is_squared else beta3


def _prodigy_weight(
    estim_lr, estim_lr0, learning_rate, t, b1, b2, bias_correction, safeguard_warmup
):
    """The weight of a gradient in s."""
    rate = adam_rate(estim_lr, learning_rate, t, b1, b2, bias_correction)
    return estim_lr / estim_lr0 * (estim_lr if safeguard_warmup else rate)


def _prodigy_product(g, p, params0):
    return norms.sum_of(_progress, g, params0, p)


def _progress(g, start, p):
    return norms.inner_product(g, start - p)


def _prodigy_l1_norm(
    g,
    grad_sum,
    beta3,
    beta3_is_squared,
    estim_lr,
    estim_lr0,
    learning_rate,
    t,
    b1,
    b2,
    bias_correction,
    safeguard_warmup,
):
    weight = _prodigy_weight(
        estim_lr, estim_lr0, learning_rate, t, b1, b2, bias_correction, safeguard_warmup
    )
    keep = _decay(beta3, beta3_is_squared)
    return norms.sum_of(l1_norm_of_sum, grad_sum, g, [keep] * len(g), [weight] * len(g))


def _largest_so_far(g, estim_lr):
    """Without a limit on its growth, the estimate itself."""
    del g
    return estim_lr


def _prodigy_scalars(
    *,
    estim_lr,
    estim_lr_max,
    numerator_weighted,
    product,
    l1_norm,
    estim_lr0,
    estim_lr_coef,
    learning_rate,
    t,
    b1,
    b2,
    beta3,
    beta3_is_squared,
    growth_rate,
    bias_correction,
    safeguard_warmup,
):
    rate = adam_rate(estim_lr, learning_rate, t, b1, b2, bias_correction)
    keep = _decay(beta3, beta3_is_squared)
    numerator = keep * numerator_weighted + estim_lr / estim_lr0 * rate * product
    estimate = quotient(estim_lr_coef * numerator, l1_norm, at_zero=estim_lr)
    largest = jnp.maximum(estim_lr_max, estimate)
    # estim_lr0 is only a guess, from which there is no reason to grow slowly.
    limit = jnp.where(estim_lr == estim_lr0, largest, growth_rate * estim_lr)
    return {
        "numerator_weighted": numerator,
        "estim_lr": jnp.minimum(largest, limit),
        "estim_lr_max": largest,
        "rate": rate,
        "distance": estim_lr,
        "weight": _prodigy_weight(
            estim_lr, estim_lr0, learning_rate, t, b1, b2, bias_correction, safeguard_warmup
        ),
    }


def _prodigy(
    g,
    *,
    p,
    exp_avg,
    exp_avg_sq,
    grad_sum,
    params0,
    rate,
    distance,
    weight,
    b1,
    b2,
    beta3,
    beta3_is_squared,
    eps,
    weight_decay,
):
    exp_avg = b1 * exp_avg + (1 - b1) * distance * g
    exp_avg_sq = b2 * exp_avg_sq + (1 - b2) * norms.abs_squared(distance * g)
    grad_sum = _decay(beta3, beta3_is_squared) * grad_sum + weight * g
    step = safe_divide(exp_avg, lax.sqrt(exp_avg_sq) + distance * eps) + weight_decay * p
    return -rate * step, exp_avg, exp_avg_sq, grad_sum, params0


_MEASURES = {"product": _prodigy_product, "l1_norm": _prodigy_l1_norm}
PRODIGY = Kernel(
    "prodigy",
    _prodigy,
    slots=(
        Slot("exp_avg"),
        Slot("exp_avg_sq", real=True, non_negative=True),
        Slot("grad_sum"),
        Slot("params0", fill="p"),
    ),
    scalars=(Scalar("estim_lr", fill="estim_lr0"), Scalar("numerator_weighted")),
    scalar_step=_prodigy_scalars,
    factors=("rate", "distance", "weight"),
    measures={**_MEASURES, "estim_lr_max": _largest_so_far},
    hyperparameters=ADAM | {"beta3": DECAY, "estim_lr_coef": NON_NEGATIVE, "growth_rate": GROWTH},
    options=("beta3_is_squared", "bias_correction", "safeguard_warmup"),
    state=ProdigyState,
    degree=0,
    sense=-1,
    factor="learning_rate",
    hidden="finds its own step size",
    source="Mishchenko & Defazio 2023, Algorithm 4",
    bounded="squares",
)
LIMITED_PRODIGY = replace(
    PRODIGY,
    scalars=(*PRODIGY.scalars, Scalar("estim_lr_max", fill="estim_lr0")),
    measures=_MEASURES,
    state=ProdigyGrowthState,
)


def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[ScalarOrSchedule, ScalarOrSchedule] = (0.9, 0.999),
    beta3: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    estim_lr0: ArrayLike = 1e-6,
    estim_lr_coef: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    safeguard_warmup: bool = False,
    *,
    bias_correction: bool = False,
    growth_rate: ScalarOrSchedule = math.inf,
) -> optax.GradientTransformationExtraArgs:
    """Prodigy: D-Adaptation with an estimate of the distance that grows faster.

        rate = learning_rate * d
        m <- b1 * m + (1 - b1) * d * g
        v <- b2 * v + (1 - b2) * d^2 * g^2
        r <- beta3 * r + d / d_0 * rate * sum(g * (p_0 - p))
        s <- beta3 * s + d / d_0 * rate * g
        u = -rate * (m / (sqrt(v) + d * eps) + weight_decay * p)
        d <- max(d, estim_lr_coef * r / sum(|s|)),    d_0 = estim_lr0

    Sums run over the whole tree. u uses the old d, also next to eps. With a finite growth_rate the
    last line becomes

        d_max <- max(d_max, estim_lr_coef * r / sum(|s|))
        d <- min(d_max, growth_rate * d),    d_max while d is still d_0

    Args:
        learning_rate: a factor of the step size; a number, a scalar array or a schedule. Leave it
            at 1, or let a schedule lower it from 1 to 0.
        betas: b1 and b2, both in [0, 1); numbers, scalar arrays or schedules.
        beta3: the decay rate of r and s, in [0, 1); None: sqrt(b2).
        eps: added to the denominator outside the root, >= 0.
        estim_lr0: the first estimate, > 0. It should be far too small.
        estim_lr_coef: a factor of the estimates, >= 0. It is the place to tune the method.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the step size.
        safeguard_warmup: whether s uses d in place of rate, so that a warmup of the learning rate
            does not let the estimate grow.
        bias_correction: whether to multiply the rate by sqrt(1 - b2^t) / (1 - b1^t) too. optax
            does; the paper does not.
        growth_rate: the largest factor by which d may grow in one step, >= 1. Infinity, as in the
            paper, is no limit; 1.02, say, acts like a warmup of the learning rate.

    Returns:
        The transformation, with the state `ProdigyState(exp_avg, exp_avg_sq, grad_sum, params0,
        estim_lr, numerator_weighted, count)`, which are m, v, s, p_0, d and r, or, unless
        `growth_rate` is the number infinity, `ProdigyGrowthState`, which has d_max too; its update
        needs `params`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Mishchenko & Defazio 2023, "Prodigy: an expeditiously adaptive parameter-free learner",
        Algorithm 4, with r and s divided by (1 - sqrt(b2)) * d_0, which cancels. The authors' code,
        which `growth_rate` comes from, and optax use the new d next to eps, which shortens the
        steps while d grows: the parameters then differ by about 1000 * eps / |g| of their size,
        1e-5 at eps = 1e-8 for gradients of size 1 and 1e-3 for those of size 0.01. The authors'
        code also skips steps whose learning rate is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0])
        >>> tx = gradtx.prodigy(betas=(0.0, 0.0), estim_lr0=0.5)
        >>> print(tx.update(jnp.array([3.0]), tx.init(params), params)[0])
        [-0.5]
    """
    check_betas("prodigy", betas)
    estim_lr0 = check("prodigy", "estim_lr0", estim_lr0, POSITIVE)
    is_limited = not (isinstance(growth_rate, float) and growth_rate == math.inf)
    return lift(
        LIMITED_PRODIGY if is_limited else PRODIGY,
        learning_rate=learning_rate,
        b1=betas[0],
        b2=betas[1],
        beta3=betas[1] if beta3 is None else beta3,
        beta3_is_squared=beta3 is None,
        eps=eps,
        estim_lr0=estim_lr0,
        estim_lr_coef=estim_lr_coef,
        weight_decay=weight_decay,
        bias_correction=check_flag("prodigy", "bias_correction", bias_correction),
        growth_rate=growth_rate,
        safeguard_warmup=check_flag("prodigy", "safeguard_warmup", safeguard_warmup),
    )
