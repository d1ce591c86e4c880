"""Adan: Nesterov momentum from the differences of successive gradients."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import lax
from optax import ScalarOrSchedule

from gradtx.kernel import ANY_NUMBER, DECAY, NON_NEGATIVE, Kernel, PerLeaf, Slot
from gradtx.kernels.adam import ADAM_RANGES
from gradtx.kernels.arithmetic import bias_correction, bias_corrections, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared


def change_of(g, g_previous, t):
    """g_t - g_{t-1}, and zero at the first step, where there is no earlier gradient."""
    return jnp.where(t == 1, jnp.zeros_like(g), g - g_previous)


def _adan_corrections(*, t, b1, b2, b3):
    return bias_corrections(t=t, b1=b1, b2=b2) | {"correction3": bias_correction(b3, t)}


def _adan(
    g, *, m, v, n, g_previous, t, correction1, correction2, correction3, b1, b2, b3, eps, eps_root
):
    change = change_of(g, g_previous, t)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * change
    n = b3 * n + (1 - b3) * abs_squared(g + b2 * change)
    momentum = m * correction1 + b2 * (v * correction2)
    size = lax.sqrt(n * correction3 + eps_root) + eps
    return safe_divide(momentum, size), m, v, n, g


ADAN = Kernel(
    "scale_by_adan",
    _adan,
    slots=(
        Slot("m"),
        Slot("v"),
        Slot("n", real=True, non_negative=True),
        Slot("g", argument="g_previous"),
    ),
    hyperparameters=ADAM_RANGES | {"b3": DECAY},
    scalar_step=_adan_corrections,
    factors=("correction1", "correction2", "correction3"),
    state=optax.ScaleByAdanState,
    counters=("t",),
    degree=0,
    source="Xie et al. 2022, Algorithm 1",
    bounded="differences",
)


def scale_by_adan(
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Adan's scaling: Adam's with a Nesterov momentum of gradients and their changes.

        d = g_t - g_{t-1},    0 at the first step
        m <- b1 * m + (1 - b1) * g,                    m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * d,                    v_hat = v / (1 - b2^t)
        n <- b3 * n + (1 - b3) * (g + b2 * d)^2,       n_hat = n / (1 - b3^t)
        u = (m_hat + b2 * v_hat) / (sqrt(n_hat + eps_root) + eps)

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the average change of the gradient, in [0, 1). It also weighs that
            change.
        b3: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.

    Returns:
        The transformation, with the state `ScaleByAdanState(m, v, n, g, t)`, g the last gradient.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Xie et al. 2022, "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
        models", Algorithm 1, without its restarts. The paper's beta is 1 - b here, so that its
        factor 1 - beta_2 of the change, which occurs twice, is b2; optax uses 1 - b2 instead. The
        paper starts at m_0 = g_0 and n_0 = g_0^2; here, as in the authors' code and in optax,
        averages start at zero and are corrected for that, which gives the same first step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_adan(b1=0.0, b2=0.5, b3=0.0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (4.0, 2.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> print(f"{updates[0]:.3f}")  # (2 - 0.5 * 1.333) / (2 - 0.5 * 2)
        1.333
    """
    return lift(ADAN, b1=b1, b2=b2, b3=b3, eps=eps, eps_root=eps_root)


def _descend_proximally(g, *, learning_rate, weight_decay, decays):
    step = -learning_rate * g
    return step / (1 + learning_rate * weight_decay) if decays else step


def _step_size(learning_rate, weight_decay, decays):
    return learning_rate / (1 + learning_rate * weight_decay) if decays else learning_rate


PROXIMAL_DESCENT = Kernel(
    "adan",
    _descend_proximally,
    hyperparameters={"learning_rate": ANY_NUMBER, "weight_decay": NON_NEGATIVE},
    options=("decays",),
    degree=1,
    sense=-1,
    factor=_step_size,
    decays="",
    source="Xie et al. 2022, Algorithm 1",
)


def descend_proximally(
    learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule, decays: bool | PerLeaf
) -> optax.GradientTransformationExtraArgs:
    """Multiply by minus the learning rate, with proximal weight decay.

        u = -learning_rate * g / (1 + learning_rate * weight_decay)

    After `add_decayed_weights`, where g is r + weight_decay * p, it is the proximal step

        p + u = (p - learning_rate * r) / (1 + learning_rate * weight_decay),

    the minimum of <r, x> + ||x - p||^2 / (2 * learning_rate) + weight_decay / 2 * ||x||^2 over x.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        weight_decay: the strength of the decay that has been added, >= 0.
        decays: whether it was added to a leaf; elsewhere weight_decay is 0.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Xie et al. 2022, Algorithm 1; Zhuang et al. 2022, "Understanding AdamW through proximal
        methods and scale-freeness".

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernels.adan import descend_proximally
        >>> tx = descend_proximally(1.0, 3.0, True)
        >>> print(tx.update(jnp.array([2.0]), tx.init(()))[0])
        [-0.5]
    """
    return lift(
        PROXIMAL_DESCENT, learning_rate=learning_rate, weight_decay=weight_decay, decays=decays
    )
