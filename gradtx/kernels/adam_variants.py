"""Adam with a different second moment or a rectified variance: AdaBelief, Yogi, RAdam."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax import ScalarOrSchedule

from gradtx.arguments import check_flag
from gradtx.kernel import NON_NEGATIVE, Kernel, Range, Slot
from gradtx.kernels.adam import ADAM_RANGES, first_moment
from gradtx.kernels.arithmetic import bias_corrections, log_decay, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared


def _belief(g, *, mu, nu, t, correction1, correction2, b1, b2, eps, eps_root, nesterov):
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_squared(g - mu) + eps_root
    mu_hat = first_moment(g, mu, t, b1, correction1, nesterov)
    return safe_divide(mu_hat, lax.sqrt(nu * correction2) + eps, eps), mu, nu


BELIEF = Kernel(
    "scale_by_belief",
    _belief,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True)),
    hyperparameters=ADAM_RANGES,
    options=("nesterov",),
    scalar_step=bias_corrections,
    factors=("correction1", "correction2"),
    state=optax.ScaleByBeliefState,
    degree=0,
    source="Zhuang et al. 2020, Algorithm 2",
    bounded="differences",
)


def scale_by_belief(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief's scaling: Adam's with the gradient's deviation from its average as its size.

        m <- b1 * m + (1 - b1) * g,                         m_hat = m / (1 - b1^t)
        s <- b2 * s + (1 - b2) * (g - m)^2 + eps_root,      s_hat = s / (1 - b2^t)
        u = m_hat / (sqrt(s_hat) + eps)

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the squared deviation, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to s in every step, >= 0.
        nesterov: whether to use Nesterov momentum.

    Returns:
        The transformation, with the state `ScaleByBeliefState(count, mu, nu)`, s in `nu`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Zhuang et al. 2020, "AdaBelief optimizer", Algorithm 2. The authors' code has one eps for
        both, and these steps with rectify=False; by default it rectifies them as RAdam does.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_belief(b1=0.5)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -2.000
    """
    return lift(
        BELIEF,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        nesterov=check_flag("scale_by_belief", "nesterov", nesterov),
    )


def _yogi(g, *, mu, nu, correction1, correction2, b1, b2, eps, eps_root):
    square = abs_squared(g)
    mu = b1 * mu + (1 - b1) * g
    nu = nu - (1 - b2) * jnp.sign(nu - square) * square
    mu_hat, nu_hat = mu * correction1, nu * correction2
    return safe_divide(mu_hat, lax.sqrt(nu_hat + eps_root) + eps, eps), mu, nu


YOGI = Kernel(
    "scale_by_yogi",
    _yogi,
    slots=(Slot("mu"), Slot("nu", fill="initial_accumulator_value", real=True, non_negative=True)),
    hyperparameters=ADAM_RANGES | {"initial_accumulator_value": NON_NEGATIVE},
    scalar_step=bias_corrections,
    factors=("correction1", "correction2"),
    state=optax.ScaleByAdamState,
    degree=0,
    source="Zaheer et al. 2018, Algorithm 2",
    bounded="squares",
)


