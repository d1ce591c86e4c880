"""Adaptive methods whose memory grows with the sides of a matrix, not with its area."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import (
    DECAY,
    NON_NEGATIVE,
    check,
    check_dtype,
    check_flag,
    check_hyperparameter,
)
from gradtx.compose.sequence import chain
from gradtx.kernels.clip import clip_by_block_rms
from gradtx.kernels.factored import STEP, scale_by_factored_rms
from gradtx.kernels.momentum import ema
from gradtx.kernels.scale import scale, scale_by_learning_rate, weight_decay_of
from gradtx.kernels.sm3 import scale_by_sm3
from gradtx.kernels.trust import scale_by_param_block_rms
from gradtx.select import Decay, Mask


def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: ScalarOrSchedule = 0.8,
    decay_offset: ArrayLike = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ScalarOrSchedule | None = 1.0,
    momentum: ScalarOrSchedule | None = None,
    dtype_momentum: DTypeLike | None = jnp.float32,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
    *,
    min_scale: ScalarOrSchedule = 1e-3,
    decay: Decay = "all",
) -> ExtraArgs:
    """Adafactor: a second moment of rank one, clipped updates, steps relative to the weights.

        r <- d_t * r + (1 - d_t) * (row means of g^2 + eps),    d_t = 1 - t^(-decay_rate)
        c <- d_t * c + (1 - d_t) * (column means of g^2 + eps)
        w = g / sqrt(r * c / mean(r))
        u = -max(min_scale, RMS(p)) * learning_rate * w / max(1, RMS(w) / clipping_threshold)
            - weight_decay_rate * p

    With momentum the first term is replaced by its average. The paper's learning rate is relative
    to the size of the weights, and decreases: the schedule
    `lambda count: jnp.minimum(1e-2, 1 / jnp.sqrt(count + 1))`.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule. It is relative to the
            weights with multiply_by_parameter_scale; None is 1.
        min_dim_size_to_factor: the smallest length of the second longest axis at which an array is
            factored, >= 0.
        decay_rate: the exponent of the decay rate, >= 0.
        decay_offset: the step at which t starts from 1 again, a whole number >= 0; see
            `scale_by_factored_rms`.
        multiply_by_parameter_scale: whether to multiply by the size of the weights.
        clipping_threshold: the largest root mean square of w, >= 0; None: no limit.
        momentum: the decay rate of the momentum, in [0, 1); None: no momentum. It averages the
            updates.
        dtype_momentum: the storage dtype of the momentum; None: the parameter's, at least float32.
        weight_decay_rate: the strength of the weight decay, >= 0, which is not multiplied by the
            learning rate; None: no decay.
        eps: added to the squared gradients, >= 0.
        factored: whether to factor at all.
        weight_decay_mask: the leaves to decay: a tree of booleans, a function of the parameters
            that returns one, or a `gradtx.select(...)`; None: all leaves.
        min_scale: the lower bound of the factor, >= 0. It lets weights of zero grow.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_factored_rms`, those of `clip_by_block_rms`,
        `scale_by_learning_rate`, `scale_by_param_block_rms`, `ema` and `add_decayed_weights` that
        the arguments ask for, and `scale(-1)`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost",
        Algorithms 4 to 6. PyTorch takes min(learning_rate, 1 / sqrt(t)) for the relative
        step, decays by learning_rate * weight_decay without that minimum, and bounds v below by
        eps^2 instead of adding eps to g^2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.full((2, 2), 4.0)
        >>> tx = gradtx.adafactor(0.25)
        >>> updates, state = tx.update(jnp.full((2, 2), 1e-3), tx.init(params), params)
        >>> print(gradtx.apply_updates(params, updates))
        [[3. 3.]
         [3. 3.]]
    """
    multiply_by_parameter_scale = check_flag(
        "adafactor", "multiply_by_parameter_scale", multiply_by_parameter_scale
    )
    for argument, value, valid in (
        ("clipping_threshold", clipping_threshold, NON_NEGATIVE),
        ("momentum", momentum, DECAY),
        ("weight_decay_rate", weight_decay_rate, NON_NEGATIVE),
        ("eps", eps, NON_NEGATIVE),
    ):
        if value is not None:
            check_hyperparameter("adafactor", argument, value, valid)
    decay_offset = check("adafactor", "decay_offset", decay_offset, STEP)
    check_dtype("adafactor", "dtype_momentum", dtype_momentum)
    parts = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        parts.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        parts.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scale_by_param_block_rms(min_scale))
    if momentum is not None:
        parts.append(ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    if weight_decay_rate is not None:
        parts.append(
            weight_decay_of(
                "adafactor",
                weight_decay_rate,
                weight_decay_mask,
                decay=decay,
                argument="weight_decay_mask",
            )
        )
    return chain(*parts, scale(-1))


def sm3(learning_rate: ScalarOrSchedule, momentum: ScalarOrSchedule = 0.9) -> ExtraArgs:
    """SM3: AdaGrad with one number for each row and one for each column of a matrix.

        s_ij = min(mu_1(i), mu_2(j)) + g_ij^2
        mu_1(i) <- max over j of s_ij,    mu_2(j) <- max over i of s_ij
        m <- momentum * m + (1 - momentum) * g / sqrt(s)
        u = -learning_rate * m

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        momentum: the decay rate of the momentum, in [0, 1).

    Returns:
        The chain of `scale_by_sm3`, which adds 1e-8 to s, and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Anil et al. 2019, "Memory-efficient adaptive optimization", algorithm SM3-II.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.zeros((2, 2))
        >>> tx = gradtx.sm3(0.5, momentum=0.0)
        >>> updates, state = tx.update(jnp.full((2, 2), -3.0), tx.init(params), params)
        >>> print(updates)
        [[0.5 0.5]
         [0.5 0.5]]
    """
    momentum = check_hyperparameter("sm3", "momentum", momentum, DECAY)
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
