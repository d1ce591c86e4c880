"""The clause about what is asked for and kept, but never used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation, expect_same, flatten
from gradtx.testing.programs import Program, flows, program_of
from gradtx.testing.runs import run_of
from gradtx.testing.trees import is_parameter

_CLOCKS = frozenset({"count", "step", "steps", "step_count", "t", "iteration", "num_steps"})
# What makes of a counter a constant.
_ANEW = (
    "make the new state of the old one; a wrapper calls the init of what it wraps in its own init "
    "only"
)


@clause(
    "idle",
    level="must",
    asks="a step",
    given="",
    hint="return the new value of each slot in the new state, and leave out what nothing reads",
)
def check_idle(case: Case) -> None:
    """Slots move or are read, and counters count.

    A slot is an array of the state in the shape of its parameter. One that the update hands on as
    it is must be read, and hold something else than zeros; so must one that no gradient ever
    reaches. A counter, by its name, must not be handed on as it is, or begin anew in each step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_idle
        >>> check_idle(gradtx.sgd(0.1, momentum=0.9), jnp.ones(2))
    """
    program = program_of(case)
    if isinstance(program, Exception):
        return
    if {path for path in program.arguments if path.startswith("state")} - {*program.results}:
        return  # the clause `state` tells what became of it
    for path, number, start in _slots(case, program):
        _expect_use(case, program, path, number, start)
    _expect_clocks(case, program)


@clause(
    "unread_parameters",
    level="promises",
    asks="an update with and without parameters",
    given="",
    hint="raise for missing parameters only where they are read",
)
def check_unread_parameters(case: Case) -> None:
    """An update that raises without parameters looks at them.

    It must not take anything at all for parameters. optax's factories ask for parameters even where
    a weight decay of 0 leaves them unread.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_unread_parameters
        >>> check_unread_parameters(gradtx.adamw(0.1), jnp.ones(2))
    """
    gradients, extra = case.gradients(1), case.extra(case.params)
    try:
        case.tx.update(gradients, case.state, None, **extra)
    except Exception:
        pass
    else:
        return  # it does not ask for them
    try:
        anything: Any = _Anything()
        result = case.tx.update(gradients, case.state, anything, **extra)
        expect_same("the result", case.steps[0], result)
    except Exception:
        return
    raise Violation(
        "",
        "parameters to be read, as an update without them is an error",
        "the same for something that is no tree of arrays",
    )


def _slots(case: Case, program: Program) -> Iterator[tuple[str, int, Any]]:
    """The slots of parameters with several elements: path, number of the argument, first value."""
    shapes = {path: leaf.shape for path, leaf in flatten(case.params)[0] if is_parameter(leaf)}
    numbers = {path: i for i, path in enumerate(program.arguments)}
    for path, leaf in flatten(case.state)[0]:
        if not is_parameter(leaf) or leaf.size < 2:
            continue
        if any(
            f"/{path}".endswith(f"/{own}" if own else "") and leaf.shape == shape
            for own, shape in shapes.items()
        ):
            yield path, numbers[f"state/{path}".rstrip("/")], leaf


def _expect_use(case: Case, program: Program, path: str, number: int, start: Any) -> None:
    made = flows(program)
    new = made.results[program.arguments[number]]
    is_zero = not np.any(np.asarray(start))
    if new.same == number:
        if number not in made.read:
            raise Violation(path, "a slot that moves or is read", "one that is handed on as it is")
        if is_zero:
            got = "zeros that the update reads and hands on as they are"
            raise Violation(path, "a slot that moves", got)
        return
    run = run_of(case)
    if is_zero and run is not None and not _sources(program, number):
        states = dict(flatten(run.states)[0])
        if not np.any(states[path]):
            raise Violation(path, "a slot that moves", "zeros that no gradient changes")


def _sources(program: Program, number: int) -> set[int]:
    """The gradients and parameters that reach a part of the state, in whatever step."""
    made, seen, waiting = flows(program).results, {number}, [number]
    for one in waiting:
        path = program.arguments[one]
        if path.startswith("state"):
            new = made[path].depends - seen
            seen |= new
            waiting += sorted(new)
    return {one for one in seen if not program.arguments[one].startswith("state")}


def _expect_clocks(case: Case, program: Program) -> None:
    made = flows(program)
    for path, leaf in flatten(case.state)[0]:
        argument = f"state/{path}".rstrip("/")
        is_integer = jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.integer)
        if not is_integer or path.split("/")[-1] not in _CLOCKS:
            continue
        new = made.results[argument]
        if new.same == program.arguments.index(argument):
            raise Violation(path, "a counter that counts", "one that is handed on as it is")
        if new.same is None and not new.depends:
            raise Violation(
                path, "a counter that counts", "the same number after each step", hint=_ANEW
            )


class _Anything:
    """What nobody could take for parameters."""
