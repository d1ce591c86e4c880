"""AdEMAMix: Adam with a slow average of the gradient in addition to the fast one."""

from __future__ import annotations

import optax
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule
from optax.contrib import ScaleByAdemamixState, ScaleBySimplifiedAdEMAMixState

from gradtx.kernel import ANY_NUMBER, DECAY, Kernel, Slot
from gradtx.kernels.adam import ADAM_RANGES
from gradtx.kernels.arithmetic import bias_corrections, debias, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared


def _ademamix(g, *, m1, m2, nu, correction1, correction2, b1, b2, b3, alpha, eps, eps_root):
    m1 = b1 * m1 + (1 - b1) * g
    m2 = b3 * m2 + (1 - b3) * g
    nu = b2 * nu + (1 - b2) * abs_squared(g)
    momentum = m1 * correction1 + alpha * m2
    return safe_divide(momentum, lax.sqrt(nu * correction2 + eps_root) + eps, eps), m1, m2, nu


ADEMAMIX = Kernel(
    "scale_by_ademamix",
    _ademamix,
    slots=(
        Slot("m1", dtype_argument="mu_dtype"),
        Slot("m2", dtype_argument="mu_dtype"),
        Slot("nu", real=True, non_negative=True),
    ),
    hyperparameters=ADAM_RANGES | {"b3": DECAY, "alpha": ANY_NUMBER},
    scalar_step=bias_corrections,
    factors=("correction1", "correction2"),
    state=ScaleByAdemamixState,
    counters=("count", "count_m2"),
    degree=0,
    source="Pagliardini et al. 2024, Algorithm 1",
    bounded="squares",
)


def scale_by_ademamix(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix's scaling: Adam's with a fast and a slow moving average of the gradient.

        m1 <- b1 * m1 + (1 - b1) * g,    m1_hat = m1 / (1 - b1^t)
        m2 <- b3 * m2 + (1 - b3) * g
        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        u = (m1_hat + alpha * m2) / (sqrt(v_hat + eps_root) + eps)

    m2 starts at zero and is not corrected for that, so that old gradients gain weight slowly. The
    paper also warms up alpha and b3: pass schedules for them.

    Args:
        b1: the decay rate of the fast average, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        b3: the decay rate of the slow average, in [0, 1).
        alpha: the weight of the slow average.
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of both averages of the gradient; None: the parameter's, at
            least float32. optax stores v in it too.

    Returns:
        The transformation, with the state `ScaleByAdemamixState(count, count_m2, m1, m2, nu)`,
        whose two counters are equal.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Pagliardini, Ablin & Grangier 2024, "The AdEMAMix optimizer: better, faster, older",
        Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_ademamix(b3=0.5, alpha=6.0, eps=0.0)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -4.000
    """
    return lift(
        ADEMAMIX,
        dtypes={"m1": mu_dtype, "m2": mu_dtype},
        b1=b1,
        b2=b2,
        b3=b3,
        alpha=alpha,
        eps=eps,
        eps_root=eps_root,
    )


def _simplified_ademamix(g, *, m, n, t, b1, b2, alpha, eps, eps_root):
    m = b1 * m + g
    n = b2 * n + (1 - b2) * abs_squared(g)
    return safe_divide(m + alpha * g, lax.sqrt(debias(n, b2, t) + eps_root) + eps, eps), m, n


SIMPLIFIED_ADEMAMIX = Kernel(
    "scale_by_simplified_ademamix",
    _simplified_ademamix,
    slots=(Slot("m"), Slot("n", real=True, non_negative=True)),
    hyperparameters=ADAM_RANGES | {"alpha": ANY_NUMBER},
    state=ScaleBySimplifiedAdEMAMixState,
    counters=("t",),
    degree=0,
    source="Morwani et al. 2025",
    bounded="squares",
)


def scale_by_simplified_ademamix(
    b1: ScalarOrSchedule = 0.99,
    b2: ScalarOrSchedule = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Simplified AdEMAMix's scaling: Adam's with a sum of past gradients plus the current one.

        m <- b1 * m + g
        n <- b2 * n + (1 - b2) * g^2,    n_hat = n / (1 - b2^t)
        u = (m + alpha * g) / (sqrt(n_hat + eps_root) + eps)

    m is a sum, not an average: with a constant gradient u grows towards 1 / (1 - b1) + alpha.

    Args:
        b1: the decay rate of the sum of past gradients, in [0, 1); a number, a scalar array or a
            schedule.
        b2: the decay rate of the second moment, in [0, 1).
        alpha: the weight of the current gradient.
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.

    Returns:
        The transformation, with the state `ScaleBySimplifiedAdEMAMixState(t, m, n)`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Morwani et al. 2025, "Connections between schedule-free optimizers, AdEMAMix, and
        accelerated SGD variants", the simplified AdEMAMix.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_simplified_ademamix(alpha=2.0, eps=0.0)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -3.000
    """
    return lift(SIMPLIFIED_ADEMAMIX, b1=b1, b2=b2, alpha=alpha, eps=eps, eps_root=eps_root)
