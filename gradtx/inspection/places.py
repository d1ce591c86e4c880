"""Where a leaf is in an optimizer state, as far as the names on its path tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import trees
from gradtx.inspection.ownership import Entry, KeyPath
from gradtx.wrappers.rates import SCHEDULE_FIELDS


class Place(NamedTuple):
    """Where a leaf is in an optimizer state.

    Attributes:
        path: its key path.
        leaf: the leaf.
        holder: the path of the record that has it in a field.
        state_class: the name of that record's class.
        fields: the names of that record's fields.
        slot: the name of the field, and the path below it.
        labels: the labels of `named_chain` or `partition` above that record.
        parameter: the key path of the parameter that it belongs to; None: it belongs to the whole
            tree.
    """

    path: KeyPath
    leaf: Any
    holder: KeyPath
    state_class: str
    fields: frozenset[str]
    slot: tuple[str, str]
    labels: tuple[Any, ...]
    parameter: KeyPath | None = None

    @property
    def name(self) -> str:
        """The path as text."""
        return trees.path_name(self.path)

    @property
    def counts_for_schedule(self) -> bool:
        """Whether its record only counts for a schedule."""
        return self.fields in map(frozenset, SCHEDULE_FIELDS)

    @property
    def counts_for_hyperparameters(self) -> bool:
        """Whether its record holds hyperparameters, whose schedules count the same steps."""
        return "hyperparams" in self.fields

    @property
    def type(self) -> tuple[tuple[int, ...], str]:
        """The shape and the kind of number; leaves of one type can replace each other."""
        if not (hasattr(self.leaf, "dtype") or isinstance(self.leaf, int | float | complex)):
            return (), type(self.leaf).__name__
        dtype = jnp.result_type(self.leaf)
        kinds = {"real": jnp.floating, "complex": jnp.complexfloating, "integer": jnp.integer}
        kind = next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), dtype)
        return np.shape(self.leaf), str(kind)


def place_of(state: Any, entry: Entry) -> Place:
    """The place of a leaf in a state that was just made, where it is known what belongs to it."""
    places = [
        place
        for place in possible_places(state, entry.path, entry.leaf)
        if entry.depth is None or len(place.holder) < entry.depth or not place.state_class
    ]
    return places[-1]._replace(parameter=entry.parameter)


def possible_places(
    state: Any,
    path: KeyPath,
    leaf: Any,
    *,
    is_plain: bool = False,
    classes: Mapping[frozenset[str], str] | None = None,
) -> list[Place]:
    """The places that a leaf may have: a field of each record above it, from the outside in.

    Parameters may have records in them too, so it is not known which is the last of the state. The
    first place is in no record at all. In a plain state, which was restored without its classes,
    each dictionary may have been a record: the one of `classes` with these fields.
    """
    known = {frozenset({"count"}): optax.ScaleByScheduleState.__name__, **(classes or {})}
    places = [Place(path, leaf, (), "", frozenset(), ("", trees.path_name(path)), ())]
    node = state
    for depth, key in enumerate(path):
        node = trees.child_of(node, path[depth - 1]) if depth else state
        if isinstance(key, jax.tree_util.GetAttrKey):
            field, name = key.name, type(node).__name__
            fields = frozenset(getattr(node, "_fields", ()))
        elif is_plain and isinstance(key, jax.tree_util.DictKey):
            fields = frozenset(map(str, node))
            # A count alone is that of a schedule.
            field, name = str(key.key), known.get(fields, "")
        else:
            continue
        labels = tuple(k.key for k in path[:depth] if isinstance(k, jax.tree_util.DictKey))
        slot = (field, trees.path_name(path[depth + 1 :]))
        places.append(Place(path, leaf, path[:depth], name, fields, slot, labels))
    return places


def classes_by_fields(state: Any) -> dict[frozenset[str], str]:
    """The classes of the records in a state, by their fields, where only one class has these."""
    found: dict[frozenset[str], set[str]] = {}
    nodes = [state]
    while nodes:
        node = nodes.pop()
        if hasattr(node, "_fields"):
            found.setdefault(frozenset(node._fields), set()).add(type(node).__name__)
        nodes += [
            below
            for below in jax.tree.leaves(node, is_leaf=lambda part, node=node: part is not node)
            if below is not node
        ]
    # A count alone is that of a schedule, even if another record has no more than that.
    found.pop(frozenset({"count"}), None)
    return {fields: names.pop() for fields, names in found.items() if len(names) == 1}


def has_classes(state: Any) -> bool:
    """Whether the state has any records, whose fields tell what its arrays are."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    return any(isinstance(key, jax.tree_util.GetAttrKey) for path in paths for key in path)
