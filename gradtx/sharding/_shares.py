"""How an array is split over devices that would all have the whole of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradtx import trees
from gradtx.explicit import explicit_mesh
from gradtx.placement import following

OWNER = "zero"
# An axis of which tracing does not show how it is sharded.
FREE = PartitionSpec.UNCONSTRAINED


@dataclass(frozen=True)
class Split:
    """Over which devices arrays are split.

    Attributes:
        mesh: the mesh.
        axes: the names of its axes.
        stage: the stage.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    stage: int

    @property
    def number(self) -> int:
        """The number of parts."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def is_inside(self) -> bool:
        """Whether this is traced for one device of the axes, as inside of `jax.shard_map`."""
        return bool(set(self.axes) & set(jax.sharding.get_abstract_mesh().manual_axes))

    def explicit_mesh(self, x: Any) -> Any:
        """The mesh on which the type of an array tells how it is split; else None."""
        return explicit_mesh(OWNER, x, self.mesh, self.axes)

    def part_of(self, leaf: Any, sharding: Any) -> Share | None:
        """How a leaf is split; None: it is not."""
        here = jax.sharding.get_abstract_mesh()
        is_elsewhere = bool(here.manual_axes) and not {*self.axes} <= {*here.axis_names}
        if not trees.is_parameter(leaf) or is_elsewhere:
            return None
        spec = self._spec_of(leaf, sharding)
        names = {name for own in spec for name in (own if isinstance(own, tuple) else (own,))}
        free = [
            (length, -i)
            for i, length in enumerate(np.shape(leaf))
            if length and length % self.number == 0 and spec[i] in (None, FREE)
        ]
        is_split = bool(names & set(self.axes))
        if self.number == 1 or is_split or not free:
            return Share(self, None, spec)
        return Share(self, -max(free)[1], spec)

    def _spec_of(self, leaf: Any, sharding: Any) -> tuple[Any, ...]:
        """How a leaf lies on the mesh, as far as that is known."""
        is_typed = self.explicit_mesh(leaf) is not None
        if sharding is None and (is_typed or not isinstance(leaf, Tracer)):
            sharding = jax.typeof(leaf).sharding if is_typed else getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and not {*self.axes} <= {*sharding.mesh.shape}:
            sharding = None  # from another mesh it is moved
        if isinstance(sharding, NamedSharding) and not self.is_inside:
            spec = tuple(sharding.spec)
        else:
            is_free = isinstance(leaf, Tracer) and set(self.mesh.axis_names) != set(self.axes)
            return (FREE if is_free else None,) * np.ndim(leaf)
        return spec + (None,) * (np.ndim(leaf) - len(spec))


@dataclass(frozen=True)
class Share:
    """How one leaf is split.

    Attributes:
        split: over which devices.
        axis: along which of its axes; None: it is whole on each device.
        spec: how it lies apart from that.
    """

    split: Split
    axis: int | None
    spec: tuple[Any, ...]

    @property
    def own_spec(self) -> PartitionSpec:
        """How it lies when it is split."""
        first, *others = self.split.axes
        names = self.split.axes if others else first
        axes = [names if i == self.axis else own for i, own in enumerate(self.spec)]
        # As the compiler writes it, for which another spelling is another type.
        while axes and axes[-1] is None:
            axes.pop()
        return PartitionSpec(*axes)

    def taken(self, x: Any) -> Any:
        """The device's part of an array that all devices have."""
        if self.axis is None:
            return x
        if not self.split.is_inside:
            return self._laid_out(x, self.own_spec)
        size = np.shape(x)[self.axis] // self.split.number
        start = lax.axis_index(self.split.axes) * size
        return lax.dynamic_slice_in_dim(x, start, size, self.axis)

    def reduced(self, gradient: Any) -> Any:
        """The device's part of a gradient; of the average in stage 2 where each has its own."""
        if not self.split.is_inside or self.split.stage == 1:
            return self.taken(gradient)
        if self.axis is None:
            return lax.pmean(gradient, self.split.axes)
        whole = lax.psum_scatter(gradient, self.split.axes, scatter_dimension=self.axis, tiled=True)
        return whole / self.split.number

    def gathered(self, x: Any, like: Any = None) -> Any:
        """The whole array, where another one of its shape lies, which tracing may not show."""
        if self.axis is None:
            return x
        if not self.split.is_inside:
            whole = [
                None if i == self.axis and own is FREE else own for i, own in enumerate(self.spec)
            ]
            x = self._laid_out(x, PartitionSpec(*whole))
            return following(x, like) if isinstance(x, Tracer) and like is not None else x
        return lax.all_gather(x, self.split.axes, axis=self.axis, tiled=True, to="invarying")

    def _laid_out(self, x: Any, spec: PartitionSpec) -> Any:
        explicit = self.split.explicit_mesh(x)
        if explicit is not None:
            return jax.reshard(x, NamedSharding(explicit, spec))
        sharding = NamedSharding(self.split.mesh, spec)
        if isinstance(x, Tracer):
            return lax.with_sharding_constraint(x, sharding)
        return jax.device_put(x, sharding)
