"""Small leaves kept in stacks, which take one step together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import trees
from gradtx.arguments import check_flag, check_static
from gradtx.compose.parts import Composed, Part, owner_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.effect import IN_SERIES
from gradtx.explicit import layout_of
from gradtx.inputs import as_gradients, check_state, trained
from gradtx.joined import Finish, Leaves, join
from gradtx.lift import kernel_of, options_of
from gradtx.messages import in_the_name_of
from gradtx.placement import with_numbers_placed
from gradtx.select import Specification
from gradtx.select import select as selection
from gradtx.stacks import Group, Row, Stack, regrouped, stacked_leaves

_OWNER = "grouped"


class GroupedState(NamedTuple):
    """The state of `grouped`.

    Attributes:
        inner_state: the state of the wrapped transformation, in which the arrays of a group's
            leaves are one array with a new first axis, at the place of the first of them. At the
            places of the others is None.
        places: for each leaf of the parameters the number of the leaf at whose place its group is;
            -1: it is by itself; int32.
    """

    inner_state: Any
    places: jax.Array


@dataclass(eq=False, kw_only=True)
class Grouped(Composed):
    """An update function whose steps wait at stacks of leaves.

    Attributes:
        opened: from the leaves and the state to the record with the stacks, where the steps wait,
            and to what gives the new state after they were taken.
    """

    opened: Callable[[Leaves, Any], tuple[Leaves, Finish]]


def grouped(
    tx: optax.GradientTransformation,
    *,
    max_leaf_size: int | None = None,
    group_size: int = 16,
    select: Specification | None = None,
    elementwise: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Let leaves of one shape and dtype take their steps together, with their state in stacks.

    A step of thousands of small leaves takes the time to start thousands of small operations, and
    its program takes long to trace and to compile. Here each operation is one of `group_size`
    leaves, and XLA compiles it once for all groups of a type.

    The numbers are those of `tx`: each leaf is still seen by itself, whatever depends on its shape,
    norms of the whole gradient, masks and options of single leaves, and noise are the same. Only
    leaves that are treated alike share a group, and their groups are equally long, with as little
    padding at the end of the last one as possible; a leaf that would be alone stays by itself.
    On a mesh with automatic axes, XLA lays out the leaves of a group alike; where parameters of one
    shape have different layouts, fix them with `out_shardings`, or choose leaves with `select`.

    Parameters, gradients and updates remain trees; `gradtx.update_and_apply` adds the updates to
    the parameters while these are in stacks.

    `tx` may be anything that is made of the optimizers of this library by `chain`, `named_chain`,
    `masked`, `partition`, `inject_hyperparams`, `graft` and `scale_by_galore`. Other wrappers go
    around `grouped`.

    Args:
        tx: the transformation.
        max_leaf_size: the greatest number of elements of a leaf that is put into a group, >= 1;
            None: no limit. Stacking copies the gradients, which large leaves do not repay, except
            with matrix methods such as Muon.
        group_size: the greatest number of leaves in a group, >= 1.
        select: which leaves may be put into groups: what `gradtx.select` takes; None: all.
        elementwise: whether each element's update depends on that element alone in transformations
            that are not made by this library, such as optax's, which cannot be asked. Without it
            they are refused.

    Returns:
        A transformation with the state `GroupedState(inner_state, places)`. `gradtx.migrate`
        carries states over to it and from it.

    Raises:
        ValueError: if an argument lies outside its range, or `tx` contains a transformation whose
            numbers groups would not preserve; in `update`, if the state has other groups than the
            parameters.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {f"layer{i}": jnp.full(3, 1.0 + i) for i in range(4)}
        >>> tx = gradtx.grouped(gradtx.adam(0.1))
        >>> state = tx.init(params)
        >>> jax.tree.map(jnp.shape, gradtx.tree.get(state, "mu"))
        {'layer0': (4, 3), 'layer1': None, 'layer2': None, 'layer3': None}
        >>> params, state = gradtx.update_and_apply(tx, params, state, params)
        >>> print(params["layer3"])
        [3.9 3.9 3.9]
    """
    elementwise = check_flag("grouped", "elementwise", elementwise)
    inner = as_transformation(_OWNER, "tx", tx)
    check_preserved(_OWNER, inner, elementwise)
    size = check_static(_OWNER, "group_size", group_size)
    limit = max_leaf_size
    limit = None if limit is None else check_static(_OWNER, "max_leaf_size", limit)
    with in_the_name_of(_OWNER):
        chosen = all_leaves if select is None else selection(select)
    return _Grouping(_OWNER, inner, chosen, size, limit).transformation()


