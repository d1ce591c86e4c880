"""Which axes of the values of a graph count the examples of a batch, and where examples meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gradtx.diagnostics.tracing.axis_rules import Signs, Step, layout_after
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.layout import Axis, Layout, Part, axis_of, layout_of_numbers, merged

# The graph of a loop is a cycle; what it carries is settled after a few rounds.
_ROUNDS_OF_LOOPS = 3
# Larger constants are not looked at.
_MOST_READ = 1 << 16


class Axes:
    """The layouts of all values of a graph.

    Args:
        graph: the graph.
        number: the number of examples.
        leaves: the arguments whose first axis counts them.

    Attributes:
        signs: what shows how the examples are used.
    """

    def __init__(self, graph: Graph, number: int, leaves: Sequence[Value]) -> None:
        self.graph, self.number = graph, number
        self._layouts: dict[Value, Layout] = {
            value: ((Part("rows", number),), *map(axis_of, value.shape[1:])) for value in leaves
        }
        has_loops = any(graph.named("loop_carry"))
        for _ in range(_ROUNDS_OF_LOOPS if has_loops else 1):
            self.signs = Signs()
            before = dict(self._layouts)
            for node in graph.nodes:
                layouts = [self.of(value) for value in node.inputs]
                for output in node.outputs:
                    if output.shape and 0 not in output.shape:
                        layout = layout_after(Step(node, layouts, output, self.signs))
                        self._layouts[output] = tuple(map(merged, layout))
            if before == self._layouts:
                break

    def of(self, value: Value) -> Layout:
        """The layout of a value."""
        if value not in self._layouts:
            self._layouts[value] = (
                tuple(map(axis_of, value.shape))
                if value.constant is None or not 0 < value.size <= _MOST_READ
                else layout_of_numbers(np.asarray(value.constant))
            )
        return self._layouts[value]

    def rows_of(self, value: Value) -> tuple[int, ...]:
        """The axes that count the examples, all of them, and nothing else but copies of them."""
        return tuple(i for i, axis in enumerate(self.of(value)) if self.is_rows(axis))

    def is_rows(self, axis: Axis) -> bool:
        """Whether an axis counts the examples."""
        kinds = {part.kind for part in axis}
        sizes = [part.size for part in axis if part.kind == "rows"]
        return kinds <= {"rows", "copies"} and math.prod(sizes) == self.number > 1

    def is_copied(self, value: Value, axis: int) -> bool:
        """Whether a value is the same for all indices of an axis."""
        return all(part.kind == "copies" for part in self.of(value)[axis])

    def is_sequence(self, is_given: Callable[[Value], bool]) -> bool:
        """Whether the first axis of the data rather counts the steps of one sequence, or nodes.

        Then something runs along it, or knows its places, or says who is whose neighbour.

        Args:
            is_given: whether a value depends on the batch.
        """
        has_places = any(not is_given(one.node.inputs[one.position]) for one in self.signs.places)
        return (
            has_places
            or bool(self.signs.indexed)
            or any(value.shape.count(self.number) > 1 for value in self._data(is_given))
            or any(node.name != "loop_slice" or self._has_state(node) for node in self.signs.slid)
        )

    def _data(self, is_given: Callable[[Value], bool]) -> list[Value]:
        return [value for value in self.graph.arguments if is_given(value)]

    def _has_state(self, node: Node) -> bool:
        """Whether a loop over the rows carries more from one to the next than a sum."""
        return any(
            carry.equation is node.equation and carry.output.shape and len(carry.inputs) > 1
            for carry in self.graph.named("loop_carry")
        )
