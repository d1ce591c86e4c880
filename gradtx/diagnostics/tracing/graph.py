"""A traced loss as one graph: which value is made by which operation, from which arguments.

The functions that the loss calls are written out, and so are the bodies of its loops and branches,
so that a question about the structure is a walk along the edges. A loop's carried value has an edge
from its first value and one from the end of the body: the graph has cycles there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from gradtx.diagnostics.tracing import lines, primitives


@dataclass(eq=False)
class Value:
    """An array of the traced function.

    Attributes:
        shape: its shape; in the body of a loop, in one iteration.
        dtype: its dtype.
        producer: the operation that makes it; None: it is an argument or a constant.
        constant: its numbers, if it is a constant, and not a PRNG key; else None.
        argument: its index among the arguments; None: it is not an argument.
        users: the operations that take it, each with the position at which they do.
        depends: the arguments that it depends on, a bit for each.
    """

    shape: tuple[int, ...]
    dtype: Any
    producer: Node | None = None
    constant: Any = None
    argument: int | None = None
    users: list[tuple[Node, int]] = field(default_factory=list, repr=False)
    depends: int = 0

    @property
    def size(self) -> int:
        """How many elements it has."""
        return int(np.prod(self.shape))


@dataclass(eq=False)
class Node:
    """An operation of the traced function.

    Attributes:
        name: the name of the primitive; `loop_carry`, `loop_slice`, `loop_stack`, `branch`, `shard`
            and `unshard` for the edges into and out of loops, branches and shard_maps.
        equation: the equation; for the edges, that of the loop, branch or shard_map.
        inputs: what it takes.
        outputs: what it makes.
        calls: the calls around it, outermost first: the equation, and the function called.
        occurrence: how many times the same equation occurred before, because its function is
            called several times.
    """

    name: str
    equation: Any
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list, repr=False)
    calls: tuple[tuple[Any, Any], ...] = field(default=(), repr=False)
    occurrence: int = 0

    @property
    def output(self) -> Value:
        """What it makes, if that is one array."""
        return self.outputs[0]

    @property
    def line(self) -> str:
        """The line of the user's program, as `file.py:12 (function)`; empty: unknown."""
        return lines.line_of(self.equation, self.calls)

    @property
    def has_own_derivative(self) -> bool:
        """Whether it is part of a function with a custom derivative."""
        return any(call.primitive.name in primitives.WITH_OWN_DERIVATIVE for call, _ in self.calls)


