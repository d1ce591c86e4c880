"""Checks of functions that are no transformations: each by itself, and all failures at once."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.messages import listed
from gradtx.testing.comparison import Violation, expect_same
from gradtx.testing.report import ConformanceError, Failure, failure_of

_OTHER_ARGUMENTS = (
    r"missing \d+ required|unexpected keyword argument|takes .* positional arguments? but"
)


class Check(NamedTuple):
    """One demand on a function.

    Attributes:
        name: what it is called in the message.
        asks: what is called, for the message of a function that raises.
        hint: what to look at.
        run: raises `Violation`, or whatever the function raises.
        signature: what to look at if the function takes other arguments; empty: `hint`.
    """

    name: str
    asks: str
    hint: str
    run: Callable[[], None]
    signature: str = ""


def judge(
    owner: str,
    checks: Sequence[Check],
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Run the chosen checks, only the first if that is "calls" and fails; report what is broken.

    Raises:
        ConformanceError: if any of them fails.
        ValueError: if `clauses` or `skip` names no check; `owner` is the function that says so.
    """
    names = [check.name for check in checks]
    for argument, given in (("clauses", clauses or ()), ("skip", skip)):
        if unknown := [name for name in given if name not in names]:
            there = listed(names, len(names), near=str(unknown[0]))
            raise ValueError(
                f"{owner}: {argument} has the unknown names {listed(unknown)}; there are {there}"
            )
    failures: list[Failure] = []
    for check in checks:
        if check.name in skip or (clauses is not None and check.name not in clauses):
            continue
        try:
            check.run()
        except Exception as error:
            failure = failure_of(error, check.name, check.asks, "", check.hint)
            # The ways of `check_transformation` to serve a call are not those of a function.
            if isinstance(error, TypeError) and re.search(_OTHER_ARGUMENTS, str(error)):
                failure = dataclasses.replace(failure, hint=check.signature or check.hint)
            failures.append(failure)
            if check.name == "calls":
                break
    if failures:
        raise ConformanceError(failures) from failures[0].error


def expect_close(what: str, expected: Any, got: Any, ulps: float) -> None:
    """Demand the same shape, dtype and numbers, up to rounding."""
    expect_same(what, jnp.asarray(expected), jnp.asarray(got), ulps)


def expect_near(what: str, expected: Any, got: Any, within: float | np.ndarray) -> None:
    """Demand real numbers that are at most `within` apart, whatever their dtypes."""
    right, found = (np.asarray(x).astype(np.float64) for x in (expected, got))
    is_near = np.abs(right - found) <= within
    if not np.all(is_near):
        index = tuple(map(int, np.argwhere(~is_near)[0]))
        where = f" at index {index}" if index else ""
        raise Violation("", f"{what} to be {right[index]:.6g}{where}", f"{found[index]:.6g}")


def expect_type(what: str, shape: Sequence[int], dtype: Any, got: Any) -> None:
    """Demand an array of this shape and dtype."""
    if not isinstance(got, jax.Array):
        raise Violation("", f"{what} to be a jax array", f"a {type(got).__name__}")
    wanted = f"{np.dtype(dtype).name}{list(shape)}"
    found = f"{got.dtype.name}{list(got.shape)}"
    if wanted != found:
        raise Violation("", f"{what} of type {wanted}", found)


def expect_all_finite(what: str, got: Any) -> None:
    """Demand numbers that are finite."""
    numbers = np.asarray(got).astype(np.complex128)
    if not np.all(np.isfinite(numbers)):
        wrong = np.asarray(got)[~np.isfinite(numbers)][0]
        raise Violation("", f"{what} that are finite", f"{wrong}")


def is_required(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of this name without a default."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return False  # some functions that are not written in Python have no signature
    return parameter is not None and parameter.default is inspect.Parameter.empty
