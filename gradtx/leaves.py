"""The leaves of several trees of one structure, checked once, for whatever works leaf by leaf.

Wrappers and measures find their leaves here; the steps of kernels wait in `gradtx.waiting`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.explicit import laid_out_alike, laid_out_as
from gradtx.inputs import as_array
from gradtx.stored import to_store


class Aligned:
    """Trees of one structure, leaf by leaf, and which of their leaves take part.

    Args:
        owner: name of the caller, which opens the messages.
        named: the trees by what messages call them; the first gives structure and shapes.
        takes_part: whether the leaves at one place take part. None: where the first tree has an
            inexact number or array; all else is left alone.
        same_shapes: whether what takes part must have the shape that the first tree has there.
        subtrees: whether trees may lie where the first one has leaves.

    Attributes:
        columns: for each tree by name what it has at the places of the leaves.
        active: the numbers of the leaves that take part.

    Raises:
        ValueError: if structures or shapes differ, naming the path and both.
    """

    def __init__(
        self,
        owner: str,
        named: Mapping[str, Any],
        *,
        takes_part: Callable[..., bool] | None = None,
        same_shapes: bool = True,
        subtrees: bool = False,
    ):
        self.owner = owner
        (self.name, self.tree), *others = named.items()
        leaves, self.treedef = trees.flatten(self.tree)
        self.columns = {self.name: leaves} | {
            what: trees.parts_at(
                owner, what, tree, self.name, self.treedef, leaves, subtrees=subtrees
            )
            for what, tree in others
        }
        rows = zip(*self.columns.values(), strict=True)
        is_active = takes_part or (lambda leaf, *_: trees.is_parameter(leaf))
        self.active = [i for i, row in enumerate(rows) if is_active(*row)]
        if same_shapes:
            self.check_shapes()

    def check_shapes(self) -> None:
        """Refuse what takes part and is missing or of another shape than in the first tree."""
        leaves = self.columns[self.name]
        for what, parts in self.columns.items():
            for i in self.active:
                if parts[i] is None:
                    raise ValueError(
                        f"{self.owner}: {what} has none at '{self.path(i)}', where {self.name} has "
                        f"shape {np.shape(leaves[i])}; was init called with these parameters?"
                    )
                if np.shape(parts[i]) != np.shape(leaves[i]):
                    self.refuse(i, what)

    def refuse(self, index: int, what: str) -> NoReturn:
        """Refuse the shape that a tree has at a leaf of the first one."""
        trees.refuse_shape(self.owner, self.name, self.tree, index, what, self.columns[what][index])

    def path(self, index: int) -> str:
        """Where a leaf is."""
        return trees.paths(self.tree)[index]

    def parts(self, what: str | None = None) -> list[Any]:
        """What takes part of one of the trees, or of the first."""
        return [self.columns[what or self.name][i] for i in self.active]

    def arrays(self, what: str | None = None) -> list[jax.Array]:
        """What takes part of one of the trees, or of the first, as arrays."""
        return [jnp.asarray(part) for part in self.parts(what)]

    def tree_of(self, values: Iterable[Any], rest: str | None = "") -> Any:
        """One of the trees, or the first, with these values in place of what takes part.

        Without a `rest` all else is None.
        """
        number = self.treedef.num_leaves
        leaves = [None] * number if rest is None else list(self.columns[rest or self.name])
        for i, value in zip(self.active, values, strict=True):
            leaves[i] = value
        return self.treedef.unflatten(leaves)


def map_leaves(
    function: Callable[..., Any],
    owner: str,
    named: Mapping[str, Any],
    *,
    rests: str | Sequence[str] | None = "",
    **alignment: Any,
) -> Any:
    """Map a function over the leaves of several trees that take part, and leave the others alone.

    Args:
        function: of one leaf of each tree. It returns one value, or several if there are several
            `rests`.
        owner: name of the caller, which opens the messages.
        named: the trees by what messages call them, see `Aligned`.
        rests: the tree whose leaves the result has where none take part, or one for each of
            several results; the first tree if empty. None: it has None there.
        **alignment: what else `Aligned` takes.

    Returns:
        One tree, or a tuple with one for each of several `rests`.

    Raises:
        ValueError: if structures or shapes differ, naming the path and both.
    """
    aligned = Aligned(owner, named, **alignment)
    new = [function(*leaf) for leaf in zip(*map(aligned.parts, named), strict=True)]
    if rests is None or isinstance(rests, str):
        return aligned.tree_of(new, rests)
    results = zip(*new, strict=True) if new else [()] * len(rests)
    return tuple(map(aligned.tree_of, results, rests))


def map_parameters(function: Callable[[Any], Any], tree: Any) -> Any:
    """Map a function over the inexact numbers and arrays of a tree; None is all that else is."""
    return jax.tree.map(lambda leaf: function(leaf) if trees.is_parameter(leaf) else None, tree)


def parameters_of(tree: Any) -> list[Any]:
    """The inexact numbers and arrays of a tree, as arrays or their shapes and dtypes."""
    return [as_array(leaf) for leaf in jax.tree.leaves(tree) if trees.is_parameter(leaf)]


def equation(*stored_as: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile an equation on one leaf, which calculates in at least float32.

    Its arrays come in the widest of their dtypes, and so do its arguments by keyword, except for
    booleans. Where layouts are part of types, arrays of one shape come in one layout.

    Args:
        *stored_as: for each result the number of the array in whose dtype and layout it is stored;
            none of them: there is one result, stored as the first array.
    """

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        @jax.jit
        @functools.wraps(function)
        def step(*arrays: Any, **numbers: Any) -> Any:
            own = [jnp.result_type(array) for array in arrays]
            dtype = functools.reduce(np.promote_types, map(trees.compute_dtype, own))

            def wide(value: Any) -> jax.Array:
                value = jnp.asarray(value)
                return value if value.dtype == np.bool_ else value.astype(dtype)

            def stored(value: jax.Array, i: int) -> jax.Array:
                return laid_out_as(to_store(value, own[i]), arrays[i])

            given = [*map(wide, arrays)]
            is_alike = all(array.shape == given[0].shape for array in given)
            new = function(
                *(laid_out_alike(given) if is_alike else given), **jax.tree.map(wide, numbers)
            )
            if not stored_as:
                return stored(new, 0)
            return tuple(stored(x, i) for x, i in zip(new, stored_as, strict=True))

        return step

    return compiled