class Graph:
    """The graph of a traced function with one result.

    Args:
        closed_jaxpr: the traced function.

    Attributes:
        arguments: its arguments.
        nodes: its operations, in the order of evaluation.
        output: its first result.
        with_own_derivative: the calls of functions with a custom derivative, and what they take.
    """

    def __init__(self, closed_jaxpr: Any) -> None:
        self.nodes: list[Node] = []
        self.with_own_derivative: list[tuple[Any, list[Value]]] = []
        self._occurrences: Counter[int] = Counter()
        self._iterations: list[Node] = []
        jaxpr = closed_jaxpr.jaxpr
        self.arguments = [
            Value(v.aval.shape, v.aval.dtype, argument=i, depends=1 << i)
            for i, v in enumerate(jaxpr.invars)
        ]
        self.output: Value = self._body(jaxpr, _constants(closed_jaxpr.consts), self.arguments)[0]
        self._complete_dependencies()

    def upstream(
        self, value: Value, crosses: Callable[[Node, int], bool] = lambda node, i: True
    ) -> Iterator[Value]:
        """The values that a value is made of, and itself, nearest first.

        Args:
            value: where to begin.
            crosses: whether to go on from the output of an operation to its input number `i`.
        """
        seen, waiting = {id(value)}, [value]
        for value in waiting:
            yield value
            if value.producer is None:
                continue
            for i, source in enumerate(value.producer.inputs):
                if id(source) not in seen and crosses(value.producer, i):
                    seen.add(id(source))
                    waiting.append(source)

    def downstream(
        self, value: Value, crosses: Callable[[Node, int], bool] = lambda node, i: True
    ) -> Iterator[Value]:
        """The values that are made of a value, and itself, nearest first.

        Args:
            value: where to begin.
            crosses: whether to go on through an operation that takes it as its input number `i`.
        """
        seen, waiting = {id(value)}, [value]
        for value in waiting:
            yield value
            for node, i in value.users:
                if not crosses(node, i):
                    continue
                for result in node.outputs:
                    if id(result) not in seen:
                        seen.add(id(result))
                        waiting.append(result)

    def named(self, *names: str) -> Iterator[Node]:
        """The operations with one of these names, in the order of evaluation."""
        return (node for node in self.nodes if node.name in names)

    def _body(
        self,
        jaxpr: Any,
        constants: Sequence[Value],
        inputs: Sequence[Value],
        calls: tuple[tuple[Any, Any], ...] = (),
    ) -> list[Value]:
        known: dict[Any, Value] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True)
        )

        def read(variable: Any) -> Value:
            if isinstance(variable, Literal):
                aval: Any = variable.aval
                return Value(aval.shape, aval.dtype, constant=np.asarray(variable.val, aval.dtype))
            return known[variable]

        for equation in jaxpr.eqns:
            values = [read(variable) for variable in equation.invars]
            results = self._equation(equation, values, calls)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value], calls: Any) -> list[Value]:
        body = primitives.body_of(equation)
        if body is not None:
            jaxpr, constants = body
            if equation.primitive.name in primitives.WITH_OWN_DERIVATIVE:
                self.with_own_derivative.append((equation, values))
            return self._body(jaxpr, _constants(constants), values, (*calls, (equation, jaxpr)))
        enter = {
            "scan": self._scan,
            "while": self._while,
            "cond": self._cond,
            "shard_map": self._shard_map,
        }
        name = equation.primitive.name
        if name in enter:
            return enter[name](equation, values, calls)
        outputs = [Value(v.aval.shape, v.aval.dtype) for v in equation.outvars]
        self._add(name, equation, values, outputs, calls)
        return outputs

    def _add(
        self, name: str, equation: Any, inputs: Sequence[Value], outputs: list[Value], calls: Any
    ) -> Node:
        occurrence = self._occurrences[id(equation)]
        if name == equation.primitive.name:
            self._occurrences[id(equation)] += 1
        node = Node(name, equation, list(inputs), outputs, calls, occurrence)
        for i, value in enumerate(inputs):
            value.users.append((node, i))
        for output in outputs:
            output.producer = node
            for value in inputs:
                output.depends |= value.depends
        self.nodes.append(node)
        return node

    def _edge(self, name: str, equation: Any, inputs: list[Value], like: Any, calls: Any) -> Value:
        """A value that stands for others: at the edge of a loop or a branch."""
        output = Value(like.shape, like.dtype)
        self._add(name, equation, inputs, [output], calls)
        return output

    def _close(self, carry: Value, end: Value) -> None:
        """Add the edge from the end of a loop's body to its next iteration."""
        node = carry.producer
        assert node is not None
        end.users.append((node, len(node.inputs)))
        node.inputs.append(end)
        self._iterations.append(node)

    def _scan(self, equation: Any, values: list[Value], calls: Any) -> list[Value]:
        closed = equation.params["jaxpr"]
        first, number = primitives.numbers_of_scan(equation)
        variables = closed.jaxpr.invars
        carried = [
            self._edge("loop_carry", equation, [value], variable.aval, calls)
            for value, variable in zip(
                values[first : first + number], variables[first : first + number], strict=True
            )
        ]
        slices = [
            self._edge("loop_slice", equation, [value], variable.aval, calls)
            for value, variable in zip(
                values[first + number :], variables[first + number :], strict=True
            )
        ]
        inputs = [*values[:first], *carried, *slices]
        results = self._body(closed.jaxpr, _constants(closed.consts), inputs, calls)
        for carry, end in zip(carried, results[:number], strict=True):
            self._close(carry, end)
        stacked = [
            self._edge("loop_stack", equation, [value], variable.aval, calls)
            for value, variable in zip(results[number:], equation.outvars[number:], strict=True)
        ]
        return [*results[:number], *stacked]

    def _while(self, equation: Any, values: list[Value], calls: Any) -> list[Value]:
        parameters = equation.params
        first, second = parameters["cond_nconsts"], parameters["body_nconsts"]
        carried = [
            self._edge("loop_carry", equation, [value], value, calls)
            for value in values[first + second :]
        ]
        test, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
        self._body(test.jaxpr, _constants(test.consts), [*values[:first], *carried], calls)
        inputs = [*values[first : first + second], *carried]
        results = self._body(body.jaxpr, _constants(body.consts), inputs, calls)
        for carry, end in zip(carried, results, strict=True):
            self._close(carry, end)
        return carried

    def _cond(self, equation: Any, values: list[Value], calls: Any) -> list[Value]:
        index, *operands = values
        branches = [
            self._body(branch.jaxpr, _constants(branch.consts), operands, calls)
            for branch in equation.params["branches"]
        ]
        return [
            self._edge("branch", equation, [index, *results], results[0], calls)
            for results in zip(*branches, strict=True)
        ]

    def _shard_map(self, equation: Any, values: list[Value], calls: Any) -> list[Value]:
        jaxpr = equation.params["jaxpr"]
        shards = [
            self._edge("shard", equation, [value], variable.aval, calls)
            for value, variable in zip(values, jaxpr.invars, strict=True)
        ]
        results = self._body(jaxpr, [], shards, calls)
        return [
            self._edge("unshard", equation, [value], variable.aval, calls)
            for value, variable in zip(results, equation.outvars, strict=True)
        ]

    def _complete_dependencies(self) -> None:
        """Let what a loop's body depends on reach what follows from earlier iterations."""
        for node in self._iterations:
            waiting: list[Node] = [node]
            for node in waiting:
                depends = 0
                for value in node.inputs:
                    depends |= value.depends
                for output in node.outputs:
                    if output.depends | depends != output.depends:
                        output.depends |= depends
                        waiting += [user for user, _ in output.users]


def _constants(arrays: Iterable[Any]) -> list[Value]:
    return [
        Value(array.shape, array.dtype, constant=None if _is_key(array) else array)
        for array in map(_as_array, arrays)
    ]


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _as_array(array: Any) -> Any:
    return array if isinstance(array, jax.Array | np.ndarray) else np.asarray(array)
