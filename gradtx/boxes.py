"""The boxes that flax puts around arrays, such as an `nnx.Param`.

`nnx.Optimizer` calls `init` with the arrays in boxes and `update` with the arrays themselves, and
keeps the state in boxes of another class. What people choose or read is the same in all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from gradtx import trees

# The key between a box and its array.
_BOXED = jax.tree_util.GetAttrKey("value")


def names(tree: Any) -> list[str]:
    """What people call the leaves of `jax.tree.leaves(tree)`: their paths, without boxes."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)
    # A box may be empty, where another tree has an array.
    return [trees.path_name(path) for path, leaf in named if jax.tree.leaves(leaf)]


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map a function of (name, leaf) over the leaves of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(map(function, names(tree), leaves))


def opened(tree: Any) -> Any:
    """The tree with the arrays themselves in place of boxes."""
    return jax.tree.map(
        lambda node: _children(node)[0][1] if _is_box(node) else node, tree, is_leaf=_is_box
    )


def _is_box(node: Any) -> bool:
    """Whether it is something of flax around one array."""
    if not _is_of_flax(type(node)):
        return False
    children = _children(node)
    return [path for path, _ in children] == [(_BOXED,)] and jax.tree_util.all_leaves(
        [child for _, child in children if child is not None]
    )


@functools.cache
def _is_of_flax(kind: type) -> bool:
    return any(each.__module__.partition(".")[0] == "flax" for each in kind.__mro__)


def _children(node: Any) -> list[tuple[Any, Any]]:
    """The paths and the values of what is directly in a node."""
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
