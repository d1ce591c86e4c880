"""What the tables of broken transformations share: a good one, and ways to spoil it.

Each broken transformation is the good one with a single mistake, which one clause finds and no
other. The tables are in the modules `broken_*`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx

ExtraArgs = optax.GradientTransformationExtraArgs


class Broken(NamedTuple):
    """A transformation with a mistake.

    Attributes:
        make: makes it.
        clause: the only clause that finds the mistake.
        says: a part of its message.
    """

    make: Callable[[], Any]
    clause: str
    says: str


Table = dict[str, Broken]


class State(NamedTuple):
    """The state of the good transformation.

    Attributes:
        count: the number of steps.
        mu: a decaying sum of gradients.
    """

    count: Any
    mu: Any


def breaks(table: Table, clause: str, says: str):
    """Add a function that makes a transformation to a table, under the function's name."""

    def add(make):
        table[make.__name__] = Broken(make, clause, says)
        return make

    return add


def is_number(leaf) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.inexact)


def on_numbers(function, *trees):
    """Apply a function to the inexact arrays of a tree, and to what is there in the others."""
    return jax.tree.map(
        lambda leaf, *others: function(leaf, *others) if is_number(leaf) else leaf,
        *trees,
        is_leaf=lambda leaf: leaf is None,
    )


TRACE = gradtx.trace(0.9)


def start(params) -> State:
    """The state before the first step."""
    return State(jnp.zeros([], jnp.int32), TRACE.init(params).trace)


def zeros(params):
    """Zeros in the shapes of the parameters."""
    return start(params).mu


def step(updates, state, params=None, **extra):
    """A step along a decaying sum of gradients."""
    updates, inner = TRACE.update(updates, optax.TraceState(state.mu), params)
    return updates, State(optax.safe_increment(state.count), inner.trace)


GOOD = ExtraArgs(start, step)


def changed(result=None, init=None, before=None) -> ExtraArgs:
    """The good transformation with a mistake.

    Args:
        result: makes new updates and a new state from `(updates, state, params)` and from the
            right result.
        init: another init.
        before: changes the gradients before they are used.
    """

    def update(updates, state, params=None, **extra):
        given = updates if before is None else before(updates)
        new = step(given, state, params)
        return new if result is None else result((updates, state, params), *new)

    return ExtraArgs(init or start, update)


def rescaled(factor) -> ExtraArgs:
    """The good transformation whose updates are multiplied by a function of the old count."""

    def result(given, updates, state):
        number = factor(given[1].count)
        return on_numbers(lambda u: u * number.astype(u.dtype), updates), state

    return changed(result)


def passenger(init, advance=None) -> ExtraArgs:
    """The good transformation with something more in its state.

    Args:
        init: makes it from the parameters.
        advance: makes the next value; None: it stays.
    """

    def update(updates, state, params=None, **extra):
        own, inner = state
        updates, inner = step(updates, inner, params)
        return updates, (own if advance is None else advance(own), inner)

    return ExtraArgs(lambda params: (init(params), start(params)), update)


def is_traced(tree) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def is_numpy(leaf) -> bool:
    return isinstance(leaf, np.ndarray) and not isinstance(leaf, jax.Array)
