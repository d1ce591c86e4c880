"""GaLore: an optimizer that sees the gradients of matrices in a subspace of low rank."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from optax import ScalarOrSchedule
from optax.contrib import GaLoreDimensionNumbers, GaLoreState

from gradtx import trees
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.kernel import ANY_NUMBER, COUNT, check, check_hyperparameter
from gradtx.kernels.adam import scale_by_adam
from gradtx.kernels.matrices import (
    MatrixAxes,
    WeightDimensionNumbers,
    is_dimension_numbers,
    named_axes,
    spread_numbers,
)
from gradtx.kernels.products import adjoint, product
from gradtx.lift import evaluate
from gradtx.messages import shown
from gradtx.wrappers.steps import is_collecting, is_step


def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: ScalarOrSchedule = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
    *,
    projected_side: Literal["shorter", "longer"] = "shorter",
) -> optax.GradientTransformationExtraArgs:
    """Transform the gradients of matrices in a subspace of low rank.

        G = U S V^T,    P <- U[:, :rank]       in the steps 1, 1 + T, 1 + 2T, ...
        R = P^T G,    N = base_optimizer(R),    u = scale * P N

    This is for a matrix G of no more rows than columns; that of a matrix with more rows is
    projected from the other side, P <- V[:, :rank], R = G P and u = scale * N P^T. So the base
    optimizer's state holds rank * max(m, n) numbers for each of its moments. Leaves that are not
    matrices go to the base optimizer as they are, and are not scaled.

    optax projects the longer side. A state of that kind is taken as it is, whatever
    `projected_side` says; to hand a run over to optax, start it with "longer".

    Args:
        rank: the largest rank of the subspace, >= 1.
        update_proj_gap: T, after how many steps it is chosen again, >= 1. The base optimizer's
            moments are kept, as in the paper. Gradients that a `MultiSteps` in it collects are
            projected into one subspace, that of the first.
        scale: what the updates of matrices are multiplied by; a number, a scalar array or a
            schedule.
        base_optimizer: the transformation of R. It gets no parameters, so that weight decay has
            its place after. None: `scale_by_adam()`.
        weight_dimension_numbers: which axes of an array are the rows and the columns of matrices,
            as a `GaLoreDimensionNumbers(reduction_axis, output_axis)` for all arrays of 2 axes or
            more, a tree of them with None for arrays that are no matrices, or a function of the
            parameters that returns one. Axes that it leaves out count the matrices of a stack,
            each of which has its own subspace. None: all arrays of 2 axes, and no others.
        projected_side: "shorter" as in the paper, or "longer" as in optax: of all numbers,
            moments and P together, the longer side needs fewer.

    Returns:
        The transformation, with the state `GaLoreState(count, base_optimizer_state, projector)`.
        Where an array is not projected its projector has no elements.

    Raises:
        ValueError: if an argument lies outside its range, or `base_optimizer` is not a
            transformation; in `init` and `update`, if the dimension numbers do not fit an array.

    Source:
        Zhao et al. 2024, "GaLore: memory-efficient LLM training by gradient low-rank projection",
        Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_galore(rank=1, base_optimizer=gradtx.identity())
        >>> gradient = jnp.diag(jnp.array([3.0, 2.0]))
        >>> updates, state = tx.update(gradient, tx.init(gradient))
        >>> print(updates)
        [[3. 0.]
         [0. 0.]]
    """
    owner = "scale_by_galore"
    if not isinstance(rank, int):
        raise ValueError(f"{owner}: rank must be an int, got {shown(rank)}")
    rank = check(owner, "rank", rank, COUNT)
    update_proj_gap = check(owner, "update_proj_gap", update_proj_gap, COUNT)
    scale = check_hyperparameter(owner, "scale", scale, ANY_NUMBER)
    if projected_side not in ("shorter", "longer"):
        raise ValueError(
            f"{owner}: projected_side must be 'shorter' or 'longer', got {shown(projected_side)}"
        )
    base = scale_by_adam() if base_optimizer is None else base_optimizer
    base = as_transformation(owner, "base_optimizer", base)

    def init(params: Any) -> GaLoreState:
        leaves, treedef = trees.flatten(params)
        axes_of_leaves = _projected_axes(owner, weight_dimension_numbers, params)
        projectors, proxies = list(leaves), list(leaves)
        for i, (leaf, axes) in enumerate(zip(leaves, axes_of_leaves, strict=True)):
            if not trees.is_parameter(leaf):
                projectors[i] = None
                continue
            dtype = trees.compute_dtype(jnp.result_type(leaf))
            if axes is None:
                projectors[i], proxies[i] = jnp.zeros((0, 0), dtype), jnp.zeros_like(leaf)
                continue
            shape = axes.shape_of_matrices(np.shape(leaf))
            side = min(shape[-2:]) if projected_side == "shorter" else max(shape[-2:])
            projectors[i] = jnp.zeros(_projector_shape(shape, side, rank), dtype)
            proxies[i] = jax.tree.map(
                lambda like: jnp.zeros(like.shape, like.dtype),
                jax.eval_shape(_project, jax.ShapeDtypeStruct(shape, dtype), projectors[i]),
            )
        base_state = base.init(treedef.unflatten(proxies))
        return GaLoreState(jnp.zeros([], jnp.int32), base_state, treedef.unflatten(projectors))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        gradients, treedef = trees.flatten(updates)
        projectors = trees.flatten_like(
            owner, "the state's projector", state.projector, "updates", updates
        )
        known = updates if params is None else params
        parameters = trees.flatten_like(owner, "params", known, "updates", updates)
        axes_of_leaves = _projected_axes(owner, weight_dimension_numbers, known)
        projected: list[tuple[int, MatrixAxes]] = []
        for i, (gradient, axes) in enumerate(zip(gradients, axes_of_leaves, strict=True)):
            if not trees.is_parameter(gradient):
                continue
            if np.shape(parameters[i]) != np.shape(gradient):
                trees.refuse_shape(owner, "updates", updates, i, "params", parameters[i])
            if axes is not None:
                _check_projector(owner, updates, i, axes, rank, projectors[i])
                projected.append((i, axes))
        # Gradients that are added up must lie in one subspace.
        is_time = (state.count % update_proj_gap == 0) & ~is_collecting(state.base_optimizer_state)
        low_rank = list(gradients)
        for i, axes in projected:
            low_rank[i], projectors[i] = _enter(
                jnp.asarray(gradients[i]), projectors[i], is_time, axes
            )
        new, base_state = base.update(
            treedef.unflatten(low_rank), state.base_optimizer_state, None, **extra
        )
        results = trees.flatten_like(owner, "the base optimizer's updates", new, "updates", updates)
        factor = jnp.asarray(evaluate(scale, state.count) if callable(scale) else scale)
        for i, axes in projected:
            like = jnp.asarray(gradients[i])
            results[i] = _leave(results[i], projectors[i], factor, like, axes)
        step = is_step(state.base_optimizer_state, base_state, new)
        count = jnp.asarray(optax.safe_increment(state.count))
        count = count if step is None else jnp.where(step, count, state.count)
        new_state = GaLoreState(count, base_state, treedef.unflatten(projectors))
        return treedef.unflatten(results), new_state

    return composed(owner, (Part("", base),), init, update, locality="leaf", state=GaLoreState)


def _projected_axes(owner: str, choice: WeightDimensionNumbers, tree: Any) -> list[Any]:
    """For each leaf the axes of its matrices, or None if it is not projected."""
    if not trees.flatten(tree)[0]:
        return []  # optax passes a tree without leaves to learn the structure of the state
    numbers: Any = choice
    if choice is None:
        numbers = jax.tree.map(
            lambda leaf: GaLoreDimensionNumbers() if np.ndim(leaf) == 2 else None, tree
        )
    elif is_dimension_numbers(choice):
        numbers = jax.tree.map(lambda leaf: choice if np.ndim(leaf) >= 2 else None, tree)

    def axes_of(path: Any, leaf: Any, own: Any) -> MatrixAxes | None:
        if own is None or not trees.is_parameter(leaf) or np.size(leaf) == 0:
            return None
        return named_axes(owner, own, path, leaf)

    given = spread_numbers(owner, numbers, tree)
    chosen = jax.tree_util.tree_map_with_path(axes_of, tree, given)
    return trees.flatten_like(owner, "weight_dimension_numbers", chosen, "the tree", tree)


def _projector_shape(shape: tuple[int, ...], side: int, rank: int) -> tuple[int, ...]:
    return (*shape[:-2], side, min(rank, *shape[-2:]))


def _check_projector(
    owner: str, updates: Any, index: int, axes: MatrixAxes, rank: int, projector: Any
) -> None:
    shape = axes.shape_of_matrices(np.shape(trees.flatten(updates)[0][index]))
    expected = {_projector_shape(shape, side, rank) for side in shape[-2:]}
    if projector is None or np.shape(projector) not in expected:
        trees.refuse_shape(owner, "updates", updates, index, "the state's projector", projector)


def _is_left(matrices: jax.Array, projector: jax.Array) -> bool:
    """Whether the rows are projected; of square matrices it is always they."""
    return projector.shape[-2] == matrices.shape[-2]


def _project(matrices: jax.Array, projector: jax.Array) -> jax.Array:
    if _is_left(matrices, projector):
        return product(adjoint(projector), matrices)
    return product(matrices, projector)


def _subspace(matrices: jax.Array, projector: jax.Array) -> jax.Array:
    """The leading singular vectors, as many as the projector has."""
    left, _, right = jnp.linalg.svd(matrices, full_matrices=False)
    vectors = left if _is_left(matrices, projector) else adjoint(right)
    return vectors[..., : projector.shape[-1]].astype(projector.dtype)


@functools.partial(jax.jit, static_argnames="axes")
def _enter(
    gradient: jax.Array, projector: jax.Array, is_time: jax.Array, axes: MatrixAxes
) -> tuple[jax.Array, jax.Array]:
    """The gradient in the subspace, and the projector, which is chosen anew when it is time."""
    matrices = axes.to_matrices(gradient.astype(trees.compute_dtype(gradient.dtype)))
    projector = lax.cond(is_time, lambda: _subspace(matrices, projector), lambda: projector)
    return _project(matrices, projector.astype(matrices.dtype)), projector


@functools.partial(jax.jit, static_argnames="axes")
def _leave(
    low_rank: jax.Array, projector: jax.Array, scale: jax.Array, like: jax.Array, axes: MatrixAxes
) -> jax.Array:
    """The update of the array from that in the subspace."""
    projector = projector.astype(low_rank.dtype)
    shape = axes.shape_of_matrices(like.shape)
    if projector.shape[-2] == shape[-2]:
        matrices = product(projector, low_rank)
    else:
        matrices = product(low_rank, adjoint(projector))
    scaled = scale.astype(matrices.dtype) * matrices
    return axes.from_matrices(scaled, like.shape).astype(like.dtype)
