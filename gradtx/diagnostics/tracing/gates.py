"""Which layers are gates: they decide how much of another signal passes.

The values of a nonlinearity are a gate if they multiply a signal that is not their own: the sigmoid
of an LSTM, also where one matrix serves all its gates; the channels' weights of a squeeze and
excitation; one half of a gated linear unit.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.provenance import Gate, TracedValue


def gate_of(
    name: str, parts: frozenset[str], inputs: Sequence[TracedValue], result: TracedValue
) -> Gate | None:
    """The gate that the result of an elementwise operation may be, such as t or 1 - t.

    Args:
        name: the name of the operation.
        parts: the names of its primitives.
        inputs: its operands.
        result: its result.
    """
    if not result.sources:
        return None
    if not parts <= primitives.STRAIGHT:
        return Gate(result.sources, primitives.is_sigmoid(name, parts))
    data = [value for value in inputs if value.is_data]
    if len(data) == 1:
        return data[0].gate
    if name == "mul" and _are_of_one_layer(data):
        return Gate(result.sources, is_sigmoid=False)
    return None


def note(inputs: Sequence[TracedValue]) -> None:
    """Note which of two multiplied signals is a gate."""
    if not all(value.sources or value.is_carried for value in inputs) or _are_of_one_layer(inputs):
        return
    gates = [value.gate for value in inputs if value.gate is not None]
    # A sigmoid is a gate, also of a tanh; any other function is one for a linear signal.
    if any(gate.is_sigmoid for gate in gates):
        gates = [gate for gate in gates if gate.is_sigmoid]
    elif len(gates) > 1:
        return
    for gate in gates:
        for layer in gate.layers:
            layer.is_gate = True


def _are_of_one_layer(values: Sequence[TracedValue]) -> bool:
    """Whether a signal multiplies itself, as in x * sigmoid(x)."""
    return len(values) == 2 and not values[0].images.keys().isdisjoint(values[1].images)
