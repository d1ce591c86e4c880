"""Narrow parameters that are rounded up or down at random, and are right on average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.arguments import check_key
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.leaves import Aligned
from gradtx.precision.narrow import EFFECT, WIDE, moves, update_inside, widened
from gradtx.precision.rounding import random_bits, round_stochastically
from gradtx.wrappers.steps import counted

_OWNER = "with_stochastic_rounding"


class StochasticRoundingState(NamedTuple):
    """The state of `with_stochastic_rounding`.

    Attributes:
        count: the number of steps, int32.
        rng_key: the PRNG key of the rounding.
        inner_state: the state of the wrapped transformation.
    """

    count: jax.Array
    rng_key: jax.Array
    inner_state: Any


def with_stochastic_rounding(
    tx: optax.GradientTransformation, key: jax.Array | int
) -> optax.GradientTransformationExtraArgs:
    """Round parameters in half precision up or down at random, and right on average.

        p' = up with probability (p + u - down) / (up - down), else down,    u = tx(g, p)

    where down and up are the numbers of the parameter's dtype around p + u. Rounding to nearest
    loses every update of a parameter of 1 in bfloat16 that is below 0.002; here an update of 0.0001
    moves it by 0.0039 in one of 39 steps. That costs no memory, but adds noise to the training.

    This is done for each parameter with a real dtype below 32 bits: `tx` sees it and its gradient
    in float32, and its state is that of a run in float32. Other parameters are left to `tx` as they
    are.

    Wrap the whole optimizer, and add the updates unchanged: they are p' - p, and float32 for that.
    The random bits are a hash of the key and of the numbers of step, leaf and element, the same on
    every layout of devices; in `shard_map` each shard counts its own elements.

    Args:
        tx: the transformation whose updates are added to the parameters.
        key: a PRNG key, or an integer seed.

    Returns:
        A transformation with the state `StochasticRoundingState(count, rng_key, inner_state)`, not
        larger than that of `tx` but for these numbers. Its update needs `params`.

    Raises:
        ValueError: if `tx` is not a transformation, or `key` is neither a key nor a seed; in
            `update`, if `params` is missing, or the trees differ.

    Source:
        Gupta et al. 2015, "Deep learning with limited numerical precision", section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> for tx in (gradtx.sgd(0.001), gradtx.with_stochastic_rounding(gradtx.sgd(0.001), 0)):
        ...     params = jnp.ones(1000, jnp.bfloat16)
        ...     state = tx.init(params)
        ...     for _ in range(100):
        ...         updates, state = tx.update(jnp.ones_like(params), state, params)
        ...         params = gradtx.apply_updates(params, updates)
        ...     print(params.astype(jnp.float32).mean().round(2))
        1.0
        0.9
    """
    inner = as_transformation(_OWNER, "tx", tx)
    key = check_key(_OWNER, key)

    def init(params: Any) -> StochasticRoundingState:
        start = inner.init(widened(params))
        return StochasticRoundingState(jnp.zeros([], jnp.int32), jnp.copy(key), start)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new, inner_state, step = update_inside(
            _OWNER, inner, updates, state.inner_state, params, lambda: widened(params), extra
        )
        aligned = Aligned(_OWNER, {"params": params, "the inner updates": new}, takes_part=moves)
        pairs = zip(
            aligned.parts(), aligned.parts("the inner updates"), aligned.active, strict=True
        )
        new = aligned.tree_of(
            [_round(p, u, state.rng_key, state.count, np.uint32(i)) for p, u, i in pairs],
            "the inner updates",
        )
        count = counted(step, state.count)
        return new, StochasticRoundingState(count, state.rng_key, inner_state)

    return composed(
        _OWNER, (Part("", inner),), init, update, state=StochasticRoundingState, effect=EFFECT
    )


@jax.jit
def _round(
    p: jax.Array, u: jax.Array, key: jax.Array, count: jax.Array, number: jax.Array
) -> jax.Array:
    """The update of a parameter."""
    p = jnp.asarray(p)
    own = p.astype(WIDE)
    is_explicit = jax.sharding.get_abstract_mesh().explicit_axes
    sharding = jax.typeof(p).sharding if is_explicit else None
    bits = random_bits(key, count, number, p.shape, out_sharding=sharding)
    new = round_stochastically(own + jnp.asarray(u).astype(WIDE), p.dtype, bits)
    return new.astype(WIDE) - own
