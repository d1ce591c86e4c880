"""An equation in NumPy and double precision, and its numbers along a trajectory of gradients."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Slots = Mapping[str, Any]
Step = Callable[..., tuple[Any, Slots]]

# What a step is given beside its hyperparameters.
INPUTS = ("t", "g", "p", "old")


@dataclass(frozen=True)
class Reference:
    """An equation with its hyperparameters, for `check_reference`.

    Attributes:
        name: the name of the equation.
        step: one step, see `equation`.
        hyperparameters: keyword arguments of the step. A function among them, or in a tuple, is a
            schedule: it is called with the number of the steps before.
        whole: whether the equation is about all leaves as one vector.
        given: the names of the extra arguments of the update that the step needs too.
    """

    name: str
    step: Step
    hyperparameters: Mapping[str, Any]
    whole: bool = False
    given: tuple[str, ...] = ()

    def __call__(self, gradients: Sequence[Any], parameter: Any) -> list[np.ndarray]:
        """The updates of one leaf whose parameter stays the same.

        Args:
            gradients: an array for each step.
            parameter: the parameter.

        Returns:
            The update of each step.
        """
        steps = self.run([[g] for g in gradients], [[parameter]] * len(gradients))
        return [updates[0] for updates, _ in steps]

    def run(
        self,
        gradients: Sequence[Sequence[Any]],
        params: Sequence[Sequence[Any]],
        extra: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[tuple[list[np.ndarray], list[Slots]]]:
        """The updates and the slots of each step.

        Args:
            gradients: the leaves of the gradient in each step.
            params: the leaves of the parameters in each step.
            extra: the extra arguments of each step, of the names `given`.

        Returns:
            For each step the update of each leaf, and the slots of each leaf; of an equation about
            all leaves there is one dictionary of slots.
        """
        number = 1 if self.whole else len(gradients[0])
        slots: list[Slots] = [defaultdict(float) for _ in range(number)]
        for count, (gs, ps) in enumerate(zip(gradients, params, strict=True)):
            values = {name: _at(value, count) for name, value in self.hyperparameters.items()}
            if extra:
                values |= {name: extra[count][name] for name in self.given}
            inputs = [(_joined(gs), _joined(ps))] if self.whole else zip(gs, ps, strict=True)
            found = [
                self.step(count + 1, g, p, old, **values)
                for (g, p), old in zip(inputs, slots, strict=True)
            ]
            slots = [defaultdict(float, new) for _, new in found]
            updates = [np.asarray(u) for u, _ in found]
            yield _split(updates[0], gs) if self.whole else updates, [dict(s) for s in slots]


class Equation:
    """A maker of references: an equation whose hyperparameters are still open.

    Attributes:
        step: one step, for other equations to be built from.
        whole: whether it is about all leaves as one vector.
        given: the names of the extra arguments that it needs.
    """

    def __init__(self, step: Step, like: Equation | None, whole: bool, given: tuple[str, ...]):
        functools.update_wrapper(self, step)
        self.step = step
        self.whole = whole or (like is not None and like.whole)
        self.given = given or (() if like is None else like.given)
        self.__signature__ = _open_signature(step, like, self.given)

    def __call__(self, *args: Any, **hyperparameters: Any) -> Reference:
        """The equation with the given hyperparameters, and its defaults for the others."""
        bound = self.__signature__.bind(*args, **hyperparameters)
        bound.apply_defaults()
        name = getattr(self.step, "__name__", "equation")
        return Reference(name, self.step, bound.arguments, self.whole, self.given)


def equation(
    step: Step | None = None,
    *,
    like: Equation | None = None,
    whole: bool = False,
    given: tuple[str, ...] = (),
) -> Any:
    """Make references of one step of an equation, on one leaf in NumPy.

    Args:
        step: a function of the number of the step `t` (1 at the first), the gradient `g`, the
            parameter `p`, the slots `old` that the last step left, each 0 at the start, and of the
            hyperparameters by keyword; it returns the update, which is added to the parameter, and
            the new slots, a dictionary. None: a decorator with the other arguments.
        like: an equation that takes the hyperparameters `**...` of this one.
        whole: whether the arrays are all leaves as one vector.
        given: the names among the keywords that are no hyperparameters but extra arguments of the
            update, such as the loss `value`.

    Returns:
        A function of the hyperparameters that returns a `Reference`.

    Example:
        >>> from gradtx.testing import references
        >>> @references.equation
        ... def heavy_ball(t, g, p, old, *, rate, momentum=0.9):
        ...     velocity = momentum * old["velocity"] + g
        ...     return -rate * velocity, {"velocity": velocity}
        >>> heavy_ball(0.5)([2.0, 2.0], parameter=0.0)
        [array(-1.), array(-1.9)]
    """
    if step is None:
        return lambda function: Equation(function, like, whole, given)
    return Equation(step, like, whole, given)


def _open_signature(step: Step, like: Equation | None, given: tuple[str, ...]) -> inspect.Signature:
    """The hyperparameters, in order and with those of `like` for its own `**`."""
    parts = {}
    for name, part in inspect.signature(step).parameters.items():
        if part.kind is inspect.Parameter.VAR_KEYWORD:
            others = like.__signature__.parameters if like is not None else {}
            parts = {**parts, **{n: p for n, p in others.items() if n not in parts}}
        elif name not in (*INPUTS, *given):
            parts[name] = part
    # By keyword, but for what must be given: the library has more arguments between these.
    is_open = {name: part.default is part.empty for name, part in parts.items()}
    ordered = [
        part.replace(kind=part.POSITIONAL_OR_KEYWORD if is_open[name] else part.KEYWORD_ONLY)
        for name, part in sorted(parts.items(), key=lambda item: not is_open[item[0]])
    ]
    return inspect.Signature(ordered)


def _at(value: Any, count: int) -> Any:
    """A hyperparameter at a step, in double precision exactly what it is."""
    if isinstance(value, tuple):
        return tuple(_at(part, count) for part in value)
    value = value(np.int32(count)) if callable(value) else value
    is_array = hasattr(value, "dtype") and np.ndim(value) == 0
    return np.asarray(value).item() if is_array else value


def _joined(leaves: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def _split(vector: np.ndarray, leaves: Sequence[Any]) -> list[np.ndarray]:
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(vector, ends)
    return [part.reshape(np.shape(x)) for part, x in zip(parts, leaves, strict=True)]


def divide(numerator: Any, denominator: Any) -> Any:
    """The quotient with 0 / 0 = 0: without a gradient there is no step."""
    is_zero = denominator == 0
    return np.where(is_zero, 0, numerator / np.where(is_zero, 1, denominator))


def square(x: Any) -> Any:
    """The square of the absolute value."""
    return abs(x) ** 2


def norm(x: Any) -> Any:
    """The Euclidean norm."""
    return np.sqrt(np.sum(square(x)))


def descent(
    direction: tuple[Any, Slots], learning_rate: Any, p: Any = 0.0, weight_decay: Any = 0.0
) -> tuple[Any, Slots]:
    """A step against a direction, with Loshchilov & Hutter's decoupled decay of the weights."""
    u, new = direction
    return -learning_rate * (u + weight_decay * p), new
