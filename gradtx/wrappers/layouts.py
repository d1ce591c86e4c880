"""Arrays as stacks of matrices: which axes are rows, which are columns, which count matrices."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from optax.contrib import GaLoreDimensionNumbers

from gradtx import trees

DimensionNumbers = GaLoreDimensionNumbers | Callable[[Any], Any] | Any


class Layout(NamedTuple):
    """How an array is a stack of matrices.

    Attributes:
        stack: the axes that count the matrices.
        rows: the axes that together are a matrix's rows.
        columns: the axes that together are its columns.
    """

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stack of matrices."""
        sides = [math.prod(shape[axis] for axis in axes) for axes in (self.rows, self.columns)]
        return (*(shape[axis] for axis in self.stack), *sides)

    def matrices(self, array: jax.Array) -> jax.Array:
        """The array as a stack of matrices."""
        order = self.stack + self.rows + self.columns
        return array.transpose(order).reshape(self.matrix_shape(array.shape))

    def array(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The stack of matrices as an array of the given shape."""
        order = self.stack + self.rows + self.columns
        return matrices.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def layouts_of(owner: str, choice: DimensionNumbers | None, tree: Any) -> list[Layout | None]:
    """The layout of each leaf that is to be projected; None for the others."""
    leaves, _ = trees.flatten(tree)
    if not leaves:
        return []  # optax passes a tree without leaves to learn the layout of the state
    if choice is None:
        given = [GaLoreDimensionNumbers() if np.ndim(leaf) == 2 else None for leaf in leaves]
    elif isinstance(choice, GaLoreDimensionNumbers):
        given = [choice if np.ndim(leaf) >= 2 else None for leaf in leaves]
    else:
        chosen = choice(tree) if callable(choice) else choice
        # Behind a function, so that the tuples are not taken for a part of the tree.
        hidden = jax.tree.map(
            lambda numbers: lambda: numbers,
            chosen,
            is_leaf=lambda node: isinstance(node, GaLoreDimensionNumbers),
        )
        what = "weight_dimension_numbers"
        parts = trees.flatten_like(owner, what, hidden, "the tree", tree)
        given = [None if part is None else part() for part in parts]
    return [
        None
        if numbers is None or not trees.is_parameter(leaf) or np.size(leaf) == 0
        else _layout(owner, numbers, tree, i)
        for i, (leaf, numbers) in enumerate(zip(leaves, given, strict=True))
    ]


def _layout(owner: str, numbers: Any, tree: Any, index: int) -> Layout:
    """The layout that dimension numbers stand for, if they fit the array."""
    leaf = trees.flatten(tree)[0][index]
    rank = np.ndim(leaf)

    def axes(given: Any) -> tuple[int, ...]:
        given = tuple(given) if isinstance(given, tuple | list) else (given,)
        if not all(isinstance(axis, int) and -rank <= axis < rank for axis in given):
            raise ValueError(axis_error)
        return tuple(axis % rank for axis in given)

    axis_error = (
        f"{owner}: weight_dimension_numbers does not fit the array at "
        f"'{trees.paths(tree)[index]}' of shape {np.shape(leaf)}, got {numbers!r}"
    )
    if not isinstance(numbers, GaLoreDimensionNumbers):
        raise ValueError(axis_error)
    rows, columns = axes(numbers.reduction_axis), axes(numbers.output_axis)
    if not rows or not columns or len({*rows, *columns}) < len(rows + columns):
        raise ValueError(axis_error)
    return Layout(tuple(a for a in range(rank) if a not in rows + columns), rows, columns)
