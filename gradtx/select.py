"""Choosing leaves: one way for masks, labels, frozen layers and weight decay."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import numpy as np
from jax.core import Tracer

from gradtx import boxes
from gradtx.kernel import PerLeaf
from gradtx.messages import listed, shown
from gradtx.roles import layer_shapes
from gradtx.trees import describe_difference, flatten, path_name, paths

Specification: TypeAlias = Any
Mask: TypeAlias = Any
Decay: TypeAlias = Literal["all", "matrices"]


class select:  # a verb, because it reads as one: masked(tx, select("bias"))
    """A choice of leaves: called with a tree, it returns a mask.

    The specification is one of

    - a regular expression, searched for in the key path, such as "encoder/layers/0/kernel";
    - a predicate on (path, leaf);
    - a type: the leaves of that type, and those inside a node of that type;
    - a tree of booleans, or one boolean for all leaves;
    - a function of the whole tree that returns a tree of booleans.

    Choices combine with `~`, `&` and `|`, not with `not`, `and` and `or`: `~select("bias")`,
    `select("kernel") & ~select("head")`, `a | b`.

    A predicate is called for every leaf, including functions and other leaves that are not arrays.
    The path of an array in a box of flax, such as an `nnx.Param`, is that of the box.

    `select.matrices` chooses the leaves that act as matrices: kernels and embeddings, which have at
    least two axes longer than 1. Layers that are stacked for a scan, and attention heads, give
    biases and scales such axes too. These are recognized by their names (`bias`, `b`, `offset`,
    `beta`, `scale`, `gamma`, ...), by their module if its class or name is that of a norm, and by
    the bias next to them, whose leading axes count the layers of a stack; `gradtx.roles` has the
    exact rule. Where it does not fit, choose yourself: `select.matrices & ~select("thresholds")`.

    Args:
        specification: see above.
        name: what it is called in a message; None: its specification.

    Raises:
        ValueError: when built, if the specification is none of these; when called, if an expression
            matches no leaf (the message lists the closest paths); if it is asked whether it is
            true.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> gradtx.select("bias")(params)
        {'dense': {'bias': True, 'kernel': False}}
        >>> gradtx.select(lambda path, leaf: leaf.ndim > 1)(params)
        {'dense': {'bias': False, 'kernel': True}}
    """

    matrices: ClassVar[select]

    def __init__(self, specification: Specification, *, name: str | None = None) -> None:
        self.specification = specification
        self._name = name or f"select({shown(specification)})"
        is_rule = callable(specification) or isinstance(specification, str | re.Pattern)
        flags = jax.tree.leaves(specification)
        # A module of booleans may be callable too.
        self._is_mask = bool(flags) and all(map(_is_boolean, flags))
        if not is_rule and not self._is_mask:
            raise ValueError(
                "select: the specification must be a pattern, a predicate, a type, a mask or a "
                f"function, got {shown(specification)}"
            )
        if isinstance(specification, str):
            try:
                re.compile(specification)
            except re.error as error:
                raise ValueError(
                    f"select: {shown(specification)} is not a regular expression: {error}"
                ) from error

    def __call__(self, tree: Any) -> Any:
        """A tree of booleans with the structure of `tree`, true where a leaf is chosen."""
        chosen = self.specification
        if isinstance(chosen, str | re.Pattern):
            return _matching(re.compile(chosen), tree)
        if isinstance(chosen, type):
            return jax.tree.map(
                lambda node: jax.tree.map(lambda _: isinstance(node, chosen), node),
                tree,
                is_leaf=lambda node: isinstance(node, chosen),
            )
        if not self._is_mask and not is_function_of_tree(chosen):
            return boxes.map_named(lambda name, leaf: bool(chosen(name, leaf)), tree)
        return _spread(mask_for("select", chosen, tree, "the mask"), tree)

    def __invert__(self) -> select:
        return select(lambda tree: jax.tree.map(lambda a: not a, self(tree)), name=f"~{self}")

    def __and__(self, other: select | Specification) -> select:
        second = _as_selection(other)
        return select(
            lambda tree: jax.tree.map(lambda a, b: a and b, self(tree), second(tree)),
            name=f"({self} & {second})",
        )

    def __or__(self, other: select | Specification) -> select:
        second = _as_selection(other)
        return select(
            lambda tree: jax.tree.map(lambda a, b: a or b, self(tree), second(tree)),
            name=f"({self} | {second})",
        )

    def __bool__(self) -> bool:
        # Without it, `not select("bias")` would be False, a mask that chooses no leaf.
        raise ValueError(
            f"{self}: a choice is neither true nor false; combine choices with ~, & and | in place "
            "of not, and, or"
        )

    def __repr__(self) -> str:
        return self._name

    @staticmethod
    def groups(
        choices: Mapping[Hashable, Specification], rest: Hashable | None = None
    ) -> Callable[[Any], Any]:
        """Labels for `partition`: each leaf gets the label of the one choice that it belongs to.

        Args:
            choices: label -> specification or `select(...)`.
            rest: the label of all other leaves; None: there must be none.

        Returns:
            A function from a tree to the tree of its labels.

        Raises:
            ValueError: when called, if a leaf is in two choices or, without `rest`, in none; the
                message lists the paths.

        Example:
            >>> import jax.numpy as jnp
            >>> import gradtx
            >>> labels = gradtx.select.groups({"matrix": lambda path, x: x.ndim > 1}, rest="other")
            >>> labels({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
            {'bias': 'other', 'kernel': 'matrix'}
        """
        selections = {label: _as_selection(chosen) for label, chosen in choices.items()}

        def label_tree(tree: Any) -> Any:
            masks = [selection(tree) for selection in selections.values()]

            def labels_of(*flags: bool) -> tuple[Hashable, ...]:
                return tuple(label for label, flag in zip(selections, flags, strict=True) if flag)

            found = jax.tree.map(lambda _, *flags: _Labels(labels_of(*flags)), tree, *masks)
            named = list(zip(boxes.names(tree), jax.tree.leaves(found), strict=True))
            twice = [(name, hit.labels) for name, hit in named if len(hit.labels) > 1]
            if twice:
                raise ValueError(f"select.groups: leaves in more than one group: {listed(twice)}")
            nowhere = [name for name, hit in named if not hit.labels]
            if nowhere and rest is None:
                raise ValueError(
                    f"select.groups: leaves in no group, and no rest: {listed(nowhere)}"
                )
            return jax.tree.map(lambda hit: hit.labels[0] if hit.labels else rest, found)

        return label_tree


def _as_selection(chosen: Specification) -> select:
    return chosen if isinstance(chosen, select) else select(chosen)


class _Labels:
    """A leaf that holds a tuple, which would otherwise be a node of the tree."""

    def __init__(self, labels: tuple[Hashable, ...]) -> None:
        self.labels = labels


def decayed_leaves(owner: str, decay: Decay, mask: Mask) -> Mask:
    """The mask for a weight decay with the arguments `decay` and `mask`.

    Args:
        owner: name of the caller, which opens error messages.
        decay: "matrices" for `select.matrices`; "all" for all leaves, or those of the mask.
        mask: any mask; None and True mean all leaves.

    Raises:
        ValueError: if `decay` is neither, or a mask is given with "matrices".
    """
    if decay not in ("all", "matrices"):
        raise ValueError(f"{owner}: decay must be 'all' or 'matrices', got {shown(decay)}")
    if decay == "all":
        return mask
    if mask is not None and mask is not True:
        raise ValueError(
            f"{owner}: give decay or a mask, got decay={decay!r} and mask={shown(mask)}"
        )
    return select.matrices


def is_function_of_tree(mask: Any) -> bool:
    """Whether a mask is a function of a tree, rather than a tree or a predicate on leaves.

    A module whose leaves are booleans may be callable too; it still is a tree.
    """
    leaves = jax.tree.leaves(mask)
    if not (len(leaves) == 1 and leaves[0] is mask and callable(mask)):
        return False
    if isinstance(mask, select):
        return True
    parameters = inspect.signature(mask).parameters.values()
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) <= 1


def mask_for(owner: str, mask: Mask, tree: Any, argument: str = "mask") -> Any:
    """The tree of booleans that a mask argument means, or a prefix of one.

    Args:
        owner: name of the caller, which opens error messages.
        mask: a tree of booleans, or of the numbers 0 and 1, or a prefix of one; or a function of
            the tree that returns it.
        tree: the updates or parameters.
        argument: what the mask is called in the message.

    Raises:
        ValueError: if it has other leaves, or does not match the tree; the message names the key
            path.
    """
    flags = mask(tree) if is_function_of_tree(mask) else mask
    _check_flags(owner, flags, argument)
    return fitted(owner, argument, jax.tree.map(_as_boolean, flags), tree)


def check_mask(owner: str, mask: Mask, argument: str = "mask") -> None:
    """Refuse a mask that is no mask for any tree; what a function returns is not known yet.

    Raises:
        ValueError: if it has other leaves than booleans and the numbers 0 and 1.
    """
    if not is_function_of_tree(mask):
        _check_flags(owner, mask, argument)


def _check_flags(owner: str, flags: Any, argument: str) -> None:
    if isinstance(flags, str):
        raise ValueError(
            f"{owner}: {argument} must not be a string; did you mean select({shown(flags)})?"
        )
    for path, flag in jax.tree_util.tree_flatten_with_path(flags)[0]:
        if not _is_boolean(flag):
            place = f" at '{path_name(path)}'" if path else ""
            is_traced = isinstance(flag, Tracer)
            found = "a traced value; make the mask outside jit" if is_traced else shown(flag)
            raise ValueError(
                f"{owner}: {argument} must have scalar booleans as leaves, got {found}{place}"
            )


def fitted(owner: str, argument: str, chosen: Any, tree: Any) -> Any:
    """What was chosen for the leaves of a tree, such as flags or labels, in its structure.

    A prefix applies to all leaves below it, and is returned as it is, because it determines the
    structure of optax's states. A tree with other containers, such as an `nnx.State` for its pure
    dictionary, matches if the paths are the same. Where the tree has None, any choice is accepted.

    Raises:
        ValueError: if the structures differ, naming the first path that only one of them has.
    """
    structure = jax.tree.structure(tree)
    choices, own_structure = jax.tree.flatten(chosen)
    if own_structure == structure:
        return chosen
    try:
        jax.tree.map(lambda choice, part: None, chosen, tree)
        return chosen
    except (ValueError, TypeError, KeyError) as mismatch:
        if len(choices) == structure.num_leaves and boxes.names(chosen) == boxes.names(tree):
            return structure.unflatten(choices)
        leaves, treedef = flatten(tree)
        if any(leaf is None for leaf in leaves):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                parts = treedef.flatten_up_to(chosen)
                pairs = list(zip(leaves, parts, strict=True))
                if jax.tree_util.all_leaves([p for leaf, p in pairs if leaf is not None]):
                    return treedef.unflatten(None if leaf is None else p for leaf, p in pairs)
        holes = [
            path
            for path, flag in zip(paths(chosen), flatten(chosen)[0], strict=True)
            if flag is None
        ]
        for hole in holes:
            if any(path == hole or path.startswith(f"{hole}/") for path in boxes.names(tree)):
                raise ValueError(
                    f"{owner}: {argument} has None at '{hole}', where the tree has leaves"
                ) from mismatch
        difference = describe_difference("the tree", tree, argument, chosen, subtrees=True)
        raise ValueError(f"{owner}: {difference}") from mismatch


def flag_of_each_leaf(owner: str, mask: Mask, argument: str = "mask") -> PerLeaf:
    """Whether a mask chooses a leaf, as an option of a kernel; None and True choose all."""
    check_mask(owner, mask, argument)

    def choose(tree: Any) -> Any:
        flags = mask_for(owner, True if mask is None else mask, tree, argument)
        return _spread(flags, tree)

    return PerLeaf(choose)


def _spread(flags: Any, tree: Any) -> Any:
    """A prefix of a tree, expanded to its structure."""
    return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), flags, tree)


def _is_boolean(flag: Any) -> bool:
    """Whether a leaf is a boolean, or the number 0 or 1."""
    if isinstance(flag, bool):
        return True
    if isinstance(flag, Tracer) or not (isinstance(flag, int | float) or hasattr(flag, "dtype")):
        return False
    return np.ndim(flag) == 0 and _as_boolean(flag) == np.asarray(flag)


def _as_boolean(flag: Any) -> bool:
    # In NumPy, because under jit whatever jnp does to an array is traced.
    return bool(np.asarray(flag))


def _matching(pattern: re.Pattern[str], tree: Any) -> Any:
    found = boxes.names(tree)
    flags = [pattern.search(name) is not None for name in found]
    if flags and not any(flags):
        raise ValueError(
            f"select: {shown(pattern.pattern)} matches none of the paths "
            f"{listed(found, near=pattern.pattern)}"
        )
    return jax.tree.structure(tree).unflatten(flags)


def _matrices(tree: Any) -> Any:
    return jax.tree.structure(tree).unflatten(
        sum(length > 1 for length in shape) >= 2 for shape in layer_shapes(tree)
    )


select.matrices = select(_matrices, name="select.matrices")
