"""Clauses about what calls leave behind, in Python and in the state."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation, expect_same
from gradtx.testing.errors import explained
from gradtx.testing.memory import differences, generator_state, remembered
from gradtx.testing.trees import is_parameter

# More than after which a counter in Python may first matter.
_CALLS = 48
_OTHER = "the same arguments, after an init with "
_OF_INIT = "put what init finds out into the state, or find it out anew in each update"
# The calls in which a cache may be filled.
_FIRST = 3


@clause(
    "leaks",
    level="must",
    asks="init and update, traced,",
    given="",
    hint="keep everything that changes in the state, nothing in a closure, a global or `self`",
)
def check_leaks(case: Case) -> None:
    """No traced array is kept after init and update were traced.

    A leaf of another shape is tried too, for which no cache is filled yet.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_leaks
        >>> check_leaks(gradtx.sgd(0.1), jnp.ones(2))
    """

    def first_step(params: Any, gradients: Any) -> Any:
        return case.update(gradients, case.tx.init(params), params)

    trees = case.params, case.gradients(1)
    for name, function, arguments in (
        ("init", case.tx.init, trees[:1]),
        ("update", case.update, (trees[1], case.state, trees[0])),
        ("init and update", first_step, map(_with_a_larger_leaf, trees)),
    ):
        traced = functools.partial(jax.eval_shape, _fresh(function), *arguments)
        try:
            with jax.checking_leaks():
                traced()
        except Exception as error:
            if "leaked trace" in str(error).lower() or _succeeds(traced):
                got = "one that a closure, a global, an attribute or a cache still holds"
                raise Violation("", f"no traced array to outlive {name}", got) from error


def _with_a_larger_leaf(tree: Any) -> Any:
    """The tree with one of its parameters in a shape that no other clause has."""
    leaves, treedef = jax.tree.flatten(tree)
    sizes = [(x.ndim, i) for i, x in enumerate(leaves) if is_parameter(x) and x.ndim]
    if sizes:
        _, i = min(sizes)
        shape = [size + 13 for size in leaves[i].shape]
        leaves[i] = jax.ShapeDtypeStruct(shape, leaves[i].dtype)
    return treedef.unflatten(leaves)


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but another one to jax, which has not traced it before."""
    return lambda *given: function(*given)


def _succeeds(call: Callable[[], Any]) -> bool:
    """Whether it fails only while jax looks for leaks.

    jax searches for what holds a leaked array to describe it. Where `gc.freeze` hides that, the
    search fails instead.
    """
    try:
        call()
    except Exception:
        return False
    return True


@clause(
    "side_effects",
    level="must",
    asks=f"{_CALLS} calls with the same arguments",
    given="the same arguments again and again",
    hint="keep everything that changes in the state: no counters, lists and random numbers in "
    "Python, which a compiled step reads once and never changes",
)
def check_side_effects(case: Case) -> None:
    """Called many times with the same arguments, init and update give the same and change nothing.

    What counts is what their closures, attributes and the globals that they name hold, and the
    random numbers of NumPy and Python. A cache may be filled in the first calls. An init of other
    parameters in between changes nothing either.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_side_effects
        >>> check_side_effects(gradtx.sgd(0.1), jnp.ones(2))
    """
    gradients = case.gradients(1)
    before: dict[str, Any] = {}
    for call in range(1, _CALLS + 1):
        result = case.update(gradients, case.state, case.params)
        expect_same(f"the result of call {call}", case.steps[0], result)
        if call <= _FIRST:
            case.tx.init(case.params)
            before = _outside(case)
    for _ in range(_FIRST):
        expect_same("the state of another init", case.state, case.tx.init(case.params))
    for place, old, new in differences(before, _outside(case)):
        raise Violation("", f"{place} to stay as it was, {old}", f"{new}")
    try:
        _expect_nothing_from_init(case)
    finally:
        case.tx.init(case.params)  # what init keeps must not break the clauses that follow


def _expect_nothing_from_init(case: Case) -> None:
    """Demand that an update knows of its own init only what the state says."""
    leaves = [leaf for leaf in jax.tree.leaves(case.params) if is_parameter(leaf)]
    halved = jax.tree.map(lambda p: p / 2 if is_parameter(p) else p, case.params)
    for what, params in (
        ("parameters of other values", halved),
        ("a tree of one leaf", {"another": leaves[0]} if leaves else {}),
    ):
        try:
            case.tx.init(params)
        except Exception:
            continue  # it may need the tree as it is
        try:
            result = case.update(case.gradients(1), case.state, case.params)
        except Exception as error:
            raise Violation(
                "", "an update to run", explained(error)[0], given=_OTHER + what, hint=_OF_INIT
            ) from error
        try:
            expect_same("the result", case.steps[0], result)
        except Violation as found:
            found.given, found.hint = _OTHER + what, _OF_INIT
            raise


def _outside(case: Case) -> dict[str, Any]:
    """What a call could change without saying so."""
    return {
        **remembered("init", case.tx.init),
        **remembered("update", case.tx.update),
        "the generator of `numpy.random`": generator_state(np.random),
        "the generator of `random`": generator_state(random),
    }
