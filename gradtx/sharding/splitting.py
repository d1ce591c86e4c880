"""ZeRO: each device of the data axis keeps and updates a part of every array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

from gradtx import trees
from gradtx.compose.parts import Composed, Part, locality_of, owner_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.effect import IN_SERIES
from gradtx.inputs import trained
from gradtx.inspection.shardings import state_shardings
from gradtx.joined import Finish, Leaves, join
from gradtx.lift import kernel_of
from gradtx.messages import shown
from gradtx.placement import following
from gradtx.sharding._axes import checked_axes
from gradtx.sharding._shares import FREE, OWNER, Share, Split
from gradtx.waiting import Leaf


def zero(
    tx: optax.GradientTransformation,
    mesh: Mesh,
    axis: str | Sequence[str] = "data",
    *,
    stage: int = 1,
    shardings: Any = None,
    elementwise: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Split the optimizer's state and work over the devices that have the same parameters.

    Where a model is trained with data parallelism, all devices have all parameters, and without
    `zero` each of them keeps the whole state and does the whole update. Here each keeps and updates
    a part of every array, along its longest axis that the number of devices divides; the new
    parameters are gathered. Arrays without such an axis stay as they are. The numbers are those of
    `tx`.

    Under `jax.jit`, eagerly and on explicit meshes, the gradients are those of the whole batch, and
    norms are those of the whole tree. The compiler takes only the part of the sum over devices that
    each of them needs where it can (a reduce-scatter), so that both stages are the same.

    Inside of `jax.shard_map` over `axis`, parameters and gradients are whole arrays and the state
    is the device's part. In stage 1 gradients are the same on all devices, after `jax.lax.pmean`.
    In stage 2 they are those of each device's own part of the batch, and are averaged here, each
    device receiving its part (`jax.lax.psum_scatter`). Only elementwise transformations work there:
    a norm would be that of the part.

    `tx` may be any transformation. Matrix methods need whole matrices: put
    `gradtx.sharding.distributed` around them.

    Args:
        tx: the transformation.
        mesh: the mesh on which the parameters are.
        axis: the name of the axis of the mesh over which the data are split, or several.
        stage: 1, or 2 to average gradients inside of `jax.shard_map`.
        shardings: the layouts of the parameters, a tree of `NamedSharding`. Give them where
            parameters are sharded on a mesh whose axes are automatic: tracing does not show how, so
            that without them the parameters are moved to other layouts and back in each step. None:
            parameters are replicated, or types or arrays tell.
        elementwise: whether each element's update depends on that element alone in transformations
            that are not made by this library, such as optax's, which cannot be asked. Without it
            they are refused inside of `jax.shard_map`.

    Returns:
        A transformation with the state of `tx`.

    Raises:
        ValueError: if `axis` names no axis of the mesh, or `stage` is neither 1 nor 2; in `update`,
            inside of `jax.shard_map`, if `tx` is not elementwise.

    Source:
        Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter
        models", section 5.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.sharding import zero
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> tx = zero(gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(0.5)), mesh)
        >>> params = jax.device_put({"w": jnp.ones((8, 2))}, jax.NamedSharding(mesh, jax.P()))
        >>> state = tx.init(params)
        >>> params, state = jax.jit(gradtx.update_and_apply, static_argnums=0)(
        ...     tx, params, state, params
        ... )
        >>> print(params["w"][0], params["w"].sharding.is_fully_replicated)
        [0.5 0.5] True
    """
    inner = as_transformation(OWNER, "tx", tx)
    axes = checked_axes(OWNER, mesh, axis)
    if isinstance(stage, bool) or stage not in (1, 2):
        raise ValueError(f"{OWNER}: stage must be 1 or 2, got {shown(stage)}")
    split = Split(mesh, axes, int(stage))
    return _Zero(inner, split, shardings, elementwise).transformation()


