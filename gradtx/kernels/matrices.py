"""Which axes of an array make up its matrices, and a layout that puts them last."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from gradtx import trees
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.select import is_function_of_tree

WeightDimensionNumbers: TypeAlias = MuonDimensionNumbers | Any | Callable[[Any], Any]
MatrixAxes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def as_matrices(
    inner: optax.GradientTransformation,
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Let a transformation see each array as a batch of matrices in the last two axes.

    An attention kernel of shape (width, heads, size) whose heads are matrices of their own, with
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
        ValueError: if `inner` is not a transformation; in `init` and `update`, if an array has no
            two axes or not those that its dimension numbers name.

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

    def seen(tree: Any, axes: list[MatrixAxes | None], what: str, updates: Any) -> Any:
        leaves = trees.flatten_like(owner, what, tree, "updates", updates)
        given, treedef = trees.flatten(updates)
        for i, (leaf, update) in enumerate(zip(leaves, given, strict=True)):
            if axes[i] is not None and np.shape(leaf) != np.shape(update):
                trees.refuse_shape(owner, "updates", updates, i, what, leaf)
        return treedef.unflatten(
            leaf if own is None else to_matrices(jnp.asarray(leaf), own)
            for leaf, own in zip(leaves, axes, strict=True)
        )

    def axes_of_leaves(known: Any, updates: Any) -> list[MatrixAxes | None]:
        chosen = matrix_axes(owner, weight_dimension_numbers, known)
        return trees.flatten_like(owner, "params", chosen, "updates", updates, subtrees=True)

    def init(params: Any) -> Any:
        return inner.init(seen(params, axes_of_leaves(params, params), "params", params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        axes = axes_of_leaves(updates, updates)
        matrices = None if params is None else seen(params, axes, "params", updates)
        new, state = inner.update(seen(updates, axes, "updates", updates), state, matrices, **extra)
        leaves, treedef = trees.flatten(updates)
        results = trees.flatten_like(owner, "the new updates", new, "updates", updates)
        return treedef.unflatten(
            result if own is None else from_matrices(result, np.shape(leaf), own)
            for result, leaf, own in zip(results, leaves, axes, strict=True)
        ), state

    return composed(owner, (Part("", inner),), init, update)


def matrix_axes(owner: str, numbers: WeightDimensionNumbers, tree: Any) -> Any:
    """For each array of a tree its reduction axes and its output axes; None of what is no array.

    Args:
        owner: name of the transformation, which opens the message.
        numbers: `MuonDimensionNumbers`, a tree of them or a prefix of one, or a function of the
            tree that returns it; None, also in place of a leaf: the last two axes.
        tree: the gradients or parameters.

    Raises:
        ValueError: if an array has no two axes, or not those that its dimension numbers name.
    """

    def axes_of(path: Any, leaf: Any, own: Any) -> MatrixAxes | None:
        if not trees.is_parameter(leaf):
            return None
        rank = np.ndim(leaf)
        place = f"{owner}: '{trees.path_name(path)}' of shape {np.shape(leaf)}"
        if rank < 2:
            raise ValueError(f"{place} is no matrix; leave it to another transformation")
        own = own or MuonDimensionNumbers(rank - 2, rank - 1)
        reduction, output = (
            (axes,) if isinstance(axes, int) else tuple(axes)
            for axes in (own.reduction_axis, own.output_axis)
        )
        named = [axis % rank for axis in (*reduction, *output) if -rank <= axis < rank]
        if not (reduction and output) or len({*named}) < len(reduction) + len(output):
            raise ValueError(f"{place} does not have the different axes of {own}")
        return tuple(named[: len(reduction)]), tuple(named[len(reduction) :])

    return jax.tree_util.tree_map_with_path(axes_of, tree, spread_numbers(owner, numbers, tree))


def spread_numbers(owner: str, numbers: WeightDimensionNumbers, tree: Any) -> Any:
    """The dimension numbers, or None, of each leaf of a tree.

    Raises:
        ValueError: if they are no prefix of the tree.
    """
    given: Any = numbers
    if is_function_of_tree(given):
        given = given(tree)

    def spread(own: Any, part: Any) -> Any:
        if own is not None and not isinstance(own, MuonDimensionNumbers):
            raise TypeError(f"got {own!r}")
        return jax.tree.map(lambda _: own, part)

    try:
        return jax.tree.map(
            spread, given, tree, is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers)
        )
    except (ValueError, TypeError, KeyError) as mismatch:
        raise ValueError(
            f"{owner}: the dimension numbers must be MuonDimensionNumbers, None, or a tree of them "
            f"that is a prefix of the parameters: {mismatch}"
        ) from mismatch


def to_matrices(x: jax.Array, axes: MatrixAxes) -> jax.Array:
    """Reduction axes and output axes as the last two axes, after the other ones."""
    batch, reduction, output = _sizes(x.shape, axes)
    order = [*_batch_axes(x.ndim, axes), *axes[0], *axes[1]]
    return x.transpose(order).reshape(*batch, math.prod(reduction), math.prod(output))


def from_matrices(matrices: jax.Array, shape: tuple[int, ...], axes: MatrixAxes) -> jax.Array:
    """The array of this shape whose `to_matrices` these are."""
    batch, reduction, output = _sizes(shape, axes)
    order = [*_batch_axes(len(shape), axes), *axes[0], *axes[1]]
    return matrices.reshape(*batch, *reduction, *output).transpose(np.argsort(order))


def _batch_axes(rank: int, axes: MatrixAxes) -> list[int]:
    return [axis for axis in range(rank) if axis not in axes[0] + axes[1]]


def _sizes(shape: tuple[int, ...], axes: MatrixAxes) -> list[list[int]]:
    groups = (_batch_axes(len(shape), axes), *axes)
    return [[shape[axis] for axis in group] for group in groups]
