"""MADGRAD: dual averaging with momentum and a cube root."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import lax
from optax import ScalarOrSchedule
from optax.contrib import MadgradState

from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.arithmetic import finite_sum, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared


def _madgrad(g, *, grad_sum_sq, s, x0, p, t, learning_rate, momentum, eps):
    weight = learning_rate * lax.sqrt(t)
    s = s + weight * g
    grad_sum_sq = finite_sum(grad_sum_sq, weight * abs_squared(g))
    z = x0 - safe_divide(s, jnp.cbrt(grad_sum_sq) + eps)
    return (1 - momentum) * (z - p), grad_sum_sq, s, x0


MADGRAD = Kernel(
    "scale_by_madgrad",
    _madgrad,
    slots=(Slot("grad_sum_sq", real=True, non_negative=True), Slot("s"), Slot("x0", fill="p")),
    hyperparameters={"learning_rate": NON_NEGATIVE, "momentum": DECAY, "eps": NON_NEGATIVE},
    state=MadgradState,
    degree="between",
    sense=-1,
    factor="learning_rate",
    hidden="takes a root of the learning rate",
    source="Defazio & Jelassi 2021, Algorithm 1",
    bounded="squares",
)


def scale_by_madgrad(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Move towards the initial parameters minus the scaled sum of all gradients: MADGRAD.

        w = learning_rate * sqrt(t)
        s <- s + w * g,    v <- v + w * g^2
        z = p_0 - s / (cbrt(v) + eps)
        u = (1 - momentum) * (z - p)

    The updates are complete: no learning rate belongs after them.

    Args:
        learning_rate: the step size, >= 0; a number, a scalar array or a schedule.
        momentum: the share of the way to z that is left for later steps, in [0, 1).
        eps: added to the denominator outside the root, >= 0.

    Returns:
        The transformation, with the state `MadgradState(count, grad_sum_sq, s, x0)`, v in
        `grad_sum_sq` and the initial parameters in `x0`; its update needs `params`.

    Raises:
        ValueError: if a number lies outside its range; in `update`, if `params` is missing.

    Source:
        Defazio & Jelassi 2021, "Adaptivity without compromise: a momentumized, adaptive, dual
        averaged gradient method for stochastic optimization", Algorithm 1. The authors' code, and
        optax with it, adds eps to the learning rate too.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0])
        >>> tx = gradtx.scale_by_madgrad(0.125, momentum=0.0, eps=0.0)
        >>> updates, state = tx.update(jnp.array([1.0]), tx.init(params), params)
        >>> print(f"{updates[0]:.3f}")  # -0.125 / cbrt(0.125)
        -0.250
    """
    return lift(MADGRAD, learning_rate=learning_rate, momentum=momentum, eps=eps)
