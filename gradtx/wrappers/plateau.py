"""A learning rate that is reduced when the loss stops falling."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from optax.contrib import ReduceLROnPlateauState

from gradtx import norms
from gradtx.arguments import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    PROPER_SHARE,
    SHARE,
    check,
    squeezed,
)
from gradtx.effect import Effect, declared
from gradtx.inputs import as_gradients, check_state
from gradtx.kernels.scale import scale
from gradtx.leaves import parameters_of
from gradtx.placement import with_numbers_placed

_OWNER = "reduce_on_plateau"
_CHANGING = Effect(
    degree=1, hidden="has a factor that depends on the loss", hidden_later=True, alters=True
)


def reduce_on_plateau(
    factor: float = 0.1,
    patience: ArrayLike = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: ArrayLike = 0,
    accumulation_size: ArrayLike = 1,
    min_scale: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Scale the updates down whenever the loss has stopped falling.

        u = scale * g

    where scale starts at 1. `value`, the loss, is averaged over `accumulation_size` steps. An
    average a improves on the best one so far if

        a < best - rtol * |best| - atol,

    and then becomes the best one. After `patience` averages in a row without an improvement,

        scale <- max(factor * scale, min_scale),

    and the next `cooldown` averages do not count. The new scale applies to the step that completes
    the last of these averages already. Chain it after the optimizer, and pass the loss to its
    update: `update(updates, state, params, value=loss)`.

    Args:
        factor: what the scale is multiplied by, in (0, 1).
        patience: the number of averages in a row without an improvement before the scale is
            reduced, >= 1.
        rtol: the relative improvement that counts, in [0, 1]. (optax and PyTorch compare with
            (1 - rtol) * best, which is larger than a negative best.)
        atol: the absolute improvement that counts, >= 0; rtol or atol must be positive.
        cooldown: the number of averages that do not count after the scale was reduced, >= 0.
        accumulation_size: the number of losses in an average, >= 1: 1 for a test loss, more for
            the noisy loss of a mini-batch.
        min_scale: the lower bound of the scale, >= 0.

    Returns:
        A transformation with the state `ReduceLROnPlateauState(scale, best_value, plateau_count,
        cooldown_count, count, avg_value)`. Its numbers are float32, or float64 if a parameter is;
        optax uses the narrowest dtype of the parameters for the scale.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `value` is missing or is
            not a real scalar.

    Source:
        The rule of torch.optim.lr_scheduler.ReduceLROnPlateau, whose patience n is n + 1 here.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.reduce_on_plateau(factor=0.5, patience=2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for loss in [3.0, 2.0, 2.0, 2.0]:
        ...     updates, state = tx.update(jnp.ones(1), state, value=loss)
        ...     print(updates)
        [1.]
        [1.]
        [1.]
        [0.5]
    """
    accumulation_size = check(_OWNER, "accumulation_size", accumulation_size, COUNT)
    rule = {
        "factor": check(_OWNER, "factor", factor, PROPER_SHARE),
        "patience": check(_OWNER, "patience", patience, COUNT),
        "rtol": check(_OWNER, "rtol", rtol, SHARE),
        "atol": check(_OWNER, "atol", atol, NON_NEGATIVE),
        "cooldown": check(_OWNER, "cooldown", cooldown, COUNT_OR_ZERO),
        "min_scale": check(_OWNER, "min_scale", min_scale, NON_NEGATIVE),
    }
    if not isinstance(rtol, jax.Array) and not isinstance(atol, jax.Array) and rtol == atol == 0:
        raise ValueError(f"{_OWNER}: rtol or atol must be positive, got {rtol} and {atol}")

    @with_numbers_placed
    def init(params: Any) -> ReduceLROnPlateauState:
        dtype = norms.widest(parameters_of(params))
        return ReduceLROnPlateauState(
            scale=jnp.ones([], dtype),
            best_value=jnp.full([], jnp.inf, dtype),
            plateau_count=jnp.zeros([], jnp.int32),
            cooldown_count=jnp.zeros([], jnp.int32),
            count=jnp.zeros([], jnp.int32),
            avg_value=jnp.zeros([], dtype),
        )

    @declared(_CHANGING)
    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **extra: Any
    ) -> Any:
        del extra
        updates = as_gradients(updates, params)
        check_state(_OWNER, state, ReduceLROnPlateauState._fields)
        count = optax.safe_increment(state.count)
        dtype = state.avg_value.dtype
        total = _as(state.count, dtype) * state.avg_value + _as(_checked_value(value), dtype)
        average = total / _as(count, dtype)
        is_complete = count >= _as(accumulation_size, jnp.int32)
        kept = {name: getattr(state, name) for name in ReduceLROnPlateauState._fields}
        waiting = ReduceLROnPlateauState(**kept | {"count": count, "avg_value": average})
        new_state = jax.tree.map(
            functools.partial(jnp.where, is_complete), _judged(state, average, rule), waiting
        )
        updates, _ = scale(new_state.scale).update(updates, optax.EmptyState(), params)
        return updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _judged(
    state: ReduceLROnPlateauState, average: jax.Array, rule: Mapping[str, ArrayLike]
) -> ReduceLROnPlateauState:
    """The state after one average."""
    old_scale, best = jnp.asarray(state.scale), jnp.asarray(state.best_value)
    dtype = best.dtype
    # Written so that positive losses give exactly optax's numbers.
    shrunk = (1 - jnp.sign(best) * _as(rule["rtol"], dtype)) * best
    # (1 - rtol) * inf is NaN for rtol = 1.
    target = jnp.where(jnp.isinf(best), best, shrunk - _as(rule["atol"], dtype))
    has_improved = average < target
    bad = jnp.where(has_improved, 0, optax.safe_increment(state.plateau_count))
    is_cooling = jnp.asarray(state.cooldown_count) > 0
    falls = ~is_cooling & (bad >= _as(rule["patience"], jnp.int32))
    lower = old_scale * _as(rule["factor"], old_scale.dtype)
    cooling = jnp.where(is_cooling, state.cooldown_count - 1, 0)
    new_scale = jnp.where(falls, lower, old_scale)
    return ReduceLROnPlateauState(
        scale=jnp.where(
            is_cooling, old_scale, jnp.maximum(new_scale, _as(rule["min_scale"], old_scale.dtype))
        ),
        best_value=jnp.where(has_improved, average, best),
        plateau_count=jnp.where(is_cooling | falls, 0, bad),
        cooldown_count=jnp.where(falls, _as(rule["cooldown"], jnp.int32), cooling),
        count=jnp.zeros([], jnp.int32),
        avg_value=jnp.zeros([], dtype),
    )


def _as(value: ArrayLike, dtype: Any) -> jax.Array:
    return jnp.asarray(value).astype(dtype)


def _checked_value(value: Any) -> jax.Array:
    if value is None:
        raise ValueError(
            f"{_OWNER}: needs the loss; call update(updates, state, params, value=loss)"
        )
    value = squeezed(f"{_OWNER}: value", jnp.asarray(value))
    if jnp.iscomplexobj(value):
        raise ValueError(f"{_OWNER}: value must be real, got {value.dtype}")
    return value
