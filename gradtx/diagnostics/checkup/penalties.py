"""Terms of a loss that depend on the parameters alone, and outweigh what depends on the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.partial import without
from gradtx.diagnostics.tracing.patterns import VIEWS

# A penalty outweighs the data if it is so many times as large, and pulls so many times as hard.
# The gradient of a regularized loss is zero where both pull equally; the usual factor of 1e-4 pulls
# a hundredth as hard at the start.
_LARGER, _STEEPER = 3.0, 3.0
# What is logarithmic or linear in the parameters is the normalizer of a density, and no penalty.
_OF_DENSITIES = ("log", "log1p", "slice", "dynamic_slice", "gather")
_SUMS = (VIEWS - {"stop_gradient"}) | {"add", "sub", "neg", "add_any", "reduce_sum", "concatenate"}


@dataclass(frozen=True)
class _Terms:
    """The terms of a loss: the values that are summed up, after some factors, to be the loss."""

    of_data: list[Value]
    penalties: list[Value]


def findings(subject: Subject) -> Iterator[Finding]:
    """A penalty on the parameters that is all that training heeds."""
    terms = _terms(subject)
    if not terms.penalties or not terms.of_data or not subject.is_finite:
        return
    made_of = {one for value in terms.penalties for one in subject.graph.upstream(value)}
    if not made_of.isdisjoint(terms.of_data):
        return
    penalty_of = without(subject.graph, terms.of_data)
    if penalty_of is None:
        return
    params, data = subject.traced.params, subject.traced.data
    penalty, gradients = jax.device_get(jax.jit(jax.value_and_grad(penalty_of))(params, data))
    rest = [g - p for g, p in zip(subject.gradients, gradients, strict=True)]
    steepness = _norm(gradients) / max(_norm(rest), 1e-30)
    penalty, of_data = float(penalty), subject.loss - float(penalty)
    if not any(map(np.any, rest)) or steepness < _STEEPER or penalty < _LARGER * abs(of_data):
        return
    # Where the batch is learned by heart, hardly anything is left of its loss and its gradient;
    # then smaller weights cost more than they save.
    halved = [(p / 2).astype(p.dtype) for p in params]
    after = float(jax.jit(penalty_of)(halved, data))
    of_data_after = float(jax.jit(subject.traced.call)(halved, data)) - after
    if penalty - after > abs(of_data_after - of_data):
        yield _outweighs(subject, terms, penalty, of_data, steepness)


def _outweighs(
    subject: Subject, terms: _Terms, penalty: float, of_data: float, steepness: float
) -> Finding:
    by_line = _by_line(subject, terms)
    line = max(by_line, key=lambda line: abs(by_line[line]))
    depends = functools.reduce(lambda bits, value: bits | value.depends, terms.penalties, 0)
    names = [subject.name(one) for one in subject.parameters if depends >> (one.argument or 0) & 1]
    return Finding(
        "dominant_penalty",
        "warning",
        f"the penalty on the parameters is {penalty:.3g}, and the rest of the loss {of_data:.3g}; "
        f"its gradient is {steepness:.3g} times as large: the weights follow it, whatever the data "
        "say.",
        f"divide the factor of the penalty by {_round(10 * steepness)}, so that its gradient is a "
        "tenth of the other, or use the weight decay of adamw.",
        place=place_of(names),
        source=line,
        evidence={"penalty": penalty, "rest": of_data, "gradients": steepness},
    )


def _by_line(subject: Subject, terms: _Terms) -> dict[str, float]:
    """What the penalties at each line add to the loss."""
    lines = {id(value): _line_of(value) for value in terms.penalties}
    sizes = {}
    for line in dict.fromkeys(lines.values()):
        others = [value for value in terms.penalties if lines[id(value)] != line]
        value_of = without(subject.graph, [*terms.of_data, *others])
        if value_of is not None:
            sizes[line] = float(value_of(subject.traced.params, subject.traced.data))
    return sizes


def _line_of(value: Value) -> str:
    return value.producer.line if value.producer is not None else ""


def _round(number: float) -> str:
    """A number with one digit, as one would write it."""
    return f"{round(number, -math.floor(math.log10(number))):,.0f}"


def _terms(subject: Subject) -> _Terms:
    of_data, penalties = [], []
    for value in subject.graph.upstream(subject.graph.output, functools.partial(_adds, subject)):
        node = value.producer
        is_sum = node is not None and any(_adds(subject, node, i) for i in range(len(node.inputs)))
        if is_sum or not subject.is_trained(value):
            continue
        (penalties if _is_penalty(subject, value) else of_data).append(value)
    return _Terms(of_data, penalties)


def _adds(subject: Subject, node: Node, i: int) -> bool:
    """Whether an operation adds its input number `i` up, perhaps times a factor."""
    if not subject.is_trained(node.inputs[i]):
        return False
    others = [value for j, value in enumerate(node.inputs) if j != i]
    if node.name == "mul" or (node.name == "div" and i == 0):
        return not any(map(subject.is_trained, others))
    if node.name == "select_n":
        return i > 0 and not subject.is_trained(node.inputs[0])
    return node.name in _SUMS


def _is_penalty(subject: Subject, value: Value) -> bool:
    """Whether a value is made of parameters only, and of no data that the loss holds itself."""
    if subject.is_given(value) or value.producer is None or value.producer.name in _OF_DENSITIES:
        return False
    for one in subject.graph.upstream(value):
        name = one.producer.name if one.producer is not None else ""
        # A unit matrix is made by comparing numbers of rows and columns.
        is_unit = name == "iota" and all(user.name == "eq" for user in _users(subject, one))
        if (one.constant is not None and one.size > 1) or (name == "iota" and not is_unit):
            return False
        if name.startswith("random"):
            return False
    return True


def _users(subject: Subject, value: Value) -> Iterator[Node]:
    views = subject.graph.downstream(value, lambda node, i: node.name in VIEWS | {"add"})
    return (user for view in views for user, _ in view.users if user.name not in VIEWS | {"add"})


def _norm(arrays: Sequence[Any]) -> float:
    return math.sqrt(sum(float(np.sum(np.abs(np.asarray(a).astype(complex)) ** 2)) for a in arrays))
