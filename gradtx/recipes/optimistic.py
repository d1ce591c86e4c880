"""Optimistic methods, for games in which plain descent circles: gradient descent and Adam."""

from __future__ import annotations

import warnings

from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import ANY_NUMBER, check_hyperparameter
from gradtx.compose.sequence import chain
from gradtx.kernels.adam import scale_by_adam
from gradtx.kernels.optimistic import scale_by_optimistic_gradient
from gradtx.kernels.scale import scale_by_learning_rate


def optimistic_gradient_descent(
    learning_rate: ScalarOrSchedule,
    alpha: ScalarOrSchedule = 1.0,
    beta: ScalarOrSchedule = 1.0,
) -> ExtraArgs:
    """Gradient descent that extrapolates the gradient: a saddle point method.

        u_t = -learning_rate * ((alpha + beta) * g_t - beta * g_{t-1}),    g_0 = g_1

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        alpha: the weight of the current gradient.
        beta: the weight of the change since the last step.

    Returns:
        The chain of `scale_by_optimistic_gradient` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Mokhtari, Ozdaglar & Pattathil 2020, "A unified analysis of extra-gradient and optimistic
        gradient methods for saddle point problems", section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.optimistic_gradient_descent(0.5)
        >>> state = tx.init(jnp.array(0.0))
        >>> for g in (2.0, 3.0):
        ...     updates, state = tx.update(jnp.array(g), state)
        ...     print(updates)
        -1.0
        -2.0
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


def optimistic_adam(
    learning_rate: ScalarOrSchedule,
    optimism: ScalarOrSchedule | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
) -> ExtraArgs:
    """Adam that extrapolates its direction: a saddle point method.

        r_t = m_hat / (sqrt(v_hat + eps_root) + eps)
        u_t = -learning_rate * r_t - optimism * (r_t - r_{t-1}),    r_0 = r_1

    with m_hat and v_hat as in `adam`. It is deprecated, as in optax: `optimistic_adam_v2` is the
    same with weights that are relative to the learning rate.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        optimism: the weight of the change of r; None: the learning rate.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum. The paper does not.

    Returns:
        The chain of `scale_by_adam`, `scale_by_optimistic_gradient` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Daskalakis et al. 2018, "Training GANs with optimism", Algorithm 1, which starts from
        r_0 = 0. optax refuses schedules here.

    Example:
        >>> import warnings
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     tx = gradtx.optimistic_adam(0.5, nesterov=False)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    warnings.warn(
        "`optimistic_adam` is deprecated, use `optimistic_adam_v2` instead",
        DeprecationWarning,
        stacklevel=2,
    )
    learning_rate = check_hyperparameter(
        "optimistic_adam", "learning_rate", learning_rate, ANY_NUMBER
    )
    optimism = learning_rate if optimism is None else optimism
    change = check_hyperparameter("optimistic_adam", "optimism", optimism, ANY_NUMBER)
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(learning_rate, change),
        scale_by_learning_rate(1.0),
    )


def optimistic_adam_v2(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: ScalarOrSchedule = 1.0,
    beta: ScalarOrSchedule = 1.0,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-08,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = True,
) -> ExtraArgs:
    """Adam that extrapolates its direction, with one learning rate for both.

        r_t = m_hat / (sqrt(v_hat + eps_root) + eps)
        u_t = -learning_rate * ((alpha + beta) * r_t - beta * r_{t-1}),    r_0 = r_1

    with m_hat and v_hat as in `adam`.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        alpha: the weight of the current direction r.
        beta: the weight of the change since the last step.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum. The paper does not.

    Returns:
        The chain of `scale_by_adam`, `scale_by_optimistic_gradient` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Daskalakis et al. 2018, "Training GANs with optimism", Algorithm 1, with alpha = beta = 1;
        the paper starts from r_0 = 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.optimistic_adam_v2(0.5, nesterov=False)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )
