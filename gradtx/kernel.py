"""The kernel: an optimizer's equation on one array, with everything that it declares.

A kernel's step is a pure function of one leaf. It takes the gradient `g` and, by keyword, only
what its equation mentions:

- its slots, under their own names (`mu`, `nu`, ...),
- its hyperparameters and options, under their own names (`b1`, `eps`, `nesterov`, ...),
- `p`, the parameter,
- `t`, the number of this step, 1 at the first,
- `key`, a PRNG key of this leaf's own,
- its measures, under their own names: scalars of the whole tree, such as its norm.

It returns the update, followed by the new value of each slot in the order of declaration. What
the signature asks for and what the kernel declares must agree; that is checked when it is built.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import DTypeLike


class Range(NamedTuple):
    """The values that a hyperparameter may take.

    Attributes:
        description: how the range reads in an error message, such as ">= 0".
        contains: tells whether a Python float lies in the range; never true of NaN.
    """

    description: str
    contains: Callable[[float], bool]


ANY_NUMBER = Range("a number, not NaN", lambda value: not math.isnan(value))
NON_NEGATIVE = Range(">= 0 and not NaN", lambda value: value >= 0)
DECAY = Range("in [0, 1)", lambda value: 0 <= value < 1)
COUNT = Range("a whole number >= 1", lambda value: value >= 1 and float(value).is_integer())


def check(owner: str, argument: str, value: Any, valid: Range) -> None:
    """Refuse a concrete value outside its range; tracers pass through.

    Args:
        owner: name of the function that was called, which opens the message.
        argument: name of the argument.
        value: a number or a scalar array; a tracer's value is unknown and accepted.
        valid: the range that it must lie in.

    Raises:
        ValueError: if the value is not a real scalar, or lies outside `valid`.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.ndarray | np.generic | jax.Array
    ):
        raise ValueError(f"{owner}: {argument} must be a number, got {value!r}")
    if np.ndim(value) != 0:
        raise ValueError(f"{owner}: {argument} must be a scalar, got shape {np.shape(value)}")
    if isinstance(value, Tracer):
        return
    if not np.isrealobj(value) or not valid.contains(float(value)):
        raise ValueError(f"{owner}: {argument} must be {valid.description}, got {value}")


def check_hyperparameter(owner: str, argument: str, value: Any, valid: Range) -> None:
    """`check`, but for a schedule, which is any function and whose values are unknown."""
    if not callable(value):
        check(owner, argument, value, valid)


def check_dtype(owner: str, argument: str, dtype: DTypeLike | None) -> np.dtype | None:
    """The storage dtype that an argument names, or a ValueError if it cannot hold a moment."""
    if dtype is None:
        return None
    try:
        canonical = jax.dtypes.canonicalize_dtype(dtype)
    except TypeError as error:
        raise ValueError(f"{owner}: {argument} must be a dtype, got {dtype!r}") from error
    if not jnp.issubdtype(canonical, jnp.inexact):
        raise ValueError(f"{owner}: {argument} must be an inexact dtype, got {dtype!r}")
    return canonical


@dataclass(frozen=True)
class Slot:
    """One array that a kernel keeps for each parameter.

    Attributes:
        name: the field of the state and the argument of the step.
        fill: the value of every element at the start; a hyperparameter's name stands for its
            value.
        dtype: the storage dtype; None stores the parameter's own dtype, or float32 where that
            is narrower.
        real: whether a complex parameter's slot is real, as that of a squared modulus is.
        shape: the slot's shape from its parameter's; None: the same.
    """

    name: str
    fill: float | str = 0.0
    dtype: DTypeLike | None = None
    real: bool = False
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None

    def shape_for(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the slot of a parameter of `parameter_shape`."""
        return parameter_shape if self.shape is None else tuple(self.shape(parameter_shape))


@dataclass(frozen=True)
class Kernel:
    """An equation on one array and what it needs from the tree around it.

    Attributes:
        name: the public name of the transformation; it opens every error message.
        step: the equation, see the module's docstring.
        slots: what it keeps for each parameter, in the order in which the step returns them.
        hyperparameters: name -> valid range. Values may be numbers, scalar arrays or schedules.
        options: names of static choices, such as `nesterov`.
        measures: name -> function of the list of gradient leaves that returns a scalar for the
            whole tree.
        state: the NamedTuple that holds the slots and, where it has them, `count` and `rng_key`.
        scheduled_state: what replaces an empty state when a hyperparameter is a schedule: a
            NamedTuple with the one field `count`.
        elementwise: whether each element's update depends on that element alone.
        source: the paper, with section or equation.

    Raises:
        ValueError: if the step's arguments, the state's fields and the declarations disagree.
    """

    name: str
    step: Callable[..., Any]
    slots: tuple[Slot, ...] = ()
    hyperparameters: Mapping[str, Range] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    measures: Mapping[str, Callable[[Sequence[jax.Array]], jax.Array]] = field(default_factory=dict)
    state: type = optax.EmptyState
    scheduled_state: type = optax.ScaleByScheduleState
    elementwise: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        gradient, *arguments = inspect.signature(self.step).parameters
        fills = {slot.fill for slot in self.slots if isinstance(slot.fill, str)}
        wanted, offered = set(arguments), {"p", "t", "key", *self.measures}
        declared = {*(slot.name for slot in self.slots), *self.options}
        required = declared | (set(self.hyperparameters) - fills)
        unknown = wanted - declared - offered - set(self.hyperparameters)
        if gradient != "g" or unknown or required - wanted or fills - set(self.hyperparameters):
            raise ValueError(
                f"{self.name}: the step takes ({gradient}, {', '.join(arguments)}), but the kernel "
                f"declares {sorted(required)} and may ask for {sorted(offered)}"
            )
        fields = set(getattr(self.state, "_fields", ()))
        expected = {slot.name for slot in self.slots}
        if fields - {"count", "rng_key"} != expected:
            raise ValueError(
                f"{self.name}: the state {self.state.__name__} has the fields {sorted(fields)}, "
                f"but the slots are {sorted(expected)}"
            )
        if "t" in wanted and "count" not in fields:
            raise ValueError(f"{self.name}: the step asks for t, but the state has no count")
        if "key" in wanted and "rng_key" not in fields:
            raise ValueError(f"{self.name}: the step asks for key, but the state has no rng_key")

    @functools.cached_property
    def arguments(self) -> frozenset[str]:
        """The names of what the step asks for."""
        return frozenset(inspect.signature(self.step).parameters)
