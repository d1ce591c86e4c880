"""Where a leaf's slots start, and one compiled step of it; the same for the tree's scalars.

Everything here is about dtypes: what is stored narrowly is calculated in float32, and what comes
back has the dtype that it was stored in.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.inputs import refuse_shapes_alone
from gradtx.kernel import Scalar, Slot


def start_slot(
    owner: str,
    slot: Slot,
    number: Callable[[Any], Any],
    parameter: Any,
    options: Mapping[str, Any],
) -> Any:
    """A slot of one parameter before the first step; None of what is no parameter.

    Args:
        owner: name of the transformation, which opens the message.
        slot: the declaration.
        number: function from the declared fill to its value, for a hyperparameter's name.
        parameter: the leaf.
        options: what the slot's shape may ask for.
    """
    if not trees.is_parameter(parameter):
        return None
    own_dtype = jnp.result_type(parameter)
    dtype = jnp.dtype(slot.dtype or trees.compute_dtype(own_dtype))
    if slot.dtype is None:
        dtype = trees.real_dtype(dtype) if slot.real else dtype
    elif not slot.real and is_complex(own_dtype) and not is_complex(dtype):
        raise ValueError(f"{owner}: {slot.name} of a complex parameter does not fit into {dtype}")
    if slot.fill == "p":
        refuse_shapes_alone(owner, slot.name, parameter)
        # A copy, because the caller may donate both.
        return jnp.array(parameter, dtype)
    shapes = slot.shape_for(np.shape(parameter), options)
    fill = slot.fill

    def make(shape: tuple[int, ...]) -> jax.Array:
        if shape == np.shape(parameter) and not callable(fill):
            # Like the parameter in sharding too.
            return jnp.full_like(parameter, number(fill), dtype=dtype)
        return fill(shape, dtype) if callable(fill) else jnp.full(shape, number(fill), dtype)

    return [make(shape) for shape in shapes] if isinstance(shapes, list) else make(shapes)


def start_scalar(
    owner: str, scalar: Scalar, number: Callable[[Any], Any], parameters: Sequence[jax.Array]
) -> jax.Array:
    """A scalar of the whole tree before the first step."""
    try:
        fill = scalar.fill(parameters) if callable(scalar.fill) else number(scalar.fill)
    except (TypeError, AttributeError):
        for parameter in parameters:
            refuse_shapes_alone(owner, scalar.name, parameter)
        raise
    return jnp.array(fill, scalar.dtype or trees.widest(parameters))


@functools.lru_cache(maxsize=1024)
def leaf_step_of(
    name: str,
    step: Callable[..., Any],
    slots_read: tuple[tuple[str, bool], ...],
    static: tuple[tuple[str, Any], ...],
    stacked: bool = False,
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]:
    """The compiled step on one leaf, shared by all transformations with the same numbers.

    `slots_read` has for each slot the argument, "" if the step only writes it, and whether it is
    real.

    With `stacked` the step of several leaves of one type, which all arrays but the scalars and
    the counter have along their first axis.
    """

    def leaf_step(g, slots, p, t, key, scalars):
        g = jnp.asarray(g)
        dtype = trees.compute_dtype(g.dtype)
        real = trees.real_dtype(dtype)
        given = dict(static)
        given |= {name: as_scalar(value, real) for name, value in scalars.items()}
        given |= {
            name: jax.tree.map(
                functools.partial(to_compute, dtype=real if is_real else dtype), slot
            )
            for (name, is_real), slot in zip(slots_read, slots, strict=True)
            if name
        }
        if p is not None:
            given["p"] = jnp.asarray(p).astype(dtype)
        if t is not None:
            given["t"] = t.astype(real)
        if key is not None:
            given["key"] = key
        # A complex gradient meets real slots and numbers, which strict promotion would refuse.
        mixes = is_complex(dtype)
        with jax.numpy_dtype_promotion("standard") if mixes else contextlib.nullcontext():
            result = step(g.astype(dtype), **given)
        results = result if isinstance(result, tuple) else (result,)
        expected = {"an update": g.shape}
        expected |= {
            f"a {name or f'slot {number}'}": jax.tree.map(jnp.shape, slot)
            for number, ((name, _), slot) in enumerate(zip(slots_read, slots, strict=True))
        }
        if len(results) != len(expected):
            raise ValueError(
                f"{name}: the kernel returned {len(results)} arrays, expected {', '.join(expected)}"
            )
        for (what, shape), array in zip(expected.items(), results, strict=True):
            if jax.tree.map(np.shape, array) != shape:
                raise ValueError(
                    f"{name}: the kernel returned {what} of shape {jax.tree.map(np.shape, array)} "
                    f"for a gradient of shape {g.shape}, expected shape {shape}"
                )
        update, *new = results
        new = tuple(
            jax.tree.map(_stored_as, value, slot) for value, slot in zip(new, slots, strict=True)
        )
        return update.astype(g.dtype), new

    leaf_step.__name__ = name
    return jax.jit(jax.vmap(leaf_step, (0, 0, 0, None, 0, None)) if stacked else leaf_step)


@functools.lru_cache(maxsize=1024)
def scalar_step_of(
    name: str,
    step: Callable[..., Any],
    static: tuple[tuple[str, Any], ...],
) -> Callable[..., dict[str, jax.Array]]:
    """The compiled step of the whole tree's scalars."""

    def scalar_step(scalars, given):
        new = dict(step(**dict(static), **given))
        for own, old in scalars.items():
            new[own] = _stored_as(jnp.asarray(new.get(own, old)), old)
        return new

    scalar_step.__name__ = name
    return jax.jit(scalar_step)


def _stored_as(value: jax.Array, slot: jax.Array) -> jax.Array:
    return value.astype(slot.dtype)


def to_compute(slot: jax.Array, dtype: np.dtype) -> jax.Array:
    """A stored number in the dtype to calculate in; integers and booleans as they are."""
    if not jnp.issubdtype(slot.dtype, jnp.inexact):
        return slot
    is_real = jnp.issubdtype(dtype, jnp.floating)
    return (jnp.real(slot) if is_real else slot).astype(dtype)


def as_scalar(value: jax.Array, dtype: np.dtype) -> jax.Array:
    """A number of the whole tree in the real dtype to calculate in; a boolean as it is."""
    return value if value.dtype == np.bool_ else value.astype(dtype)


def is_complex(dtype: Any) -> bool:
    """Whether a dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)
