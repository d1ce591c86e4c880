"""What a function remembers in Python: its closure, its object, and the globals that it names."""

from __future__ import annotations

import collections
import functools
import itertools
import random
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

_DEEP = 12
_LONG = 200
# Packages whose globals are their own affair.
_FOREIGN = frozenset(
    {"jax", "jaxlib", "numpy", "optax", "gradtx", "flax", "equinox", "chex", "builtins", "typing"}
)
_PLAIN = bool | int | float | complex | str | bytes | None


def remembered(name: str, function: Any) -> dict[str, Any]:
    """What a function could change by being called, by where it is, as values that are comparable.

    Arrays of jax are left out: they never change, and `check_leaks` finds those that are kept.
    """
    found: dict[str, Any] = {}
    _visit(name, function, found, {}, 0)
    return found


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Where two of these differ, with what was there before and after."""
    nothing = "nothing"
    for place in [*before, *(place for place in after if place not in before)]:
        old, new = before.get(place, nothing), after.get(place, nothing)
        if old != new and not (old != old and new != new):
            yield place, old, new


def _visit(place: str, value: Any, found: dict[str, Any], seen: dict[int, Any], depth: int) -> None:
    if id(value) in seen or depth > _DEEP:
        return
    if isinstance(value, _PLAIN | np.generic):
        found[place] = value if not isinstance(value, str | bytes) else value[:_LONG]
        return
    seen[id(value)] = value  # kept, as the next object may get the place of one that is gone
    state = _own_state(value)
    if state is not None:
        found[place] = state
    for part, inner in _parts(place, value):
        _visit(part, inner, found, seen, depth + 1)


def _own_state(value: Any) -> Any:
    """What tells whether this very object was changed; None: nothing can change or is known."""
    if isinstance(value, list | dict | set | collections.deque):
        return f"of length {len(value)}"
    if isinstance(value, np.ndarray) and not isinstance(value, jax.Array):
        return f"an array with the sum {hash(value.tobytes())}" if value.size < 10_000 else None
    if isinstance(value, itertools.count):
        return repr(value)
    return generator_state(value)


def generator_state(generator: Any) -> str | None:
    """What a generator of random numbers will do next, in few words; None: it is none.

    The modules `numpy.random` and `random` stand for their own.
    """
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, np.random.BitGenerator):
        state = str(generator.state)
    elif isinstance(generator, np.random.RandomState):
        state = str(generator.get_state())
    elif generator is np.random:
        state = str(np.random.get_state())
    elif isinstance(generator, random.Random) or generator is random:
        state = str(generator.getstate())
    else:
        return None
    return f"in state {zlib.crc32(state.encode()):08x}"


def _parts(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object refers to, with where it is."""
    if isinstance(value, list | tuple | collections.deque):
        for i, inner in enumerate(itertools.islice(value, _LONG)):
            yield f"{place}[{i}]", inner
    elif isinstance(value, dict):
        for key, inner in itertools.islice(list(value.items()), _LONG):
            yield f"{place}[{str(key)[:40]!r}]", inner
    elif isinstance(value, functools.partial):
        yield place, value.func
        yield f"the arguments of {place}", [*value.args, value.keywords]
    elif isinstance(value, types.MethodType):
        yield place, value.__func__
        yield f"the object of {place}", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _of_function(place, value)
    elif hasattr(value, "__wrapped__"):
        yield place, value.__wrapped__
    elif not _is_foreign(type(value)) and not isinstance(value, type | types.ModuleType):
        yield from ((f"`{key}` of {place}", inner) for key, inner in _attributes(value).items())
        yield place, vars(type(value)).get("__call__")


def _of_function(place: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield f"`{name}` in the closure of {place}", cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    yield f"the defaults of {place}", [*(function.__defaults__ or ()), function.__kwdefaults__]
    yield f"the attributes of {place}", vars(function)
    if not _is_foreign(function):
        for name in sorted(_names(function.__code__)):
            inner = function.__globals__.get(name)
            if not isinstance(inner, types.ModuleType) and not _is_foreign(inner):
                yield f"the global `{name}`", inner


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and the functions in it look up."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*inner)


def _attributes(value: Any) -> dict[str, Any]:
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(
        value, "__dict__", {}
    )


def _is_foreign(thing: Any) -> bool:
    module = getattr(thing, "__module__", None) or ""
    return module.split(".")[0] in _FOREIGN
