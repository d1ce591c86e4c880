"""D-Adaptation: Adam with an estimate of the distance to the solution as its step size."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import DAdaptAdamWState

from gradtx import norms
from gradtx.arguments import check, check_flag, check_hyperparameter
from gradtx.kernel import ANY_NUMBER, DECAY, NON_NEGATIVE, POSITIVE, Kernel, Range, Scalar, Slot
from gradtx.kernels.arithmetic import quotient, safe_divide, sum_of_weights
from gradtx.lift import lift
from gradtx.messages import shown

ADAM = {
    "learning_rate": ANY_NUMBER,
    "b1": DECAY,
    "b2": DECAY,
    "eps": NON_NEGATIVE,
    "estim_lr0": POSITIVE,
    "weight_decay": NON_NEGATIVE,
}
GROWTH = Range(">= 1", lambda value: value >= 1)


def root(decay: Any) -> Any:
    """sqrt(decay), in double precision for a Python number."""
    return math.sqrt(decay) if isinstance(decay, float) else lax.sqrt(decay)


def check_betas(owner: str, betas: tuple[ScalarOrSchedule, ScalarOrSchedule]) -> None:
    """Refuse anything but a pair of decay rates, naming the part."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"{owner}: betas must be a pair of numbers, got {shown(betas)}")
    for i, decay in enumerate(betas):
        check_hyperparameter(owner, f"betas[{i}]", decay, DECAY)


def adam_rate(estimate, learning_rate, t, b1, b2, bias_correction):
    """The step size: the estimated distance times the learning rate, and Adam's bias correction."""
    rate = estimate * learning_rate
    if bias_correction:
        rate *= lax.sqrt(sum_of_weights(b2, t)) / sum_of_weights(b1, t)
    return rate


def l1_norm_of_sum(s, g, keep, weight):
    """sum(|keep * s + weight * g|)."""
    return jnp.sum(jnp.abs(keep.astype(s.dtype) * s + weight.astype(s.dtype) * g))


def _dadapt_weights(b2):
    """sqrt(b2), and 1 - sqrt(b2) without cancellation."""
    return root(b2), (1 - b2) / (1 + root(b2))


def _dadapt_product(g, grad_sum, exp_avg_sq, eps):
    return norms.sum_of(_scaled_product, g, grad_sum, exp_avg_sq, [eps] * len(g))


def _scaled_product(g, s, v, eps):
    return jnp.sum(safe_divide(jnp.real(jnp.conj(s) * g), lax.sqrt(v) + eps.astype(v.dtype)))


def _dadapt_l1_norm(g, grad_sum, estim_lr, learning_rate, t, b1, b2, bias_correction):
    keep, share = _dadapt_weights(b2)
    weight = share * adam_rate(estim_lr, learning_rate, t, b1, b2, bias_correction)
    return norms.sum_of(l1_norm_of_sum, grad_sum, g, [keep] * len(g), [weight] * len(g))


def _dadapt_scalars(
    *,
    estim_lr,
    numerator_weighted,
    product,
    l1_norm,
    learning_rate,
    t,
    b1,
    b2,
    growth_rate,
    bias_correction,
):
    keep, share = _dadapt_weights(b2)
    rate = adam_rate(estim_lr, learning_rate, t, b1, b2, bias_correction)
    numerator = keep * numerator_weighted + share * rate * product
    # Until there is a gradient, the old estimate stays.
    estimate = quotient(numerator, share * l1_norm, at_zero=estim_lr)
    return {
        "numerator_weighted": numerator,
        "estim_lr": jnp.minimum(jnp.maximum(estim_lr, estimate), growth_rate * estim_lr),
        "rate": rate,
    }


def _dadapt(g, *, p, exp_avg, exp_avg_sq, grad_sum, rate, b1, b2, eps, weight_decay):
    keep, share = _dadapt_weights(b2)
    exp_avg = b1 * exp_avg + (1 - b1) * rate * g
    exp_avg_sq = b2 * exp_avg_sq + (1 - b2) * norms.abs_squared(g)
    grad_sum = keep * grad_sum + share * rate * g
    step = safe_divide(exp_avg, lax.sqrt(exp_avg_sq) + eps) + weight_decay * rate * p
    return -step, exp_avg, exp_avg_sq, grad_sum


