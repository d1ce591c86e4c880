"""Evaluates a part of a graph, with something else in place of some of its values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Graph, Node, Value


def without(
    graph: Graph, zeros: Collection[Value]
) -> Callable[[Sequence[Any], Sequence[Any]], Any] | None:
    """A graph's output as a function of parameters and data, where some values are zero.

    Args:
        graph: the graph; its arguments are the parameters and then the data.
        zeros: the values that are zero. What only they are made of is not evaluated.

    Returns:
        The function; None: what is left has loops or branches.
    """
    needed = {
        value.producer
        for value in graph.upstream(graph.output, lambda node, i: node.output not in zeros)
        if value.producer is not None and value not in zeros
    }
    nodes = [node for node in graph.nodes if node in needed]
    if not all(_is_operation(node) for node in nodes):
        return None

    def evaluate(params: Sequence[Any], data: Sequence[Any]) -> Any:
        known = dict(zip(graph.arguments, [*params, *data], strict=True))

        def read(value: Value) -> Any:
            # Arrays of NumPy keep double precision, which a part of a program may be in.
            if value in zeros:
                return np.zeros(value.shape, value.dtype)
            if value in known:
                return known[value]
            is_array = isinstance(value.constant, jax.Array)
            return value.constant if is_array else np.asarray(value.constant, value.dtype)

        for node in nodes:
            results = primitives.bind(node.equation, *map(read, node.inputs))
            known.update(zip(node.outputs, results, strict=True))
        return read(graph.output)

    return evaluate


def _is_operation(node: Node) -> bool:
    """Whether a node is an equation, and not an edge of a loop or a branch."""
    return node.name == node.equation.primitive.name
