"""What the signature of a factory of transformations tells about its arguments."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import types
import typing
from collections import OrderedDict
from collections.abc import Iterable
from inspect import BoundArguments, Parameter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.schedules import StatefulSchedule

from gradtx.messages import shown
from gradtx.select import select


class Factory:
    """A function that makes transformations, and which of its arguments are hyperparameters.

    Attributes:
        signature: its signature.
        is_ours: whether it belongs to gradtx.
        added: the names of the arguments that gradtx adds to a factory of optax.
    """

    def __init__(self, owner: str, function: Any) -> None:
        if not callable(function):
            raise ValueError(f"{owner}: the factory must be a function, got {shown(function)}")
        self._function = function
        self.signature = inspect.signature(function)
        parameters = self.signature.parameters
        origin = inspect.unwrap(function)
        while isinstance(origin, functools.partial):
            origin = inspect.unwrap(origin.func)
        self.is_ours = getattr(origin, "__module__", "").partition(".")[0] == "gradtx"
        name = getattr(origin, "__name__", "")
        peer = vars(optax).get(name) or vars(optax.contrib).get(name)
        theirs = inspect.signature(peer).parameters if self.is_ours and peer else parameters
        self.added = parameters.keys() - theirs
        self._annotations = {name: parameters[name].annotation for name in parameters}
        # Some names exist only for a type checker, and some callables have no annotations.
        with contextlib.suppress(NameError, TypeError):
            self._annotations |= typing.get_type_hints(origin)
        kinds = {parameter.kind: name for name, parameter in parameters.items()}
        self._keywords = kinds.get(Parameter.VAR_KEYWORD, "")

    def arguments(self, bound: BoundArguments) -> dict[str, Any]:
        """All arguments by name, including those that `**keywords` caught."""
        arguments = dict(bound.arguments)
        return arguments | arguments.pop(self._keywords, {})

    def hyperparameters(self, bound: BoundArguments, names: Iterable[str]) -> dict[str, Any]:
        """The values of those of the named arguments that are hyperparameters."""
        arguments = self.arguments(bound)
        return {n: arguments[n] for n in names if self.is_hyperparameter(n, arguments[n])}

    def make(self, bound: BoundArguments, values: dict[str, Any]) -> Any:
        """Call the function with new values for some of the arguments."""
        arguments = OrderedDict(bound.arguments)
        if self._keywords in arguments:
            caught = arguments[self._keywords]
            arguments[self._keywords] = {**caught, **{n: values[n] for n in caught if n in values}}
        arguments |= {name: values[name] for name in arguments if name in values}
        changed = BoundArguments(self.signature, arguments)
        return self._function(*changed.args, **changed.kwargs)

    def is_hyperparameter(self, name: str, value: Any) -> bool:
        """Whether an argument is a number that may change, rather than a choice."""
        is_number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
        if isinstance(value, bool | type) or not (is_number or callable(value)):
            return False
        members = members_of(self._annotations.get(name, Parameter.empty))
        if optax.Schedule in members:
            return True
        if self.is_ours:
            # An integer is a count, even where an array is allowed.
            is_inexact = is_number and jnp.issubdtype(jnp.result_type(value), jnp.inexact)
            return is_inexact and {jax.Array, float} <= {*members}
        return is_number or _is_schedule(value, members)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_schedule(function: Any, annotations: tuple[Any, ...]) -> bool:
    """Whether a function is a schedule, judging by its type and by the annotation."""
    if isinstance(function, StatefulSchedule):
        return True
    leaves = jax.tree.leaves(function)
    if isinstance(function, select) or not (len(leaves) == 1 and leaves[0] is function):
        return False
    expected = [m for m in annotations if typing.get_origin(m) is collections.abc.Callable]
    return not expected or any(typing.get_args(m)[-1] not in (Any, bool) for m in expected)
