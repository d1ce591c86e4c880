"""Narrow parameters beside float32 copies that hold what they cannot."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.explicit import laid_out_as
from gradtx.inputs import refuse_shapes_alone
from gradtx.leaves import map_leaves
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

_OWNER = "with_master_weights"
_MASTER = "the state's master"


class MasterWeightsState(NamedTuple):
    """The state of `with_master_weights`.

    Attributes:
        master: the float32 copies, in a tree like the parameters; None where there is none.
        inner_state: the state of the wrapped transformation.
    """

    master: Any
    inner_state: Any


def with_master_weights(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Train float32 copies of parameters in half precision, which follow them rounded.

        m <- m + tx(g, m)
        p <- round(m),    so that the update is round(m) - p

    Half precision has 8 or 11 significant bits: of a parameter of 1 in bfloat16, an update below
    0.002 leaves nothing. Here each parameter with a real dtype below 32 bits has a copy in the
    state, which is what `tx` trains: it sees copies and gradients in float32, and its state is that
    of a run in float32. Other parameters are left to `tx` as they are.

    Wrap the whole optimizer, and add the updates unchanged: they lead exactly to the rounded copy,
    and are float32 for that. (Where a parameter shrinks by more than 2^12 times in one step, up to
    2^-24 of the old one may be missing until the next.) They start from the parameters that
    `update` is given, so that whatever else changed these is undone.

    Args:
        tx: the transformation whose updates are added to the parameters.

    Returns:
        A transformation with the state `MasterWeightsState(master, inner_state)`, of 4 bytes per
        such parameter more than that of `tx`. Its update needs `params`.

    Raises:
        ValueError: if `tx` is not a transformation; in `update`, if `params` is missing, or the
            trees differ.

    Source:
        Micikevicius et al. 2018, "Mixed precision training", section 3.1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> for tx in (gradtx.sgd(0.001), gradtx.with_master_weights(gradtx.sgd(0.001))):
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

    def init(params: Any) -> MasterWeightsState:
        # A copy of its own, because what is inside may keep the one that it is shown.
        return MasterWeightsState(jax.tree.map(_copy, params), inner.init(widened(params)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        named = {"params": params, _MASTER: state.master}

        def shown() -> Any:
            return map_leaves(
                lambda _, m: jnp.asarray(m).astype(WIDE),
                _OWNER,
                named,
                takes_part=lambda p, _: is_narrow(p),
            )

        new, inner_state, step = update_inside(
            _OWNER, inner, updates, state.inner_state, params, shown, extra
        )
        new, master = map_leaves(
            lambda *leaf: _follow(*leaf, step),
            _OWNER,
            {"params": params, "the inner updates": new, _MASTER: state.master},
            rests=("the inner updates", _MASTER),
            takes_part=moves,
        )
        return new, MasterWeightsState(master, inner_state)

    return composed(
        _OWNER, (Part("", inner),), init, update, state=MasterWeightsState, effect=EFFECT
    )


def _copy(parameter: Any) -> jax.Array | None:
    if not is_narrow(parameter):
        return None
    refuse_shapes_alone(_OWNER, "the master", parameter)
    return jnp.asarray(parameter).astype(WIDE)


@jax.jit
def _follow(
    p: jax.Array, u: jax.Array, m: jax.Array, step: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The update of a parameter, and its new master."""
    own = jnp.asarray(p).astype(WIDE)
    new = (jnp.asarray(m).astype(WIDE) + jnp.asarray(u).astype(WIDE)).astype(m.dtype)
    new = laid_out_as(new, m)
    target = nearest(new.astype(WIDE), p.dtype)
    return kept_unless(step, target, own) - own, new
