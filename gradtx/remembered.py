"""Caches of compiled steps, which end with the functions that they are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, Generic, TypeVar

R = TypeVar("R")

# A compiled program takes about a megabyte. An eager loop over more optimizers than this at once
# compiles again, and what was compiled longest ago is forgotten.
PROGRAMS = 256
_OF_ONE_FUNCTION = 32
_ATTRIBUTE = "_gradtx_remembered"


class _Memory(dict[Any, Any]):
    """What is remembered with a function; a pickled function leaves it behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Memory, ()


def remembered(
    passing: Callable[..., Any], maxsize: int = PROGRAMS
) -> Callable[[Callable[..., R]], Remembering[R]]:
    """Cache what a function of hashable arguments returns.

    What is made of functions that live as long as their module is kept for all, and the least
    recently used is forgotten. What is made of a function that was defined in another one is kept
    with that function, so that no cache keeps it, and all that it refers to, alive.

    Args:
        passing: from the arguments to a function that may end before the process does, or None; see
            `passing_among`.
        maxsize: how many results to keep.

    Returns:
        A decorator. The decorated function has `cache_info` and `cache_clear` of `lru_cache`, for
        what is kept for all.
    """
    return lambda make: Remembering(make, passing, maxsize)


class Remembering(Generic[R]):
    """A function that remembers what it returned, see `remembered`."""

    def __init__(self, make: Callable[..., R], passing: Callable[..., Any], maxsize: int) -> None:
        functools.update_wrapper(self, make)
        self._make, self._passing = make, passing
        self._shared = functools.lru_cache(maxsize)(make)
        self.cache_info, self.cache_clear = self._shared.cache_info, self._shared.cache_clear

    def __call__(self, *key: Any) -> R:
        function = self._passing(*key)
        if function is None:
            return self._shared(*key)
        memory = function.__dict__.setdefault(_ATTRIBUTE, _Memory())
        if self not in memory:
            memory[self] = functools.lru_cache(_OF_ONE_FUNCTION)(self._make)
        return memory[self](*key)


def passing_among(values: Iterable[Any]) -> Any:
    """The first function that was defined in another one, and can be given up with it; or None."""
    for value in values:
        # Only plain functions: the attributes of other callables may have a meaning.
        if isinstance(value, FunctionType) and "<locals>" in value.__qualname__:
            return value
    return None
