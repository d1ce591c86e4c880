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

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

Fill = float | jax.Array | Callable[[tuple[int, ...], np.dtype], jax.Array]


class Length(int):
    """The length of an axis of a parameter, and which one it is.

    A number that is calculated from it is a plain integer, and belongs to no axis.
    """

    axis: int

    def __new__(cls, length: int, axis: int) -> "Length":
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
        if "device" in where:
            return jax.device_put(array, where["device"])
        return jax.reshard(array, where["out_sharding"]) if where else array

    if sharding is None or sharding.mesh.empty:
        return made()
    own = sharding if is_alike else _along(sharding, axes)
    if not isinstance(parameter, Tracer):
        array = made(device=own)
        # A parameter may be a constant of what is traced.
        constrain = jax.reshard if sharding.mesh.explicit_axes else lax.with_sharding_constraint
        return constrain(array, own) if isinstance(array, Tracer) else array
    array = made(out_sharding=own) if sharding.mesh.explicit_axes else made()
    if not sharding.mesh.auto_axes or sharding.mesh.size == 1 or 0 in np.shape(parameter):
        return array
    return _follow(array, parameter, axes)


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


def _follow(array: jax.Array, parameter: jax.Array, axes: Sequence[int | None]) -> jax.Array:
    """The array, which seems to depend on the parameter along these axes."""
    if all(axis is None for axis in axes):
        return array
    like = lax.stop_gradient(parameter)
    kept = [axis for axis in axes if axis is not None]
    like = like.sum([axis for axis in range(like.ndim) if axis not in kept])
    like = like.transpose(np.argsort(np.argsort(kept)))
    places = [i for i, axis in enumerate(axes) if axis is not None]
    like = lax.broadcast_in_dim(like, array.shape, places)
    like = like.real if jnp.isrealobj(array) else like
    never = lax.optimization_barrier(jnp.array(False))
    return lax.select(never, like.astype(array.dtype), array)
