"""The leaves of a tree on their way through a chain, whose links hand them their steps.

What a link needs of the whole tree is found here: which leaves take part, their parameters, their
slots in its state. The steps themselves wait at the leaves, see `gradtx.waiting`.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.inputs import UNKNOWN, as_gradient, check_given, is_exact, trained
from gradtx.messages import shown
from gradtx.waiting import Leaf, take_steps

# What a link of a chain returns when its steps wait at the leaves: its new state, to be asked for
# when they have been taken.
Finish = Callable[[], Any]


class Leaves:
    """The leaves of one tree of updates, with the parameters and extra arguments of the call.

    Attributes:
        treedef: the structure, in which None is a leaf.
        leaves: in the order of the structure.
        params: what the caller gave for the parameters.
        extra: the extra arguments of `update`.
    """

    def __init__(self, updates: Any, params: Any = None, extra: Mapping[str, Any] | None = None):
        self.params = params
        self.extra = {} if extra is None else extra
        self._part_of = ""
        self._whole: Leaves | None = None
        self.stacked_by = ""
        self.restart(updates)

    @property
    def has_stacks(self) -> bool:
        """Whether some of the leaves are stacks, or rows of them."""
        return bool(self.stacked_by)

    def holds_stacks(self, owner: str) -> None:
        """Prepare for leaves that are stacks, or rows of them.

        Args:
            owner: the function that put them into stacks, which opens the messages.
        """
        self.stacked_by = owner
        self._values = None
        self._look_again()

    def restart(self, updates: Any) -> None:
        """Go on with other updates, of any structure."""
        values, self.treedef = trees.flatten(updates)
        self.leaves = [Leaf(value) for value in values]
        self._given: Any = updates
        self._values: list[Any] | None = values
        self._has_parameters = False
        self._look_again()

    def _look_again(self) -> None:
        """Forget which leaves take part; steps, unlike other functions, do not change that."""
        self._active: list[int] | None = None
        self._are_inexact = False
        if self._whole is not None:
            self._whole._look_again()

    def twin(self) -> Leaves:
        """The same leaves once more, whose steps do not change these."""
        self.take_steps()
        other = copy.copy(self)
        other.leaves = [leaf.twin() for leaf in self.leaves]
        return other

    def forget_parameters(self) -> None:
        """Look for parameters, and for which leaves take part, again."""
        self._values, self._has_parameters = None, False
        self._look_again()

    def restricted(
        self, owner: str, hidden: Callable[[Any], Any], params: Any, extra: Mapping[str, Any]
    ) -> Leaves:
        """Those leaves that a mask chooses; what happens to them happens here.

        Args:
            owner: the function that the user called, which opens the messages.
            hidden: from a tree of this structure to that of the chosen leaves.
            params: the parameters of the chosen leaves.
            extra: their extra arguments.
        """
        places = [None if leaf.like is None else i for i, leaf in enumerate(self.leaves)]
        chosen, treedef = trees.flatten(hidden(self.treedef.unflatten(places)))
        part = Leaves((), params, extra)
        part.treedef = treedef
        part._values = None
        part.stacked_by = self.stacked_by
        part.leaves = [Leaf(None) if i is None else self.leaves[i] for i in chosen]
        part._part_of = owner
        part._look_again()
        part._whole = self
        return part

    def updates(self) -> Any:
        """The tree, after all steps that wait are taken; the given one if nothing changed it."""
        self.take_steps()
        now = [leaf.plain for leaf in self.leaves]
        if self._values is not None and all(map(operator.is_, now, self._values)):
            return self._given
        return self.treedef.unflatten(now)

    def shapes(self) -> Any:
        """The tree with its present structure, shapes and dtypes, whatever its values are."""
        return self.treedef.unflatten(leaf.like for leaf in self.leaves)

    def take_steps(self, *, rounded: bool = True) -> None:
        """Take the steps that wait at the leaves; see `gradtx.waiting.take_steps`."""
        take_steps(self.leaves, rounded=rounded)

    def through(self, update: Callable[..., Any], state: Any) -> Finish:
        """Put the updates through a function that knows nothing of this record.

        It sees a stack as one array, at the place of the first of its leaves.
        """
        given, params = self.updates(), self.params
        if self.has_stacks:
            self._refuse_missing(state)
            given = self.treedef.unflatten(leaf.value for leaf in self.leaves)
            if params is not None:
                self.align_parameters(self._part_of)
                params = self.treedef.unflatten(
                    leaf.parameter if leaf.whole is leaf else None for leaf in self.leaves
                )
        updates, new_state = update(
            given, trees.decoded(state, trees.is_opened), params, **self.extra
        )
        if not self._part_of and not self.has_stacks:
            self.restart(updates)
        else:
            self.put(self.aligned(self._part_of or self.stacked_by, "its inner updates", updates))
        return lambda: trees.encoded_like(state, new_state, trees.is_opened)

    def check_rows(self, name: str, values: Sequence[Any]) -> None:
        """Refuse a state that has something of its own for a leaf in a stack.

        Raises:
            ValueError: naming the path.
        """
        for i, leaf in enumerate(self.leaves):
            if leaf.whole is not leaf and jax.tree.leaves(values[i]):
                raise ValueError(
                    f"{self.stacked_by}: the state's {name} has an array of its own at "
                    f"'{self.path(i)}', which is in a group of these updates; if they lack the "
                    "dtypes of the parameters, call update(updates, state, params)"
                )

    def _refuse_missing(self, state: Any) -> None:
        """Refuse a row without a gradient where the state cannot be kept for it."""
        for i, leaf in enumerate(self.leaves):
            if leaf.whole.is_stack and not leaf.has_gradient and jax.tree.leaves(state):
                raise ValueError(
                    f"{self.stacked_by}: updates has no gradient at '{self.path(i)}', and a "
                    "transformation that is not made by this library would change its state"
                )

    def put(self, values: Sequence[Any]) -> None:
        """Put a new value to each leaf."""
        for leaf, value in zip(self.leaves, values, strict=True):
            leaf.value, leaf.rounds_to = value, None
        self._look_again()

    def aligned(self, owner: str, what: str, tree: Any, *, subtrees: bool = False) -> list[Any]:
        """The parts of a tree at the places of the leaves, see `trees.flatten_like`."""
        return trees.parts_at(
            owner,
            what,
            tree,
            "updates",
            self.treedef,
            [leaf.value for leaf in self.leaves],
            subtrees=subtrees,
        )

    def align_parameters(self, owner: str) -> None:
        """Put its parameter beside each leaf.

        Raises:
            ValueError: if there are none, or their structure differs.
        """
        check_given(owner, self.params)
        if not self._has_parameters:
            parameters = self.aligned(owner, "params", trained(self.params))
            for leaf, parameter in zip(self.leaves, parameters, strict=True):
                leaf.parameter = parameter
            self._has_parameters = True

    def promote(self, slots: Sequence[Sequence[Any]]) -> None:
        """Make gradients of integers what they are for the parameters and slots there."""
        if self._are_inexact:
            return
        self._are_inexact = not any(is_exact(leaf.value) for leaf in self.leaves)
        if self._are_inexact:
            return
        parameters = self._known_parameters()
        for i, leaf in enumerate(self.leaves):
            leaf.value = as_gradient(leaf.value, parameters[i], [slot[i] for slot in slots])
        self._active = None

    def _known_parameters(self) -> list[Any]:
        if self.params is not None:
            try:
                return self.treedef.flatten_up_to(trained(self.params))
            except (ValueError, TypeError, KeyError):
                pass
        return [UNKNOWN] * len(self.leaves)

    def active(self) -> list[int]:
        """The numbers of the leaves that are inexact arrays, which take part."""
        if self._active is None:
            numbered = enumerate(self.leaves)
            self._active = [i for i, leaf in numbered if trees.is_parameter(leaf.value)]
        return self._active

    def keys(self, key: jax.Array) -> list[Any]:
        """A PRNG key of its own for each leaf that takes part."""
        own = [leaf for leaf in self.leaves if leaf.has_gradient]
        if not own:
            return []
        keys = jax.random.split(key, len(own))
        if not self.has_stacks:
            return list(keys)
        numbers = {leaf: number for number, leaf in enumerate(own)}
        return [self.leaves[i].keys_from(keys, numbers) for i in self.active()]

    def check_parameter(self, owner: str, index: int) -> None:
        """Refuse a leaf whose parameter is missing or of another shape.

        Raises:
            ValueError: naming the path and both shapes.
        """
        leaf = self.leaves[index]
        shape = np.shape(leaf.value)
        if leaf.parameter is not None and np.shape(leaf.parameter) != shape:
            trees.refuse_shape(owner, "updates", self.shapes(), index, "params", leaf.parameter)
        if not trees.is_parameter(leaf.parameter):
            raise ValueError(
                f"{owner}: needs the parameter at '{self.path(index)}', where updates has shape "
                f"{shape}; params has {shown(leaf.parameter)}"
            )

    def check_slot(self, owner: str, index: int, name: str, value: Any, expected: Any) -> None:
        """Refuse a slot that is missing or has another shape than its leaf asks for.

        Raises:
            ValueError: naming the path and both shapes.
        """
        if value is None:
            raise ValueError(
                f"{owner}: the state has no {name} at '{self.path(index)}', where updates has "
                f"shape {np.shape(self.leaves[index].value)}; was init called with these "
                "parameters, and are they inexact numbers?"
            )
        if trees.is_stored(value):
            value = jax.ShapeDtypeStruct(value.shape, value.dtype)
        is_leaf = isinstance(expected, list) or jax.tree_util.all_leaves([value])
        what = f"the state's {name}"
        if is_leaf and jax.tree.map(np.shape, value) == expected:
            return
        if self.leaves[index].is_stack:
            raise ValueError(
                f"{self.stacked_by}: {what} at '{self.path(index)}' has shape "
                f"{shown(jax.tree.map(np.shape, value))}, expected {expected} for the group of "
                f"this leaf of shape {self.leaves[index].shape}; was it made by the init of this "
                "transformation for these parameters? gradtx.migrate carries over a state that "
                "was not grouped"
            )
        trees.refuse_shape(owner, "updates", self.shapes(), index, what, value)

    def check_complex(self, owner: str, index: int, name: str, value: Any) -> None:
        """Refuse a complex gradient of which a real slot would keep the real part.

        Raises:
            ValueError: naming the path and both dtypes.
        """
        for kept in jax.tree.leaves(value, is_leaf=trees.is_stored):
            trees.refuse_real(owner, self.path(index), self.leaves[index].value, name, kept)

    def path(self, index: int) -> str:
        """Where a leaf is."""
        return trees.paths(self.shapes())[index]


class Link:
    """What a chain can hand its leaves to, so that its steps wait there."""

    def join(self, leaves: Leaves, state: Any) -> Finish:
        """Put the steps to the leaves; the result gives the new state after they are taken."""
        raise NotImplementedError


def join(update: Callable[..., Any], leaves: Leaves, state: Any) -> Finish:
    """`Link.join` of an update function, or a call of it if it is not a link."""
    link = getattr(update, "__self__", update)
    return link.join(leaves, state) if isinstance(link, Link) else leaves.through(update, state)


def join_openly(update: Callable[..., Any], leaves: Leaves, state: Any) -> tuple[Leaves, Finish]:
    """`join`, with the record at whose leaves the steps wait; it may have other leaves, stacks."""
    opened = getattr(update, "opened", None)
    return (leaves, join(update, leaves, state)) if opened is None else opened(leaves, state)


def run(link: Link, updates: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> Any:
    """The update of a link by itself: the new updates and the new state."""
    leaves = Leaves(updates, params, extra)
    finish = link.join(leaves, state)
    return leaves.updates(), finish()


def run_wide(
    update: Callable[..., Any],
    updates: Any,
    gradients: Any,
    state: Any,
    params: Any,
    extra: Mapping[str, Any],
) -> Any:
    """An update function by itself, whose gradients may be wider than its updates are to be.

    Args:
        update: the function; where it is not a link, it gets the gradients rounded.
        updates: the gradients.
        gradients: a tree of the same structure, with the dtypes of the updates.
        state: the state.
        params: the parameters.
        extra: the extra arguments.
    """
    leaves = Leaves(updates, params, extra)
    for leaf, like in zip(leaves.leaves, trees.flatten(gradients)[0], strict=True):
        if leaf.has_gradient and leaf.dtype != jnp.result_type(like):
            own = leaf.dtype, jnp.result_type(like)
            leaf.value = leaf.value.astype(np.promote_types(*map(trees.compute_dtype, own)))
            leaf.rounds_to = own[1]
    finish = join(update, leaves, state)
    return leaves.updates(), finish()
