"""A tree's leaves on their way through a chain, aligned with whatever belongs to them.

A step of a chain is not taken when it is met. It waits at its leaf until somebody needs the
numbers: a norm of the whole tree, a function that is not ours, the end of the chain. Then all that
waits there is one compiled function, called once for each leaf, and traced once for each type of
leaf.

What is not a link of a chain, as most wrappers are not, finds its leaves in an `Aligned`.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.inputs import UNKNOWN, as_array, as_gradient, is_exact, trained
from gradtx.leaf import LeafStep, composed_step, stacked_step
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
        t: Any = None,
        key: Any = None,
        scalars: Any = (),
    ):
        self.step = step
        self.slots = slots
        self.t = t
        self.key = key
        self.scalars = scalars
        self.new: tuple[Any, ...] = ()


class Leaf:
    """One leaf of the updates: its value, its parameter, and the steps that wait there."""

    __slots__ = ("parameter", "value", "waiting")

    def __init__(self, value: Any):
        self.value = value
        self.parameter: Any = None
        self.waiting: list[WaitingStep] = []

    def take_steps(self) -> None:
        """Take the steps that wait, as one compiled function."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        step = composed_step(tuple(own.step for own in waiting))
        parameter = self.parameter if any(own.step.reads_parameter for own in waiting) else None
        arguments = [(own.slots, own.t, own.key, own.scalars) for own in waiting]
        self.value, new = step(self.value, parameter, arguments)
        for own, slots in zip(waiting, new, strict=True):
            own.new = slots


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
        self._is_part = False
        self._restart(updates)

    def _restart(self, updates: Any) -> None:
        values, self.treedef = trees.flatten(updates)
        self.leaves = [Leaf(value) for value in values]
        self._given: Any = updates
        self._values: list[Any] | None = values
        self._has_parameters = False

    def restricted(self, hidden: Callable[[Any], Any], params: Any, extra: Any) -> "Leaves":
        """Those leaves that a mask chooses; what happens to them happens here.

        Args:
            hidden: from a tree of this structure to that of the chosen leaves.
            params: the parameters of the chosen leaves.
            extra: their extra arguments.
        """
        places = [None if leaf.value is None else i for i, leaf in enumerate(self.leaves)]
        chosen, treedef = trees.flatten(hidden(self.treedef.unflatten(places)))
        part = Leaves((), params, extra)
        part.treedef = treedef
        part._values = None
        part.leaves = [Leaf(None) if i is None else self.leaves[i] for i in chosen]
        part._is_part = True
        return part

    def updates(self) -> Any:
        """The tree, after all steps that wait are taken; the given one if nothing changed it."""
        self.take_steps()
        now = [leaf.value for leaf in self.leaves]
        if self._values is not None and all(map(operator.is_, now, self._values)):
            return self._given
        return self.treedef.unflatten(now)

    def shapes(self) -> Any:
        """The tree with its present structure, shapes and dtypes, whatever its values are."""
        return self.treedef.unflatten(leaf.value for leaf in self.leaves)

    def take_steps(self) -> None:
        """Take the steps that wait at the leaves."""
        for leaf in self.leaves:
            leaf.take_steps()

    def through(self, update: Callable[..., Any], state: Any) -> Finish:
        """Put the updates through a function that knows nothing of this record."""
        updates, new_state = update(self.updates(), state, self.params, **self.extra)
        if not self._is_part:
            self._restart(updates)
        else:
            for leaf, value in zip(
                self.leaves, self.aligned("masked", "its inner updates", updates), strict=True
            ):
                leaf.value = value
        return lambda: new_state

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
        if self.params is None:
            raise ValueError(f"{owner}: needs the parameters; call update(updates, state, params)")
        if not self._has_parameters:
            parameters = self.aligned(owner, "params", trained(self.params))
            for leaf, parameter in zip(self.leaves, parameters, strict=True):
                leaf.parameter = parameter
            self._has_parameters = True

    def promote(self, slots: Sequence[Sequence[Any]]) -> None:
        """Make gradients of integers what they are for the parameters and slots there."""
        if not any(is_exact(leaf.value) for leaf in self.leaves):
            return
        parameters = self._known_parameters()
        for i, leaf in enumerate(self.leaves):
            leaf.value = as_gradient(leaf.value, parameters[i], [slot[i] for slot in slots])

    def _known_parameters(self) -> list[Any]:
        if self.params is not None:
            try:
                return self.treedef.flatten_up_to(trained(self.params))
            except (ValueError, TypeError, KeyError):
                pass
        return [UNKNOWN] * len(self.leaves)

    def active(self) -> list[int]:
        """The numbers of the leaves that are inexact arrays, which take part."""
        return [i for i, leaf in enumerate(self.leaves) if trees.is_parameter(leaf.value)]

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
        is_leaf = isinstance(expected, list) or jax.tree_util.all_leaves([value])
        if not is_leaf or jax.tree.map(np.shape, value) != expected:
            what = f"the state's {name}"
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
        arguments = [
            (leaf.value, own.slots, leaf.parameter if step.reads_parameter else None, own.key)
            for leaf, own in group
        ]
        g, slots, p, key = jax.tree.map(lambda *parts: jnp.stack(parts), *arguments)
        updates, new = stacked_step(step)(g, slots, p, first.t, key, first.scalars)
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


def run(link: Link, updates: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> Any:
    """The update of a link by itself: the new updates and the new state."""
    leaves = Leaves(updates, params, extra)
    finish = link.join(leaves, state)
    return leaves.updates(), finish()


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
    booleans.

    Args:
        *stored_as: for each result the number of the array whose dtype it is stored in; none of
            them: there is one result, stored as the first array.
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

            new = function(*map(wide, arrays), **jax.tree.map(wide, numbers))
            if not stored_as:
                return new.astype(own[0])
            return tuple(x.astype(own[i]) for x, i in zip(new, stored_as, strict=True))

        return step

    return compiled
