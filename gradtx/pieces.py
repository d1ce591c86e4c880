"""The step of a large leaf in pieces, for slots that are stored in another form.

Such a slot is decoded, takes the step and is encoded again. On whole leaves, XLA's scheduler for
CPUs decodes the slots of all leaves before it encodes those of the first, and so the arrays of the
step need more memory than what was saved. A loop over pieces of a leaf has the arrays of one piece
at a time, which stay in the processor's cache.

Accelerators run one operation after another, and start too many of them in a loop.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import trees

# The number of rows in a piece, of which each has the elements that share a scale.
_ROWS = 512


def are_worth_it() -> bool:
    """Whether the program is for one CPU; a loop over arrays that several have would move them."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and mesh.empty


def in_pieces(
    step: Callable[..., tuple[jax.Array, list[Any]]],
    g: jax.Array,
    p: jax.Array | None,
    arguments: Sequence[tuple[Any, ...]],
    *,
    gives_parameter: bool,
) -> tuple[jax.Array, list[Any]] | None:
    """An elementwise step, taken on one piece of the arrays after another.

    Args:
        step: a function of the gradient, the parameter and the further arguments of each step,
            the slots among them first.
        g: the gradient.
        p: the parameter, or None.
        arguments: the further arguments.
        gives_parameter: whether the step returns the new parameter, else the update.

    Returns:
        What `step` returns; None if these arrays do not fall into pieces.
    """
    slots = [own for own, *_ in arguments]
    shapes = {slot.rows_shape for own in slots for slot in own if trees.is_stored(slot)}
    whole = {np.shape(slot) for own in slots for slot in own}
    if len(shapes) != 1 or None in shapes or whole != {np.shape(g)}:
        return None
    [(number, length)] = shapes
    rows = min(_ROWS, number // 2)
    if rows == 0:
        return None

    def in_rows(array: Any) -> jax.Array:
        array = jnp.asarray(array)
        return array.astype(array.dtype).reshape(number, length)

    gradient, parameter = in_rows(g), None if p is None else in_rows(p)
    start = [
        tuple(slot.rows() if trees.is_stored(slot) else (in_rows(slot),) for slot in own)
        for own in slots
    ]

    def piece(index: Any, size: int, carry: Any) -> Any:
        first = index * rows
        cut = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
        kept, arrays = carry
        own_parts = jax.tree.map(cut, arrays)
        given = [
            (tuple(map(partial(_part_of, index), own, parts)), *rest)
            for (own, *rest), parts in zip(arguments, own_parts, strict=True)
        ]
        own_g, own_p = (gradient, kept) if gives_parameter else (kept, parameter)
        result, new = step(cut(own_g), None if own_p is None else cut(own_p), given)
        new = [tuple(_arrays_of(slot) for slot in own) for own in new]
        put = partial(lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
        return jax.tree.map(put, (kept, arrays), (result, new))

    carry = parameter if gives_parameter else gradient, start
    carry = lax.fori_loop(0, number // rows, partial(_whole_piece, piece, rows), carry)
    if number % rows:
        carry = piece(jnp.int32(number // rows), number % rows, carry)
    result, arrays = carry
    new = [
        tuple(
            slot.with_rows(parts) if trees.is_stored(slot) else parts[0].reshape(np.shape(g))
            for slot, parts in zip(own, every, strict=True)
        )
        for own, every in zip(slots, arrays, strict=True)
    ]
    return result.reshape(np.shape(g)), new


def _whole_piece(piece: Callable[..., Any], rows: int, index: Any, carry: Any) -> Any:
    return piece(index, rows, carry)


def _part_of(index: Any, slot: Any, parts: tuple[jax.Array, ...]) -> Any:
    return slot.part(parts, index) if trees.is_stored(slot) else parts[0]


def _arrays_of(slot: Any) -> tuple[jax.Array, ...]:
    return slot.rows() if trees.is_stored(slot) else (slot,)
