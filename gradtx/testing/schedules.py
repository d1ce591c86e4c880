"""What a schedule must be: a function of the number of steps taken, whatever holds that number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.messages import shown
from gradtx.testing.comparison import Violation
from gradtx.testing.judging import Check, judge

# The first steps, some later ones, and one short of the largest int32, to which one may be added.
_COUNTS = (*range(12), 99, 100, 101, 1000, 12345, 10**6, 2**31 - 2)
_ULPS = 64.0


def check_schedule(
    schedule: Callable[[Any], Any],
    *,
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
    ulps: float = _ULPS,
) -> None:
    """Check a schedule: a function of the number of steps taken, as optax's schedules are.

    It returns one real number that is finite from step 0 to the last one that an int32 can count.
    The number and its dtype are the same for a Python integer, an array of int32 or float32, and a
    tracer in `jax.jit`, where no second count is traced again, in `jax.vmap` and in a second call.

    Args:
        schedule: a function of a count that returns a number or a scalar array.
        clauses: the names of the clauses to check, which stand before the colon of each message:
            "calls", "counts", "jit" and "finite"; None: all of them.
        skip: the names of clauses to leave out.
        ulps: how far eager and compiled numbers may differ, in units of the last place.

    Raises:
        ConformanceError: if the schedule breaks any of that; the message says at which count.
        ValueError: if `schedule` is not a function, or an argument names what does not exist.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from gradtx.testing import check_schedule
        >>> check_schedule(optax.exponential_decay(0.1, 100, 0.9))
        >>> check_schedule(lambda count: 0.1 / jnp.sqrt(1 + jnp.float32(count)))
        >>> try:
        ...     check_schedule(lambda count: 0.1 * jnp.sqrt(1 - jnp.float32(count) / 2000))
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        finite: expected the value at 12345 that is finite, got nan
    """
    if not callable(schedule):
        raise ValueError(f"check_schedule: schedule must be a function, got {shown(schedule)}")
    judge(
        "check_schedule",
        [
            Check(
                "calls",
                "a schedule at a count",
                "return one real number, computed with jax.numpy from the count",
                lambda: _calls(schedule),
            ),
            Check(
                "counts",
                "a schedule at counts of other types",
                "convert no count with `int` or `float`, and let nothing depend on its dtype",
                lambda: _counts(schedule, ulps),
            ),
            Check(
                "jit",
                "a compiled schedule",
                "use `jnp.where` or `jax.lax.cond` in place of `if`, and no state in Python",
                lambda: _compiled(schedule, ulps),
            ),
            Check(
                "finite",
                "a schedule at a late step",
                "limit the count, as in `jnp.minimum(count, steps)`, before roots and powers",
                lambda: _finite(schedule),
            ),
        ],
        clauses,
        skip,
    )


def _value(schedule: Callable[[Any], Any], count: Any) -> jax.Array:
    return jnp.asarray(schedule(count))


def _calls(schedule: Callable[[Any], Any]) -> None:
    for count in _COUNTS:
        value = _value(schedule, jnp.int32(count))
        is_real = jnp.issubdtype(value.dtype, jnp.floating)
        if value.shape != () or not (is_real or jnp.issubdtype(value.dtype, jnp.integer)):
            got = f"{value.dtype}{list(value.shape)}"
            raise Violation("", f"one real number at {count}", got)
        again = _value(schedule, jnp.int32(count))
        _expect_values("in a second call", [value], [again], 0.0)


def _counts(schedule: Callable[[Any], Any], ulps: float) -> None:
    right = [_value(schedule, jnp.int32(count)) for count in _COUNTS[:-1]]
    kinds = {"a Python integer": int, "an int32 of numpy": np.int32, "a float32": jnp.float32}
    for kind, make in kinds.items():
        found = [_value(schedule, make(count)) for count in _COUNTS[:-1]]
        _expect_values(f"for {kind}", right, found, ulps)


def _compiled(schedule: Callable[[Any], Any], ulps: float) -> None:
    traces = 0

    def traced(count: Any) -> jax.Array:
        nonlocal traces
        traces += 1
        return _value(schedule, count)

    compiled = jax.jit(traced)
    eager = [_value(schedule, jnp.int32(count)) for count in _COUNTS]
    _expect_values("if compiled", eager, [compiled(jnp.int32(c)) for c in _COUNTS], ulps)
    if traces > 1:
        raise Violation("", "one trace for all counts", f"{traces}")
    batch = jax.vmap(lambda count: _value(schedule, count))(jnp.array(_COUNTS, jnp.int32))
    _expect_values("in a vmap", eager, list(batch), ulps)


def _expect_values(
    where: str, expected: Sequence[jax.Array], got: Sequence[jax.Array], ulps: float
) -> None:
    """Demand the same numbers, up to rounding of the largest of them."""
    unit = float(jnp.finfo(jnp.float32).eps) * max(abs(float(x)) for x in expected)
    for count, right, found in zip(_COUNTS, expected, got, strict=False):
        if right.dtype != found.dtype:
            raise Violation("", f"{right.dtype} at {count} {where}", f"{found.dtype}")
        is_same = right == found or (jnp.isnan(right) and jnp.isnan(found))
        if not is_same and not abs(float(right) - float(found)) <= ulps * unit:
            raise Violation("", f"{right} at {count} {where}", f"{found}")


def _finite(schedule: Callable[[Any], Any]) -> None:
    for count in _COUNTS:
        value = _value(schedule, jnp.int32(count))
        if not np.isfinite(np.asarray(value, np.float64)):
            raise Violation("", f"the value at {count} that is finite", f"{value}")
