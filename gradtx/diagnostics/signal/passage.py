"""How the signal and its gradient change along the trunk of a network, and where they do."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.tracing import passing
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS
from gradtx.diagnostics.tracing.traced import TracedLoss
from gradtx.diagnostics.tracing.trunk import Product, products_of, trunk_of

_REDUCTIONS = ("reduce_sum", "reduce_window_sum", "reduce_max", "reduce_window_max", "cumsum")
_SUMS = ("reduce_sum", "reduce_window_sum")


@dataclass(frozen=True)
class Passage:
    """A value that all of the signal passes on its way to the last layer.

    Attributes:
        rms: its root mean square.
        gradient: the norm of the gradient that arrives there; before a mean over places, times the
            root of their number, because the gradients of weights add up over the places.
        operation: what made it: "layer", "sum" (of a branch and what went around it), "pooling" or
            "scaling".
        line: the line of the program, as `file.py:12 (function)`.
        places: for a sum or mean over places, their number; else 1.
        layers: the layers before the next value that receive it, or what a branch makes of it.
    """

    rms: float
    gradient: float
    operation: str
    line: str
    places: int
    layers: tuple[LayerSignal, ...]


def passages(loss: TracedLoss, layers: Sequence[LayerSignal]) -> tuple[Passage, ...]:
    """The values along the trunk of a network, in the order in which the signal passes them.

    The first one is the input of the first layer, whose gradient is not known; there are none if
    the network has no trunk.

    Args:
        loss: the loss.
        layers: the measurements of its layers.
    """
    graph = Graph(loss.closed_jaxpr)
    if any(node.equation.primitive.name == "while" for node in graph.named("loop_carry")):
        # It has no backward pass.
        return ()
    products = products_of(graph, len(loss.params))
    trunk = trunk_of(graph, products)
    if trunk is None:
        return ()
    signals = signals_of(products, layers, loss.names)
    measured = passing.measure(loss, graph, trunk.values)
    taken: list[tuple[Value | None, list[Product]]] = [(None, [trunk.start])]
    for value, takers in zip(trunk.values, trunk.products, strict=True):
        if id(value) in measured and not _is_state(graph, value, len(loss.params)):
            taken.append((value, list(takers)))
        else:
            # What is inside a loop belongs to the value with which its iteration began.
            taken[-1][1].extend(takers)
    before = trunk.start.signal
    found = []
    for value, takers in taken:
        of_takers = [signals[product] for product in takers]
        if value is None or value.producer is None:
            mine = tuple(itertools.chain(*of_takers))
            found.append(Passage(mine[0].input_rms if mine else 0.0, math.nan, "", "", 1, mine))
            continue
        node = value.producer
        one = Passage(0.0, 0.0, _kind(graph, node, before), node.line, _places(node), ())
        found += _iterations(one, node, *measured[id(value)], of_takers)
        before = value
    return _with_coherent_gradients(found)


def _iterations(
    one: Passage,
    node: Node,
    rms: np.ndarray,
    gradient: np.ndarray,
    signals: Sequence[tuple[LayerSignal, ...]],
) -> list[Passage]:
    """A passage, or one for each iteration of the loop that carries it."""
    number = np.size(rms)
    order = list(range(number))
    if node.equation.params.get("reverse"):
        order.reverse()
    results = []
    for time, i in enumerate(order):
        mine = tuple(
            signal
            for of_product in signals
            for signal in of_product[
                time * len(of_product) // number : (time + 1) * len(of_product) // number
            ]
        )
        one_rms, one_gradient = float(np.ravel(rms)[i]), float(np.ravel(gradient)[i])
        results.append(replace(one, rms=one_rms, gradient=one_gradient, layers=mine))
    return results


def _kind(graph: Graph, node: Node, before: Value) -> str:
    """What kind of operation made a value of the trunk out of the one before."""
    if node.name == "loop_carry":
        # The end of the loop's body made it, except in the first iteration.
        node = next((v.producer for v in node.inputs[1:] if v.producer is not None), node)
    if node.name in _REDUCTIONS:
        return "pooling"
    if node.name in ("add", "add_any", "concatenate") and len(node.inputs) > 1:
        near = list(graph.upstream(node.output, lambda one, i: one.name not in PLAIN_PRODUCTS))
        goes_around = any(value is before or _carries(value) for value in near)
        is_branch = any(value is not before and _is_product(value) for value in near)
        return "sum" if goes_around and is_branch else "layer"
    if node.name in ("mul", "div"):
        signals = [v for v in node.inputs if any(one is before for one in graph.upstream(v))]
        return "scaling" if len(signals) == 1 else "layer"
    return "layer"


def _is_product(value: Value) -> bool:
    return value.producer is not None and value.producer.name in PLAIN_PRODUCTS


def _carries(value: Value) -> bool:
    return value.producer is not None and value.producer.name == "loop_carry"


def _places(node: Node) -> int:
    if node.name not in _SUMS or not node.output.size:
        return 1
    return max(node.inputs[0].size // node.output.size, 1)


def _is_state(graph: Graph, value: Value, number: int) -> bool:
    """Whether a loop carries a value from step to step, and not from layer to layer of a stack."""
    node = value.producer
    if node is None or node.name != "loop_carry":
        return False
    of_data = -1 << number
    return not any(
        one.equation is node.equation
        and one.inputs[0].depends & ~of_data
        and not one.inputs[0].depends & of_data
        for one in graph.named("loop_slice")
    )


def signals_of(
    products: Sequence[Product], layers: Sequence[LayerSignal], names: Sequence[str]
) -> dict[Product, tuple[LayerSignal, ...]]:
    """The measurements that belong to each product: several if it is in a loop over a stack."""
    by_leaf: dict[str, list[LayerSignal]] = defaultdict(list)
    for layer in layers:
        by_leaf[re.sub(r"(\[\d+\])+$", "", layer.name.split(" + ")[0])].append(layer)
    users: dict[str, list[Product]] = defaultdict(list)
    for product in products:
        leaves = [
            name or "params"
            for i, name in enumerate(names)
            if product.weights.depends >> i & 1 and (name or "params") in by_leaf
        ]
        users[leaves[0] if leaves else ""].append(product)
    found: dict[Product, tuple[LayerSignal, ...]] = {}
    for leaf, mine in users.items():
        share, rest = divmod(len(by_leaf[leaf]), len(mine))
        for i, product in enumerate(mine):
            found[product] = tuple(by_leaf[leaf][i * share : (i + 1) * share] if not rest else ())
    return found


def _with_coherent_gradients(found: Sequence[Passage]) -> tuple[Passage, ...]:
    factor = 1.0
    results = []
    for passage in reversed(found):
        results.append(replace(passage, gradient=passage.gradient * factor))
        factor *= math.sqrt(passage.places)
    return tuple(reversed(results))
