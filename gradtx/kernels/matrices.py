"""Which axes of an array make up its matrices, and a layout that puts them last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import GaLoreDimensionNumbers, MuonDimensionNumbers

from gradtx import trees
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import LINEAR_WITHOUT_STATE
from gradtx.explicit import gathered, laid_out_as
from gradtx.joined import Finish, Leaves, join
from gradtx.leaves import Aligned, map_leaves
from gradtx.messages import shown
from gradtx.select import is_function_of_tree

DimensionNumbers: TypeAlias = MuonDimensionNumbers | GaLoreDimensionNumbers
WeightDimensionNumbers: TypeAlias = DimensionNumbers | Any | Callable[[Any], Any]


@dataclass(frozen=True)
class MatrixAxes:
    """How an array is made up of a stack of matrices.

    Attributes:
        stack: the axes that count the matrices.
        rows: the axes that together are a matrix's rows.
        columns: the axes that together are its columns.
    """

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def are_last(self) -> bool:
        """Whether the array is the stack of matrices that it is made up of."""
        order = self.stack + self.rows + self.columns
        return order == tuple(range(len(order))) and len(self.rows) == len(self.columns) == 1

    def shape_of_matrices(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stack of matrices of an array of this shape."""
        # The product of one length would not know its axis, see `gradtx.placement`.
        sides = [
            shape[axes[0]] if len(axes) == 1 else math.prod(shape[axis] for axis in axes)
            for axes in (self.rows, self.columns)
        ]
        return (*(shape[axis] for axis in self.stack), *sides)

    def to_matrices(self, x: jax.Array) -> jax.Array:
        """The array as a stack of matrices, in the last two axes."""
        order = self.stack + self.rows + self.columns
        merged = [axis for axes in (self.rows, self.columns) if len(axes) > 1 for axis in axes]
        x = gathered(x, merged)
        return x.transpose(order).reshape(self.shape_of_matrices(x.shape))

    def from_matrices(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The array of this shape from what `to_matrices` made of it."""
        order = self.stack + self.rows + self.columns
        return matrices.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def named_axes(owner: str, numbers: DimensionNumbers, path: Any, leaf: Any) -> MatrixAxes:
    """The axes that dimension numbers name.

    Args:
        owner: name of the caller, which opens error messages.
        numbers: the axes of the rows, which are the inputs, and those of the columns.
        path: where the array lies in its tree.
        leaf: the array.

    Raises:
        ValueError: if the array does not have these axes, or one is named twice, or none.
    """
    rank = np.ndim(leaf)
    rows, columns = (
        tuple(axes) if isinstance(axes, Sequence) else (axes,)
        for axes in (numbers.reduction_axis, numbers.output_axis)
    )
    fit = [axis % rank for axis in rows + columns if axis in range(-rank, rank)]
    if not (rows and columns) or len({*fit}) < len(rows + columns):
        raise ValueError(
            f"{owner}: weight_dimension_numbers must name different axes of '"
            f"{trees.path_name(path)}' of shape {np.shape(leaf)}, got {numbers}"
        )
    return MatrixAxes(
        tuple(axis for axis in range(rank) if axis not in fit),
        tuple(fit[: len(rows)]),
        tuple(fit[len(rows) :]),
    )


def as_matrices(
    inner: optax.GradientTransformation,
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Apply a transformation to each array as a batch of matrices in the last two axes.

    An attention kernel of shape (width, heads, size) whose heads are separate matrices, with
    reduction axis 0 and output axis 2, is seen with the shape (heads, width, size). With the output
    axes (1, 2) it is one matrix, seen with the shape (width, heads * size).

    Args:
        inner: the transformation of the matrices.
        weight_dimension_numbers: `MuonDimensionNumbers`, a tree of them or a prefix of one, or a
            function of the parameters that returns it; None, also in place of a leaf: the last two
            axes, which leaves the array as it is.

    Returns:
        A transformation whose state is that of `inner`, in the layout of the matrices.

    Raises:
        ValueError: if `inner` is not a transformation; in `init` and `update`, if an array has
            fewer than two axes, or lacks those that its dimension numbers name.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.kernels.matrices import as_matrices
        >>> tx = as_matrices(gradtx.trace(0.9), gradtx.MuonDimensionNumbers(0, 2))
        >>> print(tx.init(jnp.ones((16, 4, 8))).trace.shape)
        (4, 16, 8)
    """
    owner = "as_matrices"
    inner = as_transformation(owner, "inner", inner)
    check_numbers(owner, weight_dimension_numbers)

    def seen(tree: Any, axes: Any) -> Any:
        named = {"the axes": axes, "the arrays": tree}
        return map_leaves(
            _matrices, owner, named, takes_part=has_axes, same_shapes=False, rests="the arrays"
        )

    def init(params: Any) -> Any:
        return inner.init(seen(params, matrix_axes(owner, weight_dimension_numbers, params)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        axes = matrix_axes(owner, weight_dimension_numbers, updates)
        matrices = None
        if params is not None:
            Aligned(owner, {"updates": updates, "params": params})
            matrices = seen(params, axes)
        new, state = inner.update(seen(updates, axes), state, matrices, **extra)
        return map_leaves(
            lambda own, leaf, result: laid_out_as(own.from_matrices(result, np.shape(leaf)), leaf),
            owner,
            {"the axes": axes, "updates": updates, "the new updates": new},
            takes_part=has_axes,
            same_shapes=False,
            rests="the new updates",
        ), state

    def on_stacks(leaves: Leaves, state: Any) -> Finish:
        axes = matrix_axes(owner, weight_dimension_numbers, leaves.shapes())
        for i, own in enumerate(leaves.aligned(owner, "the axes", axes)):
            if own is not None and not own.are_last:
                raise ValueError(
                    f"{owner}: the matrices of '{leaves.path(i)}' are not in its last two axes, "
                    f"where {leaves.stacked_by} keeps them; leave it to a transformation outside "
                    f"of {leaves.stacked_by}"
                )
        return join(inner.update, leaves, state)

    parts = (Part("", inner),)
    return composed(owner, parts, init, update, effect=LINEAR_WITHOUT_STATE, on_stacks=on_stacks)


def has_axes(own: MatrixAxes | None, *_: Any) -> bool:
    """Whether a leaf of a tree of axes has any."""
    return own is not None


def _matrices(axes: MatrixAxes, leaf: Any) -> Any:
    """The matrices of an array, or their shape and dtype from those of the array."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(axes.to_matrices, leaf)
    return axes.to_matrices(jnp.asarray(leaf))


def matrix_axes(owner: str, numbers: WeightDimensionNumbers, tree: Any) -> Any:
    """For each array of a tree the axes of its matrices; None for anything else.

    Args:
        owner: name of the caller, which opens error messages.
        numbers: `MuonDimensionNumbers`, a tree of them or a prefix of one, or a function of the
            tree that returns it; None, also in place of a leaf: the last two axes.
        tree: the gradients or parameters.

    Raises:
        ValueError: if an array has fewer than two axes, or lacks those that its dimension numbers
            name.
    """

    def numbers_of(path: Any, leaf: Any, own: Any) -> Any:
        if np.ndim(leaf) < 2:
            raise ValueError(
                f"{owner}: '{trees.path_name(path)}' of shape {np.shape(leaf)} is not a matrix; "
                "leave it to another transformation"
            )
        return own or MuonDimensionNumbers(-2, -1)

    return axes_by(owner, numbers_of, numbers, tree)


def axes_by(
    owner: str, numbers_of: Callable[..., Any], numbers: WeightDimensionNumbers, tree: Any
) -> Any:
    """For each array of a tree the axes of its matrices, or None.

    Args:
        owner: name of the caller, which opens error messages.
        numbers_of: function of (path, array, the numbers given for it or None) that returns its
            dimension numbers, or None.
        numbers: the numbers that are given, as in `matrix_axes`.
        tree: the gradients or parameters.
    """

    def axes_of(path: Any, leaf: Any, own: Any) -> MatrixAxes | None:
        chosen = numbers_of(path, leaf, own) if trees.is_parameter(leaf) else None
        return None if chosen is None else named_axes(owner, chosen, path, leaf)

    return jax.tree_util.tree_map_with_path(axes_of, tree, spread_numbers(owner, numbers, tree))


_ARGUMENT = "weight_dimension_numbers"


def check_numbers(owner: str, numbers: Any, argument: str = _ARGUMENT) -> None:
    """Refuse what are no dimension numbers for any tree; those of a function are not known yet.

    Raises:
        ValueError: if there is something else in them.
    """
    leaves = () if is_function_of_tree(numbers) else jax.tree.leaves(numbers, is_leaf=_is_own)
    for own in leaves:
        if not _is_own(own):
            raise ValueError(f"{_expected(owner, argument)}, got {shown(own)}")


def spread_numbers(
    owner: str, numbers: WeightDimensionNumbers, tree: Any, argument: str = _ARGUMENT
) -> Any:
    """The dimension numbers, or None, of each leaf of a tree.

    Raises:
        ValueError: if they are not a prefix of the tree.
    """
    given: Any = numbers
    if is_function_of_tree(given):
        given = given(tree)
    check_numbers(owner, given, argument)
    try:
        return jax.tree.map(
            lambda own, part: jax.tree.map(lambda _: own, part), given, tree, is_leaf=_is_own
        )
    except (ValueError, TypeError, KeyError) as mismatch:
        named = jax.tree.map(str, given, is_leaf=_is_own)
        difference = trees.describe_difference("the tree", tree, argument, named, subtrees=True)
        raise ValueError(f"{_expected(owner, argument)}: {difference}") from mismatch


def _expected(owner: str, argument: str) -> str:
    return (
        f"{owner}: {argument} must be dimension numbers, None, or a tree of them that is a prefix "
        "of the parameters"
    )


def _is_own(node: Any) -> bool:
    return node is None or is_dimension_numbers(node)


def is_dimension_numbers(node: Any) -> bool:
    """Whether a node is the dimension numbers of Muon or GaLore."""
    return isinstance(node, MuonDimensionNumbers | GaLoreDimensionNumbers)
