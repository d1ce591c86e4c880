"""Where the gradient of a graph's output goes, and where it is cut off."""

from __future__ import annotations

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
    is_passed_on = any(map(_is_inexact, node.outputs))
    return node.name not in _FLAT and _is_inexact(node.inputs[i]) and is_passed_on


def cuts_after(graph: Graph, value: Value, reaching: Collection[Value]) -> list[Node]:
    """The first operations after a value that pass no gradient on to it.

    Args:
        graph: the graph.
        value: a value that the output depends on, but not differentiably.
        reaching: the values that the output depends on.
    """
    cuts: dict[Node, None] = {}
    seen, waiting = {value}, [value]
    for after in waiting:
        for node, i in after.users:
            passes = is_differentiable(node, i)
            for output in node.outputs:
                if output not in reaching or output in seen:
                    continue
                if passes and _is_inexact(output):
                    seen.add(output)
                    waiting.append(output)
                else:
                    cuts[node] = None
    return sorted(cuts, key=graph.nodes.index)


def learning(graph: Graph) -> set[Value]:
    """The values that the output depends on differentiably."""
    seen, waiting = {graph.output}, [graph.output]
    for value in waiting:
        node = value.producer
        # Of several outputs some may be indices, such as those of a `top_k`.
        if node is None or not _is_inexact(value):
            continue
        for i, source in enumerate(node.inputs):
            if source not in seen and is_differentiable(node, i):
                seen.add(source)
                waiting.append(source)
    return seen


def _is_inexact(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)
