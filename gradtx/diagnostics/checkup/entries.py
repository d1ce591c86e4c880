"""Where the data of a batch meet the parameters: what a network reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.primitives import PRODUCTS


@dataclass(frozen=True)
class Entry:
    """A product of something that is made of the batch alone with something trained.

    Attributes:
        node: the product.
        position: which of its operands comes from the batch.
        features: the axes of this operand along which its features lie.
    """

    node: Node
    position: int
    features: tuple[int, ...]

    @property
    def value(self) -> Value:
        """The operand that comes from the batch."""
        return self.node.inputs[self.position]


def entries_of(subject: Subject) -> list[Entry]:
    """The layers that receive something that is made of the batch alone.

    Without any layer, the elementwise products with a weight count, as in y = w x + b.
    """
    layers = [
        node
        for node in subject.graph.named(*PRODUCTS)
        if any(_is_weight(subject, value) for value in node.inputs)
    ]
    return [
        Entry(node, position, _features(node, position))
        for node in layers or subject.graph.named("mul")
        for position, value in enumerate(node.inputs)
        if _is_read(subject, value) and _is_weight(subject, node.inputs[1 - position])
    ]


def inputs_of(subject: Subject) -> list[Value]:
    """The arrays of the batch that a network reads: they meet parameters, not only predictions."""
    of_params = (1 << len(subject.traced.params)) - 1
    return [
        value
        for value in subject.data
        # A normalization with a trained gain depends on the array itself.
        if any(
            not other.depends & ~(1 << (value.argument or 0) | of_params)
            for _, other in _meetings(subject, value)
        )
    ]


def meetings_of(subject: Subject, value: Value) -> set[str]:
    """The operations where an array of the batch meets something trained."""
    return {node.name for node, _ in _meetings(subject, value)}


def sources_of(subject: Subject, value: Value) -> list[Value]:
    """The arrays of the batch that a value is made of."""
    return [one for one in subject.data if value.depends >> (one.argument or 0) & 1]


def _meetings(subject: Subject, value: Value) -> Iterator[tuple[Node, Value]]:
    """The operations where an array of the batch meets something trained, and what it meets."""
    for one in subject.graph.downstream(
        value, lambda node, i: not any(subject.is_trained(output) for output in node.outputs)
    ):
        for node, _ in one.users:
            yield from ((node, other) for other in node.inputs if subject.is_trained(other))


def _is_read(subject: Subject, value: Value) -> bool:
    return subject.is_given(value) and not subject.is_trained(value)


def _is_weight(subject: Subject, value: Value) -> bool:
    return subject.is_trained(value) and not subject.is_given(value)


def _features(node: Node, position: int) -> tuple[int, ...]:
    if node.name == "mul":
        return tuple(range(len(node.output.shape)))[1:][-1:]
    if node.name == "ragged_dot_general":
        numbers = node.equation.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    else:
        numbers = node.equation.params["dimension_numbers"]
    if node.name == "conv_general_dilated":
        return (numbers.lhs_spec[1],) if position == 0 else ()
    return tuple(numbers[0][position])


# The features that the first layers receive.


@dataclass(frozen=True, eq=False)
class Read:
    """What a layer receives: the statistics of each feature.

    Attributes:
        arrays: the names of the arrays that it is made of, and their largest absolute values.
        source: the line of the layer.
        mean: the mean of each feature.
        std: the standard deviation of each feature.
        largest: the largest absolute value of each feature.
        is_measured: whether it is made of real numbers, and not of indices.
    """

    arrays: dict[str, float]
    source: str
    mean: np.ndarray
    std: np.ndarray
    largest: np.ndarray
    is_measured: bool

    def named(self, features: np.ndarray) -> list[str]:
        """The names of the arrays that some features come from, unchanged if possible."""
        names = [
            name
            for name, largest in self.arrays.items()
            if np.isclose(largest, self.largest[features], rtol=1e-3).any()
        ]
        return names or list(self.arrays)

    def place(self, features: np.ndarray) -> str:
        """These names, as the place of a finding."""
        return place_of(self.named(features))

    @functools.cached_property
    def rms(self) -> np.ndarray:
        """The root mean square of each feature."""
        return np.hypot(self.mean, self.std)


def reads_of(subject: Subject) -> Iterator[Read]:
    """What the first layers receive, each value once."""
    seen = set()
    for entry in _measurable(subject):
        measured = subject.measured.get(entry.node, {})
        if entry.value in seen or "data_mean" not in measured:
            continue
        seen.add(entry.value)
        # A loop around the layer gives the statistics of each iteration.
        mean, square, largest = (
            measured[f"data_{key}"].astype(np.float64).reshape(-1, measured["data_mean"].shape[-1])
            for key in ("mean", "variance", "largest")
        )
        sources = sources_of(subject, entry.value)
        yield Read(
            {subject.name(value): _largest(subject, value) for value in sources},
            entry.node.line,
            mean.mean(0),
            np.sqrt(square.mean(0) + mean.var(0)),
            largest.max(0),
            any(jnp.issubdtype(value.dtype, jnp.floating) for value in sources),
        )


def _largest(subject: Subject, value: Any) -> float:
    """The largest absolute value of an array of the batch; NaN: it has no numbers."""
    if not jnp.issubdtype(value.dtype, jnp.number) or not value.size:
        return math.nan
    return float(np.max(np.abs(subject.array(value).astype(np.complex64))))


def tables_of(array: np.ndarray, features: int) -> list[np.ndarray]:
    """The ways in which an array may be a table with so many columns, of shape (-1, features).

    The features are along one of its axes, or all that an example has.
    """
    if array.ndim < 2 or array.size == 0:
        return []
    tables = [
        np.moveaxis(array, axis, -1).reshape(-1, features)
        for axis in range(1, array.ndim)
        if array.shape[axis] == features
    ]
    whole = array.reshape(len(array), -1)
    return [*tables, *([whole] if whole.shape[1] == features and array.ndim > 2 else [])]


def _measurable(subject: Subject) -> list[Entry]:
    return [
        entry
        for entry in entries_of(subject)
        if jnp.issubdtype(entry.value.dtype, jnp.floating) and entry.value.size
    ]


def _statistics_of(entry: Entry) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
        del results
        array = inputs[entry.position]
        array = array.astype(np.promote_types(array.dtype, np.float32))
        array = jnp.moveaxis(array, entry.features, range(-len(entry.features), 0))
        number = math.prod(array.shape[array.ndim - len(entry.features) :])
        array = array.reshape(-1, number)
        return {
            "data_mean": jnp.mean(array, 0),
            "data_variance": jnp.var(array, 0),
            "data_largest": jnp.max(jnp.abs(array), 0),
        }

    return measure


def statistics_requested(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for `reads_of`."""
    for entry in _measurable(subject):
        yield entry.node, _statistics_of(entry)
