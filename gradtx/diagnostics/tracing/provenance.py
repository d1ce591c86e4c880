"""Where the values of a traced function come from, as the interpreter keeps track of it.

The interpreter keeps a `TracedValue` for each array. It says whether the array is a parameter (or a
view of one), whether data went into it, and of which layers it is an elementwise image.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

# How many parts of a concatenated array are named.
_PARTS = 10


@dataclass(eq=False, frozen=True)
class Loop:
    """A scan, in which each iteration takes slices along the first axes of stacked arrays.

    Attributes:
        is_backwards: whether it begins with the last slices.
    """

    is_backwards: bool


@dataclass(frozen=True)
class Origin:
    """The parameter that an array represents, up to elementwise changes and changes of shape.

    Attributes:
        leaf: the index of the parameter among the leaves.
        views: how the array was taken from the leaf: functions of the leaf, and a `Loop` where
            each iteration takes a slice.
        slices: the static indices in stacked leaves, for the name: `[3]`.
        others: the origins of the other parts, if the array was concatenated from several leaves.
        is_traced_to_its_end: whether further changes of shape are not recorded, because the array
            was concatenated, or sliced at an index that is not known before the run.
        split_over: the axes of a mesh along which devices have different parts of the leaf.
    """

    leaf: int
    views: tuple[Callable[[jax.Array], jax.Array] | Loop, ...] = ()
    slices: str = ""
    others: tuple[Origin, ...] = ()
    is_traced_to_its_end: bool = False
    split_over: frozenset[str] = frozenset()

    def seen_through(self, view: Callable[[jax.Array], jax.Array] | Loop) -> Origin:
        """The origin after one more change of shape."""
        if self.is_traced_to_its_end:
            return self
        return replace(self, views=(*self.views, view))

    def name(self, names: Sequence[str]) -> str:
        """Its name, given the names of the leaves; if it has many parts, only of the first ones."""
        parts = [names[part.leaf] + part.slices for part in self.parts]
        more = [f"{len(parts) - _PARTS:,} more"] if len(parts) > _PARTS else []
        return " + ".join(parts[:_PARTS] + more)

    @property
    def parts(self) -> list[Origin]:
        """This origin, and those of the other parts."""
        return [replace(self, others=()), *self.others]

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops that take the leaf slice by slice, outermost first."""
        return tuple(view for view in self.views if isinstance(view, Loop))

    def slices_of(self, leaf: jax.Array) -> jax.Array:
        """The part of an array like the leaf, with a leading axis for each loop."""
        depth = 0
        for view in self.views:
            if isinstance(view, Loop):
                depth += 1
                continue
            for _ in range(depth):
                view = jax.vmap(view)
            leaf = view(leaf)
        return leaf


class Last(enum.Enum):
    """What the last operation of a nonlinearity may turn out to be."""

    POWER = "the beginning of a statistic, such as a variance"
    SCALE = "the scaling of a dropout"
    OTHER = "a part of the nonlinearity"


@dataclass(eq=False)
class Layer:
    """A product with a parameter, and what becomes of its output; filled in during tracing.

    Attributes:
        origin: the parameter.
        operation: the primitive: dot_general or conv_general_dilated.
        inputs: the other operand.
        weights: the operand that is the parameter.
        output: the product, plus its bias if one is added directly.
        image: the output after its nonlinearity; `output` if it has none.
        slope: the derivative of the image with respect to the nonlinearity's argument.
        units: the axes of the image that index units; the others index samples and positions.
        fan_in: the number of products that are summed for one output.
        activation: the name of the nonlinearity; empty: none.
        parts: the names of the operations that the nonlinearity consists of.
        is_hidden: whether another layer receives the image.
        is_recurrent: whether it receives the state of the previous iteration.
        is_gate: whether its nonlinearity decides how much of another signal passes.
        receives_data: whether it receives data that no other layer has seen.
        receives_raw_data: whether it receives data that no parameter has changed yet.
        sources: the layers that this one receives its inputs from.
    """

    origin: Origin
    operation: str
    inputs: Any
    weights: Any
    output: Any
    image: Any
    units: tuple[int, ...]
    fan_in: int
    sources: frozenset[Layer]
    slope: Any = 1.0
    activation: str = ""
    parts: set[str] = field(default_factory=set)
    is_hidden: bool = False
    is_recurrent: bool = False
    is_gate: bool = False
    receives_data: bool = False
    receives_raw_data: bool = False

    # Numbers the layers in the order in which they were found.
    number: int = field(default_factory=itertools.count().__next__)

    # The progress of the search for the nonlinearity: how many operations and possible beginnings
    # of it were found, up to which they were dismissed, and whether the search has ended.
    stage: int = 0
    base: int = 0
    dismissed: int = 0
    is_settled: bool = False

    # What the last operation may be, and what was known before it.
    last: Last = Last.OTHER
    before: tuple[Any, ...] = ()

    def take_back(self) -> None:
        """Note that the last operation does not belong to the nonlinearity."""
        self.image, self.slope, self.units, self.activation, self.parts = self.before
        self.last = Last.OTHER
        if self.activation:
            self.is_settled = True
        else:
            self.dismissed = self.stage

    def forget_arrays(self) -> None:
        """Keep only the shapes, so that no tracer of a loop's body leaks from it."""
        self.inputs, self.weights, self.output, self.image = (
            jax.ShapeDtypeStruct(array.shape, array.dtype)
            for array in (self.inputs, self.weights, self.output, self.image)
        )
        self.slope, self.before = None, ()


