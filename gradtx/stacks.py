"""Leaves of one type that take their steps together, kept along the first axis of one array.

The array stands at the place of the first of them; at the places of the others there is nothing, so
that whoever aligns trees, chooses leaves or hands steps to them need not know of stacks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import trees
from gradtx.joined import Leaves
from gradtx.stored import to_store
from gradtx.waiting import Leaf


class Group(NamedTuple):
    """Leaves that are kept in one array.

    Attributes:
        places: their numbers in the tree, in its order.
        size: the length of the array's first axis; what is beyond the leaves is padding.
    """

    places: tuple[int, ...]
    size: int


class Row(Leaf):
    """One leaf of a group, whose numbers are in the group's stack.

    Attributes:
        given: its gradient; None, or what is no array, if it has none.
        number: its row in the stack.
        stack: the whole.
    """

    __slots__ = ("given", "number", "stack")

    def __init__(self, given: Any, number: int):
        super().__init__(None)
        self.given = given
        self.number = number
        self.stack: Stack

    @property
    def has_gradient(self) -> bool:
        """Whether it takes part."""
        return trees.is_parameter(self.given)

    @property
    def whole(self) -> Leaf:
        """The leaf that takes its steps."""
        return self.stack

    @property
    def like(self) -> Any:
        """Its shape and dtype."""
        return jax.ShapeDtypeStruct(self.stack.shape, self.stack.dtype)

    @property
    def plain(self) -> Any:
        """Its update."""
        if not self.has_gradient:
            return self.given
        return to_store(self.row(self.stack.value), jnp.result_type(self.given))

    def row(self, array: Any) -> Any:
        """Its part of a stack."""
        return self.stack.split(array)[self.number]


class Stack(Leaf):
    """The leaves of a group as one leaf: their numbers along the first axis, with zeros as padding.

    Attributes:
        rows: the leaves.
        size: the length of the first axis.
    """

    __slots__ = ("_dtype", "_parameters", "_parts", "_shape", "rows", "size")

    is_stack = True

    def __init__(self, rows: Sequence[Row], size: int, shape: tuple[int, ...]):
        self.rows = rows
        self.size = size
        self._shape = shape
        for row in rows:
            row.stack = self
        self._parts: dict[int, tuple[Any, list[Any]]] = {}
        self._parameters: Any = None
        given = [row.given if row.has_gradient else None for row in rows]
        present = [jnp.asarray(g) for g in given if g is not None]
        dtypes = [g.dtype for g in present]
        self._dtype: Any = functools.reduce(np.promote_types, dtypes, np.bool_)
        super().__init__(self.assembled(given, self._dtype) if present else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each leaf."""
        return self._shape

    @property
    def parameter(self) -> Any:
        """The parameters of the leaves as one array."""
        if self._parameters is None and trees.is_parameter(self.rows[0].parameter):
            parameters = [row.parameter for row in self.rows]
            dtype = jnp.result_type(parameters[0])
            self._parameters = self.assembled(parameters, dtype)
        return self._parameters

    @parameter.setter
    def parameter(self, value: Any) -> None:
        """The first leaf's parameter: whoever aligns the tree finds it at the stack's place."""
        if value is not None:
            self.rows[0].parameter = value

    @property
    def dtype(self) -> Any:
        """The dtype of the gradients of the leaves."""
        return self._dtype

    @property
    def has_gradient(self) -> bool:
        """Whether the leaf at its place takes part."""
        return self.rows[0].has_gradient

    @property
    def like(self) -> Any:
        """The shape and the dtype of the leaf at its place."""
        return self.rows[0].like

    @property
    def plain(self) -> Any:
        """The update of the leaf at its place."""
        return self.rows[0].plain

    @property
    def plain_parameter(self) -> Any:
        """The parameter of the leaf at its place."""
        return self.rows[0].parameter

    def row(self, array: Any) -> Any:
        """The part of a stack that belongs to the leaf at its place."""
        return self.rows[0].row(array)

    def split(self, array: Any) -> list[Any]:
        """The rows of a stack, without the padding."""
        if array is None:
            return [None] * len(self.rows)
        # With the array itself, so that its id belongs to no other one.
        if id(array) not in self._parts:
            self._parts[id(array)] = array, self.disassembled(array)
        return self._parts[id(array)][1]

    def assembled(self, parts: Sequence[Any], dtype: Any) -> jax.Array:
        """Arrays along a new first axis, with zeros where one is missing and for padding."""
        like = next(jnp.asarray(x, dtype) for x in parts if x is not None)
        arrays = [jnp.zeros_like(like) if x is None else jnp.asarray(x, dtype) for x in parts]
        return stack_arrays(arrays, self.size)

    def disassembled(self, array: jax.Array) -> list[jax.Array]:
        """The rows of a stack."""
        return rows_of(array, len(self.rows))

    def stacked(self, shape: Any) -> Any:
        """The shape of a stack of arrays of this shape, or of each of several."""
        if isinstance(shape, list):
            return [(self.size, *own) for own in shape]
        return (self.size, *shape)

    def present(self, stack: Any) -> Any:
        """Those rows that have a gradient."""
        numbers = [row.number for row in self.rows if row.has_gradient]
        if len(numbers) == self.size:
            return stack
        is_prefix = numbers == list(range(len(numbers)))
        index = slice(len(numbers)) if is_prefix else np.array(numbers)
        return jax.tree.map(lambda x: x[index], stack)

    def keys_from(self, keys: Any, numbers: dict[Leaf, int]) -> Any:
        """The keys of its rows; where nobody reads one, any."""
        of_rows = [numbers.get(self, 0), *(numbers.get(row, 0) for row in self.rows[1:])]
        return keys[np.array(of_rows + [0] * (self.size - len(of_rows)))]

    def finish(self, value: Any, slots: Sequence[tuple[Any, ...]]) -> None:
        """Keep what the steps have returned, but the old slots of rows without a gradient."""
        super().finish(value, self.kept([own.slots for own in self.waiting], list(slots)))

    def call(self, function: Callable[..., Any], own: Any, shared: Any, **static: Any) -> Any:
        """A function of the arrays of each row, and of others that they share."""
        step = functools.partial(function, **static)
        return jax.vmap(step, (0,) * len(own) + (None,) * len(shared))(*own, *shared)

    def kept(self, old: Any, new: Any) -> Any:
        """New numbers of the state, but the old ones of rows without a gradient."""
        if all(row.has_gradient for row in self.rows):
            return new
        return jax.tree.map(self._kept, old, new)

    def changed(self, value: Any) -> Stack:
        """The same leaves with another value, without parameters and steps that wait."""
        other = copy.copy(self)
        other.rows = [copy.copy(row) for row in self.rows]
        for row in other.rows:
            row.stack, row.parameter = other, None
        other.value, other.waiting = value, []
        other._shape = value.shape[1:]
        other._parts, other._parameters = {}, None
        return other

    def _kept(self, old: Any, new: Any) -> Any:
        has_gradient = np.ones(self.size, bool)
        has_gradient[[row.number for row in self.rows if not row.has_gradient]] = False
        shape = (self.size, *(1 for _ in new.shape[1:]))
        return jnp.where(has_gradient.reshape(shape), new, old)


