"""The trunk of a network: the values that its signal has to pass on the way to the last layer.

In a chain of layers every value belongs to it; in a residual network the sums do, but no value
inside a branch. How the signal and its gradient change along the trunk says what the network as a
whole does to them, however its branches scale what is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Graph, Node, Value


@dataclass(frozen=True)
class Product:
    """A product of a signal with a parameter.

    Attributes:
        node: the operation.
        signal: the operand that is the signal.
        weights: the other one.
        depth: the number of products on the longest path to it, including it.
    """

    node: Node
    signal: Value
    weights: Value
    depth: int


@dataclass(frozen=True)
class Trunk:
    """The values of a trunk, and the products in between.

    Attributes:
        start: the first product.
        values: the values in the order in which the signal passes them.
        products: for each of the values, the products that take it, or what a branch made of it,
            before the next one.
    """

    start: Product
    values: tuple[Value, ...]
    products: tuple[tuple[Product, ...], ...]


def products_of(graph: Graph, number: int) -> list[Product]:
    """The products of signals with parameters, in the order of evaluation.

    Args:
        graph: the graph of the loss.
        number: the number of parameters, which are the first arguments.
    """
    of_parameters = (1 << number) - 1
    depths: dict[int, int] = {}
    signals: set[int] = set()

    def is_signal(value: Value) -> bool:
        is_data = value.depends > of_parameters or id(value) in signals
        return is_data or (value.constant is not None and len(value.shape) > 0)

    def is_parameter(value: Value) -> bool:
        return bool(value.depends & of_parameters) and not is_signal(value)

    found = []
    differentiated: dict[tuple[str, int], Value] = {}
    for node in graph.nodes:
        depth = max((depths.get(id(value), 0) for value in node.inputs), default=0)
        for signal, weights in _operands(node):
            made_by = _transformations(graph, node, weights)
            is_product = is_signal(signal) and is_parameter(weights)
            if is_product and not primitives.is_derivative(made_by, weights, differentiated):
                depth += 1
                found.append(Product(node, signal, weights, depth))
        for output in node.outputs:
            depths[id(output)] = depth
            if any(map(is_signal, node.inputs)):
                signals.add(id(output))
    return found


def _transformations(graph: Graph, node: Node, weights: Value) -> str:
    loops = [
        value.producer.equation
        for value in graph.upstream(weights)
        if value.producer is not None and value.producer.name == "loop_slice"
    ]
    calls = [call for call, _ in node.calls]
    return primitives.transformations([*loops, *calls, node.equation])


def _operands(node: Node) -> list[tuple[Value, Value]]:
    """The operands of a product, in both orders."""
    if node.name not in primitives.PLAIN_PRODUCTS:
        return []
    first, second = node.inputs
    return [(first, second), (second, first)]


def trunk_of(graph: Graph, products: Sequence[Product]) -> Trunk | None:
    """The trunk from a first product to the deepest one; None: there are none in between."""
    if not products:
        return None
    last = max(products, key=lambda product: product.depth)
    start = _first_before(graph, last, products)
    if start is last:
        return None
    after = {id(value) for value in graph.downstream(start.node.output, _is_forward)}
    between = {id(value) for value in graph.upstream(last.signal, _is_forward)} & after
    values = _cuts(graph, between, last)
    places = {id(value): place for place, value in enumerate(graph_order(graph))}
    takers: list[list[Product]] = [[] for _ in values]
    for product in products:
        if id(product.signal) not in between and product is not last:
            continue
        earlier = [i for i, v in enumerate(values) if places[id(v)] <= places[id(product.signal)]]
        if earlier:
            takers[earlier[-1]].append(product)
    return Trunk(start, tuple(values), tuple(map(tuple, takers)))


def graph_order(graph: Graph) -> list[Value]:
    """All values that operations make, in the order of evaluation."""
    return [value for node in graph.nodes for value in node.outputs]


def _first_before(graph: Graph, last: Product, products: Sequence[Product]) -> Product:
    """The first product on a longest path to the last one."""
    made_by: Mapping[int, Product] = {id(product.node.output): product for product in products}
    product = last
    while product.depth > 1:
        before = (
            made_by[id(value)]
            for value in graph.upstream(product.signal, _is_forward)
            if id(value) in made_by and made_by[id(value)].depth == product.depth - 1
        )
        earlier = next(before, None)
        if earlier is None:
            # Only indices or decisions come from there, such as those of an argmax.
            break
        product = earlier
    return product


def _cuts(graph: Graph, between: set[int], last: Product) -> list[Value]:
    """The values among those in between that no path from the start goes around."""
    order = {id(node): place for place, node in enumerate(graph.nodes)}
    cuts, furthest = [], -1
    for place, node in enumerate(graph.nodes):
        mine = [value for value in node.outputs if id(value) in between]
        # All earlier values are used by now, so that what follows depends on this one alone.
        if len(mine) == 1 and furthest <= place:
            cuts += mine
        for value in mine:
            users = [
                order[id(user)]
                for user, i in value.users
                if user is last.node
                or (_is_forward(user, i) and any(id(result) in between for result in user.outputs))
            ]
            furthest = max([furthest, *users])
    return cuts


def _is_forward(node: Node, i: int) -> bool:
    """Whether real numbers pass an operation, but not the edge back to a loop's next iteration."""
    if node.name == "loop_carry" and i > 0:
        return False
    return any(
        jnp.issubdtype(node.inputs[i].dtype, jnp.inexact)
        and jnp.issubdtype(output.dtype, jnp.inexact)
        for output in node.outputs
    )
