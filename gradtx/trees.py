"""What the library knows about trees: which leaves are parameters, where they are, how they agree.

`None` is a leaf here, because a missing gradient stands for a parameter that is left alone.
"""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.messages import shown


class Stored:
    """A node of a state that keeps an array in another form, such as one of fewer bits.

    It has the `shape` and `dtype` of the array. The wrapper that keeps it so opens it for a step:
    then the steps of kernels take it as a slot, and everything else inside of that wrapper sees the
    array. Around the wrapper it is a part of the state like any other.

    Attributes:
        is_open: whether it is open.
    """

    __slots__ = ()
    is_open = False

    @property
    def rows_shape(self) -> tuple[int, int] | None:
        """The number of rows that it can be cut into, and the length of each; None: it cannot."""
        raise NotImplementedError

    def decoded(self) -> jax.Array:
        """The array."""
        raise NotImplementedError

    def encoded(self, array: jax.Array) -> Stored:
        """A node that keeps another array in the same form."""
        raise NotImplementedError

    def rows(self) -> tuple[jax.Array, ...]:
        """The arrays that it consists of, in rows."""
        raise NotImplementedError

    def part(self, arrays: tuple[jax.Array, ...], number: jax.Array) -> Stored:
        """The node of some of the rows, the part of this number."""
        raise NotImplementedError

    def with_rows(self, arrays: tuple[jax.Array, ...]) -> Stored:
        """The node with other rows."""
        raise NotImplementedError


def is_stored(node: Any) -> bool:
    """Whether a node keeps an array in another form."""
    return isinstance(node, Stored)


def _is_end(node: Any) -> bool:
    return node is None or is_stored(node)


def is_opened(node: Any) -> bool:
    """Whether a node keeps an array in another form, and is open."""
    return is_stored(node) and node.is_open


def decoded(tree: Any, which: Callable[[Any], bool] = is_stored) -> Any:
    """The tree with the arrays themselves in place of what keeps them in another form."""
    nodes, treedef = jax.tree.flatten(tree, is_leaf=_is_end)
    if not any(map(which, nodes)):
        return tree
    return treedef.unflatten(node.decoded() if which(node) else node for node in nodes)


def encoded_like(old: Any, new: Any, which: Callable[[Any], bool] = is_stored) -> Any:
    """The tree `new`, with its arrays in the form that the tree `old` of its structure has."""
    nodes, treedef = jax.tree.flatten(old, is_leaf=_is_end)
    if not any(map(which, nodes)):
        return new
    parts = treedef.flatten_up_to(new)
    return treedef.unflatten(
        node.encoded(part) if which(node) else part for node, part in zip(nodes, parts, strict=True)
    )


def child_of(node: Any, key: Any) -> Any:
    """The part of a node that a key of a path leads to.

    None inside another kind of container, which is not part of an optimizer.
    """
    match key:
        case jax.tree_util.GetAttrKey(name=name):
            return getattr(node, name, None)
        case jax.tree_util.SequenceKey(idx=index) if isinstance(node, list | tuple):
            return node[index]
        case jax.tree_util.DictKey(key=name) if isinstance(node, Mapping):
            return node[name]
    return None


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf is an inexact number or array; everything else is left alone."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float | complex)
    return is_subdtype(dtype, jnp.inexact)


def is_trained(leaf: Any) -> bool:
    """Whether a leaf is an inexact array, and so what training a loss changes.

    An optimizer takes whatever has a gradient, also a Python number. A loss is differentiated with
    respect to arrays only, as by `equinox.filter_value_and_grad`: a number inside a module, such as
    the rate of a dropout, is a setting, and the module may not even accept an array in its place.
    """
    return hasattr(leaf, "dtype") and is_parameter(leaf)


def only_trained(tree: Any) -> Any:
    """The tree with None for all that is not an inexact array."""
    return jax.tree.map(lambda leaf: leaf if is_trained(leaf) else None, tree)


