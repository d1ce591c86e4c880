"""The steps of a chain, which wait at their leaves until their numbers are needed.

A step of a chain is not taken when it is met. It waits at its leaf until somebody needs the
numbers: a norm of the whole tree, a function that is not ours, the end of the chain. Then all that
waits there is one compiled function, called once for each leaf, and traced once for each type of
leaf. What is narrower than float32 is rounded where it leaves the chain or enters a function that
is not ours; between two steps it has the dtype that they calculate in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradtx import trees
from gradtx.explicit import layout_of
from gradtx.leaf import LeafStep, composed_step, stacked_step, steps_of_many
from gradtx.stored import to_store


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

    Attributes:
        value: the gradient, or what the steps made of it so far.
        rounds_to: the dtype of the update, if the value is wider; else None.
    """

    __slots__ = ("parameter", "rounds_to", "value", "waiting")

    is_stack = False

    def __init__(self, value: Any):
        self.value = value
        self.rounds_to: Any = None
        self.parameter: Any = None
        self.waiting: list[WaitingStep] = []

    def twin(self) -> Leaf:
        """The same leaf once more, without steps that wait."""
        other = copy.copy(self)
        other.waiting = []
        return other

    @property
    def whole(self) -> Leaf:
        """The leaf that takes its steps."""
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that a kernel sees."""
        return np.shape(self.value)

    @property
    def like(self) -> Any:
        """What has its structure, shape and dtype."""
        if self.rounds_to is None:
            return self.value
        return jax.ShapeDtypeStruct(self.value.shape, self.rounds_to)

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

    @property
    def dtype(self) -> Any:
        """The dtype in which it is handed on."""
        if self.rounds_to is not None:
            return self.rounds_to
        value = self.value
        return value.dtype if isinstance(value, jax.Array) else jnp.result_type(value)

    def round(self) -> None:
        """Give its value the dtype of the update."""
        if self.rounds_to is not None:
            self.value, self.rounds_to = to_store(self.value, self.rounds_to), None

    def compiled(self, dtype: Any) -> Callable[..., tuple[jax.Array, list[Any]]]:
        """The compiled steps that wait, see `composed_step`."""
        return composed_step(self.steps, self.is_stack, dtype)

    def keys_from(self, keys: Any, numbers: Mapping[Leaf, int]) -> Any:
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

    def call(self, function: Callable[..., Any], own: Any, shared: Any, **static: Any) -> Any:
        """A function of its arrays, and of others that all leaves share."""
        return function(*own, *shared, **static)

    def kept(self, old: Any, new: Any) -> Any:
        """New numbers of the state, but the old ones where there is no gradient."""
        del old
        return new

    def finish(self, value: Any, slots: Sequence[tuple[Any, ...]]) -> None:
        """Keep what the steps that waited have returned."""
        self.value = value
        for own, new in zip(self.waiting, slots, strict=True):
            own.new = new
        self.waiting = []


def take_steps(leaves: Iterable[Leaf], *, rounded: bool = True) -> None:
    """Take the steps that wait at the leaves.

    Under a transformation of JAX, each leaf is one call of a compiled function, which is traced
    once for each type of leaf. Eagerly a call costs more than the step of a small leaf; leaves of
    one type share it, but not too many, so that trees of other sizes find the same programs.

    Args:
        leaves: the leaves.
        rounded: whether their values get the dtypes of the updates, or keep those that the steps
            calculate in, for whoever goes on with them.
    """
    leaves = list(leaves)
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
            _take_steps_of(group[0], rounded)
        else:
            _take_steps_together(group, rounded)
    for leaf in leaves if rounded else ():
        leaf.round()


_TOGETHER = 64


def _take_steps_of(leaf: Leaf, rounded: bool) -> None:
    own = leaf.dtype
    dtype = own if rounded else trees.compute_dtype(own)
    arguments = [(step.slots, step.key, step.t, step.scalars) for step in leaf.waiting]
    leaf.finish(*leaf.compiled(dtype)(leaf.value, leaf.read_parameter, arguments))
    leaf.rounds_to = None if dtype == own else own


def _take_steps_together(leaves: Sequence[Leaf], rounded: bool) -> None:
    own = leaves[0].dtype
    dtype = own if rounded else trees.compute_dtype(own)
    shared = [(step.t, step.scalars) for step in leaves[0].waiting]
    arguments = [
        (leaf.value, leaf.read_parameter, [(step.slots, step.key) for step in leaf.waiting])
        for leaf in leaves
    ]
    results = steps_of_many(leaves[0].steps, dtype)(arguments, shared)
    for leaf, result in zip(leaves, results, strict=True):
        leaf.finish(*result)
        leaf.rounds_to = None if dtype == own else own


def _type_of(leaf: Leaf) -> Any:
    """What leaves have in common that are called together: all but the values of their arrays."""
    steps = [(own.step, id(own.t), id(own.scalars)) for own in leaf.waiting]
    arrays = jax.tree.leaves((leaf.value, leaf.parameter, [own.slots for own in leaf.waiting]))
    # Arrays on several devices are not arguments of one call.
    types = [(getattr(x, "dtype", type(x)), getattr(x, "sharding", None)) for x in arrays]
    return np.shape(leaf.value), leaf.rounds_to, *steps, *types


def step_together(pairs: Sequence[tuple[Leaf, WaitingStep]]) -> None:
    """Take a step of several leaves at once: those of one type are stacked."""
    groups: dict[Any, list[tuple[Leaf, WaitingStep]]] = {}
    for leaf, own in pairs:
        arrays, structure = jax.tree.flatten((leaf.value, own.slots))
        types = tuple((np.shape(x), jnp.result_type(x), layout_of(x)) for x in arrays)
        groups.setdefault((own.step, structure, types), []).append((leaf, own))
    for group in groups.values():
        if len(group) == 1:
            leaf, own = group[0]
            leaf.waiting.append(own)
            continue
        step, first = group[0][1].step, group[0][1]
        take_steps((leaf for leaf, _ in group), rounded=False)
        arguments = [
            (leaf.value, leaf.parameter if step.reads_parameter else None, own.slots, own.key)
            for leaf, own in group
        ]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *arguments)
        updates, new = stacked_step(step)(*stacked, first.t, first.scalars)
        for number, (leaf, own) in enumerate(group):
            dtype = leaf.dtype
            leaf.value, own.new = jax.tree.map(lambda x, i=number: x[i], (updates, new))
            leaf.rounds_to = None if leaf.value.dtype == dtype else dtype
