"""What a transformation is put together from, for whoever wants to look inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import optax

from gradtx.effect import Effect
from gradtx.inputs import as_gradients, check_state, has_fields
from gradtx.joined import Finish, Leaves, Link, run
from gradtx.placement import with_numbers_placed

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


@dataclass(eq=False)
class Composed(Link):
    """An update function that knows its parts.

    Attributes:
        owner: the public name of what put the parts together.
        parts: in the order in which they act.
        function: the update function itself; of a composition of links what joins them: from
            the leaves and the state to what gives the new state.
        locality: what an element's update depends on, beside what the parts make it depend on:
            that "element" alone, its whole "leaf", or the whole "tree".
        fields: what the function reads of its state; it may be of any class that has them.
        takes_integers: whether the function takes gradients of integers as they are; what joins
            its parts leaves them to these.
        reads_state: whether the function reads its state; if not, it accepts any.
        joins: whether the steps of its parts may wait at the leaves.
        effect: what it makes of the updates; None: it does not say.
        on_stacks: what joins its parts where leaves are in stacks, if it does not always join them;
            None: it does not work on stacks.
        of_matrices: whether it multiplies or factors matrices, which several devices can share.
        widening: the name of what widens updates in it, see `widens`; "": nothing does.
    """

    owner: str
    parts: tuple[Part, ...]
    function: Callable[..., Any]
    locality: Locality = "element"
    fields: tuple[str, ...] = ()
    takes_integers: bool = False
    reads_state: bool = True
    joins: bool = False
    effect: Effect | None = None
    on_stacks: Callable[[Leaves, Any], Finish] | None = None
    of_matrices: bool = False
    widening: str = ""

    def __call__(
        self, updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        """The update of the whole."""
        if self.joins:
            return run(self, updates, state, params, extra)
        check_state(self.owner, state, self.fields)
        if not self.takes_integers:
            updates = as_gradients(updates, params)
        return self.function(updates, state, params, **extra)

    def join(self, leaves: Leaves, state: Any) -> Finish:
        """Put the steps of its parts to the leaves, or those of the others through the whole."""
        if leaves.has_stacks and self.on_stacks is not None:
            return self.on_stacks(leaves, state)
        if not self.joins:
            return leaves.through(self, state)
        check_state(self.owner, state, self.fields)
        return self.function(leaves, state)

    @property
    def __name__(self) -> str:
        """The name that a function has, which compiled programs are called by."""
        return "update"

    def __deepcopy__(self, memo: Any) -> Composed:
        # Nothing in it changes after it is built, so that a copy of it is itself.
        return self


def composed(
    owner: str,
    parts: tuple[Part, ...],
    init: optax.TransformInitFn,
    update: Callable[..., Any],
    *,
    locality: Locality = "element",
    state: Any = None,
    takes_integers: bool = False,
    reads_state: bool = True,
    joins: bool = False,
    effect: Effect | None = None,
    on_stacks: Callable[[Leaves, Any], Finish] | None = None,
    of_matrices: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transformation of optax's type whose parts `parts_of` finds again.

    Args:
        owner: the public name of what put the parts together.
        parts: in the order in which they act.
        init: the init function.
        update: the update function; with `joins` the function of the leaves and the state.
        locality: see `Composed`.
        state: the class of the state, whose fields the update reads; None: it looks at the state
            itself, or has none.
        takes_integers: see `Composed`.
        reads_state: see `Composed`.
        joins: see `Composed`.
        effect: see `Composed`.
        on_stacks: see `Composed`.
        of_matrices: see `Composed`.
    """
    widening = owner if effect is not None and effect.widens else ""
    for part in parts:
        widening = widening or _widening(part.transformation)
    if widening and effect is not None and effect.alters:
        raise ValueError(f"{owner} {_AS_THEY_ARE.format(widening)}")
    fields = getattr(state, "_fields", ())
    whole = Composed(
        owner,
        parts,
        update,
        locality,
        fields,
        takes_integers,
        reads_state,
        joins,
        effect,
        on_stacks,
        of_matrices,
        widening,
    )
    return optax.GradientTransformationExtraArgs(with_numbers_placed(init), whole)


def would_lose(tx: optax.GradientTransformation, state: Any) -> bool:
    """Whether a state that an update does not read is that of another transformation."""
    update: Any = getattr(tx.update, "__self__", tx.update)
    if getattr(update, "reads_state", True) or not jax.tree.leaves(state):
        return False
    return not (update.fields and has_fields(state, update.fields))


def parts_of(tx: optax.GradientTransformation) -> tuple[Part, ...]:
    """The parts of a chain, a group or a wrapper of this library; none of anything else."""
    return tx.update.parts if isinstance(tx.update, Composed) else ()


def owner_of(tx: optax.GradientTransformation) -> str:
    """The public name of what put a transformation together; "" of anything else."""
    return tx.update.owner if isinstance(tx.update, Composed) else ""


def effect_of(tx: optax.GradientTransformation) -> Effect | None:
    """What a transformation that is no kernel says that it makes of the updates; None: nothing."""
    effect = getattr(tx.update, "effect", None)
    # `functools.wraps` copies what a function says to another one that wraps it.
    is_its_own = isinstance(effect, Effect) and not hasattr(tx.update, "__wrapped__")
    return effect if is_its_own else None


def widens(tx: optax.GradientTransformation) -> bool:
    """Whether updates may be float32 where the gradient is narrower, as something inside says."""
    return bool(_widening(tx))


def _widening(tx: optax.GradientTransformation) -> str:
    """The name of what widens updates in a transformation; "" if nothing does."""
    if isinstance(tx.update, Composed):
        return tx.update.widening
    # Most are made of kernels, and building a chain of them should cost no more than a look.
    effect = effect_of(tx) if hasattr(tx.update, "effect") else None
    return _name_of(tx) if effect is not None and effect.widens else ""


def _name_of(tx: optax.GradientTransformation) -> str:
    """The name of what made a transformation that declares what it does."""
    return owner_of(tx) or getattr(tx.update, "__qualname__", "update").partition(".")[0]


def _altering(tx: optax.GradientTransformation) -> str:
    """The name of what alters updates in a transformation; "" if nothing is known to."""
    # What was lifted from a kernel does what the kernel declares.
    kernel = getattr(getattr(tx.update, "__self__", None), "kernel", None)
    effect = kernel if isinstance(kernel, Effect) else effect_of(tx)
    if effect is not None and effect.alters:
        return getattr(kernel, "name", _name_of(tx))
    return next(filter(None, (_altering(part.transformation) for part in parts_of(tx))), "")


def in_series(
    whole: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """A composition whose parts act one after another, with nothing after those that must be last.

    What keeps the rounding errors of narrow parameters knows these by its own updates only. With
    others the parameters would stand still, or lose what was kept for them.

    Raises:
        ValueError: if a part alters updates that have to be added to the parameters as they are.
    """
    following = parts_of(whole) if widens(whole) else ()
    while following:
        part, *following = following
        widening = _widening(part.transformation)
        altering = next(filter(None, (_altering(later.transformation) for later in following)), "")
        if widening and altering:
            raise ValueError(f"{owner_of(whole)}: {altering} {_AS_THEY_ARE.format(widening)}")
    return whole


_AS_THEY_ARE = (
    "would alter the updates of {0}, which must be added to the parameters as they are; put {0} "
    "around the whole optimizer"
)


def locality_of(tx: optax.GradientTransformation) -> Locality | None:
    """What the composition itself makes an element's update depend on; None of anything else."""
    return tx.update.locality if isinstance(tx.update, Composed) else None
