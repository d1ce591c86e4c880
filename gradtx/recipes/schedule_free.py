"""Optimizers whose learning rate needs no schedule."""

from __future__ import annotations

from jax.typing import ArrayLike, DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import DECAY, check_hyperparameter, check_static
from gradtx.compose.sequence import chain
from gradtx.kernels.adaptive import scale_by_rms
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.recipes.descent import sgd
from gradtx.schedules import warmup_constant_schedule
from gradtx.wrappers.schedule_free import schedule_free


def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: ArrayLike = 0.9,
    weight_decay: ScalarOrSchedule | None = None,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    r: ArrayLike = 0.0,
) -> ExtraArgs:
    """Gradient descent with an average of the iterates in place of a schedule.

        z <- z - learning_rate * (g + weight_decay * y)
        x <- (1 - c) * x + c * z,    y <- (1 - b1) * z + b1 * x

    The parameters that are trained are y; `eval_params(state, params)` gives x. See
    `schedule_free` for c.

    Args:
        learning_rate: the step size, >= 0; a number, a scalar array or a schedule.
        warmup_steps: the number of steps n of the warmup, >= 1; None: no warmup. In step t the
            learning rate is (t - 1) / n of its full value, 0 in the first.
        b1: the weight of x in y, in (0, 1].
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate; None:
            no decay.
        weight_lr_power: the power of the largest learning rate so far in the weight of z, >= 0.
        state_dtype: the storage dtype of z; None: the parameter's, at least float32.
        r: the power of the step's number t in the weight of z.

    Returns:
        A transformation with the state `ScheduleFreeState`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Defazio et al. 2024, "The road less scheduled", equations (3) to (5). The authors' code
        warms up by t / n, for which pass `linear_schedule(rate / n, rate, n - 1)` in place of
        `warmup_steps`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.schedule_free_sgd(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.750
    """
    rate = _warmed_up("schedule_free_sgd", learning_rate, warmup_steps)
    base = sgd(rate)
    if weight_decay is not None:
        base = chain(weight_decay_of("schedule_free_sgd", weight_decay), base)
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype, r=r)


def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: int | None = None,
    b1: ArrayLike = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    r: ArrayLike = 0.0,
) -> ExtraArgs:
    """AdamW with an average of the iterates in place of a schedule and of its first moment.

        v <- b2 * v + (1 - b2) * g^2,    v_hat = v / (1 - b2^t)
        z <- z - learning_rate * (g / (sqrt(v_hat) + eps) + weight_decay * y)
        x <- (1 - c) * x + c * z,    y <- (1 - b1) * z + b1 * x

    The parameters that are trained are y; `eval_params(state, params)` gives x. See
    `schedule_free` for c.

    Args:
        learning_rate: the step size, >= 0; a number, a scalar array or a schedule.
        warmup_steps: the number of steps n of the warmup, >= 1; None: no warmup. In step t the
            learning rate is (t - 1) / n of its full value, 0 in the first.
        b1: the weight of x in y, in (0, 1].
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        weight_lr_power: the power of the largest learning rate so far in the weight of z, >= 0.
        state_dtype: the storage dtype of z; None: the parameter's, at least float32.
        r: the power of the step's number t in the weight of z.

    Returns:
        A transformation with the state `ScheduleFreeState`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Defazio et al. 2024, "The road less scheduled", Algorithm 1. There sqrt(1 - b2^t) is a
        factor of the learning rate, and so of the weight decay and of c too; here it corrects only
        v, as in optax and, since version 1.3, in the authors' code, which keeps the other form as
        AdamWScheduleFreePaper. That code takes the same steps as this one, but warms up by t / n,
        for which pass `linear_schedule(rate / n, rate, n - 1)` in place of `warmup_steps`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.schedule_free_adamw(0.5)
        >>> updates, state = tx.update(jnp.array(0.1), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    b2 = check_hyperparameter("schedule_free_adamw", "b2", b2, DECAY)
    rate = _warmed_up("schedule_free_adamw", learning_rate, warmup_steps)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        weight_decay_of("schedule_free_adamw", weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype, r=r)


def _warmed_up(
    owner: str, learning_rate: ScalarOrSchedule, warmup_steps: int | None
) -> ScalarOrSchedule:
    if warmup_steps is None:
        return learning_rate
    length = check_static(owner, "warmup_steps", warmup_steps)
    if not callable(learning_rate):
        return warmup_constant_schedule(0.0, learning_rate, length)
    share = warmup_constant_schedule(0.0, 1.0, length)
    return lambda count: share(count) * learning_rate(count)
