"""Layers that follow each other with no nonlinearity between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.marginals import weight_of
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS

_POOLING = ("reduce_window_sum",)
_SUMS = ("add", "sub", "add_any")


@dataclass(eq=False)
class _Layer:
    """A product of a signal with a weight.

    Attributes:
        node: the product.
        weight: which input is the weight.
        inner: the axes of the signal that it sums over.
        outer: the axes of its output that count its units.
        width: how many numbers a unit takes.
        units: how many units it has.
    """

    node: Node
    weight: int
    inner: frozenset[int]
    outer: frozenset[int]
    width: int
    units: int

    @property
    def signal(self) -> Value:
        return self.node.inputs[1 - self.weight]


def _layers(subject: Subject) -> dict[int, _Layer]:
    found = {}
    for node in subject.graph.named(*PLAIN_PRODUCTS):
        weight = weight_of(subject, node)
        if weight is None or not subject.is_given(node.inputs[1 - weight]):
            continue
        layer = _dense(node, weight) if node.name == "dot_general" else _convolution(node, weight)
        if layer is not None:
            found[id(node)] = layer
    return found


def _dense(node: Node, weight: int) -> _Layer | None:
    contracted, batched = node.equation.params["dimension_numbers"]
    if batched[0]:
        return None
    signal = node.inputs[1 - weight]
    inner = frozenset(map(int, contracted[1 - weight]))
    width = math.prod(signal.shape[axis] for axis in inner)
    number = len(node.inputs[weight].shape) - len(inner)
    first = 0 if weight == 0 else len(signal.shape) - len(inner)
    outer = frozenset(range(first, first + number))
    units = math.prod(node.output.shape[axis] for axis in outer)
    return _Layer(node, weight, inner, outer, width, units)


def _convolution(node: Node, weight: int) -> _Layer | None:
    parameters = node.equation.params
    numbers = parameters["dimension_numbers"]
    # Grouped convolutions and the ones after them are one convolution in two parts, and transposed
    # ones enlarge an image.
    is_plain = parameters["feature_group_count"] == parameters["batch_group_count"] == 1
    if weight != 1 or not is_plain or any(size > 1 for size in parameters["lhs_dilation"]):
        return None
    kernel = node.inputs[1]
    axis, out = numbers.lhs_spec[1], numbers.out_spec[1]
    units = kernel.shape[numbers.rhs_spec[0]]
    width = kernel.size // units
    return _Layer(node, weight, frozenset([axis]), frozenset([out]), width, units)


def _next(subject: Subject, layer: _Layer, layers: dict[int, _Layer]) -> _Layer | None:
    """The layer that takes the units of another one, and nothing else does, as they are."""
    follower, waiting, is_reshaped = None, [(layer.node.output, layer.outer, False)], False
    while waiting:
        value, axes, reshaped = waiting.pop()
        if not value.users:
            return None
        for node, i in value.users:
            other = layers.get(id(node))
            if other is not None and i == 1 - other.weight:
                if follower is not None or not axes & other.inner:
                    return None
                follower, is_reshaped = other, reshaped
                continue
            passed = _pass(subject, node, i, axes)
            if passed is None:
                return None
            waiting.append((node.output, passed, reshaped or node.name == "reshape"))
    if follower is None or not _is_meant(subject, layer, follower, is_reshaped=is_reshaped):
        return None
    return None if _is_beside_another(subject, layer, follower) else follower


def _pass(subject: Subject, node: Node, i: int, axes: frozenset[int]) -> frozenset[int] | None:
    """The axes of the units after an operation; None: it is more than a bias, a view or a mask."""
    if node.name in VIEWS:
        return _moved(node, axes)
    if node.name in _POOLING:
        return axes
    if node.name in _SUMS or node.name == "mul" or (node.name == "div" and i == 0):
        other = node.inputs[1 - i]
        is_sum = node.name in _SUMS
        if is_sum and not subject.is_given(other):
            return axes
        # A factor may be a constant, or what drops units.
        return axes if not is_sum and not subject.is_trained(other) else None
    if node.name == "select_n" and i > 0:
        others = [one for j, one in enumerate(node.inputs) if j != i]
        return None if any(map(subject.is_trained, others)) else axes
    return None


def _moved(node: Node, axes: frozenset[int]) -> frozenset[int]:
    """Where the axes of a value are in a view of it."""
    parameters, before, after = node.equation.params, node.inputs[0].shape, node.output.shape
    if node.name == "transpose":
        return frozenset(i for i, axis in enumerate(parameters["permutation"]) if axis in axes)
    if node.name == "broadcast_in_dim":
        return frozenset(int(parameters["broadcast_dimensions"][axis]) for axis in axes)
    if node.name == "squeeze":
        gone = [axis % len(before) for axis in parameters["dimensions"]]
        return frozenset(axis - sum(g < axis for g in gone) for axis in axes - set(gone))
    if node.name != "reshape":
        return axes
    mine = [_strides(before, axis) for axis in axes]
    return frozenset(
        axis
        for axis in range(len(after))
        if after[axis] > 1
        and any(
            first < their_end and their_first < end
            for first, end in mine
            for their_first, their_end in [_strides(after, axis)]
        )
    )


def _strides(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """From how far apart neighbours along an axis are, to how far its length reaches."""
    stride = math.prod(shape[axis + 1 :])
    return stride, stride * shape[axis]


def _is_meant(subject: Subject, first: _Layer, second: _Layer, *, is_reshaped: bool) -> bool:
    """Whether a nonlinearity is missing between two layers.

    A narrow layer between two wide ones is a matrix of low rank in two factors; what follows
    attention belongs to it; a convolution after a change of shape takes other neighbours together.
    """
    if first.units < min(first.width, second.units):
        return False
    if second.node.name == "conv_general_dilated" and is_reshaped:
        return False
    maker = source_of(first.signal).producer
    is_of_attention = (
        maker is not None
        and maker.name == "dot_general"
        and all(subject.is_given(one) for one in maker.inputs)
    )
    return not is_of_attention


def _is_beside_another(subject: Subject, first: _Layer, second: _Layer) -> bool:
    """Whether two layers are a branch beside another product of the same signal, as in LoRA."""
    scaled = list(
        subject.graph.downstream(
            second.node.output,
            lambda node, i: node.name == "mul" and not subject.is_given(node.inputs[1 - i]),
        )
    )
    sums = [node for value in scaled for node, _ in value.users if node.name in _SUMS]
    others = [value for node in sums for value in node.inputs if value not in scaled]
    return any(
        value.producer is not None
        and value.producer.name in PLAIN_PRODUCTS
        and first.signal in value.producer.inputs
        for value in others
    )


def findings(subject: Subject) -> Iterator[Finding]:
    """Pairs of layers that are one linear map."""
    layers = _layers(subject)
    pairs = []
    for layer in layers.values():
        follower = _next(subject, layer, layers)
        if follower is not None:
            pairs.append((layer, follower))
    if not pairs:
        return
    is_everything = len(pairs) == len(layers) - 1
    names = list(
        dict.fromkeys(
            subject.name(parameter)
            for pair in pairs
            for layer in pair
            for parameter in subject.trained_arguments_of(layer.node.inputs[layer.weight])
        )
    )
    first, second = pairs[0]
    sentence = (
        "the network has no nonlinearity: it is a single linear map"
        if is_everything
        else f"the layers at {first.node.line} and {second.node.line} have no nonlinearity between "
        "them: together they are a single linear map"
    )
    yield Finding(
        "no_nonlinearity",
        "error" if is_everything else "warning",
        f"{sentence}, whatever their width.",
        "put a nonlinearity, such as a relu or gelu, between the layers, or make them one.",
        place=place_of(names),
        source=second.node.line or first.node.line,
        evidence={"pairs": len(pairs), "layers": len(layers)},
    )
