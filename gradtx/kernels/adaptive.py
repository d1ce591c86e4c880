"""A learning rate for each element, from the size of its past gradients."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import optax
from jax import lax
from optax import ScalarOrSchedule

from gradtx.arguments import check_flag
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot, state_class
from gradtx.kernels.arithmetic import debias, finite_sum, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared


def _rss(g, *, sum_of_squares, eps):
    total = finite_sum(sum_of_squares, abs_squared(g))
    return safe_divide(g, lax.sqrt(total + eps)), total


RSS = Kernel(
    "scale_by_rss",
    _rss,
    slots=(Slot("sum_of_squares", fill="initial_accumulator_value", real=True, non_negative=True),),
    hyperparameters={"initial_accumulator_value": NON_NEGATIVE, "eps": NON_NEGATIVE},
    state=optax.ScaleByRssState,
    degree=0,
    source="Duchi et al. 2011, Figure 1",
    bounded="squares",
)


def scale_by_rss(
    initial_accumulator_value: ScalarOrSchedule = 0.1, eps: ScalarOrSchedule = 1e-7
) -> optax.GradientTransformationExtraArgs:
    """Divide by the root of the sum of all squared gradients: AdaGrad's scaling.

        s <- s + g^2
        u = g / sqrt(s + eps)

    Args:
        initial_accumulator_value: the initial value of s, >= 0.
        eps: added to the denominator inside the root, >= 0; a number, a scalar array or a schedule.

    Returns:
        The transformation, with the state `ScaleByRssState(sum_of_squares)`.

    Raises:
        ValueError: if an argument is negative, NaN or not a scalar.

    Source:
        Duchi, Hazan & Singer 2011, "Adaptive subgradient methods", Figure 1, diagonal matrices.
        As in optax, epsilon is inside the root.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
        >>> print(tx.update(jnp.array([-3.0, 0.0]), tx.init(jnp.zeros(2)))[0])
        [-1.  0.]
    """
    return lift(RSS, initial_accumulator_value=initial_accumulator_value, eps=eps)


def _over_root(g, nu, eps, eps_in_sqrt):
    root = lax.sqrt(nu + eps) if eps_in_sqrt else lax.sqrt(nu) + eps
    return safe_divide(g, root)


def _rms(g, *, nu, decay, eps, eps_in_sqrt):
    nu = decay * nu + (1 - decay) * abs_squared(g)
    return _over_root(g, nu, eps, eps_in_sqrt), nu


def _rms_debiased(g, *, nu, t, decay, eps, eps_in_sqrt):
    nu = decay * nu + (1 - decay) * abs_squared(g)
    return _over_root(g, debias(nu, decay, t), eps, eps_in_sqrt), nu


# optax keeps the classes with a counter private, so they are taken from instances.
_RmsWithCountState = state_class(optax.scale_by_rms(bias_correction=True))
_StddevWithCountState = state_class(optax.scale_by_stddev(bias_correction=True))


RMS = Kernel(
    "scale_by_rms",
    _rms,
    slots=(Slot("nu", fill="initial_scale", real=True, non_negative=True),),
    hyperparameters={"decay": DECAY, "eps": NON_NEGATIVE, "initial_scale": NON_NEGATIVE},
    options=("eps_in_sqrt",),
    state=optax.ScaleByRmsState,
    degree=0,
    source="Tieleman & Hinton 2012, lecture 6.5",
    bounded="squares",
)

RMS_DEBIASED = dataclasses.replace(RMS, step=_rms_debiased, state=_RmsWithCountState)


def scale_by_rms(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide by the root of a moving average of the squared gradients: RMSProp's scaling.

        v <- decay * v + (1 - decay) * g^2
        u = g / sqrt(v + eps),    or without eps_in_sqrt    u = g / (sqrt(v) + eps)

    With bias_correction v / (1 - decay^t) replaces v in the second line.

    Args:
        decay: the decay rate of the average, in [0, 1); a number, a scalar array or a schedule.
        eps: added to the denominator, >= 0.
        initial_scale: the initial value of v, >= 0.
        eps_in_sqrt: whether eps is added inside the root.
        bias_correction: whether to correct the bias of averages that start at zero.

    Returns:
        The transformation, with the state `ScaleByRmsState(nu)`, or with bias correction one of
        the fields count and nu.

    Raises:
        ValueError: if `decay` is not in [0, 1), or another number is negative or NaN.

    Source:
        Tieleman & Hinton 2012, "Neural networks for machine learning", lecture 6.5.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_rms(decay=0.75, eps=0.0)
        >>> print(tx.update(jnp.array([-3.0]), tx.init(jnp.zeros(1)))[0])
        [-2.]
    """
    bias_correction = check_flag("scale_by_rms", "bias_correction", bias_correction)
    return lift(
        RMS_DEBIASED if bias_correction else RMS,
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=check_flag("scale_by_rms", "eps_in_sqrt", eps_in_sqrt),
    )


