"""Which arrays of an optimizer state are kept in few bits, and which of them are never negative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from gradtx import trees
from gradtx.compose.parts import owner_of, parts_of
from gradtx.kernel import Slot
from gradtx.lift import kernel_of
from gradtx.messages import in_the_name_of
from gradtx.precision.quantized import NON_NEGATIVE, SIGNED
from gradtx.select import Specification
from gradtx.select import select as select_leaves

# What arrays of other libraries are called that are never negative.
_NON_NEGATIVE_FIELDS = {
    *("nu", "nu_max", "v", "n", "e_g", "e_x", "exp_avg_sq", "sum_of_squares", "grad_sum_sq"),
    *("grad_sum_of_squares", "step_sizes"),
}
# Fields of these names hold parameters as they are or were, or what rounding has left over of them;
# few digits would be lost for good.
_VALUES = {
    *("average", "cache", "compensation", "fast", "init_params", "init_particles", "master"),
    *("params", "params0", "slow", "x0", "y", "z"),
}


def check_select(owner: str, select: Specification | Mapping[str, Specification] | None) -> None:
    """Refuse what chooses nothing in any state.

    Raises:
        ValueError: if it is not what `quantize_state` takes.
    """
    with in_the_name_of(owner):
        if isinstance(select, Mapping):
            select_leaves.groups({**select}, rest="")
        elif select is not None:
            select_leaves(select)


def map_by_law(
    function: Callable[[Any, str], Any],
    tx: optax.GradientTransformation,
    state: Any,
    params: Any,
    select: Specification | Mapping[str, Specification] | None,
) -> Any:
    """Map a function over the arrays of a state and the laws by which they are kept in few bits.

    What a wrapper inside keeps in few bits already is left as it is.

    Args:
        function: from an array and its law, "" if it is to be kept in full, to what is stored.
        tx: the transformation.
        state: its state for `params`.
        params: the parameters.
        select: what `quantize_state` takes.

    Raises:
        ValueError: if `select` matches nothing, or the same twice.
    """
    rest = jax.tree.map(
        lambda node: None if trees.is_stored(node) else node, state, is_leaf=trees.is_stored
    )
    return jax.tree.map(
        lambda node, law: node if trees.is_stored(node) else function(node, law),
        state,
        _laws_of(tx, rest, params, select),
        is_leaf=trees.is_stored,
    )


def _laws_of(
    tx: optax.GradientTransformation,
    state: Any,
    params: Any,
    select: Specification | Mapping[str, Specification] | None,
) -> Any:
    named, treedef = jax.tree_util.tree_flatten_with_path(state)
    if not jax.tree.leaves(params):
        # optax passes a tree without leaves to learn the layout.
        return treedef.unflatten("" for _ in named)
    if isinstance(select, Mapping):
        return select_leaves.groups({**select}, rest="")(state)
    slots = _slots_of(tx)
    owners = {path: np.shape(p) for path, p in jax.tree_util.tree_flatten_with_path(params)[0]}
    arrays = [_array_at(state, path, leaf, slots, owners) for path, leaf in named]
    if select is None:
        chosen = [array.is_moment for array in arrays]
    else:
        chosen = jax.tree.leaves(select_leaves(select)(state))
    return treedef.unflatten(
        array.law if flag else "" for array, flag in zip(arrays, chosen, strict=True)
    )


def refuse_groups(owner: str, tx: optax.GradientTransformation) -> None:
    """Refuse a transformation whose arrays are in stacks.

    Raises:
        ValueError: if it contains `grouped`.
    """
    if owner_of(tx) == "grouped":
        raise ValueError(f"{owner}: tx must not keep its arrays in stacks, got one with grouped")
    for part in parts_of(tx):
        refuse_groups(owner, part.transformation)


def _slots_of(tx: optax.GradientTransformation) -> dict[tuple[str, str], Slot]:
    """The slots of all kernels inside, by the class of the state and the name of the field."""
    kernel = kernel_of(tx)
    slots = {} if kernel is None else {(kernel.state.__name__, s.name): s for s in kernel.slots}
    for part in parts_of(tx):
        slots |= _slots_of(part.transformation)
    return slots


class _Array(NamedTuple):
    """What is known of an array in a state.

    Attributes:
        law: the law by which it would be kept.
        is_moment: whether it has the shape of its parameter, and is no copy of it.
    """

    law: str
    is_moment: bool


def _array_at(
    state: Any,
    path: tuple[Any, ...],
    leaf: Any,
    slots: Mapping[tuple[str, str], Slot],
    owners: Mapping[tuple[Any, ...], tuple[int, ...]],
) -> _Array:
    shape, ends = np.shape(leaf), range(len(path) + 1)
    # Parameters may have fields too; those of the state come before them.
    end = next((i for i in ends if owners.get(path[i:]) == shape), None)
    node, names = state, set()
    for key in path[:end]:
        if isinstance(key, jax.tree_util.GetAttrKey):
            names.add(key.name)
            slot = slots.get((type(node).__name__, key.name))
            if slot is not None:
                is_moment = slot.fill != "p" and (slot.shape is None or end is not None)
                return _Array(NON_NEGATIVE if slot.non_negative else SIGNED, is_moment)
        node = trees.child_of(node, key)
    law = NON_NEGATIVE if names & _NON_NEGATIVE_FIELDS else SIGNED
    return _Array(law, end is not None and not names & _VALUES)
