"""Arrays that lie on the devices where a parameter lies, made beside it.

A moment of a sharded parameter must be sharded like it from the start: made on one device, or on
all of them, it may not fit. Whoever makes an array in the shape of a parameter, or in one made of
the lengths of its axes, makes it here:

- eagerly, a parameter knows its devices;
- on a mesh with explicit axes, its type tells how it is sharded;
- on a mesh with automatic axes, the compiler decides how arrays are sharded by where their numbers
  come from. Zeros come from nowhere, so they are chosen between the parameter and zeros by a
  condition that is never true, which the compiler cannot know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from gradtx import trees

Fill = float | jax.Array | Callable[[tuple[int, ...], np.dtype], jax.Array]


class Length(int):
    """The length of an axis of a parameter, and which one it is.

    A number that is calculated from it is a plain integer, and belongs to no axis.
    """

    axis: int

    def __new__(cls, length: int, axis: int) -> Length:
        """The length of that axis."""
        self = super().__new__(cls, length)
        self.axis = axis
        return self


def lengths(parameter: Any) -> tuple[int, ...]:
    """The shape of a parameter; arrays whose shapes are made of these lengths lie as it does."""
    return tuple(Length(length, axis) for axis, length in enumerate(np.shape(parameter)))


def zeros_beside(parameter: Any, dtype: Any = None) -> jax.Array:
    """Zeros in the shape of a parameter, where it lies; by default in its dtype too."""
    own = jnp.result_type(parameter) if dtype is None else dtype
    return full_beside(parameter, lengths(parameter), 0, own)


def full_beside(parameter: Any, shape: Sequence[int], fill: Fill, dtype: Any) -> jax.Array:
    """An array that lies as a parameter does along the axes that it has in common with it.

    Args:
        parameter: an array, its shape and dtype, or a number.
        shape: the shape. Lengths of `lengths(parameter)` in it say which axes follow the
            parameter's; along all others, and where one comes a second time, it is not sharded.
        fill: the value of every element, or a function of the shape and dtype that makes it.
        dtype: the dtype.
    """
    axes, shape = _axes_of(shape), tuple(map(int, shape))
    is_alike = axes == [*range(np.ndim(parameter))]
    sharding = _sharding_of(parameter)

    def made(**where: Any) -> jax.Array:
        if not callable(fill):
            if is_alike and not where:
                return jnp.full_like(parameter, fill, dtype=dtype)
            return jnp.full(shape, fill, dtype, **where)
        array = fill(shape, dtype)
        return jax.device_put(array, where["device"]) if where else array

    if sharding is None or sharding.mesh.empty:
        return made()
    own = sharding if is_alike else _along(sharding, axes)
    if not isinstance(parameter, Tracer):
        array = made(device=own)
        # A parameter may be a constant of what is traced.
        constrain = jax.reshard if sharding.mesh.explicit_axes else lax.with_sharding_constraint
        return constrain(array, own) if isinstance(array, Tracer) else array
    # `out_sharding` would do nothing outside of the context of a mesh.
    array = jax.reshard(made(), own) if sharding.mesh.explicit_axes else made()
    return following(array, parameter, axes)


def with_numbers_placed(init: Callable[..., Any]) -> Callable[..., Any]:
    """An init function that puts numbers of the whole tree where the parameters are.

    A count that is on one device before the first step is on all of them after it, and the step is
    compiled twice.
    """

    @functools.wraps(init)
    def placed(params: Any) -> Any:
        return numbers_placed(init(params), params)

    return placed


def numbers_placed(state: Any, params: Any) -> Any:
    """A state whose numbers of the whole tree are on all devices on which the parameters are."""
    first = next((leaf for leaf in jax.tree.leaves(params) if trees.is_parameter(leaf)), None)
    sharding = _sharding_of(first)
    if sharding is None or sharding.mesh.empty or sharding.mesh.size == 1:
        return state
    if not isinstance(first, Tracer):
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: leaf if _is_settled(leaf) else jax.device_put(leaf, everywhere), state
        )
    leaves = jax.tree.leaves(state)
    has_slots = any(np.ndim(leaf) and np.size(leaf) and trees.is_parameter(leaf) for leaf in leaves)
    if not sharding.mesh.auto_axes or not leaves or has_slots:
        return state
    # If nothing in a program depends on the parameters, it does not see them and has one device.
    return lax.optimization_barrier((state, first))[0]


def _is_settled(leaf: Any) -> bool:
    """Whether it is known where an array is."""
    return isinstance(leaf, Tracer) or getattr(leaf, "committed", True)


def _axes_of(shape: Sequence[int]) -> list[int | None]:
    """For each axis of an array the one of its parameter that it follows."""
    axes: list[int | None] = []
    for length in shape:
        axis = length.axis if isinstance(length, Length) else None
        axes.append(None if axis in axes else axis)
    return axes


def _sharding_of(parameter: Any) -> NamedSharding | None:
    """How a parameter lies on a mesh; only in explicit axes, if its values are not known."""
    if isinstance(parameter, Tracer):
        return jax.typeof(parameter).sharding
    sharding = getattr(parameter, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _along(sharding: NamedSharding, axes: Sequence[int | None]) -> NamedSharding:
    """How an array lies of which only these axes follow the sharded one."""
    spec = [*sharding.spec]
    own = [spec[axis] if axis is not None and axis < len(spec) else None for axis in axes]
    return NamedSharding(sharding.mesh, PartitionSpec(*own), memory_kind=sharding.memory_kind)


def following(
    array: jax.Array, parameter: jax.Array, axes: Sequence[int | None] | None = None
) -> jax.Array:
    """An array that the compiler shards as it does a parameter, along axes that are automatic.

    Args:
        array: an array in a traced function.
        parameter: another one.
        axes: for each axis of the array the one of the parameter that it follows, if any; None: it
            has the same axes.
    """
    mesh = jax.typeof(parameter).sharding.mesh
    axes = range(array.ndim) if axes is None else axes
    if mesh.empty or not mesh.auto_axes or mesh.size == 1 or not parameter.size:
        return array
    if all(axis is None for axis in axes):
        return array
    like = lax.stop_gradient(parameter)
    like = like.real if jnp.isrealobj(array) else like
    if [*axes] != [*range(like.ndim)]:
        like = _with_axes(like, axes, array.shape)
    never = lax.optimization_barrier(np.False_)
    return lax.select(never, like.astype(array.dtype), array)


def _with_axes(array: jax.Array, axes: Sequence[int | None], shape: tuple[int, ...]) -> jax.Array:
    """Something of this shape whose numbers come from an array, along these of its axes."""
    kept = [axis for axis in axes if axis is not None]
    array = array.sum([axis for axis in range(array.ndim) if axis not in kept])
    array = array.transpose(np.argsort(np.argsort(kept)))
    return lax.broadcast_in_dim(
        array, shape, [i for i, axis in enumerate(axes) if axis is not None]
    )
