"""Learning without a schedule: an average of the iterates, which takes no memory of its own."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from optax.contrib import ScheduleFreeState

from gradtx import norms, trees
from gradtx.arguments import (
    ANY_NUMBER,
    NON_NEGATIVE,
    Range,
    check,
    check_dtype,
    check_hyperparameter,
    evaluate,
)
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.inputs import check_given, refuse_shapes_alone
from gradtx.leaves import equation, map_leaves, map_parameters, parameters_of
from gradtx.wrappers.branches import copied, widened_copy
from gradtx.wrappers.steps import in_step, is_step

_OWNER = "schedule_free"
_OF_BASE = Effect(degree=1, states=("base_optimizer_state",), alters=True)
_POSITIVE_SHARE = Range("in (0, 1]", lambda value: 0 < value <= 1)


def schedule_free(
    base_optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    r: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Average the iterates of any optimizer instead of lowering its learning rate.

        z <- z + u_base(g),    g the gradient at y
        w = t^r * max_{i <= t} learning_rate_i ^ weight_lr_power,    c = w / (sum of all w so far)
        x <- (1 - c) * x + c * z
        y <- (1 - b1) * z + b1 * x

    The parameters that are trained are y; evaluate x, which `eval_params(state, params)` returns.
    Only z is stored, because x follows from y and z. The update is calculated as
    c * (z - y) + (1 - c) * (1 - b1) * u_base, which is not a difference of large numbers. A call in
    which the base optimizer takes no step, because a `MultiSteps` inside collects gradients or an
    `apply_if_finite` skips one, changes nothing. (optax counts it.)

    Args:
        base_optimizer: makes u_base. It should have no momentum, because b1 takes its place.
        learning_rate: the step size of the base optimizer, >= 0; a number, a scalar array or a
            schedule. It weighs the average. optax evaluates a schedule one step ahead of the base
            optimizer; here both count from 0.
        b1: the weight of x in y, in (0, 1].
        weight_lr_power: the power of the largest learning rate so far in the weight of z, >= 0.
        state_dtype: the storage dtype of z; None: the parameter's, at least float32.
        r: the power of the step's number t in the weight of z. With 1 the second half of a run
            counts three times as much as the first.

    Returns:
        A transformation with the state `ScheduleFreeState(b1, weight_sum, step_count, max_lr,
        base_optimizer_state, z)`; its update needs `params`. As in optax `step_count` is the
        number of the next step, initially 1.

    Raises:
        ValueError: if a number lies outside its range; in `update`, if `params` is missing.

    Source:
        Defazio et al. 2024, "The road less scheduled", equations (3) to (5) and section 2.2;
        `r` is from the authors' code, which has the same weights.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.schedule_free(gradtx.sgd(1.0), 1.0, b1=0.5)
        >>> params, state = jnp.array([4.0]), tx.init(jnp.array([4.0]))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([1.0]), state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> print(params, gradtx.eval_params(state, params))
        [2.25] [2.5]
    """
    base = as_transformation(_OWNER, "base_optimizer", base_optimizer)
    learning_rate = check_hyperparameter(_OWNER, "learning_rate", learning_rate, NON_NEGATIVE)
    b1 = check(_OWNER, "b1", b1, _POSITIVE_SHARE)
    weight_lr_power = check(_OWNER, "weight_lr_power", weight_lr_power, NON_NEGATIVE)
    r = check(_OWNER, "r", r, ANY_NUMBER)
    dtype = check_dtype(_OWNER, "state_dtype", state_dtype)
    average = functools.partial(
        _averaged, learning_rate=learning_rate, b1=b1, weight_lr_power=weight_lr_power, r=r
    )

    def init(params: Any) -> ScheduleFreeState:
        real = norms.widest(parameters_of(params))
        return ScheduleFreeState(
            b1=jnp.array(b1, real),
            weight_sum=jnp.zeros((), real),
            step_count=jnp.ones((), jnp.int32),
            max_lr=jnp.zeros((), real),
            base_optimizer_state=base.init(params),
            z=map_parameters(functools.partial(_start, dtype=dtype), params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        check_given(_OWNER, params)
        base_updates, base_state = base.update(updates, state.base_optimizer_state, params, **extra)
        step = is_step(state.base_optimizer_state, base_state, base_updates)
        old = {name: getattr(state, name) for name in _AVERAGED}
        new, kept = in_step(
            _OWNER, step, lambda: average(updates, state, params, base_updates), updates, old
        )
        return new, ScheduleFreeState(b1=state.b1, base_optimizer_state=base_state, **kept)

    return composed(
        _OWNER, (Part("", base),), init, update, state=ScheduleFreeState, effect=_OF_BASE
    )


# The fields of the state that a step of the average updates.
_AVERAGED = ("weight_sum", "step_count", "max_lr", "z")


def _averaged(
    updates: Any,
    state: Any,
    params: Any,
    base_updates: Any,
    *,
    learning_rate: Any,
    b1: ArrayLike,
    weight_lr_power: ArrayLike,
    r: ArrayLike,
) -> tuple[Any, dict[str, Any]]:
    """The updates of y, and the new values of those fields."""
    real, rate = state.weight_sum.dtype, learning_rate
    if callable(rate):
        rate = evaluate(rate, state.step_count - 1)
    max_lr = jnp.maximum(state.max_lr, jnp.asarray(rate, real))
    weight = max_lr ** jnp.asarray(weight_lr_power, real)
    weight *= state.step_count.astype(real) ** jnp.asarray(r, real)
    weight_sum = state.weight_sum + weight
    # As long as all learning rates were zero, there is nothing to average.
    c = jnp.where(weight_sum == 0, 0.0, weight / jnp.where(weight_sum == 0, 1.0, weight_sum))
    new, z = map_leaves(
        functools.partial(_step, c=c, b1=b1),
        _OWNER,
        {
            "updates": updates,
            "the base updates": base_updates,
            "params": params,
            "the state's z": state.z,
        },
        rests=("updates", "the state's z"),
    )
    number = optax.safe_increment(state.step_count)
    return new, dict(zip(_AVERAGED, (weight_sum, number, max_lr, z), strict=True))


def _start(p: Any, *, dtype: Any) -> jax.Array:
    refuse_shapes_alone(_OWNER, "z", p)
    return widened_copy(p) if dtype is None else copied(p, dtype)


@equation(0, 3)
def _step(g: Any, u: Any, y: Any, z: Any, *, c: Any, b1: Any) -> tuple[jax.Array, jax.Array]:
    """The update of y and the new z of one leaf."""
    del g
    new = z + u
    return c * (new - y) + (1 - c) * (1 - b1) * u, new


def evaluated_leaf(state: Any, y: Any, z: Any) -> jax.Array:
    """The average (y - (1 - b1) * z) / b1 of one leaf, in the dtype of the parameter y."""
    dtype = trees.compute_dtype(jnp.result_type(y))
    b1 = state.b1.astype(trees.real_dtype(dtype))
    y_wide, z = jnp.asarray(y).astype(dtype), z.astype(dtype)
    # y + (1 / b1 - 1) * (y - z), which is exact where y and z agree.
    return (y_wide + (1 - b1) / b1 * (y_wide - z)).astype(jnp.result_type(y))
