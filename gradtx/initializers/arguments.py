"""The checks that every initializer makes of its arguments, when it is built and when it is called.

`owner` is the function that the user called; its name opens the messages.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def require_number(owner: str, name: str, value: Any) -> None:
    """Refuse what is neither a number nor an array of numbers; tracers pass."""
    if isinstance(value, Tracer):
        return
    try:
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    except ValueError:  # lists of different lengths
        dtype = object
    if not _holds_numbers(dtype):
        raise ValueError(
            f"{owner}: {name} must be a number, got {shown(value)}{_hint(owner, value)}"
        )


def require_nonnegative(owner: str, name: str, value: Any) -> None:
    """Raise an error for what cannot be a scale: negative numbers, infinities and NaN.

    Args:
        owner: name of the function that the user called, which opens the message.
        name: the argument's name.
        value: the argument. A tracer has no value yet and passes.

    Raises:
        ValueError: if `value` is not a real number, negative or not finite.

    Example:
        >>> from gradtx.initializers.arguments import require_nonnegative
        >>> require_nonnegative("normal", "stddev", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: normal: stddev must be a finite number >= 0, got -1.0
    """
    require_at_least(0, owner, name, value)


def require_at_least(least: float, owner: str, name: str, value: Any) -> None:
    """`require_nonnegative` with another lower bound."""
    require_number(owner, name, value)
    if isinstance(value, Tracer):
        return
    numbers = np.asarray(value)
    if np.iscomplexobj(numbers) or not np.all((numbers >= least) & (numbers < float("inf"))):
        raise ValueError(
            f"{owner}: {name} must be a finite number >= {least}, got {shown(value)}"
            f"{_hint(owner, value)}"
        )


def require_flag(owner: str, name: str, value: Any) -> None:
    """Refuse what is neither True nor False, such as a text, which would always be true."""
    if not isinstance(value, bool | np.bool_) and not (isinstance(value, int) and value in (0, 1)):
        raise ValueError(f"{owner}: {name} must be True or False, got {shown(value)}")


def require_axis(owner: str, name: str, value: Any) -> None:
    """Refuse what is not the number of one axis."""
    if _as_index(value) is None:
        raise ValueError(
            f"{owner}: {name} must be an axis, got {shown(value)}{_hint(owner, value)}"
        )


def checked_axes(owner: str, name: str, value: Any) -> tuple[int, ...]:
    """One axis or several as a tuple; whether a shape has them shows when there is one."""
    if isinstance(value, jax.Array):  # which jax would take too, but it is a key in the wrong place
        axes = (None,)
    else:
        is_one = isinstance(value, str) or not isinstance(value, Iterable)
        axes = tuple(map(_as_index, (value,) if is_one else value))
    if None in axes:
        raise ValueError(
            f"{owner}: {name} must be an axis or several, got {shown(value)}{_hint(owner, value)}"
        )
    return tuple(axis for axis in axes if axis is not None)


def check_dtype(owner: str, dtype: Any) -> None:
    """Refuse what is not the dtype of numbers or booleans; None stands for the default."""
    if dtype is None:
        return
    try:
        canonical = None if isinstance(dtype, jax.Array) else jax.dtypes.canonicalize_dtype(dtype)
    except (TypeError, ValueError):
        canonical = None
    if canonical is None or not _holds_numbers(canonical):
        raise ValueError(
            f"{owner}: dtype must be a dtype of numbers, got {shown(dtype)}{_hint(owner, dtype)}"
        )


def checked_shape(owner: str, shape: Any, key: Any = None) -> tuple[int, ...]:
    """The shape as a tuple. It may be an integer, and its axes may be symbolic.

    Args:
        owner: name of the function that the user called, which opens the message.
        shape: the shape that it was called with.
        key: the key that it was called with; None: it takes none.
    """
    one = _as_index(shape)
    if one is not None:
        sizes: tuple[Any, ...] = (one,)
    elif isinstance(shape, Sequence | np.ndarray | jax.Array) and getattr(shape, "ndim", 1) == 1:
        sizes = tuple(shape)
    else:
        sizes = (None,)
    # An old key is an array of integers, which could be a shape.
    is_swapped = _is_key(shape) and isinstance(key, list | tuple)
    if is_swapped or not all(map(_is_size, sizes)):
        order = f"; call it with the key first, {owner}(...)(key, shape)" if is_swapped else ""
        raise ValueError(f"{owner}: shape must hold whole numbers >= 0, got {shown(shape)}{order}")
    return sizes


def check_key(owner: str, key: Any) -> None:
    """Refuse what is not a PRNG key, of either kind."""
    if not _is_key(key):
        raise ValueError(f"{owner}: key must be a PRNG key, got {shown(key)}")


def _holds_numbers(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_))


def _as_index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_size(size: Any) -> bool:
    index = _as_index(size)
    return _is_symbolic(size) if index is None else index >= 0


def _is_symbolic(size: Any) -> bool:
    from jax.export import is_symbolic_dim  # few programs have any

    return is_symbolic_dim(size)


def _is_key(key: Any) -> bool:
    dtype = getattr(key, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return is_typed or dtype == np.uint32 or hasattr(key, "__jax_array__")


def _hint(owner: str, value: Any) -> str:
    """What to do where a key or a shape is among the arguments of the factory."""
    if not (_is_key(value) or isinstance(value, tuple)):
        return ""
    return f"; {owner}(...) returns an initializer, to be called as {owner}(...)(key, shape)"


def shown(value: Any) -> str:
    """A value on one line, cut after what shows what it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."


_CHARACTERS = 80
