"""Labels and targets, as they are recognized in a graph: where a loss compares something with them.

A one-hot code is a comparison of labels with 0, 1, 2, ...; a cross-entropy is a logarithm of
probabilities of which a given label picks one, or which given weights sum up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.patterns import (
    VIEWS,
    Sigmoid,
    Softmax,
    is_number,
    made_by,
    source_of,
    uses_of,
)

# Operations between a logarithm and the labels that it meets.
_BEFORE_LABELS = VIEWS | {"neg", "max", "min", "clamp", "slice"}


@dataclass(eq=False)
class OneHot:
    """A comparison of integers with the numbers of the classes.

    Attributes:
        labels: the integers, one for each row.
        classes: how many classes there are.
        node: the comparison.
        position: which input of the comparison are the labels.
    """

    labels: Value
    classes: int
    node: Node
    position: int


def one_hots(graph: Graph) -> list[OneHot]:
    """All one-hot codes of something that is not constant, in the order of evaluation."""
    found = []
    for node in graph.named("eq"):
        shape = node.output.shape
        for position, value in enumerate(node.inputs):
            numbers = node.inputs[1 - position]
            axis = _counting_axis(numbers)
            if axis is None or source_of(value).constant is not None or not value.shape:
                continue
            axis += len(shape) - len(numbers.shape)
            if len(value.shape) == len(shape) and _is_constant_along(value, axis):
                found.append(OneHot(source_of(value), shape[axis], node, position))
                break
    return found


def _is_constant_along(value: Value, axis: int) -> bool:
    """Whether an array is broadcast along an axis."""
    while value.shape[axis] != 1:
        node = value.producer
        if node is None or node.name != "broadcast_in_dim":
            return False
        dimensions = list(node.equation.params["broadcast_dimensions"])
        if axis not in dimensions:
            return True
        value, axis = node.inputs[0], dimensions.index(axis)
    return True


def _counting_axis(value: Value) -> int | None:
    """The axis along which an array is 0, 1, 2, ...; None: it is no such array."""
    numbers = _numbers(value)
    if numbers is not None:
        for axis, size in enumerate(numbers.shape):
            line = np.moveaxis(numbers, axis, 0).reshape(size, -1)
            if size > 1 and np.array_equal(
                line, np.broadcast_to(np.arange(size)[:, None], line.shape)
            ):
                return axis
    return None


def _numbers(value: Value) -> np.ndarray | None:
    """The numbers of a small array that consists of constants and `iota`; None: it does not."""
    if value.depends or value.size > 1 << 16:
        return None
    if value.producer is None:
        return None if value.constant is None else np.asarray(value.constant)
    node = value.producer
    parameters = node.equation.params
    if node.name == "iota":
        shape = [1] * len(value.shape)
        shape[parameters["dimension"]] = -1
        numbers = np.arange(value.shape[parameters["dimension"]]).reshape(shape)
        return np.broadcast_to(numbers, value.shape)
    if node.name not in ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type"):
        return None
    numbers = _numbers(node.inputs[0])
    if numbers is None or node.name == "convert_element_type":
        return numbers
    if node.name == "broadcast_in_dim":
        shape = [1] * len(value.shape)
        for size, axis in zip(numbers.shape, parameters["broadcast_dimensions"], strict=True):
            shape[axis] = size
        return np.broadcast_to(numbers.reshape(shape), value.shape)
    return numbers.reshape(value.shape)


# Cross-entropy.


@dataclass(eq=False)
class CrossEntropy:
    """Logarithms of probabilities, where they meet the classes that are right.

    Attributes:
        softmax: where the probabilities come from.
        node: the operation in which they meet.
        labels: the numbers of the classes; None: there are only targets.
        targets: the weights of the classes; None: there are only labels.
    """

    softmax: Softmax
    node: Node
    labels: Value | None
    targets: Value | None


def cross_entropies(
    graph: Graph, is_trained: Callable[[Value], bool], among: list[Softmax]
) -> list[CrossEntropy]:
    """The cross-entropies of some softmaxes with labels that are not trained.

    Args:
        graph: the graph.
        is_trained: whether a value depends on the parameters.
        among: the softmaxes.
    """
    codes = {id(one.node.output): one for one in one_hots(graph)}
    met = (_meeting(softmax, is_trained, codes) for softmax in among if is_trained(softmax.logits))
    return [one for one in met if one is not None]


def _meeting(
    softmax: Softmax, is_trained: Callable[[Value], bool], codes: dict[int, OneHot]
) -> CrossEntropy | None:
    for start in _logarithms(softmax):
        for node, i in uses_of(start, _BEFORE_LABELS):
            if len(node.inputs) < 2 or (node.name == "select_n" and i == 0):
                continue
            # A `where` with labels has them in its condition.
            other = node.inputs[0 if node.name == "select_n" else 1 - i]
            if is_trained(other):
                continue
            if node.name == "gather" and i == 0:
                return CrossEntropy(softmax, node, other, None)
            if node.name in ("mul", "dot_general", "select_n") and _varies(other, softmax):
                code = codes.get(id(source_of(other)))
                return CrossEntropy(softmax, node, code and code.labels, other)
    return None


def _logarithms(softmax: Softmax) -> Iterator[Value]:
    """The values of which labels pick the one that is right, the most likely ones first."""
    if softmax.log_probabilities is not None:
        yield softmax.log_probabilities
    if softmax.normalizer is not None:
        yield source_of(softmax.logits)
        yield softmax.shifted
    if softmax.probabilities is not None:
        for node, _ in uses_of(softmax.probabilities, VIEWS | {"add", "max", "min", "clamp"}):
            if node.name == "log":
                yield node.output


def _varies(value: Value, softmax: Softmax) -> bool:
    """Whether an array may differ between the classes of a softmax."""
    source = source_of(value)
    return source.size >= softmax.number and not (source.constant is not None and source.size == 1)


# Binary cross-entropy.


@dataclass(eq=False)
class BinaryCrossEntropy:
    """A cross-entropy of two classes: y log(p) + (1 - y) log(1 - p).

    Attributes:
        logits: what the sigmoid is taken of; None: it is unknown.
        targets: y, as it enters the loss.
        node: the operation that takes y.
    """

    logits: Value | None
    targets: Value
    node: Node


_BEFORE_PRODUCT = _BEFORE_LABELS | {"add", "sub", "select_n", "mul", "div", "integer_pow", "log"}


def binary_cross_entropies(
    graph: Graph, is_trained: Callable[[Value], bool], among: list[Sigmoid]
) -> list[BinaryCrossEntropy]:
    """The cross-entropies of two classes with targets that are not trained.

    Args:
        graph: the graph.
        is_trained: whether a value depends on the parameters.
        among: the sigmoids and softplus functions.
    """
    by_output = {id(one.node.output): one for one in among}
    found = {}
    for node in graph.named("sub"):
        one, targets = node.inputs
        if not is_number(one, 1) or is_trained(targets) or _is_single(targets):
            continue
        first, second = _factor(targets, is_trained), _factor(node.output, is_trained)
        if first is None or second is None:
            continue
        if _is_logarithm(graph, first) and _is_logarithm(graph, second):
            sigmoid = _sigmoid_in(graph, first, by_output)
            logits = sigmoid.logits if sigmoid is not None else None
            found[id(source_of(targets))] = BinaryCrossEntropy(logits, targets, node)
    # The other way to write it: softplus(z) - y z.
    for sigmoid in among:
        logits = source_of(sigmoid.logits)
        is_prediction = sigmoid.is_logarithm and is_trained(logits)
        for node, i in uses_of(logits, VIEWS | {"neg"}) if is_prediction else ():
            other = node.inputs[1 - i] if node.name == "mul" else logits
            if not is_trained(other) and not _is_single(other):
                found.setdefault(id(source_of(other)), BinaryCrossEntropy(logits, other, node))
    return list(found.values())


def _is_single(value: Value) -> bool:
    """Whether a value is a constant that is the same everywhere."""
    source = source_of(value)
    return source.depends == 0 and (source.constant is None or source.size <= 1)


def _factor(value: Value, is_trained: Callable[[Value], bool]) -> Value | None:
    """What depends on the parameters and is multiplied by a value."""
    for node, i in uses_of(value, VIEWS | {"neg"}):
        if node.name == "mul" and is_trained(node.inputs[1 - i]):
            return node.inputs[1 - i]
    return None


def _is_logarithm(graph: Graph, value: Value) -> bool:
    return any(made_by(graph, value, name, _BEFORE_PRODUCT) for name in ("log", "log1p"))


def _sigmoid_in(graph: Graph, value: Value, by_output: dict[int, Sigmoid]) -> Sigmoid | None:
    for one in graph.upstream(value, lambda node, i: node.name in _BEFORE_PRODUCT):
        if id(one) in by_output:
            return by_output[id(one)]
    return None
