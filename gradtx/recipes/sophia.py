"""Descent along the momentum over the Hessian's diagonal."""

from __future__ import annotations

import jax
import optax
from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.kernels.sophia import scale_by_sophia
from gradtx.select import Decay, Mask


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    weight_decay_mask: Mask | None = None,
    gamma: ScalarOrSchedule = 0.01,
    clip_threshold: ScalarOrSchedule | None = 1.0,
    update_interval: int | jax.Array = 10,
    hessian_diagonal_fn: optax.GradientTransformation | None = None,
    mu_dtype: DTypeLike | None = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
    *,
    bias_correction: bool = False,
    decay: Decay = "all",
) -> ExtraArgs:
    """Sophia: clipped momentum, preconditioned by the Hessian's diagonal.

        m <- b1 * m + (1 - b1) * g
        h <- b2 * h + (1 - b2) * h_hat       in the steps 1, 1 + k, 1 + 2k, ...
        u = -learning_rate * (clip(m / max(gamma * h, eps), clip_threshold) + weight_decay * p)

    With Hutchinson's estimate h_hat this is Sophia-H. See `scale_by_sophia` for where optax does
    not follow the paper.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of h, in [0, 1).
        eps: the lower bound of the denominator, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        weight_decay_mask: the leaves to decay: a tree of booleans, a function of the parameters
            that returns one, or a `gradtx.select(...)`; None: all leaves.
        gamma: the factor of h in the denominator, >= 0.
        clip_threshold: the largest absolute value of an element, >= 0; None: no limit.
        update_interval: the number of steps k from one estimate of h to the next, >= 1.
        hessian_diagonal_fn: a transformation of gradients into h_hat; None:
            `hutchinson_estimator_diag_hessian()`.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        verbose: whether to print the share of the elements that are not clipped.
        print_win_rate_every_n_steps: the number of steps from one print to the next, >= 0; 0:
            never.
        bias_correction: whether to correct the bias of averages that start at zero. optax does: it
            divides m by 1 - b1^t.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_sophia`, `add_decayed_weights` and `scale_by_learning_rate`. Its
        update needs the loss: `update(grads, state, params, obj_fn=loss)`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Liu et al. 2023, "Sophia: a scalable stochastic second-order optimizer for language model
        pre-training", Algorithm 3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> loss = lambda x: jnp.sum(jnp.array([1.0, 50.0]) * x**2)
        >>> tx = gradtx.sophia(0.5, b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0)
        >>> x = jnp.array([3.0, 0.5])
        >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, obj_fn=loss)
        >>> print(updates)
        [-0.5  -0.25]
    """
    direction = scale_by_sophia(
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        hessian_diagonal_fn,
        mu_dtype,
        verbose,
        print_win_rate_every_n_steps,
        bias_correction=bias_correction,
    )
    return chain(
        direction,
        weight_decay_of(
            "sophia", weight_decay, weight_decay_mask, decay=decay, argument="weight_decay_mask"
        ),
        scale_by_learning_rate(learning_rate),
    )