def all_leaves(tree: Any) -> Any:
    """The choice of all leaves."""
    return jax.tree.map(lambda _: True, tree)


@dataclass(frozen=True)
class Grouping:
    """A transformation on groups of leaves.

    Attributes:
        owner: the function that the user called, which opens the messages.
        inner: the transformation.
        chosen: from a tree to the tree of booleans that says which leaves may be in groups.
    """

    owner: str
    inner: optax.GradientTransformationExtraArgs
    chosen: Callable[[Any], Any]

    def divided(self, places: list[int]) -> list[Group]:
        """The groups of leaves of one type."""
        raise NotImplementedError

    def is_fit(self, leaf: Any) -> bool:
        """Whether an array of this shape may be in a group."""
        raise NotImplementedError

    def may_be_in_groups(self, tree: Any) -> list[bool]:
        """For each leaf of a tree whether it may be in a group."""
        with in_the_name_of(self.owner):
            chosen = self.chosen(tree)
        return trees.flatten_like(self.owner, "select", chosen, "params", tree, subtrees=True)

    def placed(self, stack: jax.Array) -> jax.Array:
        """An array of the first state that is a stack, where it belongs."""
        return stack

    def stack(self, rows: Sequence[Row], size: int, shape: tuple[int, ...]) -> Stack:
        """The leaves of a group as one."""
        return Stack(rows, size, shape)

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The whole."""
        whole = Grouped(
            self.owner,
            (Part("", self.inner),),
            self.join,
            fields=GroupedState._fields,
            joins=True,
            effect=IN_SERIES,
            opened=self.open,
        )
        return optax.GradientTransformationExtraArgs(with_numbers_placed(self.init), whole)

    def init(self, params: Any) -> GroupedState:
        """The state before the first step."""
        inner_state = self.inner.init(params)
        tree = trained(params)
        leaves, treedef = trees.flatten(tree)
        groups = self.groups_of(tree) if leaves else []
        places = np.full(len(leaves), -1, np.int32)
        for group in groups:
            places[list(group.places)] = group.places[0]
        if groups:
            inner_state = optax.tree_map_params(
                self.inner,
                lambda part: regrouped(part, treedef, groups, self.placed),
                inner_state,
                is_leaf=lambda _: True,
            )
        # Numbers also where init is traced, so that `explain` sees the groups.
        with jax.ensure_compile_time_eval():
            return GroupedState(inner_state, jnp.array(places))

    def join(self, leaves: Leaves, state: Any) -> Finish:
        """Take the steps of the stacks, and hand on the updates of their leaves."""
        record, finish = self.open(leaves, state)
        record.take_steps()
        leaves.put([leaf.plain for leaf in record.leaves])
        return finish

    def open(self, leaves: Leaves, state: Any) -> tuple[Leaves, Finish]:
        """See `Grouped.opened`."""
        check_state(self.owner, state, GroupedState._fields)
        if leaves.params is None:
            tree = as_gradients(leaves.updates(), None)
            types = trees.flatten(tree)[0]
        else:
            tree = trained(leaves.params)
            types = leaves.aligned(self.owner, "params", tree)
            for i, (leaf, own) in enumerate(zip(leaves.leaves, types, strict=True)):
                if leaf.has_gradient and trees.is_parameter(own) and leaf.shape != np.shape(own):
                    trees.refuse_shape(self.owner, "updates", leaves.shapes(), i, "params", own)
        record = stacked_leaves(self.owner, leaves, self.groups_of(tree), types, self.stack)
        finish = join(self.inner.update, record, state.inner_state)
        if np.shape(state.places) != (len(types),):
            raise ValueError(
                f"{self.owner}: the state is that of {np.size(state.places)} parameters, the "
                f"updates have {len(types)}; was it made by the init of this transformation?"
            )
        return record, lambda: GroupedState(finish(), state.places)

    def groups_of(self, tree: Any) -> list[Group]:
        """The groups of a tree's leaves: of each type, if there are several, equally long ones."""
        leaves, treedef = trees.flatten(tree)
        chosen = self.may_be_in_groups(tree)
        numbers = [None if leaf is None else i for i, leaf in enumerate(leaves)]
        labels = _labels(self.inner, tree, treedef.unflatten(numbers))
        by_type: dict[Any, list[int]] = {}
        for i, leaf in enumerate(leaves):
            is_array = hasattr(leaf, "dtype") and trees.is_parameter(leaf)
            if is_array and chosen[i] and self.is_fit(leaf):
                kind = (leaf.shape, leaf.dtype, layout_of(leaf), labels[i])
                by_type.setdefault(kind, []).append(i)
        return [group for places in by_type.values() for group in self.divided(places)]


