"""Arrays on a mesh with explicit axes, where the layout of an array is part of its type.

There whoever multiplies, reshapes or factors a sharded array has to say how. On any other mesh, on
one device and inside of `jax.shard_map` these functions do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gradtx.placement import following


def layout_of(x: Any) -> tuple[Any, ...]:
    """For each axis of an array by which axes of the mesh it is sharded; () if by none."""
    sharding = _type_of(x)
    if sharding is None:
        return ()
    spec = (*sharding.spec, *[None] * (len(jax.typeof(x).shape) - len(sharding.spec)))
    return spec if any(axis is not None for axis in spec) else ()


def explicit_mesh(owner: str, x: Any, mesh: Any, axes: Iterable[str]) -> Any:
    """The mesh on which the type of an array tells how it lies along these axes; else None.

    Args:
        owner: the function that the user called, which opens the message.
        x: the array.
        mesh: the mesh for an array that is on none.
        axes: names of axes of the mesh.

    Raises:
        ValueError: if the array is on another mesh, which lacks these axes.
    """
    sharding = _type_of(x)
    own = mesh if sharding is None else sharding.mesh
    if not {*axes} <= {*own.axis_names}:
        raise ValueError(
            f"{owner}: an array of shape {jax.typeof(x).shape} is on a mesh with the axes "
            f"{own.axis_names}, not on the mesh given, with {mesh.axis_names}"
        )
    return own if {*axes} <= {*own.explicit_axes} else None


def gathered(x: jax.Array, axes: Iterable[int] | None = None) -> jax.Array:
    """An array of which each device has all along these axes; None: along all."""
    spec = layout_of(x)
    whole = range(x.ndim) if axes is None else {axis % x.ndim for axis in axes}
    own = tuple(None if i in whole else axis for i, axis in enumerate(spec))
    if own == spec:
        return x
    return jax.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*own)))


def switch_on_whole(index: jax.Array, branches: Sequence[Callable[..., Any]], *own: Any) -> Any:
    """`lax.switch` of arrays of which each device has all, so that no branch exchanges anything.

    On automatic axes too: where several devices share the threads of one processor, exchanges in a
    branch that factors matrices may wait for each other forever. Before and after, how the arrays
    lie elsewhere must not reach into the branches.
    """
    own = jax.tree.map(_whole, own)
    return jax.tree.map(_whole, lax.switch(index, branches, *own))


def _whole(x: jax.Array) -> jax.Array:
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not mesh.auto_axes or not x.size:
        return gathered(x)
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def each_back(own: Sequence[jax.Array], likes: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays of which each device has all, laid out as others of their shapes."""
    return [following(laid_out_as(x, like), like) for x, like in zip(own, likes, strict=True)]


def laid_out_as(x: Any, like: Any) -> Any:
    """An array with the layout of another one of its shape; as it is if that has another shape."""
    own, other = layout_of(x), layout_of(like)
    if own == other or jax.typeof(x).shape != jax.typeof(like).shape:
        return x
    mesh = jax.typeof(like if other else x).sharding.mesh
    return jax.reshard(x, NamedSharding(mesh, PartitionSpec(*(other or [None] * x.ndim))))


def sum_over(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sum along axes, as `lax.reduce_sum`.

    Where it is that of all elements and the mesh has several axes, it is added up over all devices
    of the mesh, whichever axes `x` is sharded by. XLA puts sums over the same devices together, so
    that the norms of all leaves of a tree cross the devices at once. With automatic axes nobody
    knows here how `x` is sharded: there they cross once for each set of axes that shard a leaf.
    """
    spec = layout_of(x)
    if not spec or len(axes) < x.ndim or len(jax.typeof(x).sharding.mesh.explicit_axes) < 2:
        return lax.reduce_sum(x, axes)
    mesh = jax.typeof(x).sharding.mesh
    names = mesh.explicit_axes
    used = {name for own in spec for name in (own if isinstance(own, tuple) else (own,))}

    def summed(part: jax.Array) -> jax.Array:
        own = lax.reduce_sum(part, axes)
        for name in names:
            if name not in used:  # each of these devices has the same
                own = lax.select(lax.axis_index(name) == 0, own, lax.full_like(own, 0))
        return lax.psum(own, names)

    return jax.shard_map(
        summed,
        mesh=mesh,
        in_specs=PartitionSpec(*spec),
        out_specs=PartitionSpec(),
        axis_names={*names},
        check_vma=False,
    )(x)


def each_laid_out_as(own: Sequence[jax.Array], likes: Sequence[jax.Array]) -> list[jax.Array]:
    """`laid_out_as` of several arrays."""
    return list(map(laid_out_as, own, likes))


def laid_out_alike(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays of one shape with the layout of the first that is sharded.

    Sums and products take a replicated array beside a sharded one, but choices between them, and
    most else, do not.
    """
    like = next((array for array in arrays if layout_of(array)), None)
    return [array if like is None else laid_out_as(array, like) for array in arrays]


def _type_of(x: Any) -> Any:
    """The sharding in the type of an array; None if there is none."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    return None if sharding is None or not sharding.mesh.explicit_axes else sharding
