"""`check_shapes`: what broadcasts where it should meet element by element, and wrong axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, subject_of
from gradtx.diagnostics.checkup.wrong_axes import is_feature, sums_of_targets, wrong_axes
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import source_of

_ARITHMETIC = ("add", "sub", "mul", "div", "max", "min", "pow", "atan2", "eq", "ne")
# What a loss may do to a difference before it is averaged.
_PLAIN = (primitives.ELEMENTWISE - {"exp", "exp2"}) | {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "transpose",
    "reduce_sum",
    "square",
}


def check_shapes(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Find arrays that broadcast by mistake, and functions that are taken over a wrong axis.

    The kinds of findings: "broadcast_difference" (predictions of shape (N, 1) and targets of shape
    (N,) become a matrix of all pairs), "broadcast_target" (predictions and targets have different
    shapes, and one is repeated) and "wrong_axis" (a softmax normalizes along another axis than the
    one along which the targets, or the weights of attention, have to sum to one).

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, or `params` has
            no inexact arrays.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x, y):
        ...     return jnp.mean((x @ params - y) ** 2)
        >>> x, y = jnp.ones((8, 3)), jnp.ones(8)
        >>> with jax.numpy_rank_promotion("allow"):
        ...     (finding,) = diagnostics.check_shapes(loss_fn, jnp.ones((3, 1)), x, y)
        >>> print(finding.kind, *finding.evidence["shapes"], "->", finding.evidence["result"])
        broadcast_difference (8, 1) (8,) -> (8, 8)
    """
    subject = subject_of("check_shapes", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, SHAPES))


def _findings(subject: Subject) -> Iterator[Finding]:
    reaching = set(subject.graph.upstream(subject.graph.output))
    nodes = [
        node for node in subject.graph.named(*_ARITHMETIC) if reaching.intersection(node.outputs)
    ]
    for examine_node in (_difference, _target):
        found = (examine_node(subject, node) for node in nodes if len(node.inputs) == 2)
        finding = next(filter(None, found), None)
        if finding is not None:
            yield finding
            break
    yield from wrong_axes(subject)


SHAPES = Examination(_findings, sums_of_targets)


# Arrays that broadcast.


def _difference(subject: Subject, node: Node) -> Finding | None:
    """Predictions and targets that meet as all pairs: (N, 1) and (N,) become (N, N)."""
    trained = [subject.is_trained(value) for value in node.inputs]
    # What a target network says of an example is given, and belongs to its reward.
    if not any(trained) and not all(map(subject.is_given, node.inputs)):
        return None
    own = [_own_axes(subject, value) for value in node.inputs]
    if [len(one) for one in own] != [1, 1] or own[0] == own[1]:
        return None
    along = own[0][0]
    if node.output.size != node.output.shape[along] ** 2:
        return None
    promoted = [value for value in node.inputs if _is_promoted(value, node)][:1]
    others = [value for value in node.inputs if value not in promoted]
    is_implicit = bool(promoted) and not _is_expanded(others[0], node)
    is_useless = any(trained) and not all(trained) and _is_squared(node)
    if not (is_implicit or is_useless):
        return None
    if not _is_averaged(subject, node, along, among_given=not is_implicit):
        return None
    sources = [source_of(value, _EXPANSIONS) for value in (*others, *promoted)]
    shapes = [str((others if is_implicit else sources)[0].shape), str(sources[1].shape)]
    return Finding(
        "broadcast_difference",
        "error",
        f"arrays of shapes {' and '.join(shapes)} meet in `{node.name}` and become "
        f"{node.output.shape}: each example is compared with the targets of all others.",
        "give both the same shape, with squeeze(-1) or [:, None].",
        place=_given_names(subject, node.inputs),
        source=node.line,
        evidence={
            "shapes": shapes,
            "result": str(node.output.shape),
            "operation": node.name,
            "pairs": node.output.size,
        },
    )


def _target(subject: Subject, node: Node) -> Finding | None:
    """Predictions and targets of different shapes, one of which is repeated."""
    trained = [subject.is_trained(value) for value in node.inputs]
    if node.name not in ("sub", "add") or trained.count(True) != 1:
        return None
    prediction, target = node.inputs[trained.index(True)], node.inputs[trained.index(False)]
    if not (subject.is_given(prediction) and subject.is_given(target)) or not target.shape:
        return None
    (along, severity) = _repeated(subject, prediction, target)
    if along is None or not _is_averaged(subject, node, along, among_given=True):
        return None
    shapes = [str(source_of(value, _EXPANSIONS).shape) for value in (prediction, target)]
    return Finding(
        "broadcast_target",
        severity,
        f"the predictions have the shape {shapes[0]}, and the targets {shapes[1]}: "
        f"{_WHAT_IS_REPEATED[prediction.shape[along] == 1 or severity == 'error']}",
        "give the predictions and the targets the same shape.",
        place=_given_names(subject, [target]),
        source=node.line,
        evidence={"shapes": shapes, "result": str(node.output.shape), "axis": along},
    )


