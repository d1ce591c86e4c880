"""Which array of an optimizer state belongs to which parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

KeyPath = tuple[Any, ...]


class Entry(NamedTuple):
    """One leaf of an optimizer state.

    Attributes:
        path: its key path in the state.
        leaf: the array, or its shape and dtype.
        parameter: the key path of the parameter that it belongs to; None: it belongs to the whole
            tree.
        depth: the number of keys that lead to the tree with the structure of the parameters; None
            if `parameter` is.
    """

    path: KeyPath
    leaf: Any
    parameter: KeyPath | None = None
    depth: int | None = None


@dataclass(frozen=True)
class _ParameterShaped:
    """A part of a state that has the structure of the parameters."""

    tree: Any


def entries_of(tx: optax.GradientTransformation, state: Any, params: Any) -> list[Entry]:
    """The leaves of a state in the order of `jax.tree.leaves`.

    Args:
        tx: the transformation.
        state: its state for `params`, or the shapes and dtypes of that.
        params: the parameters, or their shapes and dtypes.
    """
    owners = {path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    try:
        marked = optax.tree_map_params(tx, _ParameterShaped, state, is_leaf=lambda _: True)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        # Its init only works on trees with leaves: all of the state counts as shared.
        marked = state
    named, _ = jax.tree_util.tree_flatten_with_path(
        marked, is_leaf=lambda node: isinstance(node, _ParameterShaped)
    )
    entries = []
    for above, node in named:
        if not isinstance(node, _ParameterShaped):
            entries.append(Entry(above, node))
            continue
        for below, leaf in jax.tree_util.tree_flatten_with_path(node.tree)[0]:
            # What belongs to a parameter may be a tree itself, such as a list of factors.
            heads = (below[:length] for length in range(len(below) + 1))
            owner = next((head for head in heads if head in owners), None)
            depth = None if owner is None else len(above)
            entries.append(Entry(above + below, leaf, owner, depth))
    return entries
