"""Clauses about what happens late, or only when a gradient is zero or a counter is full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation, flatten
from gradtx.testing.narrow_slots import expect_same_step
from gradtx.testing.runs import (
    STEPS,
    Run,
    at,
    first_not_finite,
    gradients_of,
    loop_of,
    run_of,
)
from gradtx.testing.trees import is_parameter

# Where an eager step is compared with that of the run.
_COMPARED = (8, 41, STEPS)
# By how much more the numbers may differ there: late steps of some methods have differences of
# almost equal numbers, such as the powers of RAdam, and what else goes wrong is far off.
_LATE = 1024.0
# A counter counts each of these first steps.
_FIRST = 8
# How far from its largest number a counter is put: the steps before it is full.
_BEFORE_FULL = 3


@clause(
    "long_run",
    level="must",
    asks=f"{STEPS} steps",
    hint="quotients, roots and powers that are undefined once a counter or an average has grown, "
    "and decisions in Python that count calls",
)
def check_long_run(case: Case) -> None:
    """It stays finite for 48 steps, and a late step is the same eager and in a compiled loop.

    Updates are finite, and no state is NaN. What first goes wrong later than that is not seen.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_long_run
        >>> check_long_run(gradtx.sgd(0.1), jnp.ones(2))
    """
    run = run_of(case)
    if run is None:
        return
    _expect_numbers(run)
    for step in _COMPARED:
        eager = case.update(case.gradients(step), at(run.states, step - 1), case.params)
        compiled = at(run.updates, step), at(run.states, step)
        what = f"the result of step {step} in a loop"
        expect_same_step(what, eager, compiled, case, ulps=_LATE)


@clause(
    "zeros",
    level="must",
    asks="steps with gradients of zero",
    given="",
    hint="quotients of norms and averages, which are 0 / 0 there: add an epsilon to the "
    "denominator, or choose the result with `jnp.where` and divide by a safe number",
)
def check_zeros(case: Case) -> None:
    """Gradients of zero, parameters of zero and both give finite updates and no state that is NaN.

    The gradients are zero at first, then not, then zero again. Dtypes below 32 bits are left to
    `check_half_precision`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_zeros
        >>> check_zeros(gradtx.sgd(0.1), jnp.ones(2))
    """
    if run_of(case) is None:
        return

    def rested(leaf: Any) -> Any:
        leaf = np.copy(leaf)
        leaf[: _FIRST // 2] = leaf[_FIRST:] = 0
        return leaf

    given = gradients_of(case)
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p) if is_parameter(p) else p, case.params)
    for what, gradients, params in (
        ("gradients", jax.tree.map(rested, given), case.params),
        ("parameters", given, zeros),
        ("gradients and parameters", jax.tree.map(np.zeros_like, given), zeros),
    ):
        run = loop_of(case)(case.tx.init(params), gradients, params)
        _expect_numbers(run, narrow=False, given=f"{what} of zero")


@clause(
    "counters",
    level="must",
    asks="steps that are counted",
    given="",
    hint="raise each counter by 1 in each step, and keep it in an int32",
)
def check_counters(case: Case) -> None:
    """A counter in the state counts every step.

    A counter is an integer that each of the first 8 steps raises by 1. It may begin again from time
    to time, or stop when a buffer of that length is full. A number of less than 32 bits must not
    count on and on, because it stops or starts again after some hundred steps, and an integer that
    is called `count` must not grow by the same larger number in each step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_counters
        >>> check_counters(gradtx.adam(0.1), jnp.ones(2))
    """
    run = run_of(case)
    if run is None:
        return
    lengths = {size for leaf in jax.tree.leaves(run.start) for size in np.shape(leaf)}
    for path, counts in _counters(run):
        _expect_regular(path, counts, lengths)
        _expect_wide(case, run, path, counts)


@clause(
    "full_counters",
    level="promises",
    asks="steps with a counter that is almost full",
    given="",
    hint="count with `optax.safe_increment`, which stays at the largest number, in an int32",
)
def check_full_counters(case: Case) -> None:
    """A counter stays at the largest number of its dtype once it is there.

    Counters that never begin again are put just below that number. They must not wrap around, and
    updates must be finite until they are full. `check_counters` refuses those below 32 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_full_counters
        >>> check_full_counters(gradtx.adam(0.1), jnp.ones(2))
    """
    run = run_of(case)
    if run is None:
        return
    endless = [
        path
        for path, counts in _counters(run)
        if not _is_narrow(run, path)
        and np.all(np.diff(counts, axis=0) >= 0)
        and np.any(counts[-1] > counts[STEPS // 2])
    ]
    if endless:
        _expect_room(case, run, endless)


def _expect_numbers(
    run: Run, steps: int = STEPS, *, narrow: bool = True, given: str | None = None
) -> None:
    found = first_not_finite(run, steps, narrow=narrow)
    if found is not None:
        raise Violation(*found, given=given)


def _counters(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """The integers that never fall at first, and narrow numbers that count: path and values."""
    for (path, start), (_, leaf) in zip(flatten(run.start)[0], flatten(run.states)[0], strict=True):
        if not isinstance(leaf, np.ndarray) or not leaf.size:
            continue
        counts = np.concatenate([np.asarray(start)[None], leaf])
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            rises = np.diff(counts[: _FIRST + 1].astype(object), axis=0)
            is_count = np.all((rises == 0) | (rises == 1)) and np.any(rises)
            if is_count and (np.ndim(start) == 0 or np.all(rises == 1)):
                yield path, counts.astype(object)
            elif path.split("/")[-1] == "count" and rises.flat[0] > 1:
                _expect_by_one(path, counts, rises)
        elif is_parameter(leaf) and leaf.dtype.itemsize < 4 and np.ndim(start) == 0:
            rises = np.diff(counts[: _FIRST + 1].astype(np.float32))
            if np.all(rises == 1):
                limit = int(2 / float(jnp.finfo(leaf.dtype).eps))
                got = f"{leaf.dtype.name}, which stops at {limit}"
                raise Violation(path, "a counter of 32 bits", got)


def _expect_by_one(path: str, counts: np.ndarray, rises: np.ndarray) -> None:
    """Refuse a count that grows by the same number, but not by 1, in each step."""
    if counts.ndim == 1 and np.all(rises == rises[0]):
        expected = f"the counter to be {int(counts[0]) + 1} after step 1, one more than before"
        raise Violation(path, expected, f"{int(counts[1])}")


def _is_narrow(run: Run, path: str) -> bool:
    return dict(flatten(run.states)[0])[path].dtype.itemsize < 4


def _expect_wide(case: Case, run: Run, path: str, counts: np.ndarray) -> None:
    """Demand 32 bits of what counts until it is full; what is bounded may be narrow."""
    if not _is_narrow(run, path) or not np.all(np.diff(counts, axis=0) == 1):
        return
    full = loop_of(case)(
        _almost_full(at(run.states, STEPS), [path]), gradients_of(case), case.params
    )
    numbers = dict(flatten(full.states)[0])[path]
    largest = int(np.iinfo(numbers.dtype).max)
    if np.max(numbers) == largest:
        got = f"{numbers.dtype.name}, which ends at {largest}"
        raise Violation(path, "a counter of 32 bits", got)


def _expect_regular(path: str, counts: np.ndarray, lengths: set[int]) -> None:
    """Demand that what counts the first steps counts all, or begins again, or fills a buffer."""
    rises = np.diff(counts, axis=0).reshape(STEPS, -1)
    if not np.all(rises[:_FIRST] == 1):
        return
    for step in range(_FIRST, STEPS):
        right = counts[step] + 1
        if np.all(counts[step + 1] == right):
            continue
        top, new = int(np.max(counts[step])), int(np.max(counts[step + 1]))
        is_new_round = new in (0, 1, int(np.max(counts[0])))
        is_full = new == top and np.all(rises[step:] == 0) and {top, top + 1} & lengths
        if is_new_round or is_full:
            return
        expected = f"the counter to be {top + 1} after step {step + 1}, one more than before"
        raise Violation(path, expected, f"{new}")


def _expect_room(case: Case, run: Run, paths: list[str]) -> None:
    """Demand that these counters may be full."""
    state = _almost_full(at(run.states, STEPS), paths)
    full = loop_of(case)(state, gradients_of(case), case.params)
    states = dict(flatten(full.states)[0])
    for path, start in flatten(full.start)[0]:
        if path not in paths:
            continue
        largest = int(np.iinfo(states[path].dtype).max)
        counts = np.concatenate([np.asarray(start)[None], states[path]]).astype(object)
        falls = np.argwhere(np.diff(counts, axis=0) < 0)
        if falls.size:
            step = int(falls[0][0])
            raise Violation(
                path,
                f"the counter to stay at {largest}, the largest {states[path].dtype.name}",
                f"{counts[(step + 1, *falls[0][1:])]}",
            )
    given = f"counters just below the largest {states[paths[0]].dtype.name}"
    _expect_numbers(full, _BEFORE_FULL, given=given)


def _almost_full(state: Any, paths: list[str]) -> Any:
    """The state with these counters as far on as they can be, and no farther apart than before."""
    named, treedef = flatten(state)
    ahead: dict[Any, int] = {}
    for path, leaf in named:
        if path in paths:
            ahead[leaf.dtype] = max(ahead.get(leaf.dtype, 0), int(np.max(leaf)))

    def moved(path: str, leaf: Any) -> Any:
        if path not in paths:
            return leaf
        by = np.iinfo(leaf.dtype).max - _BEFORE_FULL - ahead[leaf.dtype]
        return jnp.asarray(np.asarray(leaf) + np.asarray(by, leaf.dtype))

    return treedef.unflatten(moved(path, leaf) for path, leaf in named)