DADAPT_ADAMW = Kernel(
    "dadapt_adamw",
    _dadapt,
    slots=(Slot("exp_avg"), Slot("exp_avg_sq", real=True, non_negative=True), Slot("grad_sum")),
    scalars=(Scalar("estim_lr", fill="estim_lr0"), Scalar("numerator_weighted")),
    scalar_step=_dadapt_scalars,
    factors=("rate",),
    measures={"product": _dadapt_product, "l1_norm": _dadapt_l1_norm},
    hyperparameters=ADAM | {"growth_rate": GROWTH},
    options=("bias_correction",),
    state=DAdaptAdamWState,
    degree=0,
    sense=-1,
    factor="learning_rate",
    hidden="finds its own step size",
    source="Defazio & Mishchenko 2023, Algorithm 5",
    bounded="squares",
)


def dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[ScalarOrSchedule, ScalarOrSchedule] = (0.9, 0.999),
    eps: ScalarOrSchedule = 1e-8,
    estim_lr0: ArrayLike = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    *,
    bias_correction: bool = False,
    growth_rate: ScalarOrSchedule = math.inf,
) -> optax.GradientTransformationExtraArgs:
    """D-Adaptation: AdamW with a lower estimate of the distance to the solution as its step size.

        rate = learning_rate * d,   c = sqrt(b2)
        r <- c * r + (1 - c) * rate * sum(g * s / (sqrt(v) + eps))
        m <- b1 * m + (1 - b1) * rate * g
        v <- b2 * v + (1 - b2) * g^2
        s <- c * s + (1 - c) * rate * g
        u = -(m / (sqrt(v) + eps) + weight_decay * rate * p)
        d <- max(d, min(r / ((1 - c) * sum(|s|)), growth_rate * d)),    d_0 = estim_lr0

    Sums run over the whole tree. No theorem bounds d from above in the metric of Adam: on |p - 3|
    it ends at 5.1 times the distance, with bias_correction at 1.7 times.

    Args:
        learning_rate: a factor of the step size; a number, a scalar array or a schedule. Leave it
            at 1, or let a schedule lower it from 1 to 0.
        betas: b1 and b2, both in [0, 1); numbers, scalar arrays or schedules.
        eps: added to the denominator outside the root, >= 0.
        estim_lr0: the first estimate, > 0. It should be far too small.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the step size.
        bias_correction: whether to multiply the rate by sqrt(1 - b2^t) / (1 - b1^t) too. optax
            does; the paper does not.
        growth_rate: the largest factor by which d may grow in one step, >= 1. Infinity, as in the
            paper, is no limit; 1.02, say, acts like a warmup of the learning rate.

    Returns:
        The transformation, with the state `DAdaptAdamWState(exp_avg, exp_avg_sq, grad_sum,
        estim_lr, numerator_weighted, count)`, which are m, v, s, d and r; its update needs
        `params`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Defazio & Mishchenko 2023, "Learning-rate-free learning by D-Adaptation", Algorithm 5. r is
        updated with the v that scaled the last step, as in the authors' code, which has
        `growth_rate` too. There an L2 penalty is the default, and decoupled decay an option; and
        steps whose learning rate is 0 are skipped.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0])
        >>> tx = gradtx.dadapt_adamw(betas=(0.0, 0.0), estim_lr0=0.5)
        >>> print(tx.update(jnp.array([3.0]), tx.init(params), params)[0])
        [-0.5]
    """
    check_betas("dadapt_adamw", betas)
    estim_lr0 = check("dadapt_adamw", "estim_lr0", estim_lr0, POSITIVE)
    return lift(
        DADAPT_ADAMW,
        learning_rate=learning_rate,
        b1=betas[0],
        b2=betas[1],
        eps=eps,
        estim_lr0=estim_lr0,
        weight_decay=weight_decay,
        growth_rate=growth_rate,
        bias_correction=check_flag("dadapt_adamw", "bias_correction", bias_correction),
    )
