"""Clauses about which leaf is where, and how large it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation, expect_same, flatten
from gradtx.testing.programs import depends_on_chance, program_of
from gradtx.testing.trees import is_parameter


@clause(
    "order",
    level="must",
    asks="steps with the leaves in another container",
    given="",
    unless=("names", "whole_tree"),
    hint="map over leaves with `jax.tree.map`, and tell none apart by its name or place",
)
def check_order(case: Case) -> None:
    """The order of leaves, their names and their containers do not matter.

    The leaves are taken out of their own tree and put into a dictionary, into a list, and under
    other names in the opposite order, where the dictionaries of gradients and parameters were
    filled in different orders. Random numbers promise nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_order
        >>> check_order(gradtx.sgd(0.1), {"w": jnp.ones(2), "b": jnp.ones(3)})
    """
    if not _is_comparable(case):
        return
    params = [leaf for leaf in jax.tree.leaves(case.params) if is_parameter(leaf)]
    gradients = [
        [leaf for leaf in jax.tree.leaves(case.gradients(step)) if is_parameter(leaf)]
        for step in (1, 2)
    ]
    names = [f"leaf_{i}" for i in range(len(params))]

    def named(leaves: list[Any]) -> dict[str, Any]:
        return dict(zip(names, leaves, strict=True))

    def renamed(leaves: list[Any]) -> dict[str, Any]:
        return {f"kernel_{9999 - i}": leaf for i, leaf in enumerate(leaves)}

    def filled_backwards(leaves: list[Any]) -> dict[str, Any]:
        return dict(reversed(renamed(leaves).items()))

    paths = [path for path, leaf in flatten(case.params)[0] if is_parameter(leaf)]
    expected = [
        [leaf for leaf, p in _pairs(updates, case.params) if is_parameter(p)]
        for updates, _ in case.steps
    ]
    for what, place, place_gradients in (
        ("under other names", named, named),
        ("in a list", list, list),
        ("under other names in another order", renamed, filled_backwards),
    ):
        found = _flat_steps(case, params, gradients, place, place_gradients)
        for one, other in zip(expected, found, strict=True):
            what_of = f"the updates of leaves {what}"
            own, theirs = (dict(zip(paths, x, strict=True)) for x in (one, other))
            expect_same(what_of, own, theirs, case.ulps, case.magnitude)


def _pairs(updates: Any, params: Any) -> list[tuple[Any, Any]]:
    """Each update with its parameter, None among them."""
    found, leaves = flatten(updates)[0], flatten(params)[0]
    return [(u, p) for (_, u), (_, p) in zip(found, leaves, strict=True)]


def _is_comparable(case: Case) -> bool:
    """Whether the transformation works on other trees than the given one, without chance."""
    arrays = isinstance(case.extra_args, Mapping) and any(
        np.ndim(leaf) for leaf in jax.tree.leaves(dict(case.extra_args)) if not callable(leaf)
    )
    return not (arrays or depends_on_chance(case) or isinstance(program_of(case), Exception))


def _flat_steps(
    case: Case,
    params: list[Any],
    gradients: list[list[Any]],
    place: Callable[[list[Any]], Any],
    place_gradients: Callable[[list[Any]], Any],
) -> list[list[Any]]:
    """The updates of each step, as a list in the order of the leaves."""
    tree, found = place(params), []
    state = case.tx.init(tree)
    # Which leaf is where, as a dictionary is flattened in the order of its keys.
    where = jax.tree.leaves(place(list(range(len(params)))))
    for step in gradients:
        updates, state = case.update(place_gradients(step), state, tree)
        leaves = dict(zip(where, jax.tree.leaves(updates), strict=True))
        found.append([leaves[i] for i in range(len(params))])
    return found


Shapes = dict[str, tuple[tuple[int, ...], int]]

# Leaves whose rows come again and again, so that rows far apart must get the same updates: shapes,
# and after how many rows they come again.
_LARGE: Shapes = {
    "vector": ((300,), 5),
    "matrix": ((26, 5), 2),
    "rows": ((130, 2), 2),
    "stack": ((6, 4, 7), 2),
    "kernel": ((4, 3, 3, 5), 2),
}
_SMALL: Shapes = {"vector": ((10,), 5), "matrix": ((6, 5), 2), "stack": ((4, 2, 3), 2)}
# Leaves whose updates might be transposed or squeezed unseen, and after how many rows they repeat.
_ODD: Shapes = {
    "single": ((1,), 1),
    "column": ((3, 1), 1),
    "stack": ((2, 3, 4), 1),
    "kernel": ((1, 2, 1, 3), 1),
}
# How far apart the updates of rows may be where a matrix is treated in blocks of unequal sizes,
# as one of more than 128 rows often is.
_BLOCKS = 16.0


@clause(
    "sizes",
    level="must",
    asks="steps with leaves of up to 300 elements",
    given="leaves of 130 to 300 elements whose rows repeat",
    unless=("names", "whole_tree", "shapes"),
    hint="constants that stand for a number of elements, and indices in narrow integers",
)
def check_sizes(case: Case) -> None:
    """Updates have the shapes of their gradients, and rows that repeat get updates that repeat.

    The leaves have one to four dimensions, some of them of size 1, and up to 300 elements. A
    transformation whose updates depend on the position within a small leaf, too, promises nothing,
    and neither do random numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_sizes
        >>> check_sizes(gradtx.sgd(0.1), jnp.ones(2))
    """
    if not _is_comparable(case):
        return
    dimensions = {leaf.ndim for leaf in jax.tree.leaves(case.params) if is_parameter(leaf)}
    is_any = {1, 2} <= dimensions

    def fitting(shapes: Shapes) -> Shapes:
        """Those that have as many dimensions as some parameter, if it may not be any number."""
        return {
            name: (shape, period)
            for name, (shape, period) in shapes.items()
            if is_any or len(shape) in dimensions
        }

    _expect_shapes(case, fitting(_ODD))
    violation = _uneven(case, fitting(_LARGE))
    if violation is not None and _uneven(case, fitting(_SMALL)) is None:
        raise violation


def _expect_shapes(case: Case, shapes: Shapes) -> None:
    """Demand updates in the shapes of their gradients, from shapes alone."""
    try:
        found = jax.eval_shape(functools.partial(_two_steps, case, case.update), *_trees(shapes))
    except TypeError:
        return
    for updates in found:
        for name, (shape, _) in shapes.items():
            if updates[name].shape != shape:
                raise Violation(
                    f"{name} of shape {shape}",
                    "the update to have the shape of its gradient",
                    f"{updates[name].shape}",
                    given="leaves of other shapes",
                    hint="`squeeze`, `swapaxes`, `reshape` and operations that broadcast: return "
                    "each update in the shape of its gradient",
                )


def _two_steps(
    case: Case, update: Callable[..., Any], params: Any, first: Any, second: Any
) -> tuple[Any, Any]:
    """The updates of two steps."""
    updates, state = update(first, case.tx.init(params), params)
    return updates, update(second, state, params)[0]


def _trees(shapes: Shapes) -> list[Any]:
    """Parameters and two gradients of these shapes."""
    return [
        {name: _repeated(shape, period, seed) for name, (shape, period) in shapes.items()}
        for seed in (0, 1, 2)
    ]


def _uneven(case: Case, shapes: Shapes) -> Violation | None:
    """Where updates do not repeat although gradients and parameters do."""
    try:
        _, updates = _two_steps(case, jax.jit(case.update), *_trees(shapes))
    except TypeError:
        return None
    for name, (shape, period) in shapes.items():
        found = np.asarray(updates[name], np.float64)
        rows = found.reshape(-1, period, *shape[1:])
        is_same = _is_close(rows, rows[:1]) if name != "rows" else _is_similar(rows, rows[:1])
        if not np.all(is_same):
            index = np.argwhere(~is_same)[0]
            row = int(index[0]) * period + int(index[1])
            place = (row, *map(int, index[2:]))
            first = (int(index[1]), *map(int, index[2:]))
            return Violation(
                f"{name} of shape {shape}",
                f"the update to be {found[first]:.6g} at index {place}, as at {first}",
                f"{found[place]:.6g}",
            )
    return None


def _repeated(shape: tuple[int, ...], period: int, seed: int) -> Any:
    part = np.random.default_rng(seed).standard_normal((period, *shape[1:]))
    return jnp.asarray(np.tile(part, (shape[0] // period, *[1] * (len(shape) - 1))), jnp.float32)


def _is_close(rows: Any, first: Any) -> Any:
    return np.abs(rows - first) <= 1e-3 * np.max(np.abs(rows), initial=0.0)


def _is_similar(rows: Any, first: Any) -> Any:
    """Whether the signs are the same and the sizes not far apart; blocks may be scaled."""
    small = 1e-3 * np.max(np.abs(rows), initial=0.0)
    a, b = np.abs(rows), np.abs(first)
    is_near = (a <= _BLOCKS * b) & (b <= _BLOCKS * a) & (rows * first > 0)
    return is_near | ((a <= small) & (b <= small))
