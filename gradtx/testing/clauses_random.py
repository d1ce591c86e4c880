"""The clause about random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation
from gradtx.testing.programs import Program, bits_drawn, evolving, flows, is_random, program_of
from gradtx.testing.trees import is_parameter

# The steps whose random bits are compared, and how many bytes must be the same.
_STEPS = 4
_BYTES = 4


class _Step(NamedTuple):
    """A step with random numbers.

    Attributes:
        given: the arguments of the program.
        results: its results.
        bits: the random bits that it draws.
    """

    given: list[Any]
    results: list[Any]
    bits: list[np.ndarray]


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
    leaves must not get equal noise. In the first four steps, bits that are used must not come
    again: neither for the same leaf nor for another. Without random numbers there is nothing to
    check.

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
    steps = _drawing_steps(case, program)
    _expect_own_bits("a step", steps[0].bits)
    _expect_new_bits(program, steps)
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


def _drawing_steps(case: Case, program: Program) -> list[_Step]:
    """The first steps, as long as the state keeps its types."""
    steps: list[_Step] = []
    params, state = jax.tree.leaves(case.params), jax.tree.leaves(case.state)
    types = list(map(_type, state))
    while len(steps) < _STEPS and list(map(_type, state)) == types:
        # A dictionary of these is flattened in the order of the program's arguments.
        given = [*params, *state, *jax.tree.leaves(case.gradients(len(steps) + 1))]
        results, bits = bits_drawn(program.jaxpr, given)
        steps.append(_Step(given, results, bits))
        named = zip(program.results, results, strict=True)
        state = [leaf for path, leaf in named if path.startswith("state")]
    return steps


def _type(leaf: Any) -> tuple[Any, Any]:
    return np.shape(leaf), getattr(leaf, "dtype", None)


def _expect_new_bits(program: Program, steps: Sequence[_Step]) -> None:
    """Demand that no bits are used in two steps."""
    for i, step in enumerate(steps):
        for j, earlier in enumerate(steps[:i]):
            for number, bits in enumerate(step.bits):
                for other, before in enumerate(earlier.bits):
                    if not (
                        _begin_alike(bits, before)
                        and _is_used(program, step, number)
                        and _is_used(program, earlier, other)
                    ):
                        continue
                    same = f"those of step {j + 1}"
                    if number != other:
                        same += f" for an array of shape {before.shape}"
                    raise Violation(
                        "",
                        f"new random bits in step {i + 1} for an array of shape {bits.shape}",
                        same,
                    )


def _begin_alike(bits: np.ndarray, others: np.ndarray) -> bool:
    """Whether arrays begin with the same bits, and with so many that it is no coincidence."""
    size = min(bits.size, others.size)
    is_enough = bits.dtype == others.dtype and size * bits.itemsize >= _BYTES
    return is_enough and np.array_equal(bits.ravel()[:size], others.ravel()[:size])


def _is_used(program: Program, step: _Step, number: int) -> bool:
    """Whether updates or state depend on the bits of a draw; some are thrown away."""
    results, _ = bits_drawn(program.jaxpr, step.given, inverted=number)
    return not all(map(_is_same, results, step.results))


def _is_same(one: Any, other: Any) -> bool:
    if jnp.issubdtype(getattr(one, "dtype", bool), jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return np.array_equal(np.asarray(one), np.asarray(other))


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
