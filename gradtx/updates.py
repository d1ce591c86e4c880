"""From updates to parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from gradtx import trees
from gradtx.arguments import COUNT, SHARE, check
from gradtx.compose.sequence import as_transformation
from gradtx.inputs import holds_state, is_exact
from gradtx.joined import Leaves, join_openly
from gradtx.leaf import LeafStep
from gradtx.leaves import equation, map_leaves
from gradtx.stored import to_store
from gradtx.waiting import Leaf, WaitingStep


def apply_updates(params: Any, updates: Any) -> Any:
    """Add updates to parameters.

        p <- p + u

    Args:
        params: a tree of parameters.
        updates: a tree of the same structure and shapes; where it has None, or the float0 that is
            JAX's gradient of an integer, the parameter stays.

    Returns:
        The new parameters, in their own dtypes; the sum is formed in at least float32. An integer
        parameter takes an integer update. None and leaves that are not numbers stay as they are.

    Raises:
        ValueError: if structures or shapes differ, or an integer parameter has an update that is
            not one of integers, naming the path.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"w": jnp.array([1.0]), "steps": jnp.int32(7)}
        >>> print(gradtx.apply_updates(params, {"w": jnp.array([-0.25]), "steps": None}))
        {'steps': Array(7, dtype=int32), 'w': Array([0.75], dtype=float32)}
    """
    leaves, treedef = trees.flatten(params)
    changes = _aligned(updates, params)
    return treedef.unflatten(
        _new_parameter(parameter, change, params, i)
        for i, (parameter, change) in enumerate(zip(leaves, changes, strict=True))
    )


def update_and_apply(
    tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, **extra: Any
) -> tuple[Any, Any]:
    """Take one step of an optimizer, from gradients to new parameters.

        u = tx(g),    p <- p + u

    The same as `tx.update` and then `apply_updates`, for any transformation of gradtx or optax. Of
    a chain of gradtx the addition becomes part of the one compiled step that each leaf takes, so
    that the updates are not written to memory, and there is less to trace and to compile.

    JAX pairs donated arguments with results of the same type in their order. So let the compiled
    step take and return parameters and state in one order: `step(params, state, grads)` that
    returns `(params, state)` updates them in place, `step(grads, state, params)` makes four copies
    of AdamW's arrays.

    Args:
        tx: the gradient transformation.
        updates: the gradients, a tree of the structure of `params`.
        state: the state of `tx`.
        params: a tree of parameters.
        **extra: the extra arguments of `tx.update`, such as `value`.

    Returns:
        The pair of the new parameters, in their own dtypes, and the new state.

    Raises:
        ValueError: as `tx.update` and `apply_updates` do.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"w": jnp.array([1.0])}
        >>> tx = gradtx.chain(gradtx.clip(1.0), gradtx.sgd(0.25, momentum=0.9))
        >>> state = tx.init(params)
        >>> params, state = gradtx.update_and_apply(tx, {"w": jnp.array([3.0])}, state, params)
        >>> print(params["w"])
        [0.75]
    """
    tx = as_transformation("update_and_apply", "tx", tx)
    new, _, new_state = advance(tx, updates, state, params, extra, _ADDITION)
    return new, new_state


def advance(
    tx: optax.GradientTransformation,
    updates: Any,
    state: Any,
    params: Any,
    extra: Mapping[str, Any],
    addition: Addition,
) -> tuple[Any, Any, Any]:
    """One step of an optimizer.

    Args:
        tx: the gradient transformation.
        updates: the gradients.
        state: the state of `tx`.
        params: the parameters.
        extra: the extra arguments of `tx.update`.
        addition: the last step of each leaf, `UPDATES_TOO` to get the updates.

    Returns:
        The new parameters, the updates or None, and the new state.
    """
    if isinstance(params, optax.LookaheadParams):
        changes, new_state = tx.update(updates, state, params, **extra)
        return apply_updates(params, changes), changes, new_state
    leaves, finish = join_openly(tx.update, Leaves(updates, params, extra), state)
    leaves.align_parameters("update_and_apply")
    steps = {leaf: WaitingStep(addition) for leaf in leaves.leaves if _is_addable(leaf)}
    for leaf, own in steps.items():
        leaf.waiting.append(own)
    changed = [leaf.has_gradient and leaf.whole in steps for leaf in leaves.leaves]
    leaves.take_steps()
    new, changes = [], []
    for i, (leaf, is_changed) in enumerate(zip(leaves.leaves, changed, strict=True)):
        if not is_changed:
            new.append(_new_parameter(leaf.plain_parameter, leaf.plain, params, i))
            changes.append(leaf.plain)
        else:
            new.append(leaf.row(leaf.whole.value))
            changes.extend(map(leaf.row, steps[leaf.whole].new or (None,)))
    unflatten = leaves.treedef.unflatten
    return unflatten(new), unflatten(changes) if addition.gives_update else None, finish()


def _is_addable(leaf: Leaf) -> bool:
    """Whether an update and its parameter are inexact arrays of one shape."""
    pair = leaf.value, leaf.parameter
    return all(map(trees.is_parameter, pair)) and np.shape(pair[0]) == np.shape(pair[1])


def _new_parameter(parameter: Any, change: Any, params: Any, index: int) -> Any:
    """The parameter of this number in the tree after its update."""
    if not (trees.is_parameter(parameter) or is_exact(parameter)) or not (
        trees.is_parameter(change) or is_exact(change)
    ):
        return parameter
    if np.shape(parameter) != np.shape(change):
        trees.refuse_shape("apply_updates", "params", params, index, "updates", change)
    if is_exact(parameter):
        return _add_exactly(parameter, change, params, index)
    return _add(parameter, change)


def _aligned(updates: Any, params: Any) -> list[Any]:
    try:
        return trees.flatten_like("apply_updates", "updates", updates, "params", params)
    except ValueError as mismatch:
        if not holds_state(updates) or holds_state(params):
            raise
        raise ValueError(
            "apply_updates: updates holds an optimizer state; tx.update returns the pair "
            "(updates, state)"
        ) from mismatch


def _add_exactly(parameter: Any, change: Any, params: Any, index: int) -> Any:
    """The sum of integers; of booleans, whether one of the two holds."""
    own, other = (np.dtype(getattr(x, "dtype", type(x))) for x in (parameter, change))
    if not is_exact(change) or (own == np.bool_) != (other == np.bool_):
        raise ValueError(
            f"apply_updates: the parameter at '{trees.paths(params)[index]}' is of {own}, its "
            f"update of {other}, which would be rounded; leave such a parameter out with None, or "
            "make it an inexact one"
        )
    if own == np.bool_:
        return parameter | change
    return parameter + change if isinstance(parameter, int) else _add(parameter, change)


def _sum(parameter: Any, change: Any) -> jax.Array:
    parameter, change = jnp.asarray(parameter), jnp.asarray(change)
    is_inexact = jnp.issubdtype(parameter.dtype, jnp.inexact)
    dtype = trees.compute_dtype(parameter.dtype) if is_inexact else parameter.dtype
    return to_store(parameter.astype(dtype) + change.astype(dtype), parameter.dtype)


_add = jax.jit(_sum)


@dataclass(frozen=True, eq=False)
class Addition(LeafStep):
    """The sum of a parameter and its update as the last step of a leaf.

    Attributes:
        gives_update: whether the update comes back too, in the place of a new slot.
    """

    gives_parameter: bool = True
    gives_update: bool = False

    def __call__(
        self, g: Any, p: Any, slots: tuple[Any, ...], key: Any, t: Any, scalars: Mapping[str, Any]
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """The new parameter."""
        del slots, t, key, scalars
        return _sum(p, g), ((jnp.asarray(g),) if self.gives_update else ())


_ADDITION = Addition("apply_updates", _sum, reads_parameter=True, elementwise=True)
UPDATES_TOO = Addition("apply_updates", _sum, reads_parameter=True, gives_update=True)


def incremental_update(new_tensors: Any, old_tensors: Any, step_size: ArrayLike) -> Any:
    """Move a tree a part of the way towards another: Polyak averaging.

        old <- step_size * new + (1 - step_size) * old

    Args:
        new_tensors: the tree to move towards; where it has None the result is None.
        old_tensors: a tree of the same structure.
        step_size: the share of the way, in [0, 1].

    Returns:
        The moved tree, in the dtypes of `old_tensors`. Leaves that are not inexact arrays are
        those of `new_tensors`.

    Raises:
        ValueError: if `step_size` is not in [0, 1], or structures or shapes differ.

    Source:
        Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> print(gradtx.incremental_update(jnp.array([4.0]), jnp.array([0.0]), 0.25))
        [1.]
    """
    owner = "incremental_update"
    step_size = check(owner, "step_size", step_size, SHARE)
    return map_leaves(
        lambda new, old: _mix(old, new, step_size=step_size),
        owner,
        {"new_tensors": new_tensors, "old_tensors": old_tensors},
        takes_part=lambda new, old: trees.is_parameter(new) and old is not None,
    )


@equation()
def _mix(old: jax.Array, new: jax.Array, *, step_size: jax.Array) -> jax.Array:
    return step_size * new + (1 - step_size) * old


def periodic_update(
    new_tensors: Any, old_tensors: Any, steps: ArrayLike, update_period: ArrayLike
) -> Any:
    """Take the new tree in every n-th step, and keep the old one in between.

        new if steps mod update_period = 0, else old

    Args:
        new_tensors: the tree to take.
        old_tensors: a tree of the same structure, shapes and dtypes.
        steps: the step, an integer.
        update_period: how often to take the new tree, a whole number >= 1.

    Returns:
        One of the two trees.

    Raises:
        ValueError: if `update_period` is not a whole number >= 1.

    Source:
        Mnih et al. 2015, "Human-level control through deep reinforcement learning", the target
        network.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> print(gradtx.periodic_update(jnp.ones(1), jnp.zeros(1), 20, update_period=10))
        [1.]
    """
    update_period = check("periodic_update", "update_period", update_period, COUNT)
    is_due = jnp.mod(jnp.asarray(steps), jnp.asarray(update_period)) == 0
    return lax.cond(is_due, lambda: new_tensors, lambda: old_tensors)
