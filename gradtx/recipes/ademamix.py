"""AdEMAMix and its simplified form."""

from __future__ import annotations

from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.select import Decay, Mask


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """AdEMAMix: AdamW with a slow average of the gradient in addition to the fast one.

        m1 <- b1 * m1 + (1 - b1) * g,    m1_hat = m1 / (1 - b1^t)
        m2 <- b3 * m2 + (1 - b3) * g
        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        r = (m1_hat + alpha * m2) / (sqrt(v_hat + eps_root) + eps)
        u = -learning_rate * (r + weight_decay * p)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the fast average, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        b3: the decay rate of the slow average, in [0, 1). The paper raises it from b1 by a
            schedule.
        alpha: the weight of the slow average. The paper raises it from 0 by a schedule.
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of both averages of the gradient; None: the parameter's, at
            least float32.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_ademamix`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Pagliardini, Ablin & Grangier 2024, "The AdEMAMix optimizer: better, faster, older",
        Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.ademamix(0.5, b3=0.5, alpha=2.0)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        weight_decay_of("ademamix", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def simplified_ademamix(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.99,
    b2: ScalarOrSchedule = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """Simplified AdEMAMix: AdamW with a sum of past gradients plus the current one.

        m <- b1 * m + g
        n <- b2 * n + (1 - b2) * g^2,    n_hat = n / (1 - b2^t)
        u = -learning_rate * ((m + alpha * g) / (sqrt(n_hat + eps_root) + eps) + weight_decay * p)

    Its steps are up to 1 / (1 - b1) times as long as Adam's; choose a smaller learning rate.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the sum of past gradients, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        alpha: the weight of the current gradient.
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_simplified_ademamix`, `add_decayed_weights` and
        `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Morwani et al. 2025, "Connections between schedule-free optimizers, AdEMAMix, and
        accelerated SGD variants".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.simplified_ademamix(0.25, alpha=3.0)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        weight_decay_of("simplified_ademamix", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )
