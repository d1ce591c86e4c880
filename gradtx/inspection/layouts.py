"""The layouts of optimizer states: leaves in stacks, see `gradtx.grouped`, and each by itself.

A state says which of its leaves share a stack, but not which of its parts belong to parameters:
that is seen by their structure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from gradtx import trees
from gradtx.explicit import gathered
from gradtx.inspection.ownership import KeyPath
from gradtx.stacks import Group, regrouped
from gradtx.wrappers.grouped import GroupedState

_FIELDS = {*GroupedState._fields}
# From the parts of a tree at the places of the parameters, its groups, and the same tree in another
# state, to what stands there instead.
_Change = Callable[[list[Any], list[Group], Any], Any]


def each_by_itself(state: Any, params: Any, *, with_places: bool = True) -> Any:
    """A state in which each leaf's arrays stand by themselves, at its own place.

    Args:
        state: the state; in plain dictionaries, keys are taken for field names.
        params: the parameters.
        with_places: whether what `grouped` notes about its groups remains.
    """
    _, treedef = trees.flatten(params)

    def apart(parts: list[Any], groups: list[Group], _: Any) -> Any:
        for group in groups:
            # On explicit axes no row can be read where they shard the first one.
            stack = jax.tree.map(lambda x: gathered(x, (0,)), parts[group.places[0]])
            for row, place in enumerate(group.places):
                parts[place] = jax.tree.map(lambda x, row=row: x[row], stack)
        return treedef.unflatten(parts)

    return _changed(state, state, treedef, apart, with_places)


def in_layout_of(like: Any, state: Any, params: Any) -> Any:
    """A state in which each leaf's arrays stand by themselves, in the layout of another one.

    Args:
        like: the other state.
        state: the state, of the same structure apart from the layout.
        params: the parameters.
    """
    _, treedef = trees.flatten(params)

    def together(parts: list[Any], groups: list[Group], own: Any) -> Any:
        del parts
        return regrouped(own, treedef, groups)

    return _changed(like, state, treedef, together, True)


def rows_of_stacks(state: Any, params: Any) -> dict[KeyPath, int]:
    """How many leaves each stack of a state has, by its key path.

    Args:
        state: the state, or a tree that it is a part of.
        params: the parameters.
    """
    _, treedef = trees.flatten(params)

    def counted(parts: list[Any], groups: list[Group], own: Any) -> Any:
        del parts
        numbers = treedef.flatten_up_to(own)
        for group in groups:
            first, length = group.places[0], len(group.places)
            numbers[first] = jax.tree.map(lambda _, length=length: length, numbers[first])
        return treedef.unflatten(numbers)

    found: dict[KeyPath, int] = {}
    by_path = jax.tree_util.tree_flatten_with_path
    for above, node in by_path(state, is_leaf=lambda part: _fields_of(part) is not None)[0]:
        if _fields_of(node) is not None:
            none = jax.tree.map(lambda _: 0, node)
            numbers = by_path(_changed(node, none, treedef, counted, True))[0]
            found |= {(*above, *below): number for below, number in numbers if number}
    return found


def _changed(node: Any, other: Any, treedef: Any, change: _Change, with_places: bool) -> Any:
    """`other`, changed where `node`, which is like it, has trees of stacks."""
    fields = _fields_of(node)
    if fields is None:
        return _rebuilt(
            node, other, lambda own, there: _changed(own, there, treedef, change, with_places)
        )
    places = np.asarray(fields["places"])
    if places.ndim != 1:  # those of many states, made by vmap
        return other
    hidden: list[list[int]] = []
    inner = _stacks_changed(
        fields["inner_state"], _fields_of(other)["inner_state"], treedef, places, hidden, change
    )
    new = {"inner_state": inner, "places": _places_of(other) if with_places else None}
    return type(other)(**new) if hasattr(other, "_fields") else {**other, **new}


def _places_of(state: Any) -> Any:
    """What a state of `grouped` notes about its groups."""
    return _fields_of(state)["places"]


def _fields_of(node: Any) -> Any:
    """The fields of a state of `grouped`, also of one that was restored as a dictionary."""
    if hasattr(node, "_fields") and {*node._fields} == _FIELDS:
        return node._asdict()
    is_record = isinstance(node, Mapping) and {*node} == _FIELDS
    return node if is_record else None


def _stacks_changed(
    node: Any,
    other: Any,
    treedef: Any,
    places: np.ndarray,
    hidden: list[list[int]],
    change: _Change,
) -> Any:
    parts = _parts_of(node, treedef, places, hidden)
    if parts is None:
        return _rebuilt(
            node,
            other,
            lambda own, there: _stacks_changed(own, there, treedef, places, hidden, change),
        )
    groups = []
    for members in _members(places, hidden[0]):
        arrays = jax.tree.leaves(parts[members[0]])
        if arrays:
            groups.append(Group(tuple(members), len(arrays[0])))
    return change(parts, groups, other)


def _parts_of(
    node: Any, treedef: Any, places: np.ndarray, hidden: list[list[int]]
) -> list[Any] | None:
    """What a node has for each parameter, if it has the structure of the parameters."""
    try:
        parts = treedef.flatten_up_to(node)
    except (ValueError, TypeError, KeyError):
        return None
    # Around `grouped` there may be a mask, whose leaves are not counted.
    seen = [i for i, part in enumerate(parts) if not isinstance(part, optax.MaskedNode)]
    if len(places) == len(parts):
        seen = list(range(len(parts)))
    if not hidden and len(seen) == len(places):
        hidden.append(seen)
    if not hidden:
        return None
    for first, *others in _members(places, hidden[0]):
        shapes = [np.shape(x) for x in jax.tree.leaves(parts[first])]
        sizes = {shape[:1] for shape in shapes}
        if len(sizes) > 1 or () in sizes or jax.tree.leaves([parts[i] for i in others]):
            return None
        # What a parameter has are no records, and a parameter that is all there is has the
        # structure of any array: those of a matrix in a stack have three axes.
        is_array = jax.tree_util.treedef_is_leaf(treedef)
        if _has_records(parts[first]) or (is_array and any(len(shape) < 3 for shape in shapes)):
            return None
    return parts


def _has_records(node: Any) -> bool:
    def is_record(part: Any) -> bool:
        return bool(getattr(part, "_fields", ())) and not trees.is_stored(part)

    return any(map(is_record, jax.tree.leaves(node, is_leaf=is_record)))


def _members(places: np.ndarray, numbers: list[int]) -> list[list[int]]:
    """The places of the leaves of each group."""
    found: dict[int, list[int]] = {}
    for number, head in zip(numbers, places, strict=True):
        if head >= 0:
            found.setdefault(int(head), []).append(number)
    return [*found.values()]


def _rebuilt(node: Any, other: Any, change: Callable[[Any, Any], Any]) -> Any:
    """`other`, each child of which is changed together with that of `node`."""
    children, structure = jax.tree.flatten(node, is_leaf=lambda part: part is not node)
    if jax.tree_util.treedef_is_leaf(structure) or not children:
        return other
    return structure.unflatten(map(change, children, structure.flatten_up_to(other)))
