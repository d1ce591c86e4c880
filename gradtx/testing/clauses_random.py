"""The clause about random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation
from gradtx.testing.programs import Program, bits_drawn, evolving, flows, is_random, program_of
from gradtx.testing.trees import is_parameter


@clause(
    "random_keys",
    level="must",
    asks="steps with random numbers",
    given="",
    hint="keep a key in the state, and in each step split it once: one part for the next step, and "
    "of the other one a key for each leaf, as in `jax.random.fold_in(key, number_of_leaf)`",
)
def check_random_keys(case: Case) -> None:
    """Random numbers are new in each step, and of each leaf's own.

    The key that they are drawn with has to depend on something in the state that changes, such as a
    key or a count. Neither in `init` nor in a step may two leaves share random bits, and equal
    leaves must not get equal noise. Without random numbers there is nothing to check.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_random_keys
        >>> check_random_keys(gradtx.add_noise(0.1, 0.5, key=0), jnp.ones(2))
    """
    start = jax.make_jaxpr(case.tx.init)(case.params)
    if is_random(start):
        leaves = jax.tree.leaves(case.params)
        _expect_own_bits("init", bits_drawn(start, leaves)[1])
    program = program_of(case)
    if isinstance(program, Exception) or not is_random(program.jaxpr):
        return
    _expect_new_keys(program)
    given = jax.tree.leaves({"params": case.params, "state": case.state, "u": case.gradients(1)})
    _expect_own_bits("a step", bits_drawn(program.jaxpr, given)[1])
    if "names" not in case.capabilities:
        _expect_own_noise(case)


def _expect_own_bits(where: str, drawn: Sequence[np.ndarray]) -> None:
    """Demand that no two arrays begin with the same random bits."""
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            size = min(first.size, second.size)
            is_same = size and np.array_equal(first.ravel()[:size], second.ravel()[:size])
            if is_same and first.dtype == second.dtype:
                raise Violation(
                    "",
                    f"{where} to draw new random bits for each leaf",
                    f"the same ones for arrays of shapes {second.shape} and {first.shape}",
                )


def _expect_new_keys(program: Program) -> None:
    """Demand that random bits depend on what changes from step to step."""
    changing = evolving(program)
    for depends in flows(program).keys:
        if depends & changing:
            continue
        names = [program.arguments[i] for i in sorted(depends)]
        raise Violation(
            names[0].removeprefix("state/") if names else "",
            "new random numbers in each step",
            "a key in the state that stays as it is" if names else "a key that is a constant",
        )


def _expect_own_noise(case: Case) -> None:
    """Demand that equal leaves without a gradient do not move together."""
    leaves = [leaf for leaf in jax.tree.leaves(case.params) if is_parameter(leaf) and leaf.size > 1]
    if not leaves:
        return
    leaf = max(leaves, key=lambda one: one.size)
    params = {"first": jnp.copy(leaf), "second": jnp.copy(leaf)}
    try:
        updates, _ = case.update(jax.tree.map(jnp.zeros_like, params), case.tx.init(params), params)
    except Exception:
        return  # it may need other leaves
    first, second = (np.asarray(updates[name]) for name in params)
    if np.any(first != 0) and np.array_equal(first, second) and _is_noise(first, leaf):
        raise Violation(
            "second",
            "noise of its own for each of two equal leaves",
            "the noise of the other one",
            given="gradients of zero",
        )


def _is_noise(update: np.ndarray, leaf: Any) -> bool:
    """Whether an update is neither one number nor a multiple of the parameter.

    The former may be an estimate that chance does not touch, the latter is weight decay.
    """
    u, p = (np.asarray(x).astype(np.complex128).ravel() for x in (update, leaf))
    if np.all(u == u[0]):
        return False
    return bool(abs(np.vdot(u, p)) < (1 - 1e-4) * np.linalg.norm(u) * np.linalg.norm(p))
