"""Adan with its proximal weight decay."""

from __future__ import annotations

from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.adan import descend_proximally, scale_by_adan
from gradtx.kernels.scale import weight_decay_of
from gradtx.select import Decay, Mask, decayed_leaves, flag_of_each_leaf


def adan(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """Adan: adaptive Nesterov momentum.

        d = g_t - g_{t-1},    0 at the first step
        m <- b1 * m + (1 - b1) * g,                    m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * d,                    v_hat = v / (1 - b2^t)
        n <- b3 * n + (1 - b3) * (g + b2 * d)^2,       n_hat = n / (1 - b3^t)
        r = (m_hat + b2 * v_hat) / (sqrt(n_hat + eps_root) + eps)
        p + u = (p - learning_rate * r) / (1 + learning_rate * weight_decay)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the average change of the gradient, in [0, 1). It also weighs that
            change.
        b3: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0. The paper has none.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_adan`, `add_decayed_weights` and the proximal step, with the state
        of optax's `adan`; only if `weight_decay` is a schedule and `learning_rate` is not, the
        last state counts steps too.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Xie et al. 2022, "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
        models", Algorithm 1; see `scale_by_adan`. The decay is proximal, as in the paper; optax
        subtracts learning_rate * weight_decay * p instead, which agrees to first order.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0])
        >>> tx = gradtx.adan(0.5, eps_root=0.0, weight_decay=1.0)
        >>> updates, state = tx.update(jnp.array([0.5]), tx.init(params), params)
        >>> print(gradtx.apply_updates(params, updates))  # (2 - 0.5) / (1 + 0.5)
        [1.]
    """
    decays = flag_of_each_leaf("adan", decayed_leaves("adan", decay, mask))
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        weight_decay_of("adan", weight_decay, mask, decay=decay),
        descend_proximally(learning_rate, weight_decay, decays),
    )
