"""Dropout in a graph: random numbers that are compared with a rate, and hide parts of a signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, is_number

# What makes real numbers between 0 and 1 of random bits.
_OF_UNIFORM = primitives.ELEMENTWISE | VIEWS | {"bitcast_convert_type", "shift_right_logical"}
_COMPARISONS = ("lt", "le", "gt", "ge")
# What a mask may pass before it is used.
_OF_MASK = VIEWS | {"not", "div", "mul", "sub", "and", "or"}


@dataclass(eq=False)
class Dropout:
    """A signal of which a random part becomes zero.

    Attributes:
        bits: the operation that draws the random numbers, from a key.
        node: the operation that makes the zeros, of the signal and the mask.
        position: which of its inputs is the signal.
        of_mask: which of its inputs is the mask.
        is_kept: whether the signal is kept where the mask is true.
    """

    bits: Node
    node: Node
    position: int
    of_mask: int
    is_kept: bool

    @property
    def signal(self) -> Value:
        """What goes in."""
        return self.node.inputs[self.position]

    @property
    def mask(self) -> Value:
        """Where it is kept, or dropped."""
        return self.node.inputs[self.of_mask]


def dropouts(graph: Graph, is_signal: Callable[[Value], bool]) -> list[Dropout]:
    """All dropouts, in the order of evaluation.

    Args:
        graph: the graph.
        is_signal: whether a value is a signal, unlike rates and keys.
    """
    found: dict[Node, Dropout] = {}
    for bits in graph.named("random_bits"):
        for comparison in _comparisons(graph, bits, is_signal):
            for dropout in _uses(graph, bits, comparison, is_signal):
                found.setdefault(dropout.node, dropout)
    return sorted(found.values(), key=lambda one: graph.nodes.index(one.node))


def _comparisons(graph: Graph, bits: Node, is_signal: Callable[[Value], bool]) -> Iterator[Node]:
    def crosses(node: Node, i: int) -> bool:
        del i
        is_real = jnp.issubdtype(node.output.dtype, jnp.number)
        return node.name in _OF_UNIFORM and is_real and not is_signal(node.output)

    for value in graph.downstream(bits.output, crosses):
        yield from (node for node, _ in value.users if node.name in _COMPARISONS)


def _uses(
    graph: Graph, bits: Node, comparison: Node, is_signal: Callable[[Value], bool]
) -> Iterator[Dropout]:
    """Where a mask makes zeros of a signal."""

    def crosses(node: Node, i: int) -> bool:
        del i
        return node.name in _OF_MASK and not is_signal(node.output)

    for mask in graph.downstream(comparison.output, crosses):
        for node, i in mask.users:
            if node.name == "mul" and is_signal(node.inputs[1 - i]):
                yield Dropout(bits, node, 1 - i, i, is_kept=True)
            elif node.name == "select_n" and i == 0 and len(node.inputs) == 3:
                for position in (1, 2):
                    is_zero = is_number(node.inputs[3 - position], 0)
                    if is_zero and is_signal(node.inputs[position]):
                        yield Dropout(bits, node, position, 0, is_kept=position == 2)


def is_shared_along(value: Value, axis: int) -> bool:
    """Whether a mask is the same along an axis, because it was drawn without it."""
    while value.producer is not None:
        if value.shape[axis] == 1:
            return True
        node, shape = value.producer, value.shape
        if node.name == "broadcast_in_dim":
            dimensions = list(map(int, node.equation.params["broadcast_dimensions"]))
            if axis not in dimensions:
                return True
            value, axis = node.inputs[0], dimensions.index(axis)
            continue
        if node.name == "transpose":
            value, axis = node.inputs[0], node.equation.params["permutation"][axis]
            continue
        sources = [one for one in node.inputs if one.depends and one.shape == shape]
        if node.name not in primitives.ELEMENTWISE | VIEWS | _OF_UNIFORM or len(sources) != 1:
            return False
        value = sources[0]
    return False
