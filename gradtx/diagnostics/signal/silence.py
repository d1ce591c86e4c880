"""Finds why a layer's units are zero: an operation that made zeros of numbers that were not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.passage import signals_of
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.observe import observe
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS
from gradtx.diagnostics.tracing.traced import TracedLoss
from gradtx.diagnostics.tracing.trunk import Product, products_of

# Nonlinearities that are zero for some arguments: with these, a unit is dead of its own doing.
_BENDS = frozenset({"max", "clamp", "min", "exp", "exp2", "logistic", "erfc"})


@dataclass(frozen=True)
class Silence:
    """What made zeros of numbers that were not zero.

    Attributes:
        layer: the first layer that is silenced by it.
        operation: the primitive; "argument" or "parameter" if these are zero themselves.
        name: what the argument or parameter is called.
        line: the line of the program, as `file.py:12 (function)`; empty: unknown.
    """

    layer: str
    operation: str
    name: str = ""
    line: str = ""


def find_silence(loss: TracedLoss, layers: Sequence[LayerSignal]) -> Silence | None:
    """Why the first of the layers that are entirely dead is; None: it is its own doing."""
    dead = [layer for layer in layers if layer.dead_fraction == 1]
    if not dead:
        return None
    graph = Graph(loss.closed_jaxpr)
    products = products_of(graph, len(loss.params))
    of_product = signals_of(products, layers, loss.names)
    product = next((one for one in products if dead[0] in of_product[one]), None)
    if product is None:
        return None
    zeros = _zeros(loss, graph)
    value = product.signal if dead[0].input_rms == 0 else _first_after(graph, product, zeros)
    if value is None:
        return None
    cause = _cause(value, zeros)
    if cause.producer is None:
        if cause.argument is None:
            return None
        if cause.argument < len(loss.params):
            return Silence(dead[0].name, "parameter", loss.names[cause.argument])
        return Silence(dead[0].name, "argument", loss.all_names[cause.argument])
    node = cause.producer
    if node.name in _BENDS or _depends_on_sign(graph, node):
        return None
    if node.name in PLAIN_PRODUCTS:
        number = len(loss.params)
        zero = [v for v in node.inputs if id(v) in zeros]
        leaves = [i for v in zero for i in range(number) if v.depends >> i & 1]
        name = loss.names[leaves[0]] if leaves else ""
        return Silence(dead[0].name, "parameter", name) if leaves else None
    return Silence(dead[0].name, node.name, "", node.line)


def _depends_on_sign(graph: Graph, node: Node) -> bool:
    """Whether an operation selects by a condition on a layer's output, as a relu does."""
    return any(
        value.producer is not None and value.producer.name in PLAIN_PRODUCTS
        for condition in node.inputs
        if not _is_real(condition)
        for value in graph.upstream(condition)
    )


def _zeros(loss: TracedLoss, graph: Graph) -> set[int]:
    """The values that are zero everywhere."""
    requests = {
        node: [_is_zero]
        for node in graph.nodes
        if not node.name.startswith("loop") and node.name != "branch" and _is_real(node.output)
    }
    zeros = {
        id(node.output)
        for node, measured in observe(loss, requests).items()
        if np.all(measured["is_zero"])
    }
    arrays = [*loss.params, *loss.data]
    zeros |= {
        id(value)
        for value, array in zip(graph.arguments, arrays, strict=True)
        if _is_real(value) and not np.any(array)
    }
    return zeros


def _is_zero(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
    return {"is_zero": ~jnp.any(results[0] != 0)}


def _is_real(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def _first_after(graph: Graph, product: Product, zeros: set[int]) -> Value | None:
    """The first value after a product that is zero, before another product."""
    after = graph.downstream(product.node.output, lambda node, i: node.name not in PLAIN_PRODUCTS)
    return next((value for value in after if id(value) in zeros), None)


def _cause(value: Value, zeros: set[int]) -> Value:
    """The first zero on the way to a value that is zero: nothing that it is made of is zero."""
    while value.producer is not None:
        sources = [
            one
            for one in value.producer.inputs
            if id(one) in zeros and one.depends and _is_real(one)
        ]
        if not sources:
            break
        value = sources[0]
    return value
