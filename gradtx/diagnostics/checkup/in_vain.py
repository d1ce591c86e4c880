"""What a network computes in vain: lost gradients, second derivatives of zero, states at rest."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.norms import nearest
from gradtx.diagnostics.checkup.subject import Subject, place_of, some
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.flow import is_differentiable
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, is_number, source_of
from gradtx.diagnostics.tracing.primitives import PLAIN_PRODUCTS

_BENDS = frozenset({"max", "min", "abs", "clamp", "select_n"})
# A product of two of these has a second derivative, and so has any smooth function.
_PRODUCTS = frozenset({"mul", "div", *PLAIN_PRODUCTS})
# From the sum of squares to a length.
_OF_LENGTHS = frozenset({"div", "mul", "add", "max", "sqrt", "rsqrt"})


def computed_in_vain(subject: Subject) -> Iterator[Finding]:
    """The findings."""
    yield from _codes(subject)
    yield from _second_derivatives(subject)
    yield from _states(subject)
    yield from _norms(subject)


# Codes that are looked up.


def _codes(subject: Subject) -> Iterator[Finding]:
    """The nearest codes, through which no gradient passes to what was encoded.

    What has no gradient at all is found elsewhere; here, an encoder that only learns to be near its
    codes.
    """
    idle = {one.name for one in subject.idle}
    for node in subject.graph.named("argmin"):
        distances, index = node.inputs[0], node.output
        if not (subject.is_trained(distances) and subject.is_given(distances)):
            continue
        encoders = {
            one
            for one in subject.trained_arguments_of(distances)
            if (subject.name(one) or "params") not in idle
        }
        for code in _lookups(subject, index):
            encoders -= set(subject.trained_arguments_of(code.inputs[0]))
            layer = _layer_after(subject, code.output)
            if layer is None or not encoders:
                continue
            node_of, position = layer
            passing = subject.graph.upstream(node_of.inputs[position], is_differentiable)
            if encoders.isdisjoint(passing):
                names = sorted(map(subject.name, encoders))
                yield _hard_codes(node, names, node_of.line)
                return


def _hard_codes(node: Node, names: list[str], line: str) -> Finding:
    return Finding(
        "blocked",
        "error",
        f"no gradient passes through `argmin` from the layer at {line} to {some(names)}, which "
        "learn nothing of what the codes are used for.",
        "pass the gradient straight through: codes = z + stop_gradient(codes - z).",
        place=place_of(names),
        source=node.line,
        evidence={"operation": "argmin", "parameters": names},
    )


def _lookups(subject: Subject, index: Value) -> Iterator[Node]:
    """Where rows of a parameter are taken at computed indices."""
    crossed = VIEWS | {"select_n", "add", "lt", "concatenate"}
    for value in subject.graph.downstream(index, lambda node, i: node.name in crossed):
        for node, i in value.users:
            if node.name == "gather" and i == 1 and _is_parameter(subject, node.inputs[0]):
                yield node


def _is_parameter(subject: Subject, value: Value) -> bool:
    return subject.is_trained(value) and not subject.is_given(value)


def _layer_after(subject: Subject, value: Value) -> tuple[Node, int] | None:
    """The first layer that takes a value, and at which position."""
    for one in subject.graph.downstream(value, lambda node, i: node.name not in PLAIN_PRODUCTS):
        for node, i in one.users:
            if node.name in PLAIN_PRODUCTS and _is_parameter(subject, node.inputs[1 - i]):
                return node, i
    return None


# Second derivatives.


def _second_derivatives(subject: Subject) -> Iterator[Finding]:
    """A network that is differentiated twice by its inputs, and is piecewise linear."""
    twice = [
        node
        for node in subject.graph.nodes
        if _is_differentiated_twice(node) and subject.is_given(node.output)
    ]
    if any(_is_curved(subject, node) for node in twice):
        return
    bends = [node for node in twice if _is_bend(subject, node)]
    if not bends:
        return
    called = _called(bends[0])
    places = list(dict.fromkeys(node.line for node in bends))
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    yield Finding(
        "blocked",
        "error",
        f"the loss takes a second derivative of a network whose only nonlinearity is `{called}`"
        f"{more}: it is piecewise linear, and its second derivative is zero, whatever its weights.",
        "use a smooth nonlinearity: tanh, softplus, gelu or sin.",
        place=place_of(nearest(subject, bends[0].output)),
        source=places[0],
        evidence={"operation": called, "lines": places},
    )


def _is_differentiated_twice(node: Node) -> bool:
    stacks = [*(str(call.source_info.name_stack) for call, _ in node.calls)]
    stack = "/".join([*stacks, str(node.equation.source_info.name_stack)])
    return stack.count("jvp(") > 1 and "transpose(" not in stack


def _is_curved(subject: Subject, node: Node) -> bool:
    if not jnp.issubdtype(node.output.dtype, jnp.inexact):
        return False
    if node.name in primitives.SMOOTH:
        return any(map(subject.is_given, node.inputs))
    return node.name in _PRODUCTS and sum(map(subject.is_given, node.inputs)) > 1


def _is_bend(subject: Subject, node: Node) -> bool:
    return node.name in _BENDS and subject.is_trained(node.output)


def _called(node: Node) -> str:
    """What a user calls a nonlinearity: the name of its function."""
    names = [call.params.get("name") for call, _ in node.calls]
    return next((name for name in names if name), node.name)


# States.


def _states(subject: Subject) -> Iterator[Finding]:
    """The parameters that are multiplied with zeros, the first state of a loop, and nothing else.

    What a loop returns as it came is a constant of the loop for jax.
    """
    found: dict[Value, list[Node]] = {}
    others: set[Value] = set()
    for node in subject.graph.named(*PLAIN_PRODUCTS, "mul"):
        for i, value in enumerate(node.inputs):
            parameter, other = source_of(value), node.inputs[1 - i]
            if parameter.argument is None or not subject.is_trained(parameter):
                continue
            if other.size > 1 and is_number(other, 0) and node.name != "mul":
                found.setdefault(parameter, []).append(node)
            else:
                others.add(parameter)
    # Once, and outside a loop, the zeros may be those of a dropout that keeps nothing.
    idle = {
        one: nodes[0]
        for one, nodes in found.items()
        if one not in others and (len(nodes) > 1 or _loop_around(subject, nodes[0]))
    }
    if not idle:
        return
    names, node = [subject.name(one) for one in idle], next(iter(idle.values()))
    loop = _loop_around(subject, node)
    where = f" in the loop at {loop}" if loop else ""
    yield Finding(
        "constant_state",
        "error",
        f"{some(names)} only multiplies the zeros that a state begins with{where}: the state is "
        "never replaced by a new one.",
        "return the new state from the function of the step, as the first of the pair, and use it "
        "in the next step.",
        place=place_of(names),
        source=node.line,
        evidence={"parameters": names, "loop": loop},
    )


def _loop_around(subject: Subject, node: Node) -> str:
    """The line of the scan in whose body an operation is; empty: there is none."""
    mine = {id(node.equation), *(id(call) for call, _ in node.calls)}
    for edge in subject.graph.named("loop_carry", "loop_slice", "loop_stack"):
        body = edge.equation.params.get("jaxpr")
        if body is not None and any(id(equation) in mine for equation in body.jaxpr.eqns):
            return edge.line
    return ""


# Norms.


def _norms(subject: Subject) -> Iterator[Finding]:
    """A signal from which its own mean over a single number is subtracted, or its own length."""
    for node in subject.graph.named("sub", "div", "mul"):
        if not (subject.is_trained(node.output) and subject.is_given(node.output)):
            continue
        for i, signal in enumerate(node.inputs[: 1 if node.name != "mul" else 2]):
            total = _total(subject.graph, node, 1 - i)
            if total is None or not _is_of(total.inputs[0], signal, node.name):
                continue
            axes, shape = total.equation.params["axes"], total.inputs[0].shape
            becomes = "zero" if node.name == "sub" else "1 or -1"
            yield Finding(
                "constant_norm",
                "error",
                f"an array of shape {shape} is normalized along axis {', '.join(map(str, axes))}, "
                f"where it has a single number: all of it becomes {becomes}.",
                "normalize along the axis of the features; for a batch norm, use more examples.",
                place=place_of(nearest(subject, signal)),
                source=node.line,
                evidence={"shape": list(shape), "axes": list(map(int, axes))},
            )
            return


def _total(graph: Graph, node: Node, position: int) -> Node | None:
    """The sum of single numbers by which an operation normalizes."""
    crossed = VIEWS | ({"div", "mul"} if node.name == "sub" else _OF_LENGTHS)
    roots = 0
    value = node.inputs[position]
    while value.producer is not None:
        maker = value.producer
        if maker.name == "reduce_sum":
            axes = maker.equation.params["axes"]
            is_single = axes and all(maker.inputs[0].shape[axis] == 1 for axis in axes)
            return maker if is_single and (node.name == "sub" or roots) else None
        rest = [one for one in maker.inputs if one.depends]
        if maker.name not in crossed or len(rest) != 1:
            return None
        roots += maker.name in ("sqrt", "rsqrt")
        value = rest[0]
    return None


def _is_of(added: Value, signal: Value, name: str) -> bool:
    """Whether what is added up is the signal, or its square."""
    added, signal = source_of(added), source_of(signal)
    if name == "sub":
        return added is signal
    node = added.producer
    if node is None or node.name not in ("square", "integer_pow", "mul"):
        return False
    return all(source_of(one) is signal for one in node.inputs if one.depends)
