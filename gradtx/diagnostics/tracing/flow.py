"""Where the gradient of a graph's output goes, and where it is cut off."""

from collections.abc import Collection

import jax.numpy as jnp

from gradtx.diagnostics.tracing.graph import Graph, Node, Value

# Operations on real numbers whose derivative is zero, or declared to be.
_FLAT = frozenset({"stop_gradient", "round", "floor", "ceil", "sign"})


def is_differentiable(node: Node, i: int) -> bool:
    """Whether a gradient passes from an operation to its input number `i`.

    A function with a custom derivative is taken to pass a gradient on, whatever it consists of.
    """
    if node.has_own_derivative:
        return True
    if node.name == "loop_carry" and node.equation.primitive.name == "while":
        return False
    return node.name not in _FLAT and _is_inexact(node.inputs[i]) and _is_inexact(node.output)


def cuts_after(graph: Graph, value: Value, reaching: Collection[Value]) -> list[Node]:
    """The first operations after a value that pass no gradient on to it.

    Args:
        graph: the graph.
        value: a value that the output depends on, but not differentiably.
        reaching: the values that the output depends on.
    """
    cuts = {
        node: None
        for after in graph.downstream(value, is_differentiable)
        for node, i in after.users
        if not is_differentiable(node, i) and any(output in reaching for output in node.outputs)
    }
    return sorted(cuts, key=graph.nodes.index)


def _is_inexact(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)
