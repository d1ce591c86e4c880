"""The boxes that flax puts around arrays, such as an `nnx.Param`.

`nnx.Optimizer` calls `init` with the arrays in boxes and `update` with the arrays themselves, and
keeps the state in boxes of another class. What people choose or read is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradtx import trees

# The key between a box and its array.
_BOXED = jax.tree_util.GetAttrKey("value")


def names(tree: Any) -> list[str]:
    """What people call the leaves of `jax.tree.leaves(tree)`: their paths, without boxes."""
    # With None, which holds the place of an array that another tree has there.
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    found = [path for path, _ in named]

    def is_boxed(i: int) -> bool:
        above, key = found[i][:-1], found[i][-1:]
        beside = (*found[max(i - 1, 0) : i], *found[i + 1 : i + 2])
        is_alone = all(path[: len(above)] != above for path in beside)
        return key == (_BOXED,) and above != () and is_alone

    return [
        trees.path_name(path[:-1] if is_boxed(i) else path)
        for i, (path, leaf) in enumerate(named)
        if leaf is not None
    ]


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map a function of (name, leaf) over the leaves of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(map(function, names(tree), leaves))


def opened(tree: Any) -> Any:
    """The tree with the arrays themselves in place of boxes."""

    def contents(node: Any) -> list[tuple[Any, Any]]:
        if isinstance(node, dict | list | tuple | jax.Array | np.ndarray):
            return []
        return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]

    def is_box(node: Any) -> bool:
        return [path for path, _ in contents(node)] == [(_BOXED,)]

    return jax.tree.map(
        lambda node: contents(node)[0][1] if is_box(node) else node, tree, is_leaf=is_box
    )