@functools.partial(jax.jit, static_argnums=1)
def stack_arrays(arrays: Sequence[jax.Array], size: int) -> jax.Array:
    """Arrays of one type along a new first axis, with zeros as padding."""
    rows = [lax.expand_dims(x, (0,)) for x in arrays]
    if size > len(rows):
        # Of the type that the others have on an explicit mesh.
        rows.append(lax.broadcast(jnp.zeros_like(arrays[0]), (size - len(rows),)))
    return lax.concatenate(rows, 0)


@functools.partial(jax.jit, static_argnums=1)
def rows_of(stack: jax.Array, number: int) -> list[jax.Array]:
    """The first rows of a stack."""
    return [lax.index_in_dim(stack, i, keepdims=False) for i in range(number)]


def stacked_leaves(
    owner: str,
    leaves: Leaves,
    groups: Sequence[Group],
    types: Sequence[Any],
    stack: Callable[[Sequence[Row], int, tuple[int, ...]], Stack] = Stack,
) -> Leaves:
    """A record of the same tree in which each group is one leaf.

    Args:
        owner: the function that the user called, which opens the messages.
        leaves: the leaves, whose waiting steps are taken.
        groups: the groups.
        types: for each leaf what has its shape, if it is in a group.
        stack: from the rows of a group, its length and the shape of its leaves to the stack.
    """
    record = Leaves(leaves.updates(), leaves.params, leaves.extra)
    record.promote(())
    record.holds_stacks(owner)
    for group in groups:
        shape = np.shape(types[group.places[0]])
        rows = [Row(record.leaves[i].value, number) for number, i in enumerate(group.places)]
        for i, row in zip(group.places, rows, strict=True):
            record.leaves[i] = row
        record.leaves[group.places[0]] = stack(rows, group.size, shape)
    return record


def with_values(leaves: Leaves, values: Sequence[Any]) -> Leaves:
    """A record of the same leaves with other values, and without parameters.

    Args:
        leaves: the leaves, none of which have steps that wait.
        values: for each leaf its value, which may have another shape; of a stack that of the whole,
            and None of its other rows.
    """
    record = copy.copy(leaves)
    record.params = None
    record.leaves = list(leaves.leaves)
    for i, (leaf, value) in enumerate(zip(leaves.leaves, values, strict=True)):
        if not isinstance(leaf, Stack):
            record.leaves[i] = record.leaves[i] if leaf.whole is not leaf else Leaf(value)
        elif value is not None:
            record.leaves[i] = new = leaf.changed(value)
            rows: dict[Leaf, Leaf] = dict(zip(leaf.rows, new.rows, strict=True))
            record.leaves = [rows.get(own, own) for own in record.leaves]
    record.forget_parameters()
    return record


def regrouped(
    part: Any,
    treedef: Any,
    groups: Sequence[Group],
    placed: Callable[[jax.Array], jax.Array] = lambda stack: stack,
) -> Any:
    """What a state has for each parameter, with the arrays of each group stacked.

    Args:
        part: a tree of the structure of the parameters; where those have an array, it has an array,
            several, or nothing.
        treedef: the structure of the parameters, in which None is a leaf.
        groups: the groups.
        placed: what is done to each stack.
    """
    parts = treedef.flatten_up_to(part)
    for group in groups:
        own = [parts[i] for i in group.places]
        if jax.tree.leaves(own):
            first, *others = group.places
            stack = jax.tree.map(lambda *x, n=group.size: stack_arrays(x, n), *own)
            parts[first] = jax.tree.map(placed, stack)
            for i in others:
                parts[i] = None
    return treedef.unflatten(parts)
