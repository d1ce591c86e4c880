"""Comparing trees, and naming the leaf at which they differ."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.messages import shown
from gradtx.trees import different_containers

_NO_SLACK: Mapping[str, float] = MappingProxyType({})


class Violation(Exception):
    """A broken promise, found at one leaf.

    Args:
        path: the key path of the leaf; empty for the whole tree.
        expected: what the contract demands.
        got: what the transformation did.
        given: the input; empty if the rest says it, None for that of the clause.
        hint: what to look at; empty for what the clause says.
    """

    def __init__(
        self, path: str, expected: str, got: str, *, given: str | None = None, hint: str = ""
    ) -> None:
        place = f"at '{path}': " if path else ""
        super().__init__(f"{place}expected {expected}, got {got}")
        self.given, self.hint = given, hint


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves, including None, each with its key path; and the structure."""
    named, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return [(path_name(path), leaf) for path, leaf in named], treedef


def path_name(path: tuple[Any, ...]) -> str:
    """A key path in the form `dense/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def expect_same_structure(what: str, expected: Any, got: Any) -> None:
    """Demand the same paths and containers, with None in the same places."""
    (named, treedef), (found, other) = flatten(expected), flatten(got)
    ours, theirs = dict(named), dict(found)
    if ours.keys() != theirs.keys():
        # Other keys may come from another container, as where a named tuple becomes a tuple.
        place, wanted, found = different_containers(expected, got)
        is_leaf = ours.get(place) is not None or place in theirs
        if not is_leaf and "static" not in wanted:
            demand = "None" if wanted == "NoneType" else f"a container {wanted}"
            raise Violation(place, f"{what} to have {demand}", found)
    for path in [*ours, *theirs]:
        is_in_both = path in ours and path in theirs
        if not is_in_both or (ours[path] is None) != (theirs[path] is None):
            raise Violation(
                path,
                f"{what} to have {_type(ours[path]) if path in ours else 'no leaf there'}",
                f"{_type(theirs[path]) if path in theirs else 'no leaf there'}",
            )
    if treedef != other:
        place, wanted, found = different_containers(expected, got)
        raise Violation(place, f"{what} to have a container {wanted}", found)


def expect_same_types(what: str, expected: Any, got: Any, *, weak: bool = True) -> None:
    """Demand the same structure, shapes and dtypes, and with `weak` the same weak types."""
    expect_same_structure(what, expected, got)
    for (path, ours), (_, theirs) in zip(flatten(expected)[0], flatten(got)[0], strict=True):
        if _type(ours, weak) != _type(theirs, weak):
            raise Violation(path, f"{what} of type {_type(ours, weak)}", _type(theirs, weak))


def expect_same(
    what: str,
    expected: Any,
    got: Any,
    ulps: float = 0.0,
    magnitude: float = 0.0,
    slack: Mapping[str, float] = _NO_SLACK,
) -> None:
    """Demand the same structure, shapes, dtypes and numbers.

    Args:
        what: what the trees are called in the message.
        expected: the correct tree.
        got: the tree to judge.
        ulps: how far inexact numbers may differ, in units of the last place of the leaf's
            largest number; NaN equals NaN.
        magnitude: how large the numbers were from which the trees were calculated; with `ulps`,
            two roundings of such a number are no difference, as in `new - old`.
        slack: how far numbers may differ in any case, by the path of their leaf, as a part of the
            leaf's largest number.
    """
    if _are_equal(expected, got):
        return
    expect_same_types(what, expected, got, weak=False)
    for (path, ours), (_, theirs) in zip(flatten(expected)[0], flatten(got)[0], strict=True):
        if not _is_array(ours):
            if ours is not theirs and ours != theirs:
                raise Violation(path, f"{what} to be {shown(ours)}", shown(theirs))
            continue
        right, found = _numbers(ours), _numbers(theirs)
        is_close = (right == found) | (_is_nan(right) & _is_nan(found))
        if ulps and np.issubdtype(right.dtype, np.inexact):
            largest = np.max(np.abs(right[np.isfinite(right)]), initial=0.0)
            eps = float(jnp.finfo(jnp.result_type(ours)).eps)
            allowed = eps * (ulps * largest + 2 * magnitude)
            allowed = max(allowed, slack.get(path, 0.0) * largest)
            with np.errstate(invalid="ignore"):
                is_close |= np.abs(right - found) <= allowed
        if not np.all(is_close):
            worst = np.argwhere(~is_close)[0]
            index = tuple(int(i) for i in worst)
            raise Violation(
                path, f"{what} to be {right[index]} at index {index}", f"{found[index]}"
            )


def _are_equal(expected: Any, got: Any) -> bool:
    """Whether trees hold equal arrays; most do, and their leaves need not be named."""
    (ours, treedef), (theirs, other) = jax.tree.flatten(expected), jax.tree.flatten(got)
    return treedef == other and all(map(_is_same_array, ours, theirs))


def _is_same_array(ours: Any, theirs: Any) -> bool:
    if not (isinstance(ours, jax.Array) and isinstance(theirs, jax.Array)):
        return False
    if ours.dtype != theirs.dtype or jnp.issubdtype(ours.dtype, jax.dtypes.extended):
        return False
    return np.array_equal(np.asarray(ours), np.asarray(theirs))


def expect_finite(what: str, tree: Any, *, infinity: bool = False) -> None:
    """Demand numbers without NaN and, unless `infinity` is allowed, without infinity."""
    for path, leaf in flatten(tree)[0]:
        if _is_array(leaf):
            numbers = _numbers(leaf)
            wrong = _is_nan(numbers) if infinity else ~np.isfinite(numbers)
            if np.any(wrong):
                demand = "without NaN" if infinity else "that are finite"
                raise Violation(path, f"{what} {demand}", f"{numbers[wrong][0]}")


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def _numbers(leaf: Any) -> np.ndarray:
    """The leaf in NumPy, inexact numbers in double precision."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return array.astype(np.complex128)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _is_nan(numbers: np.ndarray) -> np.ndarray:
    is_inexact = np.issubdtype(numbers.dtype, np.inexact)
    return np.isnan(numbers) if is_inexact else np.zeros(numbers.shape, bool)


def _type(leaf: Any, weak: bool = True) -> str:
    if not _is_array(leaf):
        return type(leaf).__name__ if leaf is not None else "None"
    aval = jax.typeof(leaf)
    mark = "weakly typed " if weak and getattr(aval, "weak_type", False) else ""
    # Spelled out, because the type's own text changes with the sharding.
    return f"{mark}{aval.dtype}{list(aval.shape)}"
