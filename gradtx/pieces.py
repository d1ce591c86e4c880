"""The step of a large leaf in pieces, for slots that are stored in another form.

Such a slot is decoded, takes the step and is encoded again. On whole leaves, XLA's scheduler for
CPUs decodes the slots of all leaves before it encodes those of the first, and so the arrays of the
step need more memory than what was saved. A loop over pieces of a leaf has the arrays of one piece
at a time, which stay in the processor's cache.

Accelerators run one operation after another, and start too many of them in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import trees
from gradtx.explicit import layout_of

# The number of rows in a piece, of which each has the elements that share a scale.
_ROWS = 512
# From so many pieces on, a copy of all of them for each costs more than buffers for one.
_MANY = 8


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
    if any(map(layout_of, jax.tree.leaves((g, p, slots)))):
        return None  # on an explicit mesh, if only of one device, rows would be of another type
    shapes = {slot.rows_shape for own in slots for slot in own if trees.is_stored(slot)}
    whole = {np.shape(slot) for own in slots for slot in own}
    if len(shapes) != 1 or None in shapes or whole != {np.shape(g)}:
        return None
    [(number, length)] = shapes
    rows = min(_ROWS, number // 2)
    if rows == 0:
        return None

    gradient, parameter = (None if x is None else _in_rows(x, number, length) for x in (g, p))
    start = [
        tuple(
            slot.rows() if trees.is_stored(slot) else (_in_rows(slot, number, length),)
            for slot in own
        )
        for own in slots
    ]

    def one(kept_and_slots: Any, index: Any, cut: Callable[[Any], Any]) -> Any:
        kept, arrays = kept_and_slots
        given = [
            (tuple(map(partial(_part_of, index), own, parts)), *rest)
            for (own, *rest), parts in zip(arguments, arrays, strict=True)
        ]
        own_g, own_p = (cut(gradient), kept) if gives_parameter else (kept, cut(parameter))
        result, new = step(own_g, own_p, given)
        return result, [tuple(_arrays_of(slot) for slot in own) for own in new]

    result, arrays = _each(one, rows, (parameter if gives_parameter else gradient, start), number)
    new = [
        tuple(
            slot.with_rows(parts) if trees.is_stored(slot) else parts[0].reshape(np.shape(g))
            for slot, parts in zip(own, every, strict=True)
        )
        for own, every in zip(slots, arrays, strict=True)
    ]
    return result.reshape(np.shape(g)), new


def _in_rows(array: Any, number: int, length: int) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(array.dtype).reshape(number, length)


def _each(one: Callable[..., Any], rows: int, arrays: Any, number: int) -> Any:
    """Replace each piece of several arrays.

    Args:
        one: from a piece of these arrays, its number, and a function that cuts the same piece out
            of others, to the new piece.
        rows: the number of rows in a piece.
        arrays: the arrays.
        number: the number of their rows.
    """
    is_long = number // rows >= _MANY
    stored = _as_integers if is_long else lambda x: x
    dtypes = jax.tree.map(lambda x: x.dtype, arrays)

    def put(carry: Any, parts: Any, index: Any) -> Any:
        into = partial(lax.dynamic_update_slice_in_dim, start_index=index * rows, axis=0)
        return jax.tree.map(into, carry, jax.tree.map(stored, parts))

    def piece(carry: Any, index: Any, size: int = rows) -> Any:
        part = partial(lax.dynamic_slice_in_dim, start_index=index * rows, slice_size=size)
        cut = partial(jax.tree.map, part)
        return one(jax.tree.map(_as_numbers, cut(carry), dtypes), index, cut)

    loop = _long_loop if is_long else _loop
    carry = loop(piece, put, number // rows, jax.tree.map(stored, arrays))
    if number % rows:
        last = jnp.int32(number // rows)
        carry = put(carry, piece(carry, last, number % rows), last)
    return jax.tree.map(_as_numbers, carry, dtypes)


def _loop(piece: Callable[..., Any], put: Callable[..., Any], number: int, carry: Any) -> Any:
    """Put each piece of what is carried in its place."""
    return lax.fori_loop(0, number, lambda i, carry: put(carry, piece(carry, i), i), carry)


def _long_loop(piece: Callable[..., Any], put: Callable[..., Any], number: int, carry: Any) -> Any:
    """The same without copies.

    XLA does not see that each piece is read before it is written, and copies all arrays in every
    turn. So what a turn has calculated waits, and is written in the next one.
    """

    def turn(index: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, last = carried
        carry = put(carry, last, index - 1)
        return carry, piece(carry, index)

    carry, last = lax.fori_loop(1, number, turn, (carry, piece(carry, jnp.int32(0))))
    return put(carry, last, number - 1)


def _as_integers(array: jax.Array) -> jax.Array:
    """Narrow numbers as their bits: XLA on a CPU would convert all of them to write a few."""
    if not trees.is_subdtype(array.dtype, jnp.floating) or array.dtype.itemsize >= 4:
        return array
    return lax.bitcast_convert_type(array, np.dtype(f"uint{8 * array.dtype.itemsize}"))


def _as_numbers(array: jax.Array, dtype: Any) -> jax.Array:
    return array if array.dtype == dtype else lax.bitcast_convert_type(array, dtype)


def _part_of(index: Any, slot: Any, parts: tuple[jax.Array, ...]) -> Any:
    return slot.part(parts, index) if trees.is_stored(slot) else parts[0]


def _arrays_of(slot: Any) -> tuple[jax.Array, ...]:
    return slot.rows() if trees.is_stored(slot) else (slot,)