@dataclass(frozen=True)
class _Grouping(Grouping):
    """Groups that are not too long, of leaves that are not too large.

    Attributes:
        size: the greatest number of leaves in a group.
        limit: the greatest number of elements of a leaf in a group; None: no limit.
    """

    size: int
    limit: Any

    def divided(self, places: list[int]) -> list[Group]:
        number = -(-len(places) // self.size)
        length = -(-len(places) // number)
        chunks = [tuple(places[i : i + length]) for i in range(0, len(places), length)]
        # A single leaf, at the end too, stays by itself.
        return [Group(chunk, length) for chunk in chunks if len(chunk) > 1]

    def is_fit(self, leaf: Any) -> bool:
        return self.limit is None or math.prod(leaf.shape) <= self.limit


def check_preserved(owner: str, tx: optax.GradientTransformation, elementwise: bool) -> None:
    """Refuse a transformation whose numbers groups would not preserve, by name."""
    if kernel_of(tx) is not None:
        return
    update = tx.update
    if not isinstance(update, Composed):
        if elementwise:
            return
        raise ValueError(
            f"{owner}: it is not known whether {_name_of(update)} depends on the shape of each "
            "array; if each element's update depends on that element alone, pass elementwise=True, "
            f"else chain it outside of {owner}"
        )
    if isinstance(update, Grouped):
        raise ValueError(f"{owner}: a part of tx is in groups already")
    parts = parts_of(tx)
    works = update.on_stacks is not None or (update.joins and update.locality != "leaf")
    # What opens leaves itself, as zero does, would be given stacks for leaves.
    works = works and not hasattr(update, "opened")
    if parts and not works:
        name = owner_of(tx)
        raise ValueError(
            f"{owner}: {name} does not work on groups of arrays; put {owner} inside of {name}, "
            "if that takes it"
        )
    for part in parts:
        check_preserved(owner, part.transformation, elementwise)


def _name_of(update: Any) -> str:
    """The function that made an update function, with its package."""
    hidden = getattr(update, "__closure__", None) or ()
    # optax's adapter for extra arguments is not what anybody called.
    for cell in hidden if "with_extra_args_support" in getattr(update, "__qualname__", "") else ():
        if isinstance(cell.cell_contents, optax.GradientTransformation):
            return _name_of(cell.cell_contents.update)
    package = getattr(update, "__module__", "").partition(".")[0]
    name = getattr(update, "__qualname__", type(update).__name__).partition(".")[0]
    return f"{package}.{name}"


def _labels(tx: optax.GradientTransformation, tree: Any, numbers: Any) -> dict[int, Any]:
    """What a transformation makes of a leaf beside its type: its options and groups, by number."""
    reached = jax.tree.leaves(numbers)
    if kernel_of(tx) is not None:
        options = options_of(tx, tree)
        at = trees.flatten(numbers)[0]
        pairs = zip(at, options, strict=True)
        return {i: tuple(sorted(own.items())) for i, own in pairs if i is not None}
    labels: dict[int, Any] = dict.fromkeys(reached, ())
    for part in parts_of(tx):
        seen, seen_numbers = tree, numbers
        if part.choose is not None:
            flags = part.choose(tree)
            seen, seen_numbers = hidden(tree, flags), hidden(numbers, flags)
        own = _labels(part.transformation, seen, seen_numbers)
        labels = {i: (*label, own.get(i)) for i, label in labels.items()}
    return labels


def hidden(tree: Any, flags: Any) -> Any:
    return jax.tree.map(lambda flag, part: part if flag else optax.MaskedNode(), flags, tree)
