"""Narrow parameters beside what their last rounding left over."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.explicit import laid_out_as
from gradtx.leaves import map_leaves
from gradtx.placement import zeros_beside
from gradtx.precision.narrow import (
    EFFECT,
    WIDE,
    is_narrow,
    kept_unless,
    moves,
    nearest,
    update_inside,
    widened,
)
from gradtx.stored import to_store

_OWNER = "with_kahan_sum"
_COMPENSATION = "the state's compensation"


class KahanSumState(NamedTuple):
    """The state of `with_kahan_sum`.

    Attributes:
        compensation: what rounding has left over of the parameters, in their dtypes, in a tree like
            theirs; None where there is none.
        inner_state: the state of the wrapped transformation.
    """

    compensation: Any
    inner_state: Any


def with_kahan_sum(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Add to each update what rounding left over of the parameters in half precision before.

        y = tx(g, p + c) + c
        p' = round(p + y)
        c' = round(p + y - p')

    p and c together have twice the digits of p. In bfloat16, updates get lost below 2^-18 of the
    parameter instead of 2^-9; in float16 below 2^-24 instead of 2^-12, and below 3e-8, half of its
    smallest number. Where updates are nearly as small as that, take `with_master_weights`.

    This is done for each parameter with a real dtype below 32 bits: `tx` sees p + c and the
    gradient in float32, and its state is that of a run in float32. Other parameters are left to
    `tx` as they are.

    Wrap the whole optimizer, and add the updates unchanged: they are p' - p, and float32 for that.

    Args:
        tx: the transformation whose updates are added to the parameters.

    Returns:
        A transformation with the state `KahanSumState(compensation, inner_state)`, of 2 bytes per
        such parameter more than that of `tx`. Its update needs `params`.

    Raises:
        ValueError: if `tx` is not a transformation; in `update`, if `params` is missing, or the
            trees differ.

    Source:
        Kahan 1965, "Further remarks on reducing truncation errors"; Zamirai et al. 2020,
        "Revisiting BFloat16 training", section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> for tx in (gradtx.sgd(0.001), gradtx.with_kahan_sum(gradtx.sgd(0.001))):
        ...     params = jnp.ones(1, jnp.bfloat16)
        ...     state = tx.init(params)
        ...     for _ in range(100):
        ...         updates, state = tx.update(jnp.ones_like(params), state, params)
        ...         params = gradtx.apply_updates(params, updates)
        ...     print(params)
        [1]
        [0.898438]
    """
    inner = as_transformation(_OWNER, "tx", tx)

    def init(params: Any) -> KahanSumState:
        start = jax.tree.map(lambda p: zeros_beside(p) if is_narrow(p) else None, params)
        return KahanSumState(start, inner.init(widened(params)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        def shown() -> Any:
            return map_leaves(
                _whole,
                _OWNER,
                {"params": params, _COMPENSATION: state.compensation},
                takes_part=lambda p, _: is_narrow(p),
            )

        new, inner_state, step = update_inside(
            _OWNER, inner, updates, state.inner_state, params, shown, extra
        )
        new, compensation = map_leaves(
            lambda *leaf: _add(*leaf, step),
            _OWNER,
            {"params": params, "the inner updates": new, _COMPENSATION: state.compensation},
            rests=("the inner updates", _COMPENSATION),
            takes_part=moves,
        )
        return new, KahanSumState(compensation, inner_state)

    return composed(_OWNER, (Part("", inner),), init, update, state=KahanSumState, effect=EFFECT)


@jax.jit
def _whole(p: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.asarray(p).astype(WIDE) + jnp.asarray(c).astype(WIDE)


@jax.jit
def _add(
    p: jax.Array, u: jax.Array, c: jax.Array, step: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The update of a parameter, and what is left over."""
    own, left = (jnp.asarray(x).astype(WIDE) for x in (p, c))
    whole = own + (jnp.asarray(u).astype(WIDE) + left)
    target = nearest(whole, p.dtype)
    over = kept_unless(step, whole - target, left)
    return kept_unless(step, target, own) - own, to_store(laid_out_as(over, c), c.dtype)