def _variance(mu, nu):
    # Rounding can push the difference below zero.
    return jnp.maximum(nu - abs_squared(mu), 0.0)


def _stddev(g, *, mu, nu, decay, eps, eps_in_sqrt):
    mu = decay * mu + (1 - decay) * g
    nu = decay * nu + (1 - decay) * abs_squared(g)
    return _over_root(g, _variance(mu, nu), eps, eps_in_sqrt), mu, nu


def _stddev_debiased(g, *, mu, nu, t, decay, eps, eps_in_sqrt):
    mu = decay * mu + (1 - decay) * g
    nu = decay * nu + (1 - decay) * abs_squared(g)
    variance = _variance(debias(mu, decay, t), debias(nu, decay, t))
    return _over_root(g, variance, eps, eps_in_sqrt), mu, nu


STDDEV = Kernel(
    "scale_by_stddev",
    _stddev,
    slots=(Slot("mu"), Slot("nu", fill="initial_scale", real=True, non_negative=True)),
    hyperparameters={"decay": DECAY, "eps": NON_NEGATIVE, "initial_scale": NON_NEGATIVE},
    options=("eps_in_sqrt",),
    state=optax.ScaleByRStdDevState,
    degree=0,
    source="Graves 2013, equations (38) to (40)",
    bounded="squares",
)

STDDEV_DEBIASED = dataclasses.replace(STDDEV, step=_stddev_debiased, state=_StddevWithCountState)


def scale_by_stddev(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide by a running standard deviation of the gradients: centered RMSProp's scaling.

        m <- decay * m + (1 - decay) * g
        v <- decay * v + (1 - decay) * g^2
        u = g / sqrt(v - m^2 + eps),    or without eps_in_sqrt    u = g / (sqrt(v - m^2) + eps)

    With bias_correction m and v are divided by 1 - decay^t in the third line.

    Args:
        decay: the decay rate of the averages, in [0, 1); a number, a scalar array or a schedule.
        eps: added to the denominator, >= 0.
        initial_scale: the initial value of v, >= 0.
        eps_in_sqrt: whether eps is added inside the root.
        bias_correction: whether to correct the bias of averages that start at zero.

    Returns:
        The transformation, with the state `ScaleByRStdDevState(mu, nu)`, or with bias correction
        one of the fields count, mu and nu.

    Raises:
        ValueError: if `decay` is not in [0, 1), or another number is negative or NaN.

    Source:
        Graves 2013, "Generating sequences with recurrent neural networks", equations (38) to
        (40).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_stddev(decay=0.5, eps=0.0)
        >>> print(tx.update(jnp.array([-3.0]), tx.init(jnp.zeros(1)))[0])
        [-2.]
    """
    bias_correction = check_flag("scale_by_stddev", "bias_correction", bias_correction)
    return lift(
        STDDEV_DEBIASED if bias_correction else STDDEV,
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=check_flag("scale_by_stddev", "eps_in_sqrt", eps_in_sqrt),
    )


def _adadelta(g, *, e_g, e_x, rho, eps):
    e_g = rho * e_g + (1 - rho) * abs_squared(g)
    update = safe_divide(lax.sqrt(e_x + eps) * g, lax.sqrt(e_g + eps))
    e_x = rho * e_x + (1 - rho) * abs_squared(update)
    return update, e_g, e_x


ADADELTA = Kernel(
    "scale_by_adadelta",
    _adadelta,
    slots=(Slot("e_g", real=True, non_negative=True), Slot("e_x", real=True, non_negative=True)),
    hyperparameters={"rho": DECAY, "eps": NON_NEGATIVE},
    state=optax.ScaleByAdaDeltaState,
    degree=0,
    source="Zeiler 2012, Algorithm 1",
    bounded="squares",
)


def scale_by_adadelta(
    rho: ScalarOrSchedule = 0.9, eps: ScalarOrSchedule = 1e-6
) -> optax.GradientTransformationExtraArgs:
    """Scale gradients to the size of past updates: Adadelta's scaling.

        E[g^2] <- rho * E[g^2] + (1 - rho) * g^2
        u = sqrt(E[x^2] + eps) / sqrt(E[g^2] + eps) * g
        E[x^2] <- rho * E[x^2] + (1 - rho) * u^2

    Args:
        rho: the decay rate of the averages, in [0, 1); a number, a scalar array or a schedule.
        eps: added inside both roots, >= 0. With 0 the updates stay zero.

    Returns:
        The transformation, with the state `ScaleByAdaDeltaState(e_g, e_x)`.

    Raises:
        ValueError: if `rho` is not in [0, 1), or `eps` is negative or NaN.

    Source:
        Zeiler 2012, "ADADELTA: an adaptive learning rate method", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_adadelta(rho=0.0, eps=1.0)
        >>> print(tx.update(jnp.zeros(1), tx.init(jnp.zeros(1)))[0])
        [0.]
    """
    return lift(ADADELTA, rho=rho, eps=eps)
