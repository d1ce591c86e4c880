"""Optimizers by name, as command lines and configuration files need them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import optax

import gradtx
from gradtx.messages import listed, shown


def names() -> tuple[str, ...]:
    """The names of all optimizers, which `make` takes.

    Returns:
        The names, sorted: those of the public functions that make a whole optimizer, not a piece of
        one (`scale_by_adam`) or a wrapper (`schedule_free`).

    Example:
        >>> import gradtx
        >>> gradtx.names()[:3], len(gradtx.names()) > 50
        (('acprop', 'adabelief', 'adadelta'), True)
    """
    functions = {name: getattr(gradtx, name) for name in gradtx.__all__}
    return tuple(
        name for name, thing in functions.items() if inspect.isfunction(thing) and is_whole(thing)
    )


def make(name: str, /, **arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Build an optimizer by its name.

        make("adamw", learning_rate=0.1) = adamw(learning_rate=0.1)

    Args:
        name: one of `names()`; hyphens count as underscores.
        **arguments: the arguments of the function of that name.

    Returns:
        What that function returns.

    Raises:
        ValueError: if there is no optimizer of that name, it has no argument of a given name, one
            without a default is not given, or the optimizer refuses a value.

    Example:
        >>> import gradtx
        >>> tx = gradtx.make("sgd", learning_rate=0.1, momentum=0.9)
        >>> configuration = {"name": "schedule-free-adamw", "learning_rate": 0.01}
        >>> tx = gradtx.make(configuration.pop("name"), **configuration)
        >>> gradtx.make("adammw", learning_rate=0.1)
        Traceback (most recent call last):
        ValueError: make: there is no optimizer 'adammw'; did you mean 'adamw'?
    """
    factory = _factory(name)
    parameters = inspect.signature(factory).parameters
    unknown = [argument for argument in arguments if argument not in parameters]
    if unknown:
        raise ValueError(
            f"make: {factory.__name__} has no argument {unknown[0]!r}"
            f"{_suggestion(unknown[0], parameters) or f'; it has {listed(parameters, 40)}'}"
        )
    required = [each.name for each in parameters.values() if each.default is each.empty]
    missing = [argument for argument in required if argument not in arguments]
    if missing:
        raise ValueError(f"make: {factory.__name__} needs {listed(missing)}")
    return factory(**arguments)


def is_whole(factory: Callable[..., Any]) -> bool:
    """Whether a public function makes an optimizer rather than a piece of one or a wrapper.

    Example:
        >>> import gradtx
        >>> from gradtx.by_name import is_whole
        >>> [is_whole(each) for each in (gradtx.adam, gradtx.scale_by_adam, gradtx.lookahead)]
        [True, False, False]
    """
    if factory.__module__.startswith("gradtx.recipes."):
        return True
    first = next(iter(inspect.signature(factory).parameters), None)
    return first == "learning_rate" and not factory.__name__.startswith("scale_by_")


def _factory(name: str) -> Callable[..., Any]:
    """The function of a name, which may have hyphens."""
    if not isinstance(name, str):
        raise ValueError(f"make: name must be a string, got {shown(name)}")
    own = name.replace("-", "_")
    factory = getattr(gradtx, own) if own in gradtx.__all__ else None
    if not inspect.isfunction(factory) or not is_whole(factory):
        hint = _suggestion(own.lower(), names()) or "; gradtx.names() returns all names"
        raise ValueError(f"make: there is no optimizer {shown(name)}{hint}")
    return factory


def _suggestion(text: str, names: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: the nearest one, if any is near."""
    near = difflib.get_close_matches(text, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
