"""Adam with a different second moment: AMSGrad, AdaMax, AdaBelief, Yogi and RAdam."""

from __future__ import annotations

from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.adam import scale_by_adamax, scale_by_amsgrad
from gradtx.kernels.adam_variants import scale_by_belief, scale_by_radam, scale_by_yogi
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.select import Decay, Mask


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> ExtraArgs:
    """AMSGrad: Adam with the largest second moment so far.

        m <- b1 * m + (1 - b1) * g,      m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        v_max <- max(v_max, v_hat)
        u = -learning_rate * m_hat / (sqrt(v_max + eps_root) + eps)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        bias_correction_mu: whether to correct m; False as in the paper.
        bias_correction_nu: whether to correct v before the maximum; False as in the paper.

    Returns:
        The chain of `scale_by_amsgrad` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Reddi, Kale & Kumar 2018, "On the convergence of Adam and beyond", Algorithm 2. PyTorch
        corrects v_max instead of v: v_max <- max(v_max, v),
        u = -learning_rate * m_hat / (sqrt(v_max / (1 - b2^t)) + eps). That is
        bias_correction_nu=False with learning_rate and eps multiplied by sqrt(1 - b2^t).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.amsgrad(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scale_by_learning_rate(learning_rate),
    )


def adamax(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
) -> ExtraArgs:
    """AdaMax: Adam with a decaying maximum in place of the second moment.

        m <- b1 * m + (1 - b1) * g,    w <- max(b2 * w, |g| + eps)
        u = -learning_rate * m / (1 - b1^t) / w

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the maximum, in [0, 1).
        eps: added to |g| in the maximum, >= 0.

    Returns:
        The chain of `scale_by_adamax` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Kingma & Ba 2015, "Adam: a method for stochastic optimization", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adamax(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """AdaMax with decoupled weight decay.

        m <- b1 * m + (1 - b1) * g,    w <- max(b2 * w, |g| + eps)
        u = -learning_rate * (m / (1 - b1^t) / w + weight_decay * p)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the maximum, in [0, 1).
        eps: added to |g| in the maximum, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_adamax`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Kingma & Ba 2015, Algorithm 2; Loshchilov & Hutter 2019, "Decoupled weight decay
        regularization".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adamaxw(0.5, weight_decay=0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        weight_decay_of("adamaxw", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    nesterov: bool = False,
) -> ExtraArgs:
    """AdaBelief: Adam with the gradient's deviation from its average as its size.

        m <- b1 * m + (1 - b1) * g,                       m_hat = m / (1 - b1^t)
        s <- b2 * s + (1 - b2) * (g - m)^2 + eps_root,    s_hat = s / (1 - b2^t)
        u = -learning_rate * m_hat / (sqrt(s_hat) + eps)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the squared deviation, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to s in every step, >= 0.
        nesterov: whether to use Nesterov momentum.

    Returns:
        The chain of `scale_by_belief` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Zhuang et al. 2020, "AdaBelief optimizer", Algorithm 2. The authors' code rectifies these
        steps by default, as RAdam does.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adabelief(0.5, b1=0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def yogi(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-3,
) -> ExtraArgs:
    """Yogi: Adam with a second moment that changes by a bounded amount.

        m <- b1 * m + (1 - b1) * g,                    m_hat = m / (1 - b1^t)
        v <- v - (1 - b2) * sign(v - g^2) * g^2,       v_hat = v / (1 - b2^t)
        u = -learning_rate * m_hat / (sqrt(v_hat) + eps)

    where v starts at 1e-6.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: 1 minus the rate at which v changes, in [0, 1).
        eps: added to the denominator outside the root, >= 0.

    Returns:
        The chain of `scale_by_yogi` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Zaheer et al. 2018, "Adaptive methods for nonconvex optimization", Algorithm 2; see
        `scale_by_yogi`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.yogi(0.5, eps=0.0)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.501
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))


def radam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    threshold: ScalarOrSchedule = 5.0,
    *,
    nesterov: bool = False,
) -> ExtraArgs:
    """RAdam: Adam that waits until the variance of its second moment is under control.

        u = -learning_rate * r_t * m_hat / (sqrt(v_hat + eps_root) + eps)   where rho_t >= threshold
        u = -learning_rate * m_hat                                          otherwise

    with m_hat, v_hat, rho_t and r_t as in `scale_by_radam`.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        threshold: the smallest rho_t at which to divide by the second moment, at least 4.
        nesterov: whether to use Nesterov momentum.

    Returns:
        The chain of `scale_by_radam` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Liu et al. 2020, "On the variance of the adaptive learning rate and beyond", Algorithm 2.
        PyTorch adds eps to sqrt(v) and corrects the sum, which is eps / sqrt(1 - b2^t) here.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.radam(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.750
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
