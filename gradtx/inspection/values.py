"""A hyperparameter's value at a step, and the name of the schedule that it comes from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import CellType
from typing import Any, NamedTuple

import jax.numpy as jnp
from optax.schedules import WrappedSchedule

from gradtx.arguments import evaluate

# An empty cell; cells are compared by their contents.
_EMPTY = CellType()

# The schedules that optax joins for a warmup -> the function that does so.
_JOINED: dict[tuple[str, ...], str] = {
    ("linear_schedule", "cosine_decay_schedule"): "warmup_cosine_decay_schedule",
    ("linear_schedule", "exponential_decay"): "warmup_exponential_decay_schedule",
}


class Value(NamedTuple):
    """A hyperparameter at one step.

    Attributes:
        number: its value.
        schedule: the name of the schedule that it comes from; "" if it is constant.
        step: the step, counted from 0, at which the schedule has that value.
    """

    number: float
    schedule: str = ""
    step: int = 0

    @property
    def origin(self) -> str:
        """The schedule and the step in words; "" if the value is constant."""
        return f"{self.schedule} at step {self.step}" if self.schedule else ""

    def __str__(self) -> str:
        number = "?" if math.isnan(self.number) else f"{self.number:.4g}"
        return number + (f" ({self.origin})" if self.schedule else "")


def value_at(step: int, value: Any) -> Value:
    """The value of a number or a schedule at a step."""
    if not callable(value):
        return Value(float(value))
    return Value(float(evaluate(value, jnp.int32(step))), _name_of(value), step)


def stateless_schedule(schedule: Any) -> Callable[[Any], Any]:
    """A stateful schedule as a function of the step; NaN after step 0, for lack of its state."""
    if isinstance(schedule, WrappedSchedule):
        return schedule.schedule_fn

    def at_first(count: Any) -> Any:
        return jnp.where(count == 0, schedule(schedule.init()), jnp.nan)

    at_first.__qualname__ = type(schedule).__qualname__
    return at_first


def closure_of(function: Any) -> dict[str, Any]:
    """The variables in a function's closure; none for another kind of callable."""
    if not inspect.isfunction(function):
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    # A variable that was never assigned has an empty cell.
    return {name: cell.cell_contents for name, cell in cells if cell != _EMPTY}


def _name_of(schedule: Any) -> str:
    """The name of the function that the user called or wrote, as far as it is known."""
    function = getattr(schedule, "func", schedule)
    maker, *_, own = getattr(function, "__qualname__", "<lambda>").split(".<locals>.") * 2
    name = maker if own in ("schedule", "<lambda>") else own
    if not hasattr(function, "__qualname__") or name == "<lambda>":
        return "schedule"
    if getattr(function, "__module__", "").partition(".")[0] != "optax":
        return name
    variables = closure_of(function)
    match name, variables:
        case "polynomial_schedule", {"power": 1}:
            return "linear_schedule"
        case "join_schedules", {"schedules": parts}:
            names = tuple(map(_name_of, parts))
            is_repeated = set(names) == {"warmup_cosine_decay_schedule"}
            return "sgdr_schedule" if is_repeated else _JOINED.get(names, name)
    return name
