"""`check_parameters`: which parameters do not learn, and why."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import (
    Examination,
    Subject,
    examine,
    place_of,
    some,
    subject_of,
)
from gradtx.diagnostics.tracing.flow import cut_before, is_differentiable
from gradtx.diagnostics.tracing.graph import Node, Value

_PRODUCTS = ("dot_general", "conv_general_dilated", "mul")
_LAYERS = _PRODUCTS[:2]
# Operations that a weight may pass before it takes part in a product.
_VIEWS = ("transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy")


def check_parameters(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
    tx: Any = None,
) -> tuple[Finding, ...]:
    """Find the parameters that do not learn: unused, cut off, without a gradient, or identical.

    The kinds of findings: "not_differentiable" (the parameters pass a `while_loop`), "unused" (the
    loss does not depend on it), "blocked" (no gradient passes through an operation, such as a
    `stop_gradient`, a `round` or an `argmax`), "zero_gradient" (the gradient is exactly zero),
    "integer_parameter" (weights of an integer dtype), "identical_units" (weights and gradients are
    the same for all units of a layer, which therefore stay the same) and "lost_update" (a step of
    `tx` is less than the spacing of the parameter's dtype).

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.
        tx: the optimizer, a gradient transformation; None: nothing is said about updates.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, or `params` has
            no inexact arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x):
        ...     return jnp.mean(jnp.round(x @ params["first"]) @ params["second"])
        >>> params = {"first": jnp.eye(4), "second": jnp.eye(4)}
        >>> (finding,) = diagnostics.check_parameters(loss_fn, params, jnp.eye(4))
        >>> print(finding.kind, finding.place, finding.evidence["operation"])
        blocked first round
    """
    subject = subject_of("check_parameters", loss_fn, params, batch, has_aux=has_aux, tx=tx)
    return tuple(examine(subject, PARAMETERS))


def _findings(subject: Subject) -> Iterator[Finding]:
    if subject.endless_loop is not None:
        yield _not_differentiable(subject.endless_loop)
        return
    reaching = set(subject.graph.upstream(subject.graph.output))
    learning = set(subject.graph.upstream(subject.graph.output, is_differentiable))
    idle = [p for p in subject.parameters if p.size and not np.any(_gradient(subject, p))]
    unused = [p for p in idle if p not in reaching]
    blocked = [p for p in idle if p in reaching and p not in learning]
    still = [p for p in idle if p in learning]
    waiting = [p for p in still if _waits(subject, p)]
    if unused:
        yield _unused(subject, unused)
    yield from _blocked(subject, blocked, learning)
    lost = [p for p in still if p not in waiting]
    if lost:
        yield _zero_gradient(subject, lost)
    others = {*unused, *blocked, *waiting}
    identical = [p for p in subject.parameters if p not in others and _is_identical(subject, p)]
    if identical:
        yield _identical_units(subject, identical)
    yield from _integers(subject)
    if subject.tx is not None:
        yield from _lost_updates(subject)


PARAMETERS = Examination(_findings)


def _gradient(subject: Subject, parameter: Value) -> np.ndarray:
    return subject.gradients[parameter.argument or 0]


def _not_differentiable(loop: Node) -> Finding:
    return Finding(
        "not_differentiable",
        "error",
        "the loss has no gradient in reverse mode: the number of iterations of a while_loop is not "
        "known before it runs.",
        "use a scan, or a fori_loop with a fixed number of iterations.",
        source=loop.line,
    )


def _unused(subject: Subject, parameters: Sequence[Value]) -> Finding:
    names = [subject.name(p) for p in parameters]
    return Finding(
        "unused",
        "warning",
        f"the loss does not depend on {some(names)}.",
        "use it in the loss, or take it out of the parameters.",
        place=place_of(names),
        evidence={"parameters": names, "elements": sum(p.size for p in parameters)},
    )


def _zero_gradient(subject: Subject, parameters: Sequence[Value]) -> Finding:
    names = [subject.name(p) for p in parameters]
    return Finding(
        "zero_gradient",
        "warning",
        f"the gradient of {some(names)} is exactly zero for this batch, although the loss depends "
        "on it.",
        "look for units that are zero for the whole batch, a factor of zero, a clip that always "
        "acts, or a gradient that underflows.",
        place=place_of(names),
        evidence={"parameters": names},
    )


# What cuts the gradient off.


def _blocked(subject: Subject, parameters: Sequence[Value], learning: set[Value]) -> Iterator[Any]:
    """A finding for each operation that cuts parameters off."""
    by_cut: dict[Node, list[Value]] = defaultdict(list)
    for parameter in parameters:
        by_cut[cut_before(subject.graph, parameter, learning)].append(parameter)
    for cut, cut_off in by_cut.items():
        names = [subject.name(p) for p in cut_off]
        yield Finding(
            "blocked",
            _severity_of(subject, cut),
            f"no gradient passes through `{_called(cut)}`, so {some(names)} "
            f"{'does' if len(names) == 1 else 'do'} not learn.",
            _CURES.get(cut.name, "replace it by something that has a derivative.")
            + " If they are frozen on purpose, take them out of the parameters.",
            place=place_of(names),
            source=cut.line,
            evidence={"operation": _called(cut), "parameters": names},
        )


_CURES = {
    "stop_gradient": "remove the stop_gradient.",
    "argmax": "use a softmax, which has a derivative, or train on the logits.",
    "argmin": "use a softmax of the negative values, which has a derivative.",
    **dict.fromkeys(
        ("round", "floor", "ceil", "sign", "convert_element_type"),
        "keep the numbers as they are, or pass the gradient straight through: "
        "x + stop_gradient(f(x) - x).",
    ),
}


def _called(cut: Node) -> str:
    if cut.name == "convert_element_type":
        return f"astype({cut.output.dtype})"
    return cut.name


def _severity_of(subject: Subject, cut: Node) -> str:
    """How bad a cut is: a teacher or a target is cut off on purpose, the layers below others not.

    A `stop_gradient` whose result only goes into the loss makes a target of it. If it goes into
    layers that learn, the layers before it were meant to learn as well, or are frozen.
    """
    if not any(np.any(gradient) for gradient in subject.gradients):
        return "error"
    if cut.name != "stop_gradient":
        return "error"
    after = set(subject.graph.downstream(cut.output))
    for node in subject.graph.named(*_LAYERS):
        sides = [value in after for value in node.inputs]
        other = node.inputs[sides.index(False)] if sides.count(True) == 1 else None
        if other is not None and any(
            np.any(_gradient(subject, p)) for p in subject.trained_arguments_of(other)
        ):
            return "warning"
    return "remark"


def _waits(subject: Subject, parameter: Value) -> bool:
    """Whether it has no gradient only because a factor is initialized with zeros and learns.

    Such are the last layer of a residual branch, a zero-initialized head, and LoRA.
    """
    mine = 1 << (parameter.argument or 0)
    for zero in subject.zeros_that_learn:
        theirs = 1 << (zero.argument or 0)
        for node in subject.graph.named(*_PRODUCTS):
            depends = [value.depends for value in node.inputs]
            if any(d & theirs for d in depends) and any(
                d & mine and not d & theirs for d in depends
            ):
                return True
    return False


# Units that stay the same.


def _is_identical(subject: Subject, parameter: Value) -> bool:
    """Whether all slices along an axis of a matrix are the same, and so are their gradients."""
    if len(parameter.shape) < 2 or parameter.size < 2:
        return False
    weights, gradient = subject.array(parameter), _gradient(subject, parameter)
    tolerance = 1e-5 * np.max(np.abs(gradient), initial=0)
    return any(
        size > 1
        and bool(np.all(weights == np.take(weights, [0], axis)))
        and bool(np.all(np.abs(gradient - np.take(gradient, [0], axis)) <= tolerance))
        for axis, size in enumerate(parameter.shape)
    )


def _identical_units(subject: Subject, parameters: Sequence[Value]) -> Finding:
    names = [subject.name(p) for p in parameters]
    first = float(subject.array(parameters[0]).ravel()[0].real)
    return Finding(
        "identical_units",
        "error",
        f"all units of {some(names)} have the same weights and the same gradients, so they stay "
        "the same: the layer is no better than a single unit.",
        "initialize the weights with random numbers, he_normal() before a relu, else "
        "glorot_normal().",
        place=place_of(names),
        evidence={"parameters": names, "value": first},
    )


# Parameters whose dtype keeps them from learning.


def _integers(subject: Subject) -> Iterator[Finding]:
    for value in subject.data:
        name = subject.name(value)
        if "params" not in name.split("[")[0] or not jnp.issubdtype(value.dtype, jnp.integer):
            continue
        views = subject.graph.downstream(value, lambda node, i: node.name in _VIEWS)
        if any(node.name in _LAYERS for view in views for node, _ in view.users):
            yield Finding(
                "integer_parameter",
                "warning",
                f"the weights in {name} are of dtype {value.dtype}, and are not trained.",
                "convert them to float32 before training.",
                place=name,
                evidence={"dtype": str(value.dtype)},
            )


def _lost_updates(subject: Subject) -> Iterator[Finding]:
    lost = {name: share for name, share, _ in _shares_lost(subject) if share > 0.5}
    dtypes = sorted({dtype for name, _, dtype in _shares_lost(subject) if name in lost})
    if lost:
        yield Finding(
            "lost_update",
            "warning",
            f"most of {some(list(lost))} does not change in a step of the optimizer, because the "
            f"step is smaller than the spacing of {' and '.join(dtypes)}.",
            "keep the parameters in float32, or wrap the optimizer in with_master_weights or "
            "with_stochastic_rounding.",
            place=place_of(list(lost)),
            evidence={"shares": lost},
        )


def _shares_lost(subject: Subject) -> Iterator[tuple[str, float, str]]:
    """The share of each parameter that a step does not change, though it was meant to."""
    params = dict(zip(subject.traced.names, subject.traced.params, strict=True))
    for name, update in subject.updates.items():
        old = params[name]
        wide = old.astype(trees.compute_dtype(old.dtype))
        moves = update != 0
        new = (wide + update.astype(wide.dtype)).astype(old.dtype)
        number = int(jnp.sum(moves))
        if number:
            yield name, float(jnp.sum(moves & (new == old))) / number, str(old.dtype)
