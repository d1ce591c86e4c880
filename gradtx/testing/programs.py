"""The program of an update: what it depends on, what it hands on, which random bits it draws."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from gradtx.diagnostics.tracing import primitives
from gradtx.testing.clause import Case
from gradtx.testing.comparison import flatten, path_name

_DRAWING = frozenset({"random_bits", "threefry2x32", "rng_bit_generator"})
# What a hash function is made of, and hardly anything else that an optimizer does.
_MIXING = frozenset({"xor", "shift_right_logical"})

Rule = Callable[[Any, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Program:
    """A traced update.

    Attributes:
        jaxpr: the program, closed.
        arguments: a path for each of its arguments, which opens with "updates", "state" or
            "params".
        results: the same for its results, which open with "updates" and "state".
    """

    jaxpr: Any
    arguments: list[str]
    results: list[str]


class Flow(NamedTuple):
    """What a value of a program is made of.

    Attributes:
        depends: the numbers of the arguments that it depends on.
        same: the argument that it is, if no operation was applied to it; else None.
    """

    depends: frozenset[int]
    same: int | None = None


@functools.lru_cache(maxsize=1)
def program_of(case: Case) -> Program | Exception:
    """The traced update of a case, or why there is none."""
    arguments = {"updates": case.gradients(1), "state": case.state, "params": case.params}
    try:
        traced = jax.jit(lambda given: case.update(**given)).trace(arguments)
    except Exception as error:
        return error
    updates, state = traced.out_info
    # A dictionary would be flattened in the order of its keys.
    results = _paths({"updates": updates}) + _paths({"state": state})
    return Program(traced.jaxpr, _paths(arguments), results)


def _paths(tree: Any) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def walk(jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any], rule: Rule) -> list[Any]:
    """Evaluate a program with values of any kind, and enter the functions that it calls.

    Args:
        jaxpr: the program.
        constants: the values of its constants.
        inputs: those of its arguments.
        rule: returns the results of an equation from those of its inputs, where numbers in the
            program itself are numpy arrays.
    """
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def read(variable: Any) -> Any:
        if isinstance(variable, Literal):
            return np.asarray(variable.val, getattr(variable.aval, "dtype", None))
        return known[variable]

    for equation in jaxpr.eqns:
        values = [read(variable) for variable in equation.invars]
        body = primitives.body_of(equation)
        if body is not None and len(body[0].invars) == len(values):
            results = walk(*body, values, rule)
        else:
            results = rule(equation, values)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


class Flows(NamedTuple):
    """What a program makes of its arguments.

    Attributes:
        results: what each result is made of, by path.
        read: the numbers of the arguments that some operation takes.
        keys: the arguments that the random bits of each draw depend on.
    """

    results: dict[str, Flow]
    read: set[int]
    keys: list[frozenset[int]]


@functools.lru_cache(maxsize=1)
def flows(program: Program) -> Flows:
    """What each result of a program is made of."""
    flows = Flows({}, set(), [])

    def rule(equation: Any, values: Sequence[Any]) -> list[Flow]:
        values = [value for value in values if isinstance(value, Flow)]
        flows.read.update(value.same for value in values if value.same is not None)
        depends = frozenset[int]().union(*(value.depends for value in values))
        if _draws(equation) or any(map(is_random, _inside(equation))):
            flows.keys.append(depends)
        return [Flow(depends)] * len(equation.outvars)

    inputs = [Flow(frozenset({i}), i) for i in range(len(program.arguments))]
    constants = [Flow(frozenset())] * len(program.jaxpr.consts)
    found = walk(program.jaxpr.jaxpr, constants, inputs, rule)
    for path, value in zip(program.results, found, strict=True):
        flows.results[path] = value if isinstance(value, Flow) else Flow(frozenset())
    return flows


def evolving(program: Program) -> set[int]:
    """The numbers of the arguments that differ from step to step.

    Those are gradients and parameters, what is made of itself, and what is made of any of these.
    """
    found = {i for i, path in enumerate(program.arguments) if not path.startswith("state")}
    state = {i: path for i, path in enumerate(program.arguments) if i not in found}
    results = flows(program).results
    before = -1
    while len(found) != before:
        before = len(found)
        for i, path in state.items():
            new = results[path]
            if new.same != i and new.depends & (found | {i}):
                found.add(i)
    return found


def is_random(jaxpr: Any) -> bool:
    """Whether a program, or one inside it, draws random bits."""
    return _contains(jaxpr, _DRAWING)


def _contains(jaxpr: Any, names: frozenset[str]) -> bool:
    """Whether a program, or one inside it, has one of these operations."""
    return any(
        equation.primitive.name in names
        or any(_contains(inner, names) for inner in _inside(equation))
        for equation in jaxpr.eqns
    )


@functools.lru_cache(maxsize=1)
def depends_on_chance(case: Case) -> bool:
    """Whether init or update draws random bits, keeps a key, or mixes bits by itself."""
    programs = [jax.make_jaxpr(case.tx.init)(case.params)]
    update = program_of(case)
    if not isinstance(update, Exception):
        programs.append(update.jaxpr)
    return any(_contains(one, _DRAWING | _MIXING) for one in programs) or any(
        map(_is_key, flatten(case.state)[0])
    )


def _is_key(named: tuple[str, Any]) -> bool:
    path, leaf = named
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return dtype is not None
    return dtype == np.uint32 and ("key" in path or "rng" in path)


def bits_drawn(
    jaxpr: Any, inputs: Sequence[Any], *, inverted: int | None = None
) -> tuple[list[Any], list[np.ndarray]]:
    """The results of a closed program, and the random bits that it draws outside loops.

    Args:
        jaxpr: the program.
        inputs: its arguments.
        inverted: the number of the draw whose bits are inverted; None: of no one.
    """
    drawn: list[np.ndarray] = []

    def rule(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
        if equation.primitive.name == "cond":
            index, *operands = values
            branch = equation.params["branches"][int(index)]
            return walk(branch.jaxpr, branch.consts, operands, rule)
        results = primitives.bind(equation, *values)
        if _draws(equation):
            if len(drawn) == inverted:
                results = [*results[:-1], jnp.invert(results[-1])]
            drawn.append(np.asarray(results[-1]))
        return results

    return walk(jaxpr.jaxpr, jaxpr.consts, inputs, rule), drawn


def _draws(equation: Any) -> bool:
    return equation.primitive.name in _DRAWING


def _inside(equation: Any) -> list[Any]:
    """The programs inside an equation."""
    return [x for x in jax.tree.leaves(list(equation.params.values())) if hasattr(x, "eqns")]
