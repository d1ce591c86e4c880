"""A learning rate for each element."""

from __future__ import annotations

from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import KEPT, check_flag, check_hyperparameter
from gradtx.compose.sequence import chain, identity
from gradtx.kernels.adaptive import (
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)
from gradtx.kernels.momentum import trace
from gradtx.kernels.scale import scale, scale_by_learning_rate, weight_decay_of
from gradtx.kernels.sign import scale_by_rprop
from gradtx.select import Decay, Mask


def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: ScalarOrSchedule = 0.1,
    eps: ScalarOrSchedule = 1e-7,
) -> ExtraArgs:
    """AdaGrad: each element divided by the root of the sum of its squares.

        s <- s + g^2
        u = -learning_rate * g / sqrt(s + eps)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        initial_accumulator_value: the initial value of s, >= 0.
        eps: added to the denominator inside the root, >= 0.

    Returns:
        The chain of `scale_by_rss` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Duchi, Hazan & Singer 2011, "Adaptive subgradient methods", Figure 1, diagonal matrices. As
        in optax, epsilon is inside the root. In PyTorch it is outside,
        u = -learning_rate * g / (sqrt(s) + eps), which is the same as `rmsprop` at step t with
        eps_in_sqrt=False, initial_scale=initial_accumulator_value, decay = t / (t + 1), and
        learning_rate and eps divided by sqrt(t + 1). PyTorch's lr_decay is the schedule
        learning_rate / (1 + lr_decay * (t - 1)).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adagrad(0.5, initial_accumulator_value=0.0)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate)
    )


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> ExtraArgs:
    """RMSProp: each element divided by a running root mean square.

        v <- decay * v + (1 - decay) * g^2
        u = -learning_rate * g / sqrt(v + eps)
        or with momentum
        w <- momentum * w - learning_rate * g / sqrt(v + eps)
        u = w

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        decay: the decay rate of the averages, in [0, 1).
        eps: added to the denominator, >= 0.
        initial_scale: the initial value of v, >= 0.
        eps_in_sqrt: whether eps is added inside the root. Outside, the denominator is
            sqrt(v) + eps.
        centered: whether to subtract the squared average gradient from v.
        momentum: the decay rate of the momentum, in [-1, 1]; None: no momentum.
        nesterov: whether to use Nesterov momentum.
        bias_correction: whether to correct the bias of averages that start at zero.

    Returns:
        The chain of `scale_by_rms` (centered: `scale_by_stddev`), `scale_by_learning_rate` and, if
        there is momentum, `trace`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Tieleman & Hinton 2012, "Neural networks for machine learning", lecture 6.5; Graves 2013,
        "Generating sequences with recurrent neural networks", equations (38) to (41). PyTorch adds
        eps outside the root, and multiplies by the learning rate after the momentum, which makes a
        difference only while the learning rate changes: `chain(scale_by_rms(decay, eps,
        eps_in_sqrt=False), trace(momentum), scale_by_learning_rate(learning_rate))`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.rmsprop(0.5, decay=0.75, eps=0.0)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    centered = check_flag("rmsprop", "centered", centered)
    nesterov = check_flag("rmsprop", "nesterov", nesterov)
    if momentum is not None:
        momentum = check_hyperparameter("rmsprop", "momentum", momentum, KEPT)
    scaling = scale_by_stddev if centered else scale_by_rms
    return chain(
        scaling(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )


def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """Adadelta: steps in the units of past steps.

        g <- g + weight_decay * p
        E[g^2] <- rho * E[g^2] + (1 - rho) * g^2
        x = sqrt(E[x^2] + eps) / sqrt(E[g^2] + eps) * g
        E[x^2] <- rho * E[x^2] + (1 - rho) * x^2
        u = -learning_rate * x

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule. The paper has 1; None
            leaves x as it is, with its sign.
        rho: the decay rate of the averages, in [0, 1).
        eps: added inside both roots, >= 0. With 0 the updates stay zero.
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0. It is an
            L2 penalty, not decoupled decay.
        weight_decay_mask: the leaves to decay: a tree of booleans, a function of the parameters
            that returns one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `add_decayed_weights`, `scale_by_adadelta` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Zeiler 2012, "ADADELTA: an adaptive learning rate method", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adadelta(1.0, rho=0.0, eps=1 / 12)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.750
    """
    return chain(
        weight_decay_of(
            "adadelta", weight_decay, weight_decay_mask, decay=decay, argument="weight_decay_mask"
        ),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )


def rprop(
    learning_rate: ScalarOrSchedule,
    eta_minus: ScalarOrSchedule = 0.5,
    eta_plus: ScalarOrSchedule = 1.2,
    min_step_size: ScalarOrSchedule = 1e-6,
    max_step_size: ScalarOrSchedule = 50.0,
) -> ExtraArgs:
    """Rprop: steps by sign whose size grows while the sign stays the same.

        s <- eta_plus * s,     u = -s * sign(g_t)     where g_t * g_{t-1} > 0
        s <- eta_minus * s,    u = 0, g_t <- 0        where g_t * g_{t-1} < 0
        u = -s * sign(g_t)                            where g_t * g_{t-1} = 0

    Args:
        learning_rate: the initial step size s, >= 0; a number, a scalar array or a schedule. A
            schedule is evaluated at step 0.
        eta_minus: the factor after a change of sign, in (0, 1).
        eta_plus: the factor while the sign stays the same, > 1.
        min_step_size: the smallest step, >= 0.
        max_step_size: the largest step, >= min_step_size.

    Returns:
        The chain of `scale_by_rprop` and `scale(-1)`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm"; see `scale_by_rprop`. PyTorch clips the first step size, learning_rate,
        to [min_step_size, max_step_size] too; here it is taken as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.rprop(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size),
        scale(-1.0),
    )
