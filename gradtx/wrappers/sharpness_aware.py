"""Sharpness-aware minimization: the gradient from the worst point nearby."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import lax
from optax.contrib import SAMState

from gradtx.arguments import COUNT, check, check_flag
from gradtx.compose.parts import Part, composed, widens
from gradtx.compose.sequence import ExtraArgs, as_transformation
from gradtx.effect import Effect
from gradtx.explicit import laid_out_as
from gradtx.inputs import check_given
from gradtx.leaves import Aligned, equation, map_leaves, map_parameters
from gradtx.updates import apply_updates
from gradtx.wrappers.branches import copied, either

_OWNER = "sam"
_FROM_ELSEWHERE = Effect(
    degree=1,
    decay="hides",
    moves=True,
    inside="elsewhere",
    states=("opt_state", "adv_state"),
    clock=True,
)


def sam(
    optimizer: optax.GradientTransformation,
    adv_optimizer: optax.GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Step with the gradient of a worse point nearby, which a climb leads to: SAM.

        e = rho * g(p) / ||g(p)||
        p <- p + u(g(p + e))

    where u is the update of `optimizer`, and e the negative update of `adv_optimizer`:
    `chain(normalize(), sgd(rho))` gives the e above. The climb has `sync_period - 1` steps.

    Each call of `update` is one step of the climb or, every `sync_period` calls, a step of the
    optimizer, which also leads back to where the climb began. In opaque mode a call does all of
    these, and calculates the gradients on the way itself.

    Args:
        optimizer: the transformation that takes the steps.
        adv_optimizer: a transformation that descends; its updates are subtracted to climb.
        sync_period: the number of gradients for one step, >= 1; with 1 there is no climb.
        reset_state: whether to reset the state of `adv_optimizer` after each step.
        opaque_mode: whether each call is a whole step. Its update needs `grad_fn`, a function of
            (params, i) that returns the gradient at the point that step i + 1 of the climb leads
            to, i = 0 .. sync_period - 2.
        batch_axis_name: in opaque mode, a mapped axis over which these gradients are averaged.

    Returns:
        A transformation with the state `SAMState(steps_since_sync, opt_state, adv_state, cache)`,
        where `cache` is where the climb began (None in opaque mode); its update needs `params`.
        Outside opaque mode a call runs only one of the two transformations.

    Raises:
        ValueError: if `sync_period` is not a whole number >= 1, or an argument is not a
            transformation; in `update`, if `params` or, in opaque mode, `grad_fn` is missing.

    Source:
        Foret et al. 2021, "Sharpness-aware minimization for efficiently improving
        generalization", equations (2) and (3), Algorithm 1. If `sync_period` is 1, optax steps from
        the parameters of the previous call; this steps from the given ones.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> climb = gradtx.chain(gradtx.normalize(), gradtx.sgd(0.5))
        >>> tx = gradtx.sam(gradtx.sgd(0.1), climb)
        >>> params = jnp.array([2.0])
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jax.grad(lambda p: jnp.sum(p**2))(params), state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params)
        [2.5]
        [1.5]
    """
    reset_state = check_flag("sam", "reset_state", reset_state)
    opaque_mode = check_flag("sam", "opaque_mode", opaque_mode)
    outer = as_transformation(_OWNER, "optimizer", optimizer)
    climb = as_transformation(_OWNER, "adv_optimizer", adv_optimizer)
    sync_period = check(_OWNER, "sync_period", sync_period, COUNT)

    def init(params: Any) -> Any:
        return SAMState(
            steps_since_sync=jnp.zeros([], jnp.int32),
            opt_state=outer.init(params),
            adv_state=climb.init(params),
            # The first climb puts its parameters there.
            cache=None if opaque_mode else map_parameters(copied, params),
        )

    if opaque_mode:
        update = _opaque(outer, climb, int(sync_period), reset_state, batch_axis_name)
    else:
        update = _transparent(outer, climb, int(sync_period), reset_state)
    parts = (Part("optimizer", outer), Part("adv_optimizer", climb))
    return composed(_OWNER, parts, init, update, state=SAMState, effect=_FROM_ELSEWHERE)


def _transparent(
    outer: ExtraArgs, climb: ExtraArgs, sync_period: int, reset_state: bool
) -> Callable[..., Any]:
    """The update that is one step of the climb or of the optimizer."""

    def update(
        updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any
    ) -> Any:
        del grad_fn
        _check_params(params, updates)
        number = state.steps_since_sync + 1
        is_first = state.steps_since_sync == 0
        start = map_leaves(
            lambda p, kept: jnp.where(is_first, laid_out_as(p, kept), kept),
            _OWNER,
            {"params": params, "the state's cache": state.cache},
        )

        def step() -> Any:
            new, opt_state = outer.update(updates, state.opt_state, start, **extra)
            ends = {"updates": new, "the target": apply_updates(start, new), "params": params}
            new = map_leaves(_back, _OWNER, ends)
            adv_state = climb.init(apply_updates(params, new)) if reset_state else state.adv_state
            return new, (opt_state, adv_state)

        def climb_on() -> Any:
            new, adv_state = climb.update(updates, state.adv_state, params, **extra)
            return _each(jnp.negative, new), (state.opt_state, adv_state)

        is_step = number >= sync_period
        states = (state.opt_state, state.adv_state)
        wide = widens(outer) or widens(climb)
        new, (opt_state, adv_state) = either(
            _OWNER, is_step, step, climb_on, updates, states, wide=wide
        )
        number = jnp.where(is_step, 0, number)
        return new, SAMState(number, opt_state, adv_state, map_parameters(jnp.asarray, start))

    return update


def _opaque(
    outer: ExtraArgs, climb: ExtraArgs, sync_period: int, reset_state: bool, batch_axis_name: Any
) -> Callable[..., Any]:
    """The update that is a whole step, with the gradients on the way."""

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Callable[[Any, int], Any] | None = None,
        **extra: Any,
    ) -> Any:
        _check_params(params, updates)
        if grad_fn is None:
            raise ValueError(
                f"{_OWNER}: opaque_mode needs the gradient; call update(updates, state, params, "
                "grad_fn=...)"
            )
        adv_state, adv_params = state.adv_state, params
        for i in range(sync_period - 1):
            ascent, adv_state = climb.update(updates, adv_state, adv_params, **extra)
            adv_params = apply_updates(adv_params, _each(jnp.negative, ascent))
            updates = grad_fn(adv_params, i)
            if batch_axis_name is not None:
                updates = _each(functools.partial(lax.pmean, axis_name=batch_axis_name), updates)
        new, opt_state = outer.update(updates, state.opt_state, params, **extra)
        if reset_state:
            adv_state = climb.init(apply_updates(params, new))
        return new, SAMState(jnp.zeros([], jnp.int32), opt_state, adv_state, None)

    return update


def _check_params(params: Any, updates: Any) -> None:
    check_given(_OWNER, params)
    Aligned(_OWNER, {"updates": updates, "params": params})


@equation()
def _back(update, end, p):
    """The update that leads from the climb to the end of a step."""
    del update  # gives the dtype
    return end - p


def _each(function: Callable[[Any], Any], updates: Any) -> Any:
    return map_leaves(function, _OWNER, {"updates": updates})
