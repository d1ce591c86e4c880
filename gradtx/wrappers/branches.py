"""What wrappers share: one of two branches, zero updates, copies of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from gradtx import trees
from gradtx.explicit import laid_out_as
from gradtx.leaves import Aligned, map_leaves
from gradtx.stored import to_store

Branch = Callable[[], tuple[Any, Any]]


def either(
    owner: str,
    condition: jax.Array,
    on_true: Branch,
    on_false: Branch,
    updates: Any,
    state: Any,
    *,
    wide: bool = False,
) -> tuple[Any, Any]:
    """The updates and the state of one of two branches.

    A conditional needs both branches to return arrays only, and of the same types, whatever a
    wrapped transformation does to narrow dtypes.

    Args:
        owner: name of the caller, which opens error messages.
        condition: a boolean scalar.
        on_true: returns updates and a state; it runs only if the condition holds.
        on_false: the same for the other case.
        updates: the gradients. The updates get their dtypes and, on a mesh with explicit axes,
            their layouts; where their leaves are not inexact arrays, these are returned.
        state: the old state. The new one gets its dtypes and layouts.
        wide: whether the updates are in at least float32 instead, as those of a transformation that
            `widens` may be.

    Returns:
        The updates and the state of that branch.
    """

    def dtype_of(gradient: jax.Array) -> Any:
        return trees.compute_dtype(gradient.dtype) if wide else gradient.dtype

    def typed(branch: Branch) -> tuple[list[jax.Array], Any]:
        new, new_state = branch()
        # Inside a chain the shapes may still differ from those of the updates.
        aligned = Aligned(owner, {"updates": updates, "the inner updates": new}, same_shapes=False)
        pairs = zip(aligned.arrays(), aligned.arrays("the inner updates"), strict=True)
        arrays = [laid_out_as(to_store(part, dtype_of(g)), g) for g, part in pairs]
        return arrays, jax.tree.map(_in_type_of, state, new_state)

    if isinstance(condition, Tracer):
        arrays, new_state = lax.cond(condition, lambda: typed(on_true), lambda: typed(on_false))
    else:
        # An eager conditional would be compiled again at each call.
        arrays, new_state = typed(on_true if condition else on_false)
    return Aligned(owner, {"updates": updates}).tree_of(arrays), new_state


def zeros_like(updates: Any) -> Any:
    """Zero updates; leaves that are not inexact arrays stay as they are."""

    def zeros(update: Any) -> jax.Array:
        return laid_out_as(jnp.zeros_like(update), update)

    return map_leaves(zeros, "zeros_like", {"updates": updates})


def copied(parameter: Any, dtype: Any = None) -> jax.Array:
    """A copy of a parameter, because the caller may donate it; zeros for its mere shape."""
    if isinstance(parameter, jax.ShapeDtypeStruct):
        return jnp.zeros_like(parameter, dtype)
    return jnp.array(parameter, dtype)


def widened_copy(parameter: Any) -> jax.Array:
    """A copy of a parameter in the dtype to calculate in."""
    return copied(parameter, trees.compute_dtype(jnp.result_type(parameter)))


def _in_type_of(old: Any, new: Any) -> Any:
    dtype = jnp.result_type(old)
    return laid_out_as(new if jnp.result_type(new) == dtype else to_store(new, dtype), old)
