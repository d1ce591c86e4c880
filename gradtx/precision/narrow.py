"""What the wrappers for narrow parameters share: which these are, and what is inside sees of them.

A parameter is narrow if its dtype is real and has fewer than 32 bits. What is inside works with
float32 in its place, as in a run in float32.

Parameters stay finite as long as they are so in float32: beyond the largest number of their dtype
they become that.

The updates of narrow parameters are handed out in float32, because few differences of two numbers
fit into their narrow dtype. Those of a number and one that is more than 2^12 times smaller may not
fit into float32 either: what arrives then differs by up to 2^-24 of the larger number, as in any
sum in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import trees
from gradtx.effect import Effect
from gradtx.explicit import laid_out_alike
from gradtx.inputs import check_given, trained
from gradtx.leaves import map_leaves
from gradtx.stored import rounded
from gradtx.wrappers.steps import is_move

WIDE = jnp.dtype(jnp.float32)
EFFECT = Effect(degree=1, widens=True)


def is_narrow(leaf: Any) -> bool:
    """Whether a leaf is an array of real floating-point numbers of fewer than 32 bits."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not trees.is_subdtype(dtype, jnp.floating):
        return False
    return trees.compute_dtype(dtype) != dtype


def widened(params: Any) -> Any:
    """The parameters, in float32 where they are narrow; mere shapes and dtypes likewise."""

    def wide(leaf: Any) -> Any:
        if not is_narrow(leaf):
            return leaf
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return leaf.update(dtype=WIDE) if is_shape else jnp.asarray(leaf).astype(WIDE)

    return jax.tree.map(wide, params)


def update_inside(
    owner: str,
    inner: optax.GradientTransformationExtraArgs,
    updates: Any,
    inner_state: Any,
    params: Any,
    shown: Callable[[], Any],
    extra: dict[str, Any],
) -> tuple[Any, Any, jax.Array | None]:
    """The update of what is inside a wrapper, in float32 where parameters are narrow.

    Args:
        owner: name of the wrapper, which opens error messages.
        inner: what is inside.
        updates: the gradients.
        inner_state: its state.
        params: the parameters that the wrapper was given.
        shown: returns the parameters that it gets.
        extra: its extra arguments.

    Returns:
        The updates, the new state, and whether the parameters may move, see `is_move`.
    """
    check_given(owner, params)
    gradients = map_leaves(
        lambda gradient, p: jnp.asarray(gradient).astype(WIDE) if is_narrow(p) else gradient,
        owner,
        {"updates": updates, "params": trained(params)},
    )
    new, new_state = inner.update(gradients, inner_state, shown(), **extra)
    return new, new_state, is_move(inner_state, new_state, new)


def moves(parameter: Any, update: Any, *_: Any) -> bool:
    """Whether a leaf has a narrow parameter, and an update for it."""
    return is_narrow(parameter) and trees.is_parameter(update)


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """The nearest finite numbers of a narrow dtype, ties to even, in float32.

    Within the range of the dtype, the same as a cast there and back, which XLA leaves out on
    accelerators, as it takes the additional digits for a gain.
    """
    largest = np.float32(jnp.finfo(dtype).max)
    # A parameter that has become infinite would stay so, whatever is added to it.
    return jnp.where(jnp.isfinite(x), jnp.clip(rounded(x, dtype), -largest, largest), x)


def kept_unless(step: jax.Array | None, new: jax.Array, old: jax.Array) -> jax.Array:
    """The new value, or the old one if there was no step; None: there was one."""
    return new if step is None else jnp.where(step, *laid_out_alike([new, old]))
