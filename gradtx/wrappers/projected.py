"""GaLore: an optimizer that works on the gradients of matrices in a subspace of low rank."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from optax import ScalarOrSchedule
from optax.contrib import GaLoreDimensionNumbers, GaLoreState

from gradtx import trees
from gradtx.arguments import ANY_NUMBER, COUNT, check, check_hyperparameter, check_static, evaluate
from gradtx.bounds import limited
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.explicit import gathered, laid_out_as
from gradtx.inputs import check_state
from gradtx.joined import Finish, Leaves, join
from gradtx.kernels.adam import scale_by_adam
from gradtx.kernels.matrices import (
    MatrixAxes,
    WeightDimensionNumbers,
    axes_by,
    check_numbers,
    is_dimension_numbers,
)
from gradtx.kernels.products import adjoint, product
from gradtx.leaves import Aligned, map_leaves
from gradtx.messages import shown
from gradtx.placement import full_beside, lengths, zeros_beside
from gradtx.stacks import with_values
from gradtx.stored import to_store
from gradtx.wrappers.steps import counted, is_collecting, is_step


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

    where G has no more rows than columns. A gradient with more rows is projected from the other
    side: P <- V[:, :rank], R = G P and u = scale * N P^T. So each of the base optimizer's moments
    holds rank * max(m, n) numbers. Leaves that are not matrices are passed to the base optimizer
    unchanged, and are not scaled.

    optax projects the longer side. A state of that kind is accepted, whatever `projected_side`
    says; to continue a run with optax, start it with "longer".

    Args:
        rank: the largest rank of the subspace, >= 1.
        update_proj_gap: the number of steps T from one choice of the subspace to the next, >= 1.
            The base optimizer's moments are kept, as in the paper. Gradients that a `MultiSteps`
            inside it collects are projected into the same subspace.
        scale: the factor of the updates of matrices; a number, a scalar array or a schedule.
        base_optimizer: the transformation in the subspace; None: `scale_by_adam()`. It gets no
            parameters, so weight decay belongs after it.
        weight_dimension_numbers: the axes of the matrices: a
            `GaLoreDimensionNumbers(reduction_axis, output_axis)` for all arrays of two axes or
            more, a tree of them with None for arrays that are not matrices, or a function of the
            parameters that returns one. The remaining axes count the matrices of a stack, each of
            which has its own subspace. None: all arrays of two axes, and no others.
        projected_side: "shorter" as in the paper, or "longer" as in optax. Projecting the longer
            side takes less memory for moments and P together.

    Returns:
        The transformation, with the state `GaLoreState(count, base_optimizer_state, projector)`.
        The projector of an array that is not projected has no elements.

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
    rank = check_static(owner, "rank", rank)
    update_proj_gap = check(owner, "update_proj_gap", update_proj_gap, COUNT)
    scale = check_hyperparameter(owner, "scale", scale, ANY_NUMBER)
    if projected_side not in (*_SIDES,):
        raise ValueError(
            f"{owner}: projected_side must be 'shorter' or 'longer', got {shown(projected_side)}"
        )
    check_numbers(owner, weight_dimension_numbers)
    base = scale_by_adam() if base_optimizer is None else base_optimizer
    base = as_transformation(owner, "base_optimizer", base)

    method = _GaLore(
        owner,
        base,
        rank,
        _SIDES[projected_side],
        weight_dimension_numbers,
        lambda count: count % update_proj_gap == 0,
        lambda count: evaluate(scale, count) if callable(scale) else jnp.asarray(scale),
    )
    return composed(
        owner,
        (Part("", base),),
        method.init,
        method.update,
        locality="leaf",
        state=GaLoreState,
        on_stacks=method.on_stacks,
        of_matrices=True,
        effect=Effect(degree=1, gain=True, states=("base_optimizer_state",), alters=True),
    )


@dataclass(frozen=True)
class _GaLore:
    """The steps of a base optimizer in subspaces.

    Attributes:
        owner: the function that the user called, which opens the messages.
        base: the optimizer.
        rank: the dimension of the subspaces.
        pick: from the two lengths of a matrix to that of the projected side.
        numbers: the axes of the matrices.
        is_due: from the count to whether subspaces are chosen again.
        factor: from the count to the scale of the updates.
    """

    owner: str
    base: optax.GradientTransformationExtraArgs
    rank: int
    pick: Callable[..., int]
    numbers: WeightDimensionNumbers | None
    is_due: Callable[[Any], jax.Array]
    factor: Callable[[Any], jax.Array]

    def init(self, params: Any) -> GaLoreState:
        """The state before the first step."""
        axes = _projected_axes(self.owner, self.numbers, params)
        start = functools.partial(_start, rank=self.rank, pick=self.pick)
        named = {"params": params, _AXES: axes}
        projectors, proxies = map_leaves(
            start, self.owner, named, same_shapes=False, rests=(_AXES, "params")
        )
        return GaLoreState(jnp.zeros([], jnp.int32), self.base.init(proxies), projectors)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        """One step."""
        known, old = updates if params is None else params, state.base_optimizer_state
        Aligned(self.owner, {"updates": updates, "params": known})
        axes = _projected_axes(self.owner, self.numbers, known)
        # Gradients that are added up must be in the same subspace.
        is_time = self.is_due(state.count) & ~is_collecting(old)
        entered, projectors = _entered(
            self.owner, updates, axes, state.projector, is_time, self.rank
        )
        new, base_state = self.base.update(entered, old, None, **extra)
        left = _left(self.owner, updates, axes, projectors, new, self.factor(state.count))
        count = counted(is_step(old, base_state, new), state.count)
        return left, GaLoreState(count, base_state, projectors)

    def on_stacks(self, leaves: Leaves, state: Any) -> Finish:
        """One step of leaves, some of them in stacks."""
        check_state(self.owner, state, GaLoreState._fields)
        leaves.take_steps()
        axes = _projected_axes(self.owner, self.numbers, leaves.shapes())
        low, projectors = _entered_stacks(
            self.owner, leaves, axes, state.projector, self.is_due(state.count), self.rank
        )
        finish = join(self.base.update, low, state.base_optimizer_state)
        low.take_steps()
        _leave_stacks(self.owner, leaves, low, axes, projectors, self.factor(state.count))
        count = optax.safe_increment(state.count)
        tree = leaves.treedef.unflatten(projectors)
        return lambda: GaLoreState(count, finish(), tree)


# How the projected side is chosen from the two lengths of a matrix.
_SIDES = {"shorter": min, "longer": max}
# The names of the trees in messages.
_AXES = "weight_dimension_numbers"
_PROJECTOR = "the state's projector"
_NEW = "the base optimizer's updates"


def _is_projected(gradient: Any, axes: MatrixAxes | None, *_: Any) -> bool:
    return trees.is_parameter(gradient) and axes is not None


def _start(
    leaf: Any, axes: MatrixAxes | None, *, rank: int, pick: Callable[..., int]
) -> tuple[jax.Array, jax.Array]:
    """The first projector of an array, and zeros like its gradient in the subspace."""
    dtype = trees.compute_dtype(jnp.result_type(leaf))
    if axes is None:
        return jnp.zeros((0, 0), dtype), zeros_beside(leaf)
    *stack, rows, columns = axes.shape_of_matrices(lengths(leaf))
    side = pick(rows, columns)
    projector = _projector_shape((*stack, rows, columns), side, rank)
    kept = projector[-1]
    proxy = (*stack, kept, columns) if side == rows else (*stack, rows, kept)
    return full_beside(leaf, projector, 0, dtype), full_beside(leaf, proxy, 0, dtype)


def _entered(
    owner: str, updates: Any, axes: Any, projectors: Any, is_time: jax.Array, rank: int
) -> tuple[Any, Any]:
    """The gradients in their subspaces, and the projectors."""
    named = {"updates": updates, _AXES: axes, _PROJECTOR: projectors}
    aligned = Aligned(owner, named, takes_part=_is_projected, same_shapes=False)
    new = []
    for i, g, own, projector in zip(aligned.active, *map(aligned.parts, named), strict=True):
        shape = own.shape_of_matrices(np.shape(g))
        expected = {_projector_shape(shape, side, rank) for side in shape[-2:]}
        if projector is None or np.shape(projector) not in expected:
            aligned.refuse(i, _PROJECTOR)
        new.append(_enter(jnp.asarray(g), projector, is_time, own))
    low_rank, chosen = zip(*new, strict=True) if new else ((), ())
    return aligned.tree_of(low_rank), aligned.tree_of(chosen, _PROJECTOR)


def _left(owner: str, updates: Any, axes: Any, projectors: Any, new: Any, factor: jax.Array) -> Any:
    """The updates of the arrays from those in the subspaces."""
    return map_leaves(
        lambda g, own, projector, u: _leave(u, projector, jnp.asarray(g), factor, own),
        owner,
        {"updates": updates, _AXES: axes, _PROJECTOR: projectors, _NEW: new},
        takes_part=_is_projected,
        same_shapes=False,
        rests=_NEW,
    )


def _entered_stacks(
    owner: str, leaves: Leaves, axes: Any, projectors: Any, is_time: jax.Array, rank: int
) -> tuple[Leaves, list[Any]]:
    """The leaves in their subspaces, and the projectors, some of them in stacks."""
    new = leaves.aligned(owner, _PROJECTOR, projectors)
    values = [leaf.value for leaf in leaves.leaves]
    for i, own in enumerate(leaves.aligned(owner, _AXES, axes)):
        leaf, old = leaves.leaves[i], new[i]
        if own is None or not trees.is_parameter(leaf.value):
            continue
        shape = own.shape_of_matrices(leaf.shape)
        expected = [leaf.stacked(_projector_shape(shape, side, rank)) for side in shape[-2:]]
        if np.shape(old) not in expected:
            leaves.check_slot(owner, i, "projector", old, expected[0])
        values[i], projector = leaf.call(_enter, (leaf.value, old), (is_time,), axes=own)
        new[i] = leaf.kept(old, projector)
    return with_values(leaves, values), new


def _leave_stacks(
    owner: str, leaves: Leaves, low: Leaves, axes: Any, projectors: list[Any], factor: jax.Array
) -> None:
    """Put the updates of the leaves, from those in the subspaces, in their place."""
    values = [leaf.value for leaf in low.leaves]
    for i, own in enumerate(leaves.aligned(owner, _AXES, axes)):
        leaf = leaves.leaves[i]
        if own is not None and trees.is_parameter(leaf.value):
            arrays = values[i], projectors[i], leaf.value
            values[i] = leaf.call(_leave, arrays, (factor,), axes=own)
    leaves.put(values)


def _projected_axes(owner: str, choice: WeightDimensionNumbers, tree: Any) -> Any:
    """For each leaf the axes of its matrices, or None if it is not projected."""
    if not jax.tree.leaves(tree):
        return tree  # optax passes a tree without leaves to find the structure of the state

    def numbers_of(path: Any, leaf: Any, own: Any) -> Any:
        if np.size(leaf) == 0 or (is_dimension_numbers(choice) and np.ndim(leaf) < 2):
            return None
        return GaLoreDimensionNumbers() if choice is None and np.ndim(leaf) == 2 else own

    return axes_by(owner, numbers_of, choice, tree)


def _projector_shape(shape: tuple[int, ...], side: int, rank: int) -> tuple[int, ...]:
    return (*shape[:-2], side, min(rank, *shape[-2:]))


def _is_left(matrices: jax.Array, projector: jax.Array) -> bool:
    """Whether the rows are projected, as they are for square matrices."""
    return projector.shape[-2] == matrices.shape[-2]


def _project(matrices: jax.Array, projector: jax.Array) -> jax.Array:
    projector = gathered(projector, (-2, -1))
    if _is_left(matrices, projector):
        return product(adjoint(projector), gathered(matrices, (-2,)))
    return product(gathered(matrices, (-1,)), projector)


def _subspace(matrices: jax.Array, projector: jax.Array) -> jax.Array:
    """As many leading singular vectors as the projector has."""
    left, _, right = jnp.linalg.svd(gathered(matrices), full_matrices=False)
    vectors = left if _is_left(matrices, projector) else adjoint(right)
    return laid_out_as(vectors[..., : projector.shape[-1]].astype(projector.dtype), projector)


@functools.partial(jax.jit, static_argnames="axes")
def _enter(
    gradient: jax.Array, projector: jax.Array, is_time: jax.Array, axes: MatrixAxes
) -> tuple[jax.Array, jax.Array]:
    """The gradient in the subspace, and the projector, which is chosen again when it is time."""
    matrices = axes.to_matrices(gradient.astype(trees.compute_dtype(gradient.dtype)))
    # In a unit in which neither singular values nor products overflow. A product that does not fit
    # into the dtype counts as the largest number that does.
    info = jnp.finfo(matrices.dtype)
    is_large = jnp.max(jnp.abs(matrices), initial=0) > 2.0 ** (info.maxexp - 58)
    shorter, longer = (
        jnp.where(is_large, 2.0**power, 1.0).astype(matrices.dtype) for power in (-40, 40)
    )
    matrices = matrices * shorter
    projector = lax.cond(is_time, lambda: _subspace(matrices, projector), lambda: projector)
    low_rank = _project(matrices, projector.astype(matrices.dtype))
    return limited(low_rank, float(info.max) / 2.0**40) * longer, projector


@functools.partial(jax.jit, static_argnames="axes")
def _leave(
    low_rank: jax.Array, projector: jax.Array, like: jax.Array, scale: jax.Array, axes: MatrixAxes
) -> jax.Array:
    """The update of the array, from that in the subspace."""
    projector = gathered(projector.astype(low_rank.dtype), (-2, -1))
    if projector.shape[-2] == axes.shape_of_matrices(like.shape)[-2]:
        matrices = product(projector, low_rank)
    else:
        matrices = product(low_rank, adjoint(projector))
    scaled = scale.astype(matrices.dtype) * matrices
    return laid_out_as(to_store(axes.from_matrices(scaled, like.shape), like.dtype), like)
