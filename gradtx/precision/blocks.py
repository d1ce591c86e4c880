"""Arrays in blocks along their last axes, none of which lies across devices.

Codes lie as their array does, and scales so along the axes before the blocks, and along the first
of theirs as far as each device has whole numbers of blocks there. An array whose blocks would lie
across devices is gathered along these axes while they are needed: where axes of the mesh are
explicit, by what is said here; where they are automatic, by the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from gradtx.explicit import laid_out_as, layout_of
from gradtx.placement import following


def scales_shape(shape: Sequence[int], block_size: int) -> tuple[int, ...]:
    """The shape of the scales of an array of this shape.

    Blocks lie within as few of the last axes as fill them, so that leading axes may be divided
    among devices. They are equal parts of between half and all of `block_size`; only an array
    whose size has no such divisor has shorter ones at the end.
    """
    for first in reversed(range(len(shape))):
        size = math.prod(shape[first:])
        fewest, most = -(-size // block_size), 2 * size // block_size
        number = next((n for n in range(fewest, most + 1) if size % n == 0), None)
        if number is not None and number > 0:
            return (*shape[:first], number)
    return (max(-(-math.prod(shape) // block_size), 1),)


def in_blocks(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array with a block along the last axis, filled up with zeros.

    Args:
        array: the array.
        shape: that of the scales, one for each block.
    """
    array = with_whole_blocks(array, shape)
    number = math.prod(shape)
    rest = -array.size % number
    if rest:
        array = jnp.pad(array.reshape(-1), [(0, rest)])
    return _reshaped(array, (*shape, array.size // number), len(shape))


def out_of_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array of this shape that `in_blocks` put into blocks; no block is divided."""
    size = math.prod(shape)
    if blocks.size != size:
        blocks = lax.slice_in_dim(blocks.reshape(-1), 0, size)
    return _reshaped(blocks, shape, blocks.ndim - 1)


def with_whole_blocks(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array, laid out otherwise or gathered as far as its blocks would lie across devices."""
    spec = layout_of(array)
    if not spec:
        return array
    mesh = jax.typeof(array).sharding.mesh
    own = _spec_of_whole_blocks(spec, mesh, shape) if array.size % math.prod(shape) == 0 else ()
    own = (*own, *[None] * (array.ndim - len(own)))
    return array if own == spec else jax.reshard(array, NamedSharding(mesh, PartitionSpec(*own)))


def _spec_of_whole_blocks(spec: Any, mesh: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """How blocks lie during a step: each device has a part of them if any axis can be divided."""
    own = [*spec_of_scales(spec, mesh, shape)]
    last = len(own) - 1
    for axis, names in enumerate(spec):
        if names is None or axis < last or (axis == last and own[last] is not None):
            continue
        number = math.prod(mesh.shape[name] for name in _tuple_of(names))
        free = (i for i, kept in enumerate(own) if kept is None and shape[i] % number == 0)
        where = next(free, None)
        if where is not None:
            own[where] = names
    return tuple(own)


def placed_beside(codes: Any, scales: Any, array: Any) -> tuple[Any, Any]:
    """The first codes and scales of an array, on the devices on which they stay."""
    if isinstance(codes, Tracer):
        spec = layout_of(array)
        if spec:
            mesh = jax.typeof(array).sharding.mesh
            own = spec_of_scales(spec, mesh, scales.shape)
            scales = jax.reshard(scales, NamedSharding(mesh, PartitionSpec(*own)))
        return following(laid_out_as(codes, array), array), scales
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding):
        return codes, scales
    spec = spec_of_scales(sharding.spec, sharding.mesh, scales.shape)
    own = NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)
    return jax.device_put(codes, sharding), jax.device_put(scales, own)


def placed_as(new: Any, old: Any) -> Any:
    """An array on the devices on which one of its shape was before the step."""
    new = laid_out_as(new, old)
    if isinstance(new, Tracer):
        return following(new, old)
    is_placed = isinstance(getattr(old, "sharding", None), NamedSharding)
    return jax.device_put(new, old.sharding) if is_placed else new


def spec_of_scales(spec: Any, mesh: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """How the scales of an array lie, by how the array does.

    Along the first axis of the blocks, as far as each device has as many of them.
    """
    *leading, first = (*spec, *[None] * len(shape))[: len(shape)]
    kept: tuple[str, ...] = ()
    for name in _tuple_of(first):
        if name is None or shape[-1] % math.prod(mesh.shape[own] for own in (*kept, name)):
            break
        kept = (*kept, name)
    return (*leading, kept if len(kept) > 1 else next(iter(kept), None))


def _tuple_of(names: Any) -> tuple[Any, ...]:
    return names if isinstance(names, tuple) else (names,)


def _reshaped(array: jax.Array, shape: tuple[int, ...], kept: int) -> jax.Array:
    """The array in another shape, laid out alike along the first axes and not along others."""
    spec = layout_of(array)
    if array.shape == shape or not spec:
        return array.reshape(shape)
    own = (*spec[:kept], *[None] * (len(shape) - kept))
    mesh = jax.typeof(array).sharding.mesh
    return array.reshape(shape, out_sharding=NamedSharding(mesh, PartitionSpec(*own)))
