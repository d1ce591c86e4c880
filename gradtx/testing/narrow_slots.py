"""Comparing steps whose state is kept in fewer bits than the updates."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from gradtx.testing.clause import ULPS, Case
from gradtx.testing.comparison import expect_same, flatten
from gradtx.testing.programs import flows, program_of

# A compiled program may leave a rounding to the narrow dtype out where an eager step makes one, and
# a step has few of these: units of the last place of that dtype, at the default of `ulps`.
_ROUNDINGS = 4.0


def expect_same_step(what: str, expected: Any, got: Any, case: Case, *, ulps: float = 1.0) -> None:
    """Demand the same updates and state.

    What depends on a slot in a narrower dtype may differ by a few roundings to that dtype.

    Args:
        what: what the step is called in the message.
        expected: the updates and the state.
        got: those to judge.
        case: the case whose step it is.
        ulps: by which factor more than those of the case the numbers may differ.
    """
    expect_same(what, expected, got, ulps * case.ulps, case.magnitude, _slack(case))


@functools.lru_cache(maxsize=1)
def _slack(case: Case) -> Mapping[str, float]:
    """How far each result may differ because of narrow slots, by path, as a part of the largest."""
    state = dict(flatten(case.state)[0])
    epsilons = {
        f"state/{path}".rstrip("/"): float(jnp.finfo(leaf.dtype).eps)
        for path, leaf in state.items()
        if jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
    }
    program = program_of(case) if epsilons else None
    if program is None or isinstance(program, Exception):
        return MappingProxyType({})
    # A slot that is made of a narrow one is as inexact as it, and so is what is made of that slot.
    made, names, before = flows(program).results, program.arguments, None
    while epsilons != before:
        before = dict(epsilons)
        for path, result in made.items():
            sources = [epsilons[names[i]] for i in result.depends if names[i] in epsilons]
            if sources:
                epsilons[path] = max(epsilons.get(path, 0.0), *sources)
    roundings = _ROUNDINGS * case.ulps / ULPS
    return {
        path.replace("updates", "0", 1).replace("state", "1", 1): roundings * epsilons[path]
        for path in made
        if path in epsilons
    }
