"""Two ways to go on with a step, of which only one is carried out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from gradtx.leaves import Aligned, map_leaves

Branch = Callable[[], tuple[Any, Any]]


def either(
    owner: str,
    condition: jax.Array,
    on_true: Branch,
    on_false: Branch,
    updates: Any,
    state: Any,
) -> tuple[Any, Any]:
    """The updates and the state of one of two branches.

    A conditional needs both branches to return the same types, whatever the wrapped
    transformation makes of narrow dtypes, and arrays only.

    Args:
        owner: name of the caller, which opens error messages.
        condition: a boolean scalar.
        on_true: returns updates and a state; carried out only if the condition holds.
        on_false: the same for the other case.
        updates: the gradients: they give the dtypes of the updates, and those of their leaves
            that are not inexact arrays come back as they are.
        state: the old state, which gives the dtypes of the new one.

    Returns:
        The updates and the state of that branch.
    """

    def typed(branch: Branch) -> tuple[list[jax.Array], Any]:
        new, new_state = branch()
        # What is under way may have other shapes than the updates in the end.
        aligned = Aligned(owner, {"updates": updates, "the inner updates": new}, same_shapes=False)
        pairs = zip(aligned.arrays(), aligned.arrays("the inner updates"), strict=True)
        arrays = [part.astype(gradient.dtype) for gradient, part in pairs]
        return arrays, jax.tree.map(_in_dtype_of, state, new_state)

    if isinstance(condition, Tracer):
        arrays, new_state = lax.cond(condition, lambda: typed(on_true), lambda: typed(on_false))
    else:
        # An eager conditional would be compiled at every call.
        arrays, new_state = typed(on_true if condition else on_false)
    return Aligned(owner, {"updates": updates}).tree_of(arrays), new_state


def zeros_like(updates: Any) -> Any:
    """Zero updates; leaves that are not inexact arrays stay as they are."""
    return map_leaves(jnp.zeros_like, "zeros_like", {"updates": updates})


def _in_dtype_of(old: Any, new: Any) -> Any:
    dtype = jnp.result_type(old)
    return new if jnp.result_type(new) == dtype else new.astype(dtype)