@dataclass(frozen=True)
class _Zero:
    """A transformation whose arrays are split.

    Attributes:
        inner: the transformation.
        split: over which devices.
        shardings: the layouts of the parameters, if the user gave them.
        elementwise: whether transformations of other libraries are elementwise.
    """

    inner: optax.GradientTransformationExtraArgs
    split: Split
    shardings: Any
    elementwise: bool

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The whole."""
        update = _Update(
            OWNER,
            (Part("", self.inner),),
            self.join,
            joins=True,
            effect=IN_SERIES,
            opened=self.open,
        )
        return optax.GradientTransformationExtraArgs(self.init, update)

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            return self.inner.init(params)
        parts = self.parts_of(params)
        state = self.inner.init(_moved(params, parts, Share.taken))
        return self.laid_out(params, parts, state)

    def join(self, leaves: Leaves, state: Any) -> Finish:
        """Take the steps of the parts, and hand on the whole updates."""
        record, finish = self.open(leaves, state)
        record.take_steps()
        whole = [leaf.row(leaf.plain) for leaf in record.leaves]
        if len(whole) == len(leaves.leaves):
            leaves.put(whole)
        else:
            leaves.restart(record.treedef.unflatten(whole))
        return finish

    def open(self, leaves: Leaves, state: Any) -> tuple[Leaves, Finish]:
        """The parts of the leaves, where the steps wait, and what gives the new state."""
        updates, params = leaves.updates(), leaves.params
        if self.split.is_inside:
            _check_elementwise(self.inner, self.elementwise)
        whole = updates if params is None else trained(params)
        parts = self.parts_of(whole)
        if len(parts) != len(leaves.leaves):
            leaves.align_parameters(OWNER)  # says which structure differs
        if params is not None:
            params = _moved(params, self.parts_of(params), Share.taken)
        likes = [None] * len(parts) if self.shardings is not None else trees.flatten(whole)[0]
        pairs = list(zip(parts, likes, strict=True))
        record = _Parts(_moved(updates, parts, Share.reduced), params, leaves.extra, pairs)
        finish = join(self.inner.update, record, state)
        return record, lambda: _where_it_was(finish(), state)

    def parts_of(self, tree: Any) -> list[Share | None]:
        """How each leaf of a tree is split."""
        leaves = trees.flatten(tree)[0]
        given: Sequence[Any] = [None] * len(leaves)
        if self.shardings is not None:
            given = trees.flatten_like(OWNER, "shardings", self.shardings, "params", tree)
        return [self.split.part_of(x, own) for x, own in zip(leaves, given, strict=True)]

    def laid_out(self, params: Any, parts: Sequence[Share | None], state: Any) -> Any:
        """The state beside the parts of its parameters, which other libraries do not see to."""
        leaves, treedef = trees.flatten(params)
        known = [part for part in parts if part is not None and FREE not in part.spec]
        is_open = all(
            isinstance(leaf, Tracer) and self.split.explicit_mesh(leaf) is None
            for leaf in leaves
            if trees.is_parameter(leaf)
        )
        is_known = bool(known) and len(known) == sum(part is not None for part in parts)
        if self.split.is_inside or not is_open or not is_known:
            return state
        shardings = treedef.unflatten(
            None if part is None else NamedSharding(self.split.mesh, part.own_spec)
            for part in parts
        )
        return jax.tree.map(
            # What is known while this is traced, such as the groups of `grouped`, stays known.
            lambda x, own: lax.with_sharding_constraint(x, own) if isinstance(x, Tracer) else x,
            state,
            state_shardings(self.inner, params, shardings),
        )


@dataclass(eq=False, kw_only=True)
class _Update(Composed):
    """An update function whose steps wait at parts of leaves."""

    opened: Callable[[Leaves, Any], tuple[Leaves, Finish]]


def _where_it_was(new: Any, old: Any) -> Any:
    """A state whose arrays the compiler leaves where they were, however near whole updates are."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        return new

    def kept(x: Any, like: Any) -> Any:
        is_array = isinstance(x, Tracer) and isinstance(like, Tracer) and x.ndim
        is_number = is_array and jnp.issubdtype(x.dtype, jnp.number) and x.shape == like.shape
        return following(x, like) if is_number else x

    return jax.tree.map(kept, new, old)


def _moved(tree: Any, parts: Sequence[Share | None], move: Callable[[Share, Any], Any]) -> Any:
    """A tree whose arrays are moved, as whoever knows how they are split does it."""
    leaves, treedef = trees.flatten(tree)
    return treedef.unflatten(
        x if part is None or not trees.is_parameter(x) else move(part, x)
        for x, part in zip(leaves, parts, strict=True)
    )


class _Parts(Leaves):
    """The parts of leaves, whose results are gathered."""

    def __init__(self, updates: Any, params: Any, extra: Any, parts: Sequence[tuple[Any, Any]]):
        self._parts = parts
        super().__init__(updates, params, extra)

    def restart(self, updates: Any) -> None:
        """Go on with other updates, of any structure."""
        super().restart(updates)
        # Lookahead's updates are those of two trees of parameters.
        parts = [*self._parts] * (len(self.leaves) // max(len(self._parts), 1))
        self.leaves = [
            _PartOfLeaf(leaf.value, *part) for leaf, part in zip(self.leaves, parts, strict=True)
        ]


class _PartOfLeaf(Leaf):
    """A part of a leaf.

    Attributes:
        part: which part.
        whole_like: the array that the whole lies like; None: the part knows it.
    """

    __slots__ = ("part", "whole_like")

    def __init__(self, value: Any, part: Share | None, whole_like: Any):
        super().__init__(value)
        self.part = part
        self.whole_like = whole_like

    def row(self, array: Any) -> Any:
        """The whole of what its steps returned."""
        if self.part is None or not trees.is_parameter(array):
            return array
        return self.part.gathered(array, self.whole_like)


def _check_elementwise(tx: optax.GradientTransformation, foreign: bool) -> None:
    """Refuse what would see the part of an array for the whole."""
    kernel = kernel_of(tx)
    if kernel is None and not isinstance(tx.update, Composed):
        if foreign:
            return
        raise ValueError(
            f"{OWNER}: it is not known whether {owner_of(tx)} is elementwise; if each element's "
            "update depends on that element alone, pass elementwise=True"
        )
    is_elementwise = locality_of(tx) in (None, "element")
    if kernel is not None:
        is_elementwise = kernel.elementwise and not kernel.measures
    if not is_elementwise:
        name = owner_of(tx) if kernel is None else kernel.name
        raise ValueError(
            f"{OWNER}: {name} depends on whole arrays, of which each device has a part inside of "
            "shard_map; use jax.jit on a mesh instead, where it works"
        )
    for part in parts_of(tx):
        _check_elementwise(part.transformation, foreign)
