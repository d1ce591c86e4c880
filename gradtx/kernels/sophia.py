"""Sophia: momentum over an estimate of the Hessian's diagonal, updated every few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from optax import ScalarOrSchedule
from optax.contrib import SophiaState

from gradtx.arguments import check, check_flag, evaluate
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.kernel import COUNT, COUNT_OR_ZERO, DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.arithmetic import debias, safe_divide
from gradtx.kernels.hessian_diagonal import (
    hutchinson_estimator_diag_hessian,
    refuse_complex,
    widened,
)
from gradtx.leaves import map_leaves, parameters_of
from gradtx.lift import lift


class _Momentum(NamedTuple):
    """The part of Sophia's state that its step on one array keeps."""

    count: jax.Array
    mu: Any
    nu: Any


class _Curvature(NamedTuple):
    """The part of Sophia's state that a new estimate of the Hessian changes."""

    count: jax.Array
    nu: Any


def _sophia(g, *, mu, nu, t, b1, eps, gamma, clip_threshold, bias_correction):
    mu = b1 * mu + (1 - b1) * g
    momentum = debias(mu, b1, t) if bias_correction else mu
    step = safe_divide(momentum, jnp.maximum(gamma * nu, eps))
    return jnp.clip(step, -clip_threshold, clip_threshold), mu, nu


SOPHIA = Kernel(
    "scale_by_sophia",
    _sophia,
    slots=(Slot("mu"), Slot("nu")),
    hyperparameters={
        "b1": DECAY,
        "eps": NON_NEGATIVE,
        "gamma": NON_NEGATIVE,
        "clip_threshold": NON_NEGATIVE,
    },
    options=("bias_correction",),
    state=_Momentum,
    degree="between",
    source="Liu et al. 2023, Algorithm 3",
)
WITH_CURVATURE = Effect(degree="between", inside="aside", states=("hessian_fn_state",), alters=True)


def _average(g, *, nu, b2):
    nu = b2 * nu + (1 - b2) * g
    return g, nu


HESSIAN_AVERAGE = Kernel(
    "scale_by_sophia",
    _average,
    slots=(Slot("nu"),),
    hyperparameters={"b2": DECAY},
    state=_Curvature,
    degree=1,
)


