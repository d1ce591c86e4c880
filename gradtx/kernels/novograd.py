"""NovoGrad: momentum of normalized gradients, with one second moment per leaf."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.kernel import NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.adam import ADAM_RANGES
from gradtx.kernels.arithmetic import safe_divide
from gradtx.lift import lift


def _novograd(g, *, p, mu, nu, t, b1, b2, eps, eps_root, weight_decay):
    square = jnp.square(norms.norm(g)).reshape(nu.shape)
    nu = jnp.where(t == 1, square, b2 * nu + (1 - b2) * square)
    direction = safe_divide(g, jnp.full_like(g, lax.sqrt(nu + eps_root) + eps))
    mu = b1 * mu + (direction + weight_decay * p)
    return mu, mu, nu


NOVOGRAD = Kernel(
    "scale_by_novograd",
    _novograd,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True, shape=lambda shape: ())),
    hyperparameters=ADAM_RANGES | {"weight_decay": NON_NEGATIVE},
    state=optax.ScaleByNovogradState,
    elementwise=False,
    degree=0,
    source="Ginsburg et al. 2019, Algorithm 1",
    bounded="norm",
)


def scale_by_novograd(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Accumulate gradients divided by a running norm of their leaf: NovoGrad's scaling.

        v <- b2 * v + (1 - b2) * ||g||^2,    at the first step v = ||g||^2
        m <- b1 * m + g / (sqrt(v + eps_root) + eps) + weight_decay * p
        u = m

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        weight_decay: the multiple of the parameters that is added to the momentum in each
            step, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.

    Returns:
        The transformation, with the state `ScaleByNovogradState(count, mu, nu)`, whose `nu` is
        one number for each leaf; its update needs `params`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Ginsburg et al. 2019, "Stochastic gradient methods with layer-wise adaptive moments for
        training of deep networks", Algorithm 1. The paper has no eps in its first step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_novograd(eps=0.0)
        >>> params = jnp.zeros(2)
        >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
        >>> print(updates, state.nu)
        [0.6 0.8] 25.0
    """
    return lift(
        NOVOGRAD,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
    )
