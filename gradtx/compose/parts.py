"""What a transformation is put together from, for whoever wants to look inside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import optax

Locality: TypeAlias = Literal["element", "leaf", "tree"]


class Part(NamedTuple):
    """A transformation inside another one.

    Attributes:
        label: what the whole calls it: its name, its group, or "".
        transformation: the part.
        choose: the function from a tree to the mask of the leaves that the part gets; None: it
            gets them all.
    """

    label: str
    transformation: optax.GradientTransformation
    choose: Callable[[Any], Any] | None = None


@dataclass(frozen=True, eq=False)
class Composed:
    """An update function that knows its parts.

    Attributes:
        owner: the public name of what put the parts together.
        parts: in the order in which they act.
        function: the update function itself.
        locality: what an element's update depends on, beside what the parts make it depend on:
            that "element" alone, its whole "leaf", or the whole "tree".
    """

    owner: str
    parts: tuple[Part, ...]
    function: Callable[..., tuple[Any, Any]]
    locality: Locality = "element"

    def __call__(
        self, updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        """The update of the whole."""
        return self.function(updates, state, params, **extra)


def composed(
    owner: str,
    parts: tuple[Part, ...],
    init: optax.TransformInitFn,
    update: Callable[..., tuple[Any, Any]],
    *,
    locality: Locality = "element",
) -> optax.GradientTransformationExtraArgs:
    """A transformation of optax's type whose parts `parts_of` finds again."""
    return optax.GradientTransformationExtraArgs(init, Composed(owner, parts, update, locality))


def parts_of(tx: optax.GradientTransformation) -> tuple[Part, ...]:
    """The parts of a chain, a group or a wrapper of this library; none of anything else."""
    return tx.update.parts if isinstance(tx.update, Composed) else ()


def owner_of(tx: optax.GradientTransformation) -> str:
    """The public name of what put a transformation together; "" of anything else."""
    return tx.update.owner if isinstance(tx.update, Composed) else ""


def locality_of(tx: optax.GradientTransformation) -> Locality | None:
    """What the composition itself makes an element's update depend on; None of anything else."""
    return tx.update.locality if isinstance(tx.update, Composed) else None
