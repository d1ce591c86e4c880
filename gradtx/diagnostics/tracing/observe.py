"""Evaluates a traced loss once more, and measures chosen operations on the way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gradtx.diagnostics.tracing.found import Arrays, Found
from gradtx.diagnostics.tracing.graph import Node
from gradtx.diagnostics.tracing.interpreter import Interpreter
from gradtx.diagnostics.tracing.provenance import Layer
from gradtx.diagnostics.tracing.traced import TracedLoss

# From the arrays that an operation takes and makes to what is measured of them.
Measure = Callable[[Sequence[Any], Sequence[Any]], Arrays]
Measured = dict[str, np.ndarray]


def observer(
    loss: TracedLoss, requests: Mapping[Node, Sequence[Measure]]
) -> Callable[[Sequence[jax.Array]], dict[Node, Measured]]:
    """A function that measures some operations of a loss, compiled once for all data.

    Args:
        loss: the loss.
        requests: what to measure of each operation, as nodes of the loss's graph.

    Returns:
        A function of the data. It returns the measurements of each operation, with a leading axis
        for each loop around it. An operation inside something that the interpreter does not enter
        is left out.
    """
    by_equation: dict[int, list[Node]] = defaultdict(list)
    for node in requests:
        by_equation[id(node.equation)].append(node)
    found: list[Found] = []

    def watch(equation: Any, inputs: Sequence[Any], results: Sequence[Any]) -> Arrays | None:
        nodes = by_equation.get(id(equation))
        if nodes is None:
            return None
        # Where a function is called several times, each call takes all measurements.
        measured: Arrays = {}
        for node in nodes:
            for measure in requests[node]:
                measured |= measure(inputs, results)
        return measured

    @jax.jit
    def measured(params: Any, data: Any) -> list[Arrays]:
        interpreter = Interpreter(None, watch=watch)
        closed = loss.closed_jaxpr
        interpreter.run(closed.jaxpr, closed.consts, loss.values(params, data))
        watched = [one for one in interpreter.found if not isinstance(one.what, Layer)]
        found[:] = [replace(one, arrays={}) for one in watched]
        return [one.arrays for one in watched]

    def observe(data: Sequence[jax.Array]) -> dict[Node, Measured]:
        if not requests:
            return {}
        arrays = jax.device_get(measured(loss.params, list(data)))
        results: dict[Node, Measured] = {}
        calls: Counter[int] = Counter()
        for one, measurements in zip(found, arrays, strict=True):
            equation = one.what[0]
            for node in by_equation[id(equation)]:
                if node.occurrence == calls[id(equation)]:
                    results[node] = measurements
            calls[id(equation)] += 1
        return results

    return observe


def observe(
    loss: TracedLoss,
    requests: Mapping[Node, Sequence[Measure]],
    data: Sequence[jax.Array] | None = None,
) -> dict[Node, Measured]:
    """The measurements of some operations of a loss, in one compiled evaluation.

    Args:
        loss: the loss.
        requests: what to measure of each operation, as nodes of the loss's graph.
        data: the data to evaluate it with; None: its own.
    """
    return observer(loss, requests)(loss.data if data is None else data)