def scale_by_sophia(
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.01,
    clip_threshold: ScalarOrSchedule | None = 1.0,
    update_interval: int | jax.Array = 10,
    hessian_diagonal_fn: optax.GradientTransformation | None = None,
    mu_dtype: DTypeLike | None = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
    *,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide the momentum by the Hessian's diagonal, and clip each element.

        m <- b1 * m + (1 - b1) * g
        h <- b2 * h + (1 - b2) * h_hat       in the steps 1, 1 + k, 1 + 2k, ...
        u = clip(m / max(gamma * h, eps), clip_threshold)

    h_hat is an estimate of the Hessian's diagonal, computed only in these steps, and k is the
    `update_interval`. optax departs from the paper in two ways: it divides by h as it was before
    the update, which is zero in the first step, and it corrects the bias of m.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of h, in [0, 1).
        eps: the lower bound of the denominator, >= 0.
        gamma: the factor of h in the denominator, >= 0. The larger it is, the fewer elements are
            clipped.
        clip_threshold: the largest absolute value of an element, >= 0; None: no limit.
        update_interval: the number of steps k from one estimate of h to the next, >= 1.
        hessian_diagonal_fn: a transformation of gradients into h_hat, whose update gets the
            parameters and all extra arguments; None: `hutchinson_estimator_diag_hessian()`, which
            needs the loss, `update(grads, state, params, obj_fn=loss)`.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        verbose: whether to print the share of the elements that are not clipped.
        print_win_rate_every_n_steps: the number of steps from one print to the next, >= 0; 0:
            never.
        bias_correction: whether to correct the bias of averages that start at zero. optax does: it
            divides m by 1 - b1^t.

    Returns:
        The transformation, with the state `SophiaState(count, mu, nu, hessian_fn_state)`, where
        nu is h.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `hessian_diagonal_fn`
            raises it.

    Source:
        Liu et al. 2023, "Sophia: a scalable stochastic second-order optimizer for language model
        pre-training", Algorithm 3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> loss = lambda x: jnp.sum(jnp.array([1.0, 50.0]) * x**2)
        >>> tx = gradtx.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0, clip_threshold=None)
        >>> x = jnp.array([3.0, 4.0])
        >>> print(tx.update(jax.grad(loss)(x), tx.init(x), x, obj_fn=loss)[0])
        [3. 4.]
    """
    owner = "scale_by_sophia"
    update_interval = check(owner, "update_interval", update_interval, COUNT)
    every = print_win_rate_every_n_steps
    every = check(owner, "print_win_rate_every_n_steps", every, COUNT_OR_ZERO)
    if hessian_diagonal_fn is None:
        hessian_diagonal_fn = hutchinson_estimator_diag_hessian()
    estimator = as_transformation(owner, "hessian_diagonal_fn", hessian_diagonal_fn)
    verbose = check_flag(owner, "verbose", verbose)
    limit = float("inf") if clip_threshold is None else clip_threshold
    step = lift(
        SOPHIA,
        dtypes={"mu": mu_dtype},
        b1=b1,
        eps=eps,
        gamma=gamma,
        clip_threshold=limit,
        bias_correction=check_flag(owner, "bias_correction", bias_correction),
    )
    average = lift(HESSIAN_AVERAGE, b2=b2)

    def init(params: Any) -> SophiaState:
        refuse_complex(owner, params)
        start: Any = step.init(params)
        return SophiaState(*start, hessian_fn_state=estimator.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        refuse_complex(owner, updates)
        nu, inner = _if_due(
            state.count % update_interval == 0,
            lambda: _estimated(estimator, average, updates, state, params, extra),
            (state.nu, state.hessian_fn_state),
        )
        new: Any
        new_updates, new = step.update(updates, _Momentum(state.count, state.mu, nu), params)
        if verbose and clip_threshold is not None and every:
            _print_win_rate(new_updates, limit, state.count, every)
        return new_updates, SophiaState(*new, hessian_fn_state=inner)

    part = Part("hessian_diagonal_fn", estimator)
    return composed(owner, (part,), init, update, state=SophiaState, effect=WITH_CURVATURE)


def _estimated(
    estimator: optax.GradientTransformationExtraArgs,
    average: optax.GradientTransformationExtraArgs,
    updates: Any,
    state: Any,
    params: Any,
    extra: dict[str, Any],
) -> tuple[Any, Any]:
    """The average h with a new estimate in it, and the new state of the estimator."""
    owner = "scale_by_sophia"
    wide = map_leaves(widened, owner, {"updates": updates})
    estimate, inner = estimator.update(wide, state.hessian_fn_state, params, **extra)
    # Where there is no gradient, the average stays as it is.
    named = {"updates": updates, "the Hessian's diagonal": estimate}
    estimate = map_leaves(lambda _, part: part, owner, named, rests=None)
    averaged: Any = average.update(estimate, _Curvature(state.count, state.nu))[1]
    return averaged.nu, inner


def _if_due(is_due: Any, estimate: Callable[[], Any], kept: Any) -> Any:
    if isinstance(is_due, Tracer):
        return lax.cond(is_due, estimate, lambda: kept)
    # An eager conditional would be compiled, with the loss in it, at every call.
    return estimate() if is_due else kept


def _print_win_rate(updates: Any, limit: Any, count: jax.Array, every: int) -> None:
    limit = evaluate(limit, count) if callable(limit) else limit
    leaves = parameters_of(updates)
    free = sum(jnp.sum(jnp.abs(leaf) < jnp.asarray(limit, leaf.dtype)) for leaf in leaves)
    rate = jnp.asarray(free, jnp.float32) / max(sum(leaf.size for leaf in leaves), 1)
    lax.cond(
        (count + 1) % every == 0,
        lambda: jax.debug.print("Sophia: {} of the elements are not clipped", rate),
        lambda: None,
    )
