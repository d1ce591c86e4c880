"""Lookahead: fast weights run ahead, and slow weights follow them part of the way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx import trees
from gradtx.arguments import COUNT, NON_NEGATIVE, check, check_flag
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.leaves import map_leaves
from gradtx.stored import to_store
from gradtx.updates import apply_updates
from gradtx.wrappers.branches import either
from gradtx.wrappers.steps import is_step

_OWNER = "lookahead"
_OF_FAST = Effect(
    degree=1, states=("fast_state",), trains=(optax.LookaheadParams, "fast"), alters=True
)


def lookahead(
    fast_optimizer: optax.GradientTransformation,
    sync_period: ArrayLike,
    slow_step_size: ArrayLike,
    reset_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Let fast weights take k steps, move slow weights part of the way, and restart from there.

        fast <- fast + u(g(fast))                        in every step
        slow <- slow + slow_step_size * (fast - slow)    in every k-th step,
        fast <- slow                                     followed by this

    A call in which the fast optimizer takes no step, because a `MultiSteps` inside collects
    gradients or an `apply_if_finite` skips one, is not counted and moves nothing. (optax counts
    calls.)

    The parameters are a pair, `LookaheadParams(fast, slow)`; start with
    `LookaheadParams.init_synced(params)`. Calculate gradients at `params.fast`; evaluate and use
    `params.slow`. The updates are such a pair too, and must be added unchanged.

    Args:
        fast_optimizer: the transformation whose updates move the fast weights.
        sync_period: k, a whole number >= 1.
        slow_step_size: the fraction of the way to the fast weights, alpha in the paper, >= 0; with
            1 lookahead has no effect.
        reset_state: whether to reset the state of the fast optimizer every k steps.

    Returns:
        A transformation with the state `LookaheadState(fast_state, steps_since_sync)`; its update
        takes the gradient at `params.fast` and needs `params`. Its init also accepts the fast
        parameters alone.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `params` is not a
            `LookaheadParams`, or its two halves and the updates differ in structure or shapes.

    Source:
        Zhang et al. 2019, "Lookahead optimizer: k steps forward, 1 step back", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.lookahead(gradtx.sgd(1.0), sync_period=2, slow_step_size=0.5)
        >>> params = gradtx.LookaheadParams.init_synced(jnp.array([4.0]))
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([1.0]), state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params.fast, params.slow)
        [3.] [4.]
        [3.] [3.]
    """
    reset_state = check_flag("lookahead", "reset_state", reset_state)
    inner = as_transformation(_OWNER, "fast_optimizer", fast_optimizer)
    sync_period = check(_OWNER, "sync_period", sync_period, COUNT)
    slow_step_size = check(_OWNER, "slow_step_size", slow_step_size, NON_NEGATIVE)

    def init(params: Any) -> optax.LookaheadState:
        fast = params.fast if isinstance(params, optax.LookaheadParams) else params
        return optax.LookaheadState(inner.init(fast), jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if not isinstance(params, optax.LookaheadParams):
            raise ValueError(
                f"{_OWNER}: params must be a LookaheadParams, got {type(params).__name__}; start "
                "with LookaheadParams.init_synced(params)"
            )
        fast_updates, fast_state = inner.update(updates, state.fast_state, params.fast, **extra)
        step = is_step(state.fast_state, fast_state, fast_updates)
        number = state.steps_since_sync + (1 if step is None else step.astype(jnp.int32))
        is_sync = number >= jnp.asarray(sync_period).astype(jnp.int32)
        is_sync = is_sync if step is None else is_sync & step
        new = _pulled_back(fast_updates, params, is_sync, slow_step_size)
        if reset_state:
            _, fast_state = either(
                _OWNER,
                is_sync,
                lambda: ((), inner.init(apply_updates(params.fast, new.fast))),
                lambda: ((), fast_state),
                (),
                state.fast_state,
            )
        return new, optax.LookaheadState(fast_state, jnp.where(is_sync, 0, number))

    return composed(
        _OWNER, (Part("", inner),), init, update, state=optax.LookaheadState, effect=_OF_FAST
    )


def _pulled_back(
    updates: Any, params: optax.LookaheadParams, is_sync: jax.Array, step_size: ArrayLike
) -> optax.LookaheadParams:
    """The updates of both weights, from those of the fast optimizer."""
    fast, slow = map_leaves(
        lambda *leaf: _pulled_back_leaf(*leaf, is_sync, step_size),
        _OWNER,
        {"updates": updates, "params.fast": params.fast, "params.slow": params.slow},
        rests=("updates", "updates"),
    )
    return optax.LookaheadParams(fast, slow)


@jax.jit
def _pulled_back_leaf(
    update: jax.Array, fast: jax.Array, slow: jax.Array, is_sync: jax.Array, step_size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    update, fast, slow = jnp.asarray(update), jnp.asarray(fast), jnp.asarray(slow)
    dtype = trees.compute_dtype(slow.dtype)

    def wide(x: jax.Array) -> jax.Array:
        return x.astype(dtype)

    ahead = wide(fast) + wide(update)
    # Rounded to what can be stored, so that both weights get exactly there.
    share = jnp.asarray(step_size).astype(dtype)
    meeting_point = wide(to_store(wide(slow) + share * (ahead - wide(slow)), slow.dtype))
    step = to_store(meeting_point - wide(slow), slow.dtype)
    back = to_store(meeting_point - wide(fast), update.dtype)
    return jnp.where(is_sync, back, update), jnp.where(is_sync, step, jnp.zeros_like(step))
