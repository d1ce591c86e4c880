"""Adam and its family: a first moment divided by the root of a second one."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx.arguments import check_flag
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.arithmetic import bias_corrections, debias, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared

# The ranges of what Adam and most of its relatives take.
ADAM_RANGES = {"b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE, "eps_root": NON_NEGATIVE}


def first_moment(g, mu, t, b1, correction, nesterov, bias_correction=True):
    """The estimate of the mean gradient: m_hat, or with Nesterov's look ahead."""
    if not nesterov:
        return mu * correction if bias_correction else mu
    if not bias_correction:
        return b1 * mu + (1 - b1) * g
    return b1 * debias(mu, b1, t + 1) + (1 - b1) * (g * correction)


def _adam(
    g, *, mu, nu, t, correction1, correction2, b1, b2, eps, eps_root, nesterov, bias_correction
):
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_squared(g)
    mu_hat = first_moment(g, mu, t, b1, correction1, nesterov, bias_correction)
    nu_hat = nu * correction2 if bias_correction else nu
    return safe_divide(mu_hat, lax.sqrt(nu_hat + eps_root) + eps, eps), mu, nu


ADAM = Kernel(
    "scale_by_adam",
    _adam,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True)),
    hyperparameters=ADAM_RANGES,
    options=("nesterov", "bias_correction"),
    scalar_step=bias_corrections,
    factors=("correction1", "correction2"),
    state=optax.ScaleByAdamState,
    degree=0,
    source="Kingma & Ba 2015, Algorithm 1",
    bounded="squares",
)


def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Divide a moving average of the gradient by the root of one of its square: Adam's scaling.

        m <- b1 * m + (1 - b1) * g,      m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        u = m_hat / (sqrt(v_hat + eps_root) + eps)

    With nesterov m_hat = b1 * m / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t). Where m and v are 0,
    so is u.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum. The method then is NAdam.
        bias_correction: whether to correct the bias of averages that start at zero. Without it
            m_hat = m, or with nesterov b1 * m + (1 - b1) * g, and v_hat = v.

    Returns:
        The transformation, with the state `ScaleByAdamState(count, mu, nu)`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Kingma & Ba 2015, "Adam: a method for stochastic optimization", Algorithm 1; Dozat 2016,
        "Incorporating Nesterov momentum into Adam", Algorithm 2 with constant b1 and, as in other
        libraries, without its further factor b2 on v_hat.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_adam(eps=0.0)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -1.000
    """
    return lift(
        ADAM,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        nesterov=check_flag("scale_by_adam", "nesterov", nesterov),
        bias_correction=check_flag("scale_by_adam", "bias_correction", bias_correction),
    )


def _amsgrad(
    g, *, mu, nu, nu_max, t, b1, b2, eps, eps_root, bias_correction_mu, bias_correction_nu
):
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_squared(g)
    mu_hat = debias(mu, b1, t) if bias_correction_mu else mu
    nu_max = jnp.maximum(nu_max, debias(nu, b2, t) if bias_correction_nu else nu)
    return safe_divide(mu_hat, lax.sqrt(nu_max + eps_root) + eps, eps), mu, nu, nu_max


AMSGRAD = Kernel(
    "scale_by_amsgrad",
    _amsgrad,
    slots=(
        Slot("mu"),
        Slot("nu", real=True, non_negative=True),
        Slot("nu_max", real=True, non_negative=True),
    ),
    hyperparameters=ADAM_RANGES,
    options=("bias_correction_mu", "bias_correction_nu"),
    state=optax.ScaleByAmsgradState,
    degree=0,
    source="Reddi et al. 2018, Algorithm 2",
    bounded="squares",
)


def scale_by_amsgrad(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad's scaling: Adam's with the largest second moment so far, which never decreases.

        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * g^2
        v_max <- max(v_max, v_hat)
        u = m_hat / (sqrt(v_max + eps_root) + eps)

    with m_hat = m / (1 - b1^t) and v_hat = v / (1 - b2^t), or m and v without correction.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        bias_correction_mu: whether to correct m; False as in the paper.
        bias_correction_nu: whether to correct v before the maximum; False as in the paper.
            (PyTorch corrects after the maximum.)

    Returns:
        The transformation, with the state `ScaleByAmsgradState(count, mu, nu, nu_max)`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Reddi, Kale & Kumar 2018, "On the convergence of Adam and beyond", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_amsgrad(eps=0.0)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -1.000
    """
    return lift(
        AMSGRAD,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        bias_correction_mu=check_flag("scale_by_amsgrad", "bias_correction_mu", bias_correction_mu),
        bias_correction_nu=check_flag("scale_by_amsgrad", "bias_correction_nu", bias_correction_nu),
    )


def _adamax(g, *, mu, nu, t, b1, b2, eps):
    mu = b1 * mu + (1 - b1) * g
    nu = jnp.maximum(b2 * nu, jnp.abs(g) + eps)
    return safe_divide(debias(mu, b1, t), nu), mu, nu


ADAMAX = Kernel(
    "scale_by_adamax",
    _adamax,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True)),
    hyperparameters={"b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE},
    state=optax.ScaleByAdamState,
    degree=0,
    source="Kingma & Ba 2015, Algorithm 2",
)


def scale_by_adamax(
    b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999, eps: ScalarOrSchedule = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Divide a moving average of the gradient by a decaying maximum: AdaMax's scaling.

        m <- b1 * m + (1 - b1) * g
        w <- max(b2 * w, |g| + eps)
        u = m / (1 - b1^t) / w

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the maximum, in [0, 1).
        eps: added to |g| in the maximum, >= 0.

    Returns:
        The transformation, with the state `ScaleByAdamState(count, mu, nu)`, w in `nu`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Kingma & Ba 2015, "Adam", Algorithm 2; the paper has no eps.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_adamax(eps=0.0)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -1.000
    """
    return lift(ADAMAX, b1=b1, b2=b2, eps=eps)
