"""Relatives of Adam with a different state: ACProp, ADOPT, MADGRAD, MARS and Adam-mini."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.adam import scale_by_adam
from gradtx.kernels.adam_mini import Blocks, scale_by_adamini
from gradtx.kernels.adopt import fourth_root, scale_by_acprop, scale_by_adopt
from gradtx.kernels.madgrad import scale_by_madgrad
from gradtx.kernels.mars import scale_by_mars
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.select import Decay, Mask


def acprop(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """ACProp: gradients divided by the deviation of earlier ones from their average.

        u = -learning_rate * (g / (sqrt(s_hat) + eps) + weight_decay * p)
        m <- b1 * m + (1 - b1) * g
        s <- b2 * s + (1 - b2) * (g - m)^2 + eps_root,    s_hat = s / (1 - b2^t) at the next step

    In the first step s_hat = 1, so that the gradient is divided by 1 + eps.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the squared deviation, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to s in every step, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_acprop`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Zhuang et al. 2021, "Momentum centering and asynchronous update for adaptive gradient
        methods", Algorithm 2; see `scale_by_acprop` for where optax and the authors' code differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.acprop(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.750
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root),
        weight_decay_of("acprop", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
) -> ExtraArgs:
    """ADOPT: Adam that converges with any b2, because it divides before it averages.

        r = clip(g / max(sqrt(v), eps), -c_t, c_t)
        m <- b1 * m + (1 - b1) * r
        v <- b2 * v + (1 - b2) * g^2
        u = -learning_rate * m

    The first gradient only sets v = g^2; its update is zero.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: the lower bound of the denominator, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum.
        use_clipping: whether to bound r.
        clip_value_fn: function from the number of gradients before this one to the bound c_t.

    Returns:
        The chain of `scale_by_adopt` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Taniguchi et al. 2024, "ADOPT: modified Adam can converge with any beta_2 with the optimal
        rate", Algorithm 2, and its clipped form with the bound t^(1/4).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.adopt(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        2.000
    """
    return chain(
        scale_by_adopt(
            b1,
            b2,
            eps,
            mu_dtype,
            nesterov=nesterov,
            use_clipping=use_clipping,
            clip_value_fn=clip_value_fn,
        ),
        scale_by_learning_rate(learning_rate),
    )


def madgrad(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-6,
) -> ExtraArgs:
    """MADGRAD: dual averaging with momentum and a scale for each element.

        g <- g + weight_decay * p
        w = learning_rate * sqrt(t)
        s <- s + w * g,    v <- v + w * g^2
        z = p_0 - s / (cbrt(v) + eps)
        u = (1 - momentum) * (z - p)

    Args:
        learning_rate: the step size, >= 0; a number, a scalar array or a schedule.
        momentum: the share of the way to z that is left for later steps, in [0, 1).
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0. It is an
            L2 penalty, not decoupled decay.
        eps: added to the denominator outside the root, >= 0.

    Returns:
        The chain of `add_decayed_weights` and `scale_by_madgrad`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Defazio & Jelassi 2021, "Adaptivity without compromise: a momentumized, adaptive, dual
        averaged gradient method for stochastic optimization", Algorithm 1; see `scale_by_madgrad`
        for where optax differs.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.madgrad(0.125, momentum=0.5)
        >>> updates, state = tx.update(jnp.array(1.0), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")  # z = 2 - 0.125 / cbrt(0.125)
        1.875
    """
    return chain(
        weight_decay_of("madgrad", weight_decay), scale_by_madgrad(learning_rate, momentum, eps)
    )


def mars(
    learning_rate: ScalarOrSchedule = 3e-3,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.025,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """MARS-AdamW: AdamW with gradients of less variance.

        c = g_t + gamma * b1 / (1 - b1) * (g_t - g_{t-1}),    c <- c / max(1, ||c||)
        m <- b1 * m + (1 - b1) * c,      m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * c^2,    v_hat = v / (1 - b2^t)
        u = -learning_rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * p)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        gamma: the strength of the correction.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_mars`, `scale_by_adam`, `add_decayed_weights` and
        `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Yuan et al. 2024, "MARS: unleashing the power of variance reduction for training large
        models", Algorithm 2, in the approximate form; see `scale_by_mars`. The authors' code
        corrects only matrices and leaves everything else to AdamW, which `partition` can do.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.mars(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(
        scale_by_mars(b1, gamma),
        scale_by_adam(b1, b2, eps),
        weight_decay_of("mars", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def adamini(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    blocks: Blocks = -1,
    decay: Decay = "all",
) -> ExtraArgs:
    """Adam-mini: AdamW with one second moment for each block of elements.

        m <- b1 * m + (1 - b1) * g,                  m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * mean(g^2),          v_hat = v / (1 - b2^t)
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
        blocks: the axis, or axes, along which each index has its own block: by default the output
            neurons of a kernel (..., inputs, outputs); see `scale_by_adamini`.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_adamini`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Zhang et al. 2024, "Adam-mini: use fewer learning rates to gain more", Algorithm 1; see
        `scale_by_adamini` for the blocks of the authors' code, which decays neither biases nor the
        parameters of normalization.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0, 2.0])
        >>> tx = gradtx.adamini(0.5, weight_decay=0.0)
        >>> updates, state = tx.update(jnp.array([7.0, 1.0]), tx.init(params), params)
        >>> print([f"{p:.3f}" for p in gradtx.apply_updates(params, updates)])
        ['1.300', '1.900']
    """
    return chain(
        scale_by_adamini(b1, b2, eps, eps_root, mu_dtype, blocks=blocks),
        weight_decay_of("adamini", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )
