"""Long runs: one compiled loop over many steps, from any state and with any gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx.testing.clause import Case
from gradtx.testing.comparison import flatten
from gradtx.testing.trees import is_parameter

# More than the 40 or so after which something may first happen: a window is full, a warmup over.
STEPS = 48


class Run(NamedTuple):
    """The steps of a run, stacked.

    Attributes:
        start: the state before the first step.
        updates: the updates of each step.
        states: the state after each step.
    """

    start: Any
    updates: Any
    states: Any


Loop = Callable[[Any, Any, Any], Run]


@functools.lru_cache(maxsize=1)
def loop_of(case: Case) -> Loop:
    """A compiled loop over `STEPS` steps, of a state, stacked gradients and the parameters."""

    @jax.jit
    def loop(state: Any, gradients: Any, params: Any) -> tuple[Any, Any]:
        def step(state: Any, gradients: Any) -> tuple[Any, Any]:
            updates, state = case.update(gradients, state, params)
            return state, (updates, state)

        return lax.scan(step, state, gradients, length=STEPS)[1]

    def run(state: Any, gradients: Any, params: Any) -> Run:
        return Run(state, *jax.tree.map(_on_host, loop(state, gradients, params)))

    return run


@functools.lru_cache(maxsize=1)
def long_run(case: Case) -> Run | Exception:
    """A run on the gradients of the case from its first state; or why there is none."""
    try:
        return loop_of(case)(case.state, gradients_of(case), case.params)
    except Exception as error:
        return error


def run_of(case: Case) -> Run | None:
    """The same; None if there is none, which the clause `scan` says."""
    run = long_run(case)
    return None if isinstance(run, Exception) else run


@functools.lru_cache(maxsize=1)
def gradients_of(case: Case) -> Any:
    """The gradients of all steps, stacked."""
    steps = [case.gradients(step) for step in range(1, STEPS + 1)]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *steps)


def at(tree: Any, step: int) -> Any:
    """What a stacked tree holds of one step, counted from 1."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[step - 1]), tree)


def first_not_finite(run: Run, steps: int = STEPS, *, narrow: bool = True) -> Any:
    """The first number in a run that is none.

    Args:
        run: the run. Its states may be infinite, such as a best loss before the first one.
        steps: how many steps to look at.
        narrow: whether to look at dtypes below 32 bits too.

    Returns:
        Its path, what it is called, what is asked for, and the number; None if there is none.
    """
    found = []
    for what, demand, tree in (
        ("the updates of", "that are finite", run.updates),
        ("the state after", "without NaN", run.states),
    ):
        for path, leaf in flatten(tree)[0]:
            if not is_parameter(leaf) or not (narrow or leaf.dtype.itemsize >= 4):
                continue
            numbers = np.asarray(leaf[:steps], np.result_type(np.complex64, leaf.dtype))
            wrong = ~np.isfinite(numbers) if tree is run.updates else np.isnan(numbers)
            if np.any(wrong):
                step = int(np.argwhere(wrong)[0][0])
                value = np.asarray(leaf)[:steps][wrong][0]
                found.append((step, path, f"{what} step {step + 1} {demand}", f"{value}"))
    return min(found, key=lambda one: one[0])[1:] if found else None


def _on_host(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return leaf if is_key else np.asarray(leaf)