@dataclass(frozen=True)
class Image:
    """How an array depends elementwise on a layer's output.

    Attributes:
        units: the axes that index units.
        slope: the derivative with respect to the base.
        base: the number of the last value before which there were only biases, norms and sums.
        stage: the number of the last nonlinear operation; 0: none yet.
        is_detached: whether only a `stop_gradient` of the layer's output went into it.
    """

    units: tuple[int, ...]
    slope: Any = 1.0
    base: int = 0
    stage: int = 0
    is_detached: bool = False


@dataclass(frozen=True)
class Gate:
    """Values of a nonlinearity, which are a gate if they multiply another signal.

    Attributes:
        layers: the layers whose outputs went into the nonlinearity.
        is_sigmoid: whether the values are between 0 and 1.
    """

    layers: frozenset[Layer]
    is_sigmoid: bool


@dataclass(frozen=True)
class TracedValue:
    """An array of the traced function, and where it comes from.

    Attributes:
        array: the array.
        origin: the parameter that it represents; None: it is not a parameter.
        is_signal: whether it depends on data.
        is_learned: whether it depends on parameters, without being one.
        is_uniform: whether all its elements are the same number, which is not data.
        is_carried: whether it comes from the previous iteration, without a layer in between.
        sources: the layers whose outputs it depends on, without another layer in between.
        images: the layers that it depends on elementwise, and how.
        gate: what it is if it multiplies another signal; None: a signal of its own.
    """

    array: Any
    origin: Origin | None = None
    is_signal: bool = False
    is_learned: bool = False
    is_uniform: bool = False
    is_carried: bool = False
    sources: frozenset[Layer] = frozenset()
    images: dict[Layer, Image] = field(default_factory=dict)
    gate: Gate | None = None

    @property
    def is_data(self) -> bool:
        """Whether it is more than parameters and constants."""
        return self.is_signal or bool(self.sources)

    @property
    def depends_on_parameters(self) -> bool:
        """Whether it is a parameter, or was made with one."""
        return self.is_learned or self.origin is not None


def mixture(array: Any, inputs: Sequence[TracedValue]) -> TracedValue:
    """The result of an operation about which nothing else is known."""
    return TracedValue(
        array,
        is_signal=any(value.is_signal for value in inputs),
        is_learned=any(value.depends_on_parameters for value in inputs),
        is_carried=any(value.is_carried for value in inputs),
        sources=frozenset().union(*(value.sources for value in inputs)),
    )


def constant_value(array: Any) -> TracedValue:
    """A constant of the traced function; one with axes may be a data set."""
    is_uniform = jnp.ndim(array) == 0
    return TracedValue(array, is_signal=not is_uniform, is_uniform=is_uniform)


def moved_axes(
    axes: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]
) -> tuple[int, ...]:
    """Where axes of the shape `old` are after a reshape to `new`.

    An axis that is merged with others, or split, becomes all the axes involved; there are none if
    the array is empty or has no axes.
    """
    if 0 in old:
        return ()
    found = []
    i = j = 0
    while i < len(old) or j < len(new):
        # The shortest sequences of axes with the same number of elements.
        start_i, start_j = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[start_i:i]) != math.prod(new[start_j:j]):
            if math.prod(old[start_i:i]) < math.prod(new[start_j:j]):
                i += 1
            else:
                j += 1
        if any(start_i <= axis < i for axis in axes):
            found += range(start_j, j)
    return tuple(found)