# Asked for each leaf at each call; the answer takes a hundred times as long as looking it up.
is_subdtype = functools.lru_cache(maxsize=256)(jnp.issubdtype)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is a number or an array of numbers; the float0 of an integer is not."""
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.number)


def compute_dtype(dtype: Any) -> np.dtype:
    """The dtype to calculate in: the array's own, but never narrower than float32."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def real_dtype(dtype: Any) -> np.dtype:
    """The real dtype of the same precision: float32 for complex64."""
    return jnp.finfo(dtype).dtype


def refuse_real(owner: str, path: str, gradient: Any, name: str, kept: Any) -> None:
    """Refuse a complex gradient of which a real part of the state would keep the real part.

    Raises:
        ValueError: naming the path and both dtypes.
    """
    if np.iscomplexobj(gradient) and not np.iscomplexobj(kept):
        raise ValueError(
            f"{owner}: updates at '{path}' is {jnp.result_type(gradient)}, but the state's {name} "
            f"is {kept.dtype} and would lose the imaginary part; was init called with these "
            "parameters, and are they complex?"
        )


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as people write it: `encoder/layers/0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves, None among them, and the structure."""
    return jax.tree.flatten(tree, is_leaf=lambda x: x is None)


def paths(tree: Any) -> list[str]:
    """The path of each leaf of `flatten(tree)`, in the same order."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return [path_name(path) for path, _ in named]


def flatten_like(
    owner: str,
    what: str,
    tree: Any,
    reference_name: str,
    reference: Any,
    *,
    subtrees: bool = False,
) -> list:
    """The parts of `tree` that lie where `reference` has its leaves.

    Args:
        owner: name of the caller, which opens the message.
        what: what `tree` is called in the message.
        tree: a tree of the structure of `reference`; where that has None, anything may lie.
        reference_name: what `reference` is called in the message.
        reference: the tree that gives the structure.
        subtrees: whether a part may be a tree of its own.

    Returns:
        One part for each leaf of `reference`, in its order.

    Raises:
        ValueError: if the structures differ, naming the first path that only one of them has.
    """
    leaves, treedef = flatten(reference)
    return parts_at(owner, what, tree, reference_name, treedef, leaves, subtrees=subtrees)


def parts_at(
    owner: str,
    what: str,
    tree: Any,
    reference_name: str,
    treedef: Any,
    leaves: Sequence[Any],
    *,
    subtrees: bool = False,
) -> list:
    """`flatten_like` for a reference that was flattened before."""

    def difference() -> str:
        reference = treedef.unflatten(leaves)
        return describe_difference(what, tree, reference_name, reference, subtrees=subtrees)

    try:
        parts = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as mismatch:
        raise ValueError(f"{owner}: {difference()}") from mismatch
    if not subtrees:
        opposite = zip(leaves, parts, strict=True)
        present = [part for leaf, part in opposite if leaf is not None and part is not None]
        if not jax.tree_util.all_leaves([part for part in present if not is_stored(part)]):
            raise ValueError(f"{owner}: {difference()}")
    return parts


def _is_container(part: Any) -> bool:
    """Whether a part of a state is a list of arrays in the guise that flax.nnx gives it."""
    if part is None or isinstance(part, list) or jax.tree_util.all_leaves([part]):
        return False
    named, _ = jax.tree_util.tree_flatten_with_path(part)
    return [path_name(path) for path, _ in named] == [str(i) for i in range(len(named))]


def as_list(part: Any) -> Any:
    """A list of arrays out of the guise that flax.nnx gives it; anything else as it is."""
    return jax.tree.leaves(part) if _is_container(part) else part


def in_container_of(old: Any, new: Any) -> Any:
    """The list `new` in the guise of `old`, which `as_list` took it out of."""
    if not _is_container(old):
        return new
    return jax.tree.unflatten(jax.tree.structure(old), jax.tree.leaves(new))


def refuse_shape(
    owner: str, reference_name: str, reference: Any, index: int, what: str, other: Any
) -> NoReturn:
    """Refuse an array of another shape than the leaf of `reference` of this index.

    Raises:
        ValueError: naming the path and both shapes.
    """
    leaf = flatten(reference)[0][index]
    raise ValueError(
        f"{owner}: shapes differ at '{paths(reference)[index]}': {reference_name} has shape "
        f"{np.shape(leaf)}, {what} has shape {shown(jax.tree.map(np.shape, other))}"
    )


def describe_difference(
    what: str, tree: Any, reference_name: str, reference: Any, *, subtrees: bool = False
) -> str:
    """Where two trees part: the first path that only one of them has."""
    ours, theirs = _leaves_by_path(tree), _leaves_by_path(reference)
    if subtrees:  # a part stands for all that lies below it
        ours = {
            next((above for above in _from_the_top(path) if above in theirs), path): leaf
            for path, leaf in ours.items()
        }
    free = {path for path, leaf in theirs.items() if leaf is None}
    for path in [*theirs, *ours]:
        if not free.isdisjoint(_from_the_top(path)):
            continue
        is_in_both = path in ours and path in theirs
        # For a leaf there may be an empty list; for an empty container there may not be an array.
        is_alike = is_in_both and (
            _is_empty_container(ours[path]) == _is_empty_container(theirs[path])
            or (subtrees and _is_empty_container(ours[path]))
        )
        if not is_alike:
            return (
                f"{reference_name} and {what} differ at '{path}': "
                f"{reference_name} has {_describe(theirs, path)}, "
                f"{what} has {_describe(ours, path)}{_instead(what, path, ours, theirs)}"
            )
    place, theirs_there, ours_there = different_containers(reference, tree)
    return (
        f"{reference_name} and {what} have the same paths in different containers at "
        f"'{place}': {theirs_there} in {reference_name}, {ours_there} in {what}"
    )


def different_containers(tree: Any, other: Any) -> tuple[str, str, str]:
    """The first path at which trees of the same paths have other containers, and these."""
    whole = ((), [type(tree).__name__, type(other).__name__])
    path, (name, other_name) = next(_different_containers((), tree, other), whole)
    return path_name(path), name, other_name


def _different_containers(
    path: tuple[Any, ...], *nodes: Any
) -> Iterator[tuple[tuple[Any, ...], list[str]]]:
    levels = [
        jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x, top=node: x is not top)
        for node in nodes
    ]
    names = [type(node).__name__ for node in nodes]
    (parts, structure), (other_parts, other_structure) = levels
    if structure != other_structure and not any(node is None for node in nodes):
        is_same_type = type(nodes[0]) is type(nodes[1])
        yield path, [f"{name} with other static parts" if is_same_type else name for name in names]
    elif parts and parts[0][0]:
        for (key, part), (_, other) in zip(parts, other_parts, strict=False):
            yield from _different_containers((*path, *key), part, other)


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves and, because they hold a place too, the empty containers."""
    named, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is None or _is_empty_container(x)
    )
    return {path_name(path): leaf for path, leaf in named}


def _from_the_top(path: str) -> Iterator[str]:
    """The paths of all that contains a leaf, and its own."""
    return itertools.accumulate(path.split("/"), "{}/{}".format)


def _is_empty_container(x: Any) -> bool:
    return isinstance(x, tuple | list | dict) and not x


def _instead(what: str, path: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Which path the other tree may have in place of one that it lacks; "" if there is none."""
    if path in ours or path not in theirs:
        return ""
    others = [other for other in ours if other not in theirs]
    if not others:
        return ""
    alike = difflib.get_close_matches(path, others, n=1, cutoff=0.0)
    return f" but one at '{(alike or others)[0]}'"


def _describe(leaves: dict[str, Any], path: str) -> str:
    if path not in leaves:
        return "no leaf there"
    leaf = leaves[path]
    return f"shape {np.shape(leaf)}" if hasattr(leaf, "shape") else shown(leaf)
