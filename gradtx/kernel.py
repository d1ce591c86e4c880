"""The kernel: an optimizer's equation on one array, with everything that it declares.

A kernel's step is a pure function of one leaf. It takes the gradient `g` and, by keyword, only
what its equation mentions:

- its slots, under their own names (`mu`, `nu`, ...) or the names that they give themselves,
- its hyperparameters and options, under their own names (`b1`, `eps`, `nesterov`, ...),
- `p`, the parameter,
- `t`, the number of this step, 1 at the first,
- `key`, a PRNG key of this leaf's own,
- its measures, under their own names: scalars of the whole tree, such as its norm,
- its scalars and factors, under their own names.

It returns the update, followed by the new value of each slot in the order of declaration. What
the signature asks for and what the kernel declares must agree; that is checked when it is built.

Some methods have an equation on the whole tree too: an estimate of the distance to the solution,
say, that all leaves share. Such a kernel keeps `scalars` in its state. In each step its measures
come first: they take the list of gradients `g` and by name whatever their equation mentions, the
parameters and slots as lists; then comes its `scalar_step`, which takes measures, old scalars,
hyperparameters, `t` and extra arguments of `update` by name, and returns a dictionary with the
new scalars and the `factors`; and then, with these, the step on each leaf.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import DTypeLike

from gradtx.arguments import (
    ANY_NUMBER,
    COUNT,
    COUNT_OR_ZERO,
    DECAY,
    KEPT,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_FINITE,
    PROPER_SHARE,
    SHARE,
    Range,
)
from gradtx.effect import Effect
from gradtx.lengths import Length

__all__ = [
    "ANY_NUMBER",
    "COUNT",
    "COUNT_OR_ZERO",
    "DECAY",
    "KEPT",
    "NON_NEGATIVE",
    "POSITIVE",
    "POSITIVE_FINITE",
    "PROPER_SHARE",
    "SHARE",
    "Effect",
    "Kernel",
    "PerLeaf",
    "Range",
    "Scalar",
    "Slot",
]


def state_class(tx: optax.GradientTransformation) -> type:
    """The class of a transformation's state, for those that optax keeps private.

    Found in the abstract, because an import must not start the devices before
    `jax.distributed.initialize` does.
    """
    return type(jax.eval_shape(tx.init, ()))


@dataclass(frozen=True)
class Slot:
    """One array that a kernel keeps for each parameter.

    Attributes:
        name: the field of the state.
        fill: the value of every element at the start; the name of a hyperparameter or option
            stands for its value, "p" for the parameter, and a function of the slot's shape and
            dtype makes it.
        dtype: the storage dtype; None stores the parameter's own dtype, or float32 where that
            is narrower.
        dtype_argument: what the users' argument for the storage dtype is called; "": the name of
            the slot with `_dtype`.
        real: whether a complex parameter's slot is real, as that of a squared modulus is.
        shape: the slot's shape from its parameter's, and from the options that it asks for by
            name; a list of shapes makes the slot a list of arrays; None: the same. On several
            devices the slot lies as its parameter does: an axis whose length is taken from the
            parameter's shape is sharded as that axis is; one whose length is calculated, or comes
            a second time, is not, see `gradtx.placement`.
        argument: the argument of the step; "": the name.
        is_read: whether an equation reads what the slot held. One that is only written, such as a
            report about the last gradient, need not be in the state that `update` is given.
        non_negative: whether no element is ever negative, as those of a mean of squares.
    """

    name: str
    fill: float | str | Callable[[tuple[int, ...], np.dtype], jax.Array] = 0.0
    dtype: DTypeLike | None = None
    real: bool = False
    shape: Callable[..., tuple[int, ...] | list[tuple[int, ...]]] | None = None
    argument: str = ""
    is_read: bool = True
    dtype_argument: str = ""
    non_negative: bool = False

    @property
    def read_as(self) -> str:
        """What the step calls the slot."""
        return self.argument or self.name

    @property
    def shape_options(self) -> tuple[str, ...]:
        """The names of the options that its shape depends on."""
        return () if self.shape is None else measure_arguments(self.shape)

    def shape_for(self, parameter_shape: tuple[int, ...], options: Mapping[str, Any]) -> Any:
        """The shape, or the list of shapes, of the slot of a parameter of `parameter_shape`."""
        if self.shape is None:
            return parameter_shape
        return self.shape(parameter_shape, **{name: options[name] for name in self.shape_options})


@dataclass(frozen=True)
class Scalar:
    """One value that a kernel keeps for the whole tree.

    Attributes:
        name: the field of the state and the argument of the steps.
        fill: its value at the start, or a function of the list of parameters that returns it; the
            name of a hyperparameter or option stands for its value.
        dtype: the storage dtype; None: that of the widest parameter, at least float32.
    """

    name: str
    fill: Any = 0.0
    dtype: DTypeLike | None = None


class PerLeaf(NamedTuple):
    """The value of an option that differs from leaf to leaf.

    Attributes:
        choose: function from a tree to the tree of its leaves' values, which are hashable.
    """

    choose: Callable[[Any], Any]


@dataclass(frozen=True)
class Kernel(Effect):
    """An equation on one array and what it needs from the tree around it.

    What it makes of the gradient is declared as described at `Effect`.

    Attributes:
        name: the rule's public name, which `explain` shows.
        step: the equation, as the description of `gradtx.kernel` says.
        slots: what it keeps for each parameter, in the order in which the step returns them.
        hyperparameters: name -> valid range. Values may be numbers, scalar arrays or schedules.
        options: names of static choices, such as `nesterov`; a value may be a `PerLeaf`.
        measures: name -> function of the list of gradient leaves, and by name of whatever else it
            mentions, that returns a scalar, or a `Length`, for the whole tree. It is a sum over
            elements, or made of such sums, because `grouped` hands it several leaves of one shape
            as one array.
        scalars: what it keeps for the whole tree.
        scalar_step: the equation of the whole tree, as that description says.
        factors: what the scalar step returns beside the new scalars.
        extras: names of the extra arguments that `update` must be given, such as `value`.
        state: the NamedTuple that holds the slots, the scalars and, where it has them, the
            counters and `rng_key`.
        counters: the fields of the state that count the steps.
        scheduled_state: what replaces an empty state when a hyperparameter is a schedule: a
            NamedTuple with the one field `count`.
        elementwise: whether each element's update depends on that element alone.
        bounded: what the equation makes of a gradient and keeps, and what therefore must not be
            infinite: "sums", "squares", squares of "differences", or the square of a leaf's "norm";
            "": nothing. A finite gradient that is too large for this counts as the largest that is
            not: its elements by themselves, or all of them together for the norm.
        stacked: whether leaves of one type go through one step, stacked: worth their copies where
            the step is a long series of small products.
        source: the paper, with section or equation.

    Raises:
        ValueError: if the steps' arguments, the state's fields and the declarations disagree.
    """

    alters: bool = field(default=True, kw_only=True)
    name: str
    step: Callable[..., Any]
    slots: tuple[Slot, ...] = ()
    hyperparameters: Mapping[str, Range] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    measures: Mapping[str, Callable[..., jax.Array | Length]] = field(default_factory=dict)
    scalars: tuple[Scalar, ...] = ()
    scalar_step: Callable[..., Mapping[str, Any]] | None = None
    factors: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    state: type = optax.EmptyState
    counters: tuple[str, ...] = ("count",)
    scheduled_state: type = optax.ScaleByScheduleState
    elementwise: bool = True
    bounded: Literal["", "sums", "squares", "differences", "norm"] = ""
    stacked: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        gradient, *arguments = _parameters_of(self.step)
        kept = {part.name for part in (*self.slots, *self.scalars)}
        slots = {slot.read_as for slot in self.slots if slot.is_read}
        fills = {part.fill for part in (*self.slots, *self.scalars) if isinstance(part.fill, str)}
        fills -= {"p"}
        scalars = {scalar.name for scalar in self.scalars}
        declared = {*self.measures, *self.factors, *self.options, *self.hyperparameters}
        named = slots | scalars | declared
        wanted, offered = set(arguments), {"p", "t", "key", *self.measures}
        # A slot that moves, an option, a hyperparameter: each must reach an equation.
        required = (slots | {*self.options, *self.hyperparameters}) - fills
        shaping = {name for slot in self.slots for name in slot.shape_options}
        reached = wanted | self.tree_arguments | shaping
        unknown = wanted - offered - named | (
            self.tree_arguments - {"p", "t", *self.extras, *named}
        )
        if (
            gradient != "g"
            or unknown
            or slots - wanted
            or required - reached
            or fills - {*self.hyperparameters, *self.options}
            or shaping - set(self.options)
        ):
            raise ValueError(
                f"{self.name}: the step takes ({gradient}, {', '.join(arguments)}), but the kernel "
                f"declares {sorted(required)} and may ask for {sorted(offered | named)}"
            )
        if self.named_by_effect - self.names:
            raise ValueError(
                f"{self.name}: its effect names {sorted(self.named_by_effect)}, which must be "
                f"among {sorted(self.names)}"
            )
        fields = set(getattr(self.state, "_fields", ()))
        if fields - {*self.counters, "rng_key"} != kept:
            raise ValueError(
                f"{self.name}: the state {self.state.__name__} has the fields {sorted(fields)}, "
                f"but the slots are {sorted(kept)}"
            )
        if "t" in wanted | self.tree_arguments and not self.counts:
            raise ValueError(f"{self.name}: the step asks for t, but the state has no count")
        if "key" in wanted and "rng_key" not in fields:
            raise ValueError(f"{self.name}: the step asks for key, but the state has no rng_key")

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The names of what a transformation is made with."""
        return frozenset({*self.hyperparameters, *self.options})

    @functools.cached_property
    def reads_state(self) -> bool:
        """Whether an equation reads what the state holds."""
        written = {slot.name for slot in self.slots if not slot.is_read}
        return bool({*self.state._fields} - written)

    @functools.cached_property
    def arguments(self) -> frozenset[str]:
        """The names of what the step asks for."""
        return frozenset(_parameters_of(self.step))

    @functools.cached_property
    def tree_arguments(self) -> frozenset[str]:
        """The names of what the measures and the scalar step ask for."""
        asked = {name for measure in self.measures.values() for name in measure_arguments(measure)}
        return frozenset(asked | {*_parameters_of(self.scalar_step)} if self.scalar_step else asked)

    @functools.cached_property
    def needs_parameters(self) -> bool:
        """Whether an equation mentions the parameters."""
        return "p" in self.arguments | self.tree_arguments

    @functools.cached_property
    def named(self) -> set[str]:
        """The names of the arguments that its factor depends on."""
        if callable(self.factor):
            return {*_parameters_of(self.factor)}
        return {self.factor} if self.factor else set()

    @functools.cached_property
    def named_by_effect(self) -> set[str]:
        """The names of the arguments that its declaration as an effect mentions."""
        usual = {"", Effect.rate, Effect.decays}
        others = {self.applies, self.decay_applies, self.rate, self.decays} - usual
        return self.named | others

    @functools.cached_property
    def counts(self) -> tuple[str, ...]:
        """The counters that the state has."""
        return tuple(name for name in self.counters if name in self.state._fields)


@functools.lru_cache(maxsize=1024)
def measure_arguments(measure: Callable[..., Any]) -> tuple[str, ...]:
    """What a measure, or a shape, asks for beside its first argument; not what has a default."""
    _, *others = inspect.signature(measure).parameters.values()
    return tuple(other.name for other in others if other.default is other.empty)


def _parameters_of(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)
