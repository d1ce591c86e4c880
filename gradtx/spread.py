"""Stacks of leaves that are spread over the devices of a mesh, each of which has whole leaves.

The gradients and parameters keep the layouts that they come in. The rows of a stack go to their
devices in one exchange before the steps, and in one come back to where they were.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradtx.explicit import explicit_mesh, layout_of
from gradtx.leaf import LeafStep, composed_step, passing_of
from gradtx.placement import following
from gradtx.remembered import passing_among, remembered
from gradtx.stacks import Stack, rows_of

# Whose stacks these are.
_OWNER = "distributed"


@dataclass(frozen=True)
class Spread:
    """The axes of a mesh over which stacks are spread.

    Attributes:
        mesh: the mesh.
        axes: the names of the axes.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def number(self) -> int:
        """How many devices share a stack."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def spec(self) -> PartitionSpec:
        """How the axes of a stack are sharded."""
        return PartitionSpec(self.axes)

    @property
    def is_inside(self) -> bool:
        """Whether this is traced for one device alone, as inside `jax.shard_map`."""
        return bool(jax.sharding.get_abstract_mesh().manual_axes)

    def placed(self, stack: jax.Array) -> jax.Array:
        """A stack whose rows are on their devices."""
        # What has no elements lies nowhere, and JAX could not read it.
        if self.is_inside or not stack.size:
            return stack
        spec = PartitionSpec(self.axes, *[None] * (stack.ndim - 1))
        return self._laid_out(stack, spec)

    def opened(self, stack: jax.Array, like: Any) -> jax.Array:
        """A stack whose rows are laid out as an array of one row is.

        On a mesh with automatic axes XLA finds that layout, from the arrays that the stack was made
        of or that are made of it; all that is said is that its first axis is not sharded.
        """
        if self.is_inside:
            return stack
        if explicit_mesh(_OWNER, stack, self.mesh, self.axes) is not None:
            own = layout_of(like) or (None,) * (stack.ndim - 1)
        elif isinstance(stack, Tracer):
            own = (PartitionSpec.UNCONSTRAINED,) * (stack.ndim - 1)
        else:
            own = (None,) * (stack.ndim - 1)
        return self._laid_out(stack, PartitionSpec(None, *own))

    def like(self, row: jax.Array, array: Any) -> jax.Array:
        """A row of an opened stack, laid out as an array."""
        if self.is_inside or explicit_mesh(_OWNER, row, self.mesh, self.axes) is not None:
            return row
        if isinstance(row, Tracer):
            return following(row, array) if isinstance(array, Tracer) else row
        if getattr(array, "committed", False):
            return jax.device_put(row, array.sharding)
        return row

    def _laid_out(self, array: jax.Array, spec: PartitionSpec) -> jax.Array:
        explicit = explicit_mesh(_OWNER, array, self.mesh, self.axes)
        if explicit is not None:
            return jax.reshard(array, NamedSharding(explicit, spec))
        return lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

    def compiled(self, steps: tuple[LeafStep, ...], dtype: Any) -> Callable[..., Any]:
        """The compiled steps of a stack, each device taking those of its rows."""
        if self.is_inside:
            return composed_step(steps, True, dtype)
        return _spread_step(self, steps, dtype)


@remembered(lambda spread, steps, dtype: passing_of(steps))
def _spread_step(spread: Spread, steps: tuple[LeafStep, ...], dtype: Any) -> Callable[..., Any]:
    step, everywhere = composed_step(steps, True, dtype), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            step,
            mesh=spread.mesh,
            in_specs=(
                spread.spec,
                spread.spec,
                [(spread.spec, spread.spec, everywhere, everywhere)] * len(steps),
            ),
            out_specs=spread.spec,
            check_vma=False,
        )
    )


@remembered(lambda spread, function, *_: passing_among([function]))
def _spread_call(
    spread: Spread,
    function: Callable[..., Any],
    own: int,
    shared: int,
    static: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    step = jax.vmap(functools.partial(function, **dict(static)), (0,) * own + (None,) * shared)
    return jax.jit(
        jax.shard_map(
            step,
            mesh=spread.mesh,
            in_specs=(spread.spec,) * own + (PartitionSpec(),) * shared,
            out_specs=spread.spec,
            check_vma=False,
        )
    )


class SpreadStack(Stack):
    """A stack whose rows take their steps on different devices."""

    __slots__ = ("spread",)

    def __init__(self, spread: Spread, *arguments: Any):
        self.spread = spread
        super().__init__(*arguments)

    def assembled(self, parts: Any, dtype: Any) -> jax.Array:
        """The arrays of the rows as one."""
        stack = super().assembled(parts, dtype)
        return self.spread.opened(stack, next(x for x in parts if x is not None))

    def disassembled(self, array: jax.Array) -> list[jax.Array]:
        """The rows of a stack."""
        likes = [row.given if row.parameter is None else row.parameter for row in self.rows]
        rows = rows_of(self.spread.opened(array, likes[0]), len(self.rows))
        return list(map(self.spread.like, rows, likes))

    def call(self, function: Callable[..., Any], own: Any, shared: Any, **static: Any) -> Any:
        """A function of the arrays of each row, and of others that they share."""
        if self.spread.is_inside:
            return super().call(function, own, shared, **static)
        options = tuple(sorted(static.items()))
        called = _spread_call(self.spread, function, len(own), len(shared), options)
        return called(*map(self.spread.placed, own), *shared)

    def compiled(self, dtype: Any) -> Callable[..., tuple[jax.Array, list[Any]]]:
        """The compiled steps that wait."""
        placed = self.spread.compiled(self.steps, dtype)

        def step(g, p, arguments):
            arrays = (g, p, [own[:2] for own in arguments])
            g, p, own = jax.tree.map(self.spread.placed, arrays)
            rest = [both[2:] for both in arguments]
            return placed(g, p, [(*a, *b) for a, b in zip(own, rest, strict=True)])

        return step
