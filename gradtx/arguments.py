"""Arguments: the values that they may have, and how others are refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from gradtx import trees
from gradtx.inputs import is_exact
from gradtx.messages import for_static, shown


class Range(NamedTuple):
    """The values that a hyperparameter may take.

    Attributes:
        description: how the range reads in an error message, such as ">= 0".
        contains: tells whether a Python float lies in the range; never true of NaN.
    """

    description: str
    contains: Callable[[float], bool]


ANY_NUMBER = Range("a number, not NaN", lambda value: not math.isnan(value))
# The share of a sum that is kept: 1 is a running sum, and negative momentum damps games.
KEPT = Range("in [-1, 1]", lambda value: -1 <= value <= 1)
NON_NEGATIVE = Range(">= 0 and not NaN", lambda value: value >= 0)
POSITIVE = Range("> 0", lambda value: value > 0)
POSITIVE_FINITE = Range("> 0 and finite", lambda value: 0 < value < math.inf)
DECAY = Range("in [0, 1)", lambda value: 0 <= value < 1)
SHARE = Range("in [0, 1]", lambda value: 0 <= value <= 1)
PROPER_SHARE = Range("in (0, 1)", lambda value: 0 < value < 1)
COUNT = Range("a whole number >= 1", lambda value: value >= 1 and value.is_integer())
COUNT_OR_ZERO = Range("a whole number >= 0", lambda value: value >= 0 and value.is_integer())


def check(owner: str, argument: str, value: Any, valid: Range) -> Any:
    """Refuse a concrete value that the equation would read wrongly; tracers pass through.

    An input is refused only if it would be read wrongly; whatever has one well-defined meaning
    works. So an array of one element is the number in it, and a factor or a learning rate may be
    negative; but a decay of 2 is not the decay of any average.

    Args:
        owner: name of the function that was called, which opens the message.
        argument: name of the argument.
        value: a number or an array of one element; a tracer's value is unknown and accepted.
        valid: the range that it must lie in.

    Returns:
        The value; of an array a scalar array.

    Raises:
        ValueError: if the value is not a single real number, or lies outside `valid`.
    """
    if not _is_number(value):
        other = ", not a schedule" if callable(value) and not isinstance(value, type) else ""
        raise ValueError(f"{owner}: {argument} must be a number{other}, got {shown(value)}")
    value = squeezed(f"{owner}: {argument}", value)
    if isinstance(value, Tracer):
        return value
    if not np.isrealobj(value) or not valid.contains(_as_float(value)):
        got = value if hasattr(value, "dtype") else shown(value)
        raise ValueError(f"{owner}: {argument} must be {valid.description}, got {got}")
    return value


def _as_float(value: Any) -> float:
    """A number; NaN, which lies in no range, if it is an integer too large for any float."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_static(owner: str, argument: str, value: Any, valid: Range = COUNT) -> int:
    """A whole number on which the program itself depends, such as one of iterations.

    Args:
        owner: name of the function that was called, which opens the message.
        argument: name of the argument.
        value: a number or a concrete array of one element.
        valid: the range that it must lie in.

    Returns:
        A Python integer.

    Raises:
        ValueError: if the value is traced, is not a single real number, or lies outside `valid`.
    """
    value = check(owner, argument, value, valid)
    if isinstance(value, Tracer):
        raise ValueError(
            f"{owner}: {argument} must be a number that is known when the program is made, got "
            f"{shown(value)}{for_static(argument, value)}"
        )
    return int(value)


def _is_number(value: Any) -> bool:
    """Whether a value is a number or an array of numbers; a boolean is none."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return trees.is_number(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_flag(owner: str, argument: str, value: Any) -> bool:
    """A choice between two as a Python boolean.

    Args:
        owner: name of the function that was called, which opens the message.
        argument: name of the argument.
        value: a boolean, 0 or 1, or an array of one of them.

    Raises:
        ValueError: if the value is traced, or anything else, such as a text, which would always be
            true.
    """
    if isinstance(value, bool):
        return value
    is_single = isinstance(value, int | np.ndarray | np.generic | jax.Array) and np.size(value) == 1
    if isinstance(value, Tracer):
        raise ValueError(
            f"{owner}: {argument} must be known when the program is made, got {shown(value)}"
        )
    if is_single and is_exact(value) and value in (0, 1):
        return bool(value)
    raise ValueError(f"{owner}: {argument} must be True or False, got {shown(value)}")


def check_hyperparameter(owner: str, argument: str, value: Any, valid: Range) -> Any:
    """`check`, but for a schedule, which is any function and whose values are unknown."""
    is_schedule = callable(value) and not isinstance(value, type)
    return value if is_schedule else check(owner, argument, value, valid)


def evaluate(
    schedule: Callable[[jax.Array], Any], count: jax.Array, what: str = "a schedule's value"
) -> jax.Array:
    """The value of a schedule at a step, as a scalar array.

    Raises:
        ValueError: if it is no real number, which opens with `what`.
    """
    # optax's schedules mix integers and floats, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        value = real_number(what, schedule(count))
        return value.astype(float) if value.dtype == np.bool_ else value


def real_number(what: str, value: Any) -> jax.Array:
    """A real number as a scalar array.

    Raises:
        ValueError: if it is anything else, which opens with `what`.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be a number, got {shown(value)}") from error
    if jnp.iscomplexobj(array):
        raise ValueError(f"{what} must be real, got {shown(value)}")
    return squeezed(what, array)


def squeezed(what: str, value: Any) -> Any:
    """A number as it is, and an array of one element as a scalar array.

    Raises:
        ValueError: if there are several elements, or none.
    """
    if np.ndim(value) == 0:
        return value
    if np.size(value) != 1:
        raise ValueError(f"{what} must be a scalar, got shape {np.shape(value)}")
    return value.reshape(())


def check_dtype(owner: str, argument: str, dtype: DTypeLike | None) -> np.dtype | None:
    """The storage dtype that an argument names, or a ValueError if it cannot hold a moment."""
    if dtype is None:
        return None
    canonical = None
    # An array is none, although it has one.
    if not isinstance(dtype, np.ndarray | np.generic | jax.Array):
        with contextlib.suppress(TypeError, ValueError):
            canonical = jax.dtypes.canonicalize_dtype(dtype)
    if canonical is None:
        raise ValueError(
            f"{owner}: {argument} must be a dtype, got {shown(dtype)}{for_static(argument, dtype)}"
        )
    if not jnp.issubdtype(canonical, jnp.inexact):
        raise ValueError(f"{owner}: {argument} must be an inexact dtype, got {shown(dtype)}")
    return canonical


def check_key(owner: str, key: Any, argument: str = "key") -> Any:
    """A typed PRNG key from a key of either kind or an integer seed.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        try:
            return jax.random.key(key)
        except OverflowError:
            raise ValueError(
                f"{owner}: {argument} must be a seed of at most 64 bits, got {shown(key)}"
            ) from None
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
        return key
    if dtype == np.uint32 and shape == jax.random.key_data(jax.random.key(0)).shape:
        return jax.random.wrap_key_data(jnp.asarray(key))
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer) and shape == ():
        return jax.random.key(jnp.asarray(key))
    raise ValueError(f"{owner}: {argument} must be a PRNG key or an integer seed, got {shown(key)}")
