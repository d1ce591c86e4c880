"""The steps of a chain, which wait at their leaves until their numbers are needed.

A step of a chain is not taken when it is met. It waits at its leaf until somebody needs the
numbers: a norm of the whole tree, a function that is not ours, the end of the chain. Then all that
waits there is one compiled function, called once for each leaf, and traced once for each type of
leaf.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradtx import trees
from gradtx.inputs import UNKNOWN, as_gradient, check_given, is_exact, trained
from gradtx.leaf import LeafStep, composed_step, stacked_step, steps_of_many
from gradtx.messages import shown

# What a link of a chain returns when its steps wait at the leaves: its new state, to be asked for
# when they have been taken.
Finish = Callable[[], Any]


class WaitingStep:
    """One kernel's step on one leaf, with its arrays; after it is taken, its new slots."""

    __slots__ = ("key", "new", "scalars", "slots", "step", "t")

    def __init__(
        self,
        step: LeafStep,
        slots: tuple[Any, ...] = (),
        key: Any = None,
        t: Any = None,
        scalars: Any = (),
    ):
        self.step = step
        self.slots = slots
        self.key = key
        self.t = t
        self.scalars = scalars
        self.new: tuple[Any, ...] = ()


class Leaf:
    """One leaf of the updates: its value, its parameter, and the steps that wait there.

    Most are by themselves; of those that are kept together see `gradtx.stacks`.
    """

    __slots__ = ("parameter", "value", "waiting")

    is_stack = False

    def __init__(self, value: Any):
        self.value = value
        self.parameter: Any = None
        self.waiting: list[WaitingStep] = []

    @property
    def whole(self) -> "Leaf":
        """The leaf that takes its steps."""
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that a kernel sees."""
        return np.shape(self.value)

    @property
    def like(self) -> Any:
        """What has its structure, shape and dtype."""
        return self.value

    @property
    def plain(self) -> Any:
        """Its update."""
        return self.value

    @property
    def plain_parameter(self) -> Any:
        """The parameter at its place."""
        return self.parameter

    @property
    def has_gradient(self) -> bool:
        """Whether it takes part."""
        return trees.is_parameter(self.value)

    def row(self, array: Any) -> Any:
        """Its part of what its steps returned."""
        return array

    def stacked(self, shape: Any) -> Any:
        """The shape in which the state has what a kernel sees in this shape."""
        return shape

    def present(self, array: Any) -> Any:
        """The part of an array that a measure may see."""
        return array

    def keys_from(self, keys: Any, numbers: Mapping["Leaf", int]) -> Any:
        """Its PRNG key of those of all leaves that take part."""
        return keys[numbers[self]]

    @property
    def steps(self) -> tuple[LeafStep, ...]:
        """The steps that wait."""
        return tuple(own.step for own in self.waiting)

    @property
    def read_parameter(self) -> Any:
        """The parameter if a step that waits reads it, else None."""
        return self.parameter if any(own.step.reads_parameter for own in self.waiting) else None

    def finish(self, value: Any, slots: Sequence[tuple[Any, ...]]) -> None:
        """Keep what the steps that waited have returned."""
        self.value = value
        for own, new in zip(self.waiting, slots, strict=True):
            own.new = new
        self.waiting = []


def take_steps(leaves: Iterable[Leaf]) -> None:
    """Take the steps that wait at the leaves.

    Under a transformation of JAX, each leaf is one call of a compiled function, which is traced
    once for each type of leaf. Eagerly a call costs more than the step of a small leaf; leaves of
    one type share it, but not too many, so that trees of other sizes find the same programs.
    """
    waiting = [leaf for leaf in leaves if leaf.waiting]
    if any(isinstance(leaf.value, Tracer) for leaf in waiting):
        groups = [[leaf] for leaf in waiting]
    else:
        groups = [[leaf] for leaf in waiting if leaf.is_stack]
        by_type: dict[Any, list[Leaf]] = {}
        for leaf in waiting:
            if not leaf.is_stack:
                by_type.setdefault(_type_of(leaf), []).append(leaf)
        groups += [
            alike[start : start + _TOGETHER]
            for alike in by_type.values()
            for start in range(0, len(alike), _TOGETHER)
        ]
    for group in groups:
        if len(group) == 1:
            _take_steps_of(group[0])
        else:
            _take_steps_together(group)


_TOGETHER = 64


def _take_steps_of(leaf: Leaf) -> None:
    arguments = [(step.slots, step.key, step.t, step.scalars) for step in leaf.waiting]
    step = composed_step(leaf.steps, leaf.is_stack)
    leaf.finish(*step(leaf.value, leaf.read_parameter, arguments))


def _take_steps_together(leaves: Sequence[Leaf]) -> None:
    shared = [(step.t, step.scalars) for step in leaves[0].waiting]
    arguments = [
        (leaf.value, leaf.read_parameter, [(step.slots, step.key) for step in leaf.waiting])
        for leaf in leaves
    ]
    results = steps_of_many(leaves[0].steps)(arguments, shared)
    for leaf, result in zip(leaves, results, strict=True):
        leaf.finish(*result)


def _type_of(leaf: Leaf) -> Any:
    """What leaves have in common that are called together: all but the values of their arrays."""
    steps = [(own.step, id(own.t), id(own.scalars)) for own in leaf.waiting]
    arrays = jax.tree.leaves((leaf.value, leaf.parameter, [own.slots for own in leaf.waiting]))
    # Arrays on several devices are not arguments of one call.
    types = [(getattr(x, "dtype", type(x)), getattr(x, "sharding", None)) for x in arrays]
    return np.shape(leaf.value), *steps, *types


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
        self.has_stacks = False
        self._restart(updates)

    def holds_stacks(self) -> None:
        """Prepare for leaves that are stacks, or rows of them."""
        self.has_stacks = True
        self._values = None
        self._look_again()

    def _restart(self, updates: Any) -> None:
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

    def restricted(
        self, owner: str, hidden: Callable[[Any], Any], params: Any, extra: Mapping[str, Any]
    ) -> "Leaves":
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
        part.has_stacks = self.has_stacks
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

    def take_steps(self) -> None:
        """Take the steps that wait at the leaves."""
        take_steps(self.leaves)

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
        updates, new_state = update(given, trees.decoded(state), params, **self.extra)
        if not self._part_of and not self.has_stacks:
            self._restart(updates)
        else:
            self.put(self.aligned(self._part_of or "grouped", "its inner updates", updates))
        return lambda: trees.encoded_like(state, new_state)

    def check_rows(self, name: str, values: Sequence[Any]) -> None:
        """Refuse a state that has something of its own for a leaf in a stack.

        Raises:
            ValueError: naming the path.
        """
        for i, leaf in enumerate(self.leaves):
            if leaf.whole is not leaf and jax.tree.leaves(values[i]):
                raise ValueError(
                    f"grouped: the state's {name} has an array of its own at '{self.path(i)}', "
                    "which is in a group of these updates; if they lack the dtypes of the "
                    "parameters, call update(updates, state, params)"
                )

    def _refuse_missing(self, state: Any) -> None:
        """Refuse a row without a gradient where the state cannot be kept for it."""
        for i, leaf in enumerate(self.leaves):
            if leaf.whole.is_stack and not leaf.has_gradient and jax.tree.leaves(state):
                raise ValueError(
                    f"grouped: updates has no gradient at '{self.path(i)}', and a transformation "
                    "that is not made by this library would change its state"
                )

    def put(self, values: Sequence[Any]) -> None:
        """Put a new value to each leaf."""
        for leaf, value in zip(self.leaves, values, strict=True):
            leaf.value = value
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
                f"grouped: {what} at '{self.path(index)}' has shape "
                f"{shown(jax.tree.map(np.shape, value))}, expected {expected} for the group of "
                f"this leaf of shape {self.leaves[index].shape}; was it made by the init of this "
                "transformation for these parameters? gradtx.migrate carries over a state that "
                "was not grouped"
            )
        trees.refuse_shape(owner, "updates", self.shapes(), index, what, value)

    def path(self, index: int) -> str:
        """Where a leaf is."""
        return trees.paths(self.shapes())[index]


def step_together(pairs: Sequence[tuple[Leaf, WaitingStep]]) -> None:
    """Take a step of several leaves at once: those of one type are stacked."""
    groups: dict[Any, list[tuple[Leaf, WaitingStep]]] = {}
    for leaf, own in pairs:
        arrays, structure = jax.tree.flatten((leaf.value, own.slots))
        types = tuple((np.shape(x), jnp.result_type(x)) for x in arrays)
        groups.setdefault((own.step, structure, types), []).append((leaf, own))
    for group in groups.values():
        if len(group) == 1:
            leaf, own = group[0]
            leaf.waiting.append(own)
            continue
        step, first = group[0][1].step, group[0][1]
        take_steps(leaf for leaf, _ in group)
        arguments = [
            (leaf.value, leaf.parameter if step.reads_parameter else None, own.slots, own.key)
            for leaf, own in group
        ]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *arguments)
        updates, new = stacked_step(step)(*stacked, first.t, first.scalars)
        for number, (leaf, own) in enumerate(group):
            leaf.value, own.new = jax.tree.map(lambda x, i=number: x[i], (updates, new))


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
