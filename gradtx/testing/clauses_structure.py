"""Clauses about trees: what is returned, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.compose.parts import widens
from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import (
    Violation,
    expect_same,
    expect_same_structure,
    expect_same_types,
    flatten,
)
from gradtx.trees import compute_dtype


@clause(
    "state",
    level="must",
    asks="two updates",
    hint="return each field of the state with the structure, shape and dtype that init gives it, "
    "as in `m.astype(state.m.dtype)` and `count + jnp.ones_like(count)`",
)
def check_state(case: Case) -> None:
    """The state keeps its structure, shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_state
        >>> check_state(gradtx.sgd(0.1), jnp.ones(2))
    """
    for i, (_, state) in enumerate(case.steps):
        expect_same_types(f"the state after step {i + 1}", case.state, state, weak=False)


@clause(
    "weak_types",
    level="promises",
    asks="two compiled updates",
    hint="give each array of the state a dtype: `jnp.float32(0)`, `jnp.full(shape, 0.1, p.dtype)`; "
    "without one it is weakly typed, and the second step is compiled anew",
)
def check_weak_types(case: Case) -> None:
    """The state keeps its weak types too, and no second step is traced again.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_weak_types
        >>> check_weak_types(gradtx.sgd(0.1), jnp.ones(2))
    """
    for i, (_, state) in enumerate(case.steps):
        expect_same_types(f"the state after step {i + 1}", case.state, state)
    run = case.compiled_run
    expect_same_types("the state of the compiled init", case.state, run.state)
    if run.is_retraced:
        raise Violation("", "the second compiled step to reuse the first", "another trace")


@clause(
    "updates",
    level="must",
    asks="two updates",
    hint="return one update for each gradient, in its dtype: `u.astype(g.dtype)`",
)
def check_updates(case: Case) -> None:
    """The updates have the structure, shapes and dtypes of the gradients.

    Where a transformation says that it `widens` updates, as `gradtx.with_master_weights` does, they
    may be float32 instead of a narrower dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_updates
        >>> check_updates(gradtx.sgd(0.1), jnp.ones(2))
    """
    for i, (updates, _) in enumerate(case.steps):
        expect_update_types("the updates", case, case.gradients(i + 1), updates)


def expect_update_types(what: str, case: Case, gradients: Any, updates: Any) -> None:
    """Demand the types of the gradients, or wider ones where the transformation `widens`."""
    expected = gradients
    if widens(case.tx):
        expect_same_structure(what, expected, updates)
        expected = jax.tree.map(_widened_like, expected, updates)
    expect_same_types(what, expected, updates, weak=False)


def _widened_like(gradient: Any, update: Any) -> Any:
    """The gradient, in the dtype to calculate in if the update is."""
    dtype = compute_dtype(gradient.dtype)
    return gradient.astype(dtype) if jnp.result_type(update) == dtype else gradient


_CHANGES_LEAVES = ("names", "whole_tree")


@clause(
    "none_leaves",
    level="must",
    asks="init and update",
    given="every second parameter and its gradient None",
    hint="None is a tree without leaves for `jax.tree.map`; pass it through",
    unless=_CHANGES_LEAVES,
)
def check_none_leaves(case: Case) -> None:
    """Where a parameter is None, and with it its gradient, so is its update.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_none_leaves
        >>> check_none_leaves(gradtx.sgd(0.1))
    """
    params = _every_second(case.params, None)
    gradients = _every_second(case.gradients(1), None)
    state = case.tx.init(params)
    updates, new_state = case.update(gradients, state, params)
    expect_same_structure("the updates", gradients, updates)
    expect_same_structure("the state", state, new_state)


@clause(
    "missing_gradients",
    level="promises",
    asks="an update",
    given="None in place of every second gradient",
    hint="where a gradient is None return None and the slots as they came, as in "
    "`jax.tree.map(f, updates, slots, is_leaf=lambda leaf: leaf is None)`",
    unless=(*_CHANGES_LEAVES, "own_clock"),
)
def check_missing_gradients(case: Case) -> None:
    """A gradient that is None gives an update that is None, and leaves its slots untouched.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_missing_gradients
        >>> check_missing_gradients(gradtx.sgd(0.1))
    """
    gradients = _every_second(case.gradients(2), None)
    state = case.steps[0][1]
    updates, new_state = case.update(gradients, state, case.params)
    expect_same_structure("the updates", gradients, updates)
    missing = [path for path, leaf in flatten(gradients)[0] if leaf is None]
    before, after = parts_like(state, case.params), parts_like(new_state, case.params)
    expect_same_structure("the state", state, new_state)
    for old, new in zip(before, after, strict=True):
        kept, found = dict(flatten(old)[0]), dict(flatten(new)[0])
        for path in missing:
            expect_same(f"the slot of '{path}'", {path: kept[path]}, {path: found[path]})


@clause(
    "masked_leaves",
    level="must",
    asks="init and update",
    given="`optax.MaskedNode()` in place of every second leaf",
    hint="a `MaskedNode` is a tree without leaves for `jax.tree.map`; pass it through",
    unless=_CHANGES_LEAVES,
)
def check_masked_leaves(case: Case) -> None:
    """`optax.MaskedNode` stays where it is, in the updates and in the state.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_masked_leaves
        >>> check_masked_leaves(gradtx.sgd(0.1))
    """
    params = _every_second(case.params, optax.MaskedNode())
    gradients = _every_second(case.gradients(1), optax.MaskedNode())
    state = case.tx.init(params)
    updates, new_state = case.update(gradients, state, params)
    expect_same_structure("the updates", gradients, updates)
    expect_same_structure("the state", state, new_state)


@clause(
    "empty_trees",
    level="promises",
    asks="init and update",
    given="a tree without leaves, or an array without elements",
    hint="sums and maxima need a start: `sum(..., jnp.float32(0))`, `jnp.max(x, initial=0)`",
    unless=_CHANGES_LEAVES,
)
def check_empty_trees(case: Case) -> None:
    """A tree without leaves, or an array without elements, is not an error.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_empty_trees
        >>> check_empty_trees(gradtx.sgd(0.1))
    """
    array = jnp.zeros((0, 2))
    empty: tuple[Any, ...] = ({}, {"frozen": None}, {"empty": array, "others": case.gradients(1)})
    for tree in empty:
        state = case.tx.init(tree)
        updates, new_state = case.update(tree, state, tree)
        expect_same_structure("the updates", tree, updates)
        expect_same_structure("the state", state, new_state)


@clause(
    "non_parameters",
    level="promises",
    asks="an update",
    given="a leaf that is no inexact array",
    hint="test leaves with `jnp.issubdtype(leaf.dtype, jnp.inexact)`, and return the others "
    "as they are",
    unless=_CHANGES_LEAVES,
)
def check_non_parameters(case: Case) -> None:
    """Float0 gradients and functions are returned unchanged; integers are left alone.

    An integer array in place of the gradient of an integer parameter must not become its update,
    which is zero or None. A transformation that passes on all gradients may pass on that one too.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_non_parameters
        >>> check_non_parameters(gradtx.sgd(0.1))
    """
    shape = (2,)
    strangers = (
        # What may be among the parameters, and what may be in place of its gradient.
        (jnp.array([3, -7]), np.zeros(shape, jax.dtypes.float0)),
        (jnp.array([3, -7]), jnp.array([1, 2])),
        (jnp.array([True, False]), np.zeros(shape, jax.dtypes.float0)),
        (jnp.tanh, jnp.tanh),
    )
    for position, (parameter, gradient) in enumerate(strangers):

        def is_here(index: int, number: int, position: int = position) -> bool:
            return index == position % number

        params = _replaced(case.params, is_here, parameter)
        gradients = _replaced(case.gradients(1), is_here, gradient)
        updates, _ = case.update(gradients, case.tx.init(params), params)
        expect_same_structure("the updates", gradients, updates)
        given, found = dict(flatten(gradients)[0]), dict(flatten(updates)[0])
        for path, leaf in given.items():
            if leaf is not gradient:
                continue
            hands_on = all(found[place] is value for place, value in given.items())
            if isinstance(leaf, jax.Array) and not hands_on:
                zero = None if found[path] is None else jnp.zeros_like(leaf)
                expect_same("the update of an integer", {path: zero}, {path: found[path]})
            else:
                expect_same("an update that is not a number", {path: leaf}, {path: found[path]})


def _replaced(tree: Any, chosen: Callable[[int, int], bool], by: Any) -> Any:
    """The tree with some leaves replaced, chosen by their index and the number of leaves."""
    named, treedef = flatten(tree)
    return treedef.unflatten(
        by if chosen(index, len(named)) else leaf for index, (_, leaf) in enumerate(named)
    )


def _every_second(tree: Any, by: Any) -> Any:
    """The tree with every second leaf replaced, including the last."""
    return _replaced(tree, lambda index, number: (number - index) % 2 == 1, by)


def parts_like(state: Any, params: Any) -> list[Any]:
    """The parts of a state that have the structure of the parameters."""
    _, treedef = flatten(params)
    if jax.tree_util.treedef_is_leaf(treedef):
        return []  # one array: a counter would look the same

    def is_slot(node: Any) -> bool:
        return flatten(node)[1] == treedef

    return [node for node in jax.tree.leaves(state, is_leaf=is_slot) if is_slot(node)]