def scale_by_yogi(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-3,
    eps_root: ScalarOrSchedule = 0.0,
    initial_accumulator_value: ScalarOrSchedule = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Yogi's scaling: Adam's with a second moment that changes by a bounded amount.

        m <- b1 * m + (1 - b1) * g,                             m_hat = m / (1 - b1^t)
        v <- v - (1 - b2) * sign(v - g^2) * g^2,                v_hat = v / (1 - b2^t)
        u = m_hat / (sqrt(v_hat + eps_root) + eps)

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: 1 minus the rate at which v changes, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        initial_accumulator_value: the initial value of v, >= 0. m starts at 0, as in the paper; in
            optax it starts at this value too.

    Returns:
        The transformation, with the state `ScaleByAdamState(count, mu, nu)`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Zaheer et al. 2018, "Adaptive methods for nonconvex optimization", Algorithm 2, with
        Adam's bias correction as in other libraries.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_yogi(eps=0.0, initial_accumulator_value=0.0)
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -1.000
    """
    return lift(
        YOGI,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        initial_accumulator_value=initial_accumulator_value,
    )


def _radam_factors(*, t, b1, b2, threshold):
    """The weights of the moments, and r; 0 where the variance is not tractable."""
    rho, rho_inf = _degrees_of_freedom(b2, t), (1 + b2) / (1 - b2)
    is_tractable = rho >= threshold
    # There the root below may be of a negative number.
    rho = jnp.where(is_tractable, rho, rho_inf)
    square = ((rho - 4) * (rho - 2) * rho_inf) / ((rho_inf - 4) * (rho_inf - 2) * rho)
    rectification = jnp.where(is_tractable, lax.sqrt(square), 0.0)
    return bias_corrections(t=t, b1=b1, b2=b2) | {"rectification": rectification}


def _radam(
    g, *, mu, nu, t, correction1, correction2, rectification, b1, b2, eps, eps_root, nesterov
):
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_squared(g)
    mu_hat = first_moment(g, mu, t, b1, correction1, nesterov)
    adaptive = safe_divide(mu_hat, lax.sqrt(nu * correction2 + eps_root) + eps, eps)
    return jnp.where(rectification > 0, rectification * adaptive, mu_hat), mu, nu


def _degrees_of_freedom(b2, t: jax.Array) -> jax.Array:
    """rho_t = rho_inf - 2 t b2^t / (1 - b2^t) with rho_inf = 2 / (1 - b2) - 1.

    While t is small and b2 near 1 both terms are large and nearly equal. With h = -log(b2) / 2
    they are coth(h) and t (coth(t h) - 1), and what is left when the poles of the hyperbolic
    cotangents have cancelled is the Langevin function coth(x) - 1 / x, which is small.
    """
    half = -log_decay(b2) / 2
    is_early = t * half < 0.25
    early = t - t * _langevin(jnp.where(is_early, t * half, 0.0))
    early += _langevin(jnp.where(is_early, half, 0.0))
    late = (1 + b2) / (1 - b2) - 2 * t / jnp.expm1(2 * t * half)
    return jnp.where(is_early, early, late)


# The power series of coth(x) - 1 / x in x^2, after a factor x, highest power first.
_LANGEVIN = (4 / 18243225, -1382 / 638512875, 2 / 93555, -1 / 4725, 2 / 945, -1 / 45, 1 / 3)


def _langevin(x: jax.Array) -> jax.Array:
    """coth(x) - 1 / x for x < 0.25."""
    return x * jnp.polyval(jnp.array(_LANGEVIN, x.dtype), x * x)


_TRACTABLE = Range(">= 4", lambda value: value >= 4)


RADAM = Kernel(
    "scale_by_radam",
    _radam,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True)),
    hyperparameters=ADAM_RANGES | {"threshold": _TRACTABLE},
    options=("nesterov",),
    scalar_step=_radam_factors,
    factors=("correction1", "correction2", "rectification"),
    state=optax.ScaleByAdamState,
    degree="between",
    source="Liu et al. 2020, Algorithm 2",
    bounded="squares",
)


def scale_by_radam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    threshold: ScalarOrSchedule = 5.0,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """RAdam's scaling: Adam's once the variance of the second moment is under control.

        rho_inf = 2 / (1 - b2) - 1,    rho_t = rho_inf - 2 t b2^t / (1 - b2^t)
        r_t^2 = (rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)
        u = r_t * m_hat / (sqrt(v_hat + eps_root) + eps)    where rho_t >= threshold
        u = m_hat                                           otherwise

    with m_hat and v_hat as in `scale_by_adam`.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        threshold: the smallest rho_t at which to divide by the second moment, at least 4. That is
            the limit of the paper.
        nesterov: whether to use Nesterov momentum.

    Returns:
        The transformation, with the state `ScaleByAdamState(count, mu, nu)`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Liu et al. 2020, "On the variance of the adaptive learning rate and beyond", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_radam()
        >>> updates, _ = tx.update(jnp.array(-3.0), tx.init(jnp.array(0.0)))
        >>> print(f"{updates:.3f}")
        -3.000
    """
    return lift(
        RADAM,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        threshold=threshold,
        nesterov=check_flag("scale_by_radam", "nesterov", nesterov),
    )
