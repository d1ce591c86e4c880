"""Clauses about calling a transformation: its type, and that its only effect is its result."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import (
    Violation,
    expect_same,
    expect_same_structure,
    flatten,
)


@clause(
    "calls",
    level="must",
    asks="init and two updates",
    hint="call signatures are `init(params)` and `update(updates, state, params=None)`",
)
def check_calls(case: Case) -> None:
    """It can be called: init with parameters, then update with gradients, state and parameters.

    Where this fails nothing else is checked.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_calls
        >>> check_calls(gradtx.sgd(0.1), jnp.ones(2))
    """
    state = case.state
    for step in (1, 2):
        result = case.update(case.gradients(step), state, case.params)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            got = f"a {type(result).__name__}"
            raise Violation("", "update to return a tuple of the updates and the new state", got)
        state = result[1]


@clause(
    "type",
    level="promises",
    asks="an update with an extra argument that it does not know",
    given="",
    hint="make it of `optax.GradientTransformationExtraArgs`, whose update ends in `**extra_args`",
)
def check_type(case: Case) -> None:
    """It is optax's own class with extra arguments, and ignores those that it does not know.

    optax tests for the class where it combines transformations; one that merely looks alike loses
    its extra arguments in `optax.chain`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_type
        >>> check_type(gradtx.sgd(0.1), jnp.ones(2))
    """
    if not isinstance(case.tx, optax.GradientTransformationExtraArgs):
        raise Violation(
            "", "an optax.GradientTransformationExtraArgs", f"a {type(case.tx).__name__}"
        )
    extra = {**case.extra(case.params), "an_unknown_extra_argument": 0.0}
    result = case.tx.update(case.gradients(1), case.state, case.params, **extra)
    expect_same("the result with an unknown extra argument", case.steps[0], result)


@clause(
    "purity",
    level="must",
    asks="init and update, called again,",
    hint="nothing may change but the state that is returned: no counters and random numbers in "
    "Python, no arguments changed in place, no callbacks",
)
def check_purity(case: Case) -> None:
    """It changes no argument, gives the same result for the same inputs, and has no effects.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_purity
        >>> check_purity(gradtx.sgd(0.1), jnp.ones(2))
    """
    for _ in range(2):
        state = _unchanged("init", case.tx.init, case.params)
        expect_same("the state of a second init", case.state, state)
        result = _unchanged("update", case.update, case.gradients(1), state, case.params)
        expect_same("the result for the same inputs", case.steps[0], result)
    try:
        traced = jax.jit(case.update).trace(case.gradients(1), case.state, case.params)
    except Exception:
        return  # another clause says that it cannot be compiled
    effects = _effects(traced.jaxpr)
    if effects:
        raise Violation("", "an update without effects", ", ".join(sorted(effects)))


def _unchanged(name: str, function: Any, *arguments: Any) -> Any:
    """The result of a call, which must leave the containers of its arguments unchanged."""
    given = jax.tree.map(lambda leaf: leaf, arguments)  # new containers around the same leaves
    result = function(*given)
    expect_same_structure(f"{name} to leave the structure of its arguments and", arguments, given)
    (before, _), (after, _) = flatten(arguments), flatten(given)
    for (path, old), (_, new) in zip(before, after, strict=True):
        if old is not new:
            raise Violation(path, f"{name} to leave its arguments alone", "another leaf there")
    return result


def _effects(jaxpr: Any) -> set[str]:
    """The names of the operations in a jaxpr that have effects outside it."""
    found = set()
    for equation in jaxpr.eqns:
        called = [x for x in jax.tree.leaves(list(equation.params.values())) if hasattr(x, "eqns")]
        if called:
            found = found.union(*map(_effects, called))
        elif equation.effects or "callback" in equation.primitive.name:
            found.add(equation.primitive.name)
    return found