_EXPANSIONS = frozenset({"broadcast_in_dim", "convert_element_type"})
_WHAT_IS_REPEATED = {
    False: "each target is compared with several outputs, which all learn the same.",
    True: "they do not belong together, and are compared only because one of them is repeated.",
}


def _repeated(subject: Subject, prediction: Value, target: Value) -> tuple[int | None, str]:
    """The axis along which a target or a prediction is repeated to fit, and how bad it is."""
    axes = subject.axes
    rows, of_target = axes.rows_of(prediction), axes.rows_of(target)
    if len(rows) != 1 or len(prediction.shape) != len(target.shape):
        return None, ""
    first = rows[0]
    for along in range(first + 1, len(prediction.shape)):
        sizes = prediction.shape[along], target.shape[along]
        if of_target == (along,) and sizes[0] > 1 and subject.axes.is_copied(target, first):
            return along, "error"
        is_single = first in of_target and all(
            size == 1 for i, size in enumerate(target.shape) if i != first
        )
        if sizes[0] > 1 and is_single and is_feature(subject, prediction, along):
            return along, "warning"
        is_single_row = _own_axes(subject, target) == [along] and not of_target
        is_lone = sizes[0] > 1 and is_single_row and _is_leaf(target, along)
        if is_lone and is_feature(subject, prediction, along):
            return along, "warning"
        is_wide = sizes[0] == 1 < sizes[1] and of_target == rows
        if is_wide and is_feature(subject, prediction, along):
            return along, "warning"
    return None, ""


def _is_squared(node: Node) -> bool:
    """Whether an operation is the difference of a squared error.

    The mean of the squared differences of all pairs depends on means alone: it is never meant.
    """
    return node.name == "sub" and all(
        user.name == "square"
        or (user.name == "integer_pow" and user.equation.params["y"] == 2)
        or (user.name == "mul" and user.inputs[0] is user.inputs[1])
        for user, _ in node.output.users
    )


def _own_axes(subject: Subject, value: Value) -> list[int]:
    """The axes along which an array is not only repeated."""
    return [
        axis
        for axis, size in enumerate(value.shape)
        if size > 1 and not subject.axes.is_copied(value, axis)
    ]


def _is_leaf(target: Value, along: int) -> bool:
    """Whether a target is an argument that has no axis but one."""
    source = source_of(target, _EXPANSIONS)
    return source.argument is not None and source.shape == (target.shape[along],)


def _is_promoted(value: Value, node: Node) -> bool:
    """Whether an operation itself added axes to an array of lower rank."""
    producer = value.producer
    if producer is None or producer.name != "broadcast_in_dim":
        return False
    return _frames(producer) == _frames(node) and len(producer.inputs[0].shape) < len(value.shape)


def _frames(node: Node) -> list[tuple[str, int]]:
    traceback = node.equation.source_info.traceback
    return [] if traceback is None else [(f.file_name, f.line_num) for f in traceback.frames]


def _is_expanded(value: Value, node: Node) -> bool:
    """Whether an axis was added to an array for the sake of an operation, in the same line."""
    while value.producer is not None and value.producer.name in _EXPANSIONS:
        if value.producer.name == "broadcast_in_dim" and value.producer.line == node.line:
            return True
        value = value.producer.inputs[0]
    return False


def _is_averaged(subject: Subject, node: Node, along: int, among_given: bool = False) -> bool:
    """Whether all elements along an axis are treated in the same way until they are summed.

    Args:
        subject: what is examined.
        node: the operation that makes them.
        along: the axis of its output.
        among_given: whether what is made of data can also treat them differently.
    """
    size, graph = node.output.shape[along], subject.graph
    own = set(graph.downstream(node.output)) if among_given else set()
    for value in graph.downstream(node.output, lambda user, i: user.name != "reduce_sum"):
        for user, i in value.users:
            if user.name not in _PLAIN and user.name != "loop_stack":
                return False
            for j, other in enumerate(user.inputs):
                is_other = i != j and user.name in primitives.ELEMENTWISE and other not in own
                is_heeded = is_other and (among_given or not subject.is_given(other))
                if is_heeded and _varies(subject, other, along, size):
                    return False
    return True


def _varies(subject: Subject, value: Value, along: int, size: int) -> bool:
    """Whether an array has numbers of its own along an axis, such as the levels of quantiles."""
    if len(value.shape) <= along or value.shape[along] != size:
        return False
    return not subject.axes.is_copied(value, along)


def _given_names(subject: Subject, values: Sequence[Value]) -> str:
    """The arguments that the values without parameters are made of."""
    names = [
        subject.name(one)
        for value in values
        if not subject.is_trained(value)
        for one in subject.data
        if value.depends >> (one.argument or 0) & 1
    ]
    return ", ".join(dict.fromkeys(names))
