"""Matrix methods whose matrices take their steps on different devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from gradtx import trees
from gradtx.compose.parts import parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.lift import kernel_of
from gradtx.select import Specification
from gradtx.select import select as selection
from gradtx.sharding._axes import checked_axes
from gradtx.spread import Spread, SpreadStack
from gradtx.stacks import Group, Row, Stack
from gradtx.wrappers.grouped import Grouping, all_leaves, check_preserved, hidden

_OWNER = "distributed"


def distributed(
    tx: optax.GradientTransformation,
    mesh: Mesh,
    axis: str | Sequence[str] = "data",
    *,
    select: Specification | None = None,
    elementwise: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Let each device of a mesh take the steps of whole matrices, a share of them each.

    The steps of Muon, NorMuon, Shampoo, SOAP and GaLore multiply and factor matrices. If a matrix
    is sharded, each of these products needs the other devices; if it is replicated, all devices do
    the same work. Here matrices of one shape are put together in a stack, which is sharded along
    its first axis: the gradients of a stack travel to the devices of their matrices in one
    exchange, and so do the parameters where a step reads them, an all-to-all if they are sharded
    and none if they are replicated; the updates, or with `gradtx.update_and_apply` the new
    parameters, come back in one, an all-to-all or an all-gather. Arrays that are sharded along
    several axes of a mesh may take more.
    The state stays where the matrices take their steps, in stacks, so that each device has a share
    of it.

    The numbers are those of `tx`. Vectors and whatever else no matrix method sees stay as they are,
    also with regard to their layout. The number of matrices of a shape is rounded up to a multiple
    of the number of devices, which costs no time, but memory where there are few matrices.

    Updates come back in the layouts of the parameters, or of the gradients where no step reads the
    parameters. Inside of `jax.shard_map` each device takes all steps.

    `tx` may be what `gradtx.grouped` takes. Other wrappers go around `distributed`.

    On another number of devices stacks have other padding: `gradtx.migrate` carries a state over,
    and `gradtx.training.Checkpoints` restores that of a `TrainState` there.

    Args:
        tx: the transformation.
        mesh: the mesh on which parameters and gradients are.
        axis: the name of the axis of the mesh over which stacks are spread, or several.
        select: which matrices are distributed: what `gradtx.select` takes; None: all.
        elementwise: whether each element's update depends on that element alone in transformations
            that are not made by this library, such as optax's, which cannot be asked. Without it
            they are refused.

    Returns:
        A transformation with the state `GroupedState(inner_state, places)`. `gradtx.migrate`
        carries states over to it and from it.

    Raises:
        ValueError: if `axis` names no axis of the mesh, or `tx` contains a transformation whose
            numbers stacks would not preserve; in `update`, if the state has other stacks than the
            parameters.

    Source:
        Liu et al. 2025, "Muon is scalable for LLM training", Algorithm 1, and Anil et al. 2020,
        "Scalable second order optimization for deep learning", section 5, who distribute matrices
        among devices in other ways.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.sharding import distributed
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> tx = distributed(gradtx.muon(0.1), mesh)
        >>> params = {"kernel": jnp.diag(jnp.array([3.0, 300.0])), "bias": jnp.ones(2)}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> print(updates["kernel"].round(1) + 0.0)
        [[-0.1  0. ]
         [ 0.  -0.1]]
    """
    inner = as_transformation(_OWNER, "tx", tx)
    check_preserved(_OWNER, inner, elementwise)
    axes = checked_axes(_OWNER, mesh, axis)
    chosen = all_leaves if select is None else selection(select)
    return _Distribution(_OWNER, inner, chosen, Spread(mesh, axes)).transformation()


@dataclass(frozen=True)
class _Distribution(Grouping):
    """One group for all matrices of a type.

    Attributes:
        spread: the devices.
    """

    spread: Spread

    def may_be_in_groups(self, tree: Any) -> list[bool]:
        reached = _seen_by_matrix_methods(self.inner, tree)
        return [chosen and i in reached for i, chosen in enumerate(super().may_be_in_groups(tree))]

    def divided(self, places: list[int]) -> list[Group]:
        number = self.spread.number
        return [Group(tuple(places), -(-len(places) // number) * number)]

    def is_fit(self, leaf: Any) -> bool:
        # There is nothing to do for an empty one, which JAX cannot spread.
        return len(leaf.shape) > 1 and 0 not in leaf.shape

    def placed(self, stack: jax.Array) -> jax.Array:
        return self.spread.placed(stack)

    def stack(self, rows: Sequence[Row], size: int, shape: tuple[int, ...]) -> Stack:
        return SpreadStack(self.spread, rows, size, shape)


def _seen_by_matrix_methods(tx: optax.GradientTransformation, tree: Any) -> set[int]:
    """The numbers of the leaves of a tree that a matrix method gets to see."""
    leaves, treedef = trees.flatten(tree)
    numbers = treedef.unflatten(None if x is None else i for i, x in enumerate(leaves))

    def seen(tx: Any, tree: Any, numbers: Any) -> set[int]:
        kernel = kernel_of(tx)
        if kernel is not None:
            return {*jax.tree.leaves(numbers)} if kernel.stacked else set()
        if getattr(tx.update, "of_matrices", False):
            return {*jax.tree.leaves(numbers)}
        reached: set[int] = set()
        for part in parts_of(tx):
            given = tree, numbers
            if part.choose is not None:
                flags = part.choose(tree)
                given = hidden(tree, flags), hidden(numbers, flags)
            reached |= seen(part.transformation, *given)
        return reached

    return seen(tx, tree, numbers)
