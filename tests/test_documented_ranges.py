"""The range that a docstring gives for an argument is the one that the function holds."""

import inspect
import re
from collections.abc import Callable

import pytest
from jax.typing import ArrayLike
from optax import ScalarOrSchedule

import gradtx
from gradtx.catalogue import example_of

from .testing.test_exports import makes_a_transformation

FACTORIES = sorted(
    name
    for name in gradtx.__all__
    if makes_a_transformation(getattr(gradtx, name))
    and getattr(gradtx, name).__module__.startswith("gradtx.")
)
HYPERPARAMETERS = (ScalarOrSchedule, ScalarOrSchedule | None, ArrayLike, ArrayLike | None)
# Options that others of the arguments depend on.
CHOSEN = {"init_estim_sq_dist": 0.5, "key": 2, "min_step_size": 0.0, "momentum": 0.5}
PROBES = (-2.0, -0.5, 0.0, 0.5, 1.0, 1.5, 4.0)
KNOWN = (
    (r"in ([\[(])(-?\d+), (\d+)([\])])", lambda low, a, b, high: _interval(low, a, b, high)),
    (r">= min_step_size", lambda: lambda value: value >= CHOSEN["min_step_size"]),
    (r">= (\d+)", lambda bound: lambda value: value >= int(bound)),
    (r"> (\d+)", lambda bound: lambda value: value > int(bound)),
    (r"at least (\d+)", lambda bound: lambda value: value >= int(bound)),
)


def _interval(low: str, a: str, b: str, high: str) -> Callable[[float], bool]:
    def contains(value: float) -> bool:
        above = value >= int(a) if low == "[" else value > int(a)
        return above and (value <= int(b) if high == "]" else value < int(b))

    return contains


def documented(function, argument):
    """Whether a value lies in the range that an argument's entry gives, and the values to try."""
    entry = re.search(
        rf"^        {argument}: (.*?)(?=^        \w+: |^    \w+:|\Z)",
        function.__doc__,
        re.DOTALL | re.MULTILINE,
    )
    assert entry, f"{function.__name__} does not document {argument}"
    text = " ".join(entry.group(1).split())
    ranges = [
        (found.start(), make(*found.groups()))
        for pattern, make in KNOWN
        if (found := re.search(pattern, text))
    ]
    contains = min(ranges, key=lambda found: found[0])[1] if ranges else lambda value: True
    is_whole = re.search("whole number|how many|number of", text)
    return contains, [value for value in PROBES if value.is_integer() or not is_whole]


def numeric(function):
    """The arguments that take a number, and of which type."""
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name in ("key", "seed"):
            continue
        if parameter.annotation in HYPERPARAMETERS:
            yield name, float
        elif parameter.annotation in (int, int | None):
            yield name, int


def refuses(function, argument, value):
    parameters = inspect.signature(function, eval_str=True).parameters
    # Values for the arguments without a default, which are not what is examined.
    others = {
        name: example_of(parameter)
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    others |= {name: value for name, value in CHOSEN.items() if name in parameters}
    try:
        function(**{**others, argument: value})
    except ValueError as error:
        if not re.search(rf"\b{argument}\b", str(error)):
            raise
        return True
    return False


# optax wants optimistic_adam_v2 in the place of optimistic_adam.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FACTORIES)
def test_documented_range(name):
    function = getattr(gradtx, name)
    for argument, kind in numeric(function):
        contains, values = documented(function, argument)
        for value in values:
            if kind is float or value.is_integer():
                is_refused = refuses(function, argument, kind(value))
                assert is_refused == (not contains(value)), (argument, value)


def test_enough_is_examined():
    examined = [name for name in FACTORIES for _ in numeric(getattr(gradtx, name))]
    assert len(examined) > 250
