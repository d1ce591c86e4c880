"""`check_parameters`: which parameters do not learn, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.in_vain import computed_in_vain
from gradtx.diagnostics.checkup.running import fresh_averages
from gradtx.diagnostics.checkup.subject import (
    Examination,
    Subject,
    examine,
    place_of,
    some,
    subject_of,
)
from gradtx.diagnostics.signal.blocked import cure_of
from gradtx.diagnostics.signal.learning import IdleParameter
from gradtx.diagnostics.tracing.graph import Value
from gradtx.diagnostics.tracing.primitives import PRODUCTS

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

    The kinds of findings: "unused" (the loss does not depend on it), "blocked" (no gradient passes
    through an operation, such as a `stop_gradient`, a `round`, an `argmax` or a `while_loop`; a
    remark if that seems to be on purpose, as for a teacher; also where a second derivative is zero
    everywhere), "constant_state" (a loop returns its state as it came), "constant_norm" (single
    numbers are normalized), "running_average" (a batch norm uses averages of 0 and 1 that were
    passed in, and normalizes nothing), "zero_gradient" (the gradient is exactly zero),
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
    by_name = {subject.name(p) or "params": p for p in subject.parameters}
    idle = [one for one in subject.idle if one.name in by_name]
    unused = [one.name for one in idle if one.reason == "unused"]
    still = [one.name for one in idle if one.reason == "zero_gradient"]
    waiting = [name for name in still if _waits(subject, by_name[name])]
    if unused:
        yield _unused(unused, sum(by_name[name].size for name in unused))
    yield from _blocked(subject, idle)
    lost = [name for name in still if name not in waiting]
    biases = [name for name in lost if _is_bias_that_cancels(subject, by_name, name)]
    if biases:
        yield _cancelled(biases)
    if len(lost) > len(biases):
        yield _zero_gradient([name for name in lost if name not in biases])
    others = {one.name for one in idle} - set(lost)
    identical = [
        name for name, p in by_name.items() if name not in others and _is_identical(subject, p)
    ]
    if identical:
        yield _identical_units(identical, subject.array(by_name[identical[0]]))
    yield from computed_in_vain(subject)
    yield from fresh_averages(subject)
    yield from _integers(subject)
    if subject.tx is not None:
        yield from _lost_updates(subject)


PARAMETERS = Examination(_findings)


def _gradient(subject: Subject, parameter: Value) -> np.ndarray:
    return subject.gradients[parameter.argument or 0]


def _unused(names: Sequence[str], elements: int) -> Finding:
    return Finding(
        "unused",
        "warning",
        f"the loss does not depend on {some(names)}.",
        "use it in the loss, or take it out of the parameters.",
        place=place_of(names),
        evidence={"parameters": list(names), "elements": elements},
    )


def _zero_gradient(names: Sequence[str]) -> Finding:
    return Finding(
        "zero_gradient",
        "warning",
        f"the gradient of {some(names)} is exactly zero for this batch, although the loss depends "
        "on it.",
        "look for units that are zero for the whole batch, a factor of zero, a clip that always "
        "acts, or a gradient that underflows.",
        place=place_of(names),
        evidence={"parameters": list(names)},
    )


def _is_bias_that_cancels(subject: Subject, by_name: dict[str, Value], name: str) -> bool:
    """Whether a number or a vector has no gradient while what stands beside it has one."""
    layer = name.rpartition("/")[0]
    return len(by_name[name].shape) < 2 and any(
        np.any(subject.gradients[other.argument or 0])
        for other_name, other in by_name.items()
        if other_name.rpartition("/")[0] == layer
    )


def _cancelled(names: Sequence[str]) -> Finding:
    return Finding(
        "zero_gradient",
        "remark",
        f"the gradient of {some(names)} is exactly zero, while what stands beside it learns: its "
        "effects cancel, in a difference, a normalization, a softmax, or over the batch.",
        "leave it out, if that is always so.",
        place=place_of(names),
        evidence={"parameters": list(names)},
    )


# What cuts the gradient off.


def _blocked(subject: Subject, idle: Sequence[IdleParameter]) -> Iterator[Finding]:
    """A finding for each operation that cuts parameters off."""
    by_cut: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in idle:
        if one.reason in ("blocked", "frozen"):
            by_cut[one.operation, one.source, one.reason].append(one.name)
    for (operation, source, reason), names in by_cut.items():
        yield Finding(
            "blocked",
            _severity(subject, operation, reason),
            f"no gradient passes through `{operation}`, so {some(names)} "
            f"{'does' if len(names) == 1 else 'do'} not learn.",
            _cure(operation),
            place=place_of(names),
            source=source,
            evidence={"operation": operation, "parameters": names},
        )


def _cure(operation: str) -> str:
    cure = cure_of(operation)
    on_purpose = (
        "" if "frozen" in cure else "; if it is on purpose, take them out of the parameters"
    )
    return f"{cure}{on_purpose}."


def _severity(subject: Subject, operation: str, reason: str) -> str:
    """How bad it is that parameters are cut off: a teacher or a target is so on purpose."""
    if reason == "frozen":
        return "remark"
    # A frozen network under a head that learns may be on purpose as well, but is rare.
    learns = any(np.any(gradient) for gradient in subject.gradients)
    return "warning" if operation == "stop_gradient" and learns else "error"


def _waits(subject: Subject, parameter: Value) -> bool:
    """Whether it has no gradient only because a factor is initialized with zeros and learns.

    Such are the last layer of a residual branch, a zero-initialized head, and LoRA.
    """
    mine = 1 << (parameter.argument or 0)
    for zero in subject.zeros_that_learn:
        theirs = 1 << (zero.argument or 0)
        for node in subject.graph.named(*PRODUCTS, "mul"):
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


def _identical_units(names: Sequence[str], weights: np.ndarray) -> Finding:
    is_constant = bool(np.all(weights == weights.ravel()[0]))
    return Finding(
        "identical_units",
        "error",
        f"all units of {some(names)} have the same weights and the same gradients, so they stay "
        "the same: together they are no better than one of them.",
        "initialize the weights with random numbers, he_normal() before a relu, else "
        "glorot_normal()."
        if is_constant
        else "initialize each of them with a PRNG key of its own: jax.random.split(key, number).",
        place=place_of(names),
        evidence={"parameters": list(names), "value": float(weights.ravel()[0].real)},
    )


# Parameters whose dtype keeps them from learning.


def _integers(subject: Subject) -> Iterator[Finding]:
    for value in subject.data:
        name = subject.name(value)
        if "params" not in name.split("[")[0] or not jnp.issubdtype(value.dtype, jnp.integer):
            continue
        views = subject.graph.downstream(value, lambda node, i: node.name in _VIEWS)
        if any(node.name in PRODUCTS for view in views for node, _ in view.users):
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
            "use a larger learning rate."
            if dtypes == ["float32"]
            else "keep the parameters in float32, or wrap the optimizer in with_master_weights or "
            "with_stochastic_rounding.",
            place=place_of(list(lost)),
            evidence={"shares": lost},
        )


def _shares_lost(subject: Subject) -> Iterator[tuple[str, float, str]]:
    """The share of each parameter that a step does not change, though it was meant to."""
    params = dict(zip(subject.traced.names, subject.traced.params, strict=True))
    for (name, update), gradient in zip(subject.updates.items(), subject.gradients, strict=True):
        old = params[name]
        wide = old.astype(trees.compute_dtype(old.dtype))
        # Decay alone is meant to be slow.
        moves = (update != 0) & (gradient != 0)
        new = (wide + update.astype(wide.dtype)).astype(old.dtype)
        number = int(jnp.sum(moves))
        if number:
            yield name, float(jnp.sum(moves & (new == old))) / number, str(old.dtype)
