"""Adam, with decoupled weight decay, with Nesterov momentum, and with both."""

from __future__ import annotations

from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.adam import scale_by_adam
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.select import Decay, Mask


def adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
) -> ExtraArgs:
    """Adam: a first moment divided by the root of a second one.

        m <- b1 * m + (1 - b1) * g,      m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum.
        bias_correction: whether to correct the bias of averages that start at zero.

    Returns:
        The chain of `scale_by_adam` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Kingma & Ba 2015, "Adam: a method for stochastic optimization", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adam(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(
        scale_by_adam(
            b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, bias_correction=bias_correction
        ),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    decay: Decay = "all",
) -> ExtraArgs:
    """Adam with decoupled weight decay.

        m <- b1 * m + (1 - b1) * g,      m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * p)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        nesterov: whether to use Nesterov momentum.
        bias_correction: whether to correct the bias of averages that start at zero.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_adam`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Loshchilov & Hutter 2019, "Decoupled weight decay regularization", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adamw(0.5, weight_decay=0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return chain(
        scale_by_adam(
            b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, bias_correction=bias_correction
        ),
        weight_decay_of("adamw", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    bias_correction: bool = True,
) -> ExtraArgs:
    """Adam with Nesterov momentum.

        m <- b1 * m + (1 - b1) * g,  m_hat = b1 * m / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t)
        v <- b2 * v + (1 - b2) * g^2,  v_hat = v / (1 - b2^t)
        u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        bias_correction: whether to correct the bias of averages that start at zero.

    Returns:
        The chain of `scale_by_adam` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Dozat 2016, "Incorporating Nesterov momentum into Adam", Algorithm 2 with constant b1; see
        `scale_by_adam`. PyTorch's m has b1 too, but it looks ahead with a momentum that grows:
        m_hat = mu_{t+1} * m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) * g / (1 - mu_1 ... mu_t) with
        mu_t = b1 * (1 - 0.96^(t * momentum_decay) / 2), which is b1 for a large momentum_decay.
        NAdamW in timm and AlgoPerf corrects both terms in the same way,
        m_hat = (b1 * m + (1 - b1) * g) / (1 - b1^t), so that its first step is 1 + b1 = 1.9 times
        the learning rate, and here it is 1 + b1 / (1 + b1) = 1.47 times; in step 30 they differ by
        0.4 %. To get theirs, set bias_correction=False, and multiply learning_rate by
        sqrt(1 - b2^t) / (1 - b1^t) and eps by sqrt(1 - b2^t).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.nadam(0.5, b1=0.0)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return adam(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nesterov=True,
        bias_correction=bias_correction,
    )


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    bias_correction: bool = True,
    decay: Decay = "all",
) -> ExtraArgs:
    """Adam with Nesterov momentum and decoupled weight decay.

        m <- b1 * m + (1 - b1) * g,  m_hat = b1 * m / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t)
        v <- b2 * v + (1 - b2) * g^2,  v_hat = v / (1 - b2^t)
        u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * p)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        bias_correction: whether to correct the bias of averages that start at zero.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_adam`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Dozat 2016, "Incorporating Nesterov momentum into Adam", Algorithm 2 with constant b1; see
        `scale_by_adam`. Loshchilov & Hutter 2019, Algorithm 2. In timm's and AlgoPerf's NAdamW the
        first step is 1.9 times the learning rate, and here it is 1.47 times; for their equation,
        and PyTorch's, see `nadam`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.nadamw(0.5, b1=0.0, weight_decay=0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return adamw(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay,
        mask,
        nesterov=True,
        bias_correction=bias_correction,
        decay=decay,
    )
