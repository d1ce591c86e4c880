"""`check_head`: the end of a network, where its outputs meet labels and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup import bootstrap, chains, penalties, ranges
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.marginals import (
    has_head,
    head_of,
    is_in_loss,
    maker_of,
    names_of_head,
)
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, place_of, subject_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, Softmax, source_of
from gradtx.diagnostics.tracing.targets import BinaryCrossEntropy, CrossEntropy

# A fresh head on inputs of variance 1 has logits of variance 1 or 2, which costs about 1 nat.
_LARGE_LOGITS = 5.0
_HIGH_LOSS = 2.0
# Similarities between -1 and 1 are divided by temperatures down to 0.05.
_LARGE_SIMILARITY = 20.0
_VERY_HIGH_LOSS = 3.0
# Masks put what is not to be chosen below this.
_MASKED = -9e3
# Multiplying probabilities by this, one makes logits of them on purpose.
_SHARPENING = 5.0
# A softmax of similarities that spread this far has one answer, right or not.
_ONE_HOT_SIMILARITY = 50.0
_MOST_PAIRS = 4096


def check_head(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Compare the outputs of a network with what the loss wants of them.

    The kinds of findings: "large_logits" and "initial_loss" (the loss is far above log(C), that of
    guessing among C classes), "double_softmax" (a softmax or sigmoid of what is already one),
    "target_out_of_range" (targets that the last nonlinearity cannot reach, or of another order of
    magnitude), "wrong_sign" (the likelihood is minimized), "zero_loss" or "constant_loss" (a
    softmax over a single class), "no_nonlinearity" (two layers with nothing between them),
    "dominant_penalty" (a penalty on the parameters that outweighs what depends on the data) and
    "moving_target" (a gradient passes through returns or advantages).

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
        ...     return jnp.mean((jnp.tanh(x @ params["w"]) - y) ** 2)
        >>> params, x = {"w": 0.1 * jnp.eye(4)}, jnp.eye(4)
        >>> (finding,) = diagnostics.check_head(loss_fn, params, x, 9 * x)
        >>> print(finding.kind, finding.place, finding.evidence["high"])
        target_out_of_range argument args[1] 1.0
    """
    subject = subject_of("check_head", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, HEAD))


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    for softmax in _contrasts(subject):
        yield softmax.entry, _spread(softmax)
    for entropy in subject.cross_entropies:
        yield entropy.softmax.entry, _spread(entropy.softmax)
        if _operand(entropy) is not None:
            yield entropy.node, _loss(entropy)
    for entropy in subject.binary_cross_entropies:
        node = maker_of(entropy.logits)
        if node is not None and entropy.logits is not None:
            yield node, _some("head/logits", node.outputs.index(entropy.logits), of_results=True)
            yield entropy.node, _some("head/targets", _position(entropy), of_results=False)
    yield from ranges.requests(subject)


def _findings(subject: Subject) -> Iterator[Finding]:
    yield from _first_losses(subject)
    yield from _single_classes(subject)
    yield from _applied_twice(subject)
    yield from ranges.findings(subject)
    yield from chains.findings(subject)
    yield from penalties.findings(subject)
    yield from bootstrap.findings(subject)


HEAD = Examination(_findings, _requests)


# The loss at the start.


def _operand(entropy: CrossEntropy) -> int | None:
    """Which input of the operation that meets the labels has the shape of the logits."""
    for i, value in enumerate(entropy.node.inputs):
        met = entropy.targets if entropy.targets is not None else entropy.labels
        if value.shape == entropy.softmax.logits.shape and value is not met:
            return i
    return None


def _spread(softmax: Softmax) -> Measure:
    axes = softmax.axes

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        logits = inputs[0].astype(jnp.float32)
        is_seen = logits > _MASKED
        means = jnp.mean(logits, axes, keepdims=True, where=is_seen)
        return {"head/spread": jnp.sqrt(jnp.mean((logits - means) ** 2, where=is_seen))}

    return measure


def _loss(entropy: CrossEntropy) -> Measure:
    """The cross-entropy per example.

    Labels pick from the logits or from the log-softmax: logsumexp minus what they pick is the same.
    """
    operand, axes = _operand(entropy) or 0, entropy.softmax.axes
    number, is_pick = entropy.softmax.number, entropy.node.name == "gather"
    if entropy.node.name == "dot_general":
        is_pick = len(entropy.node.equation.params["dimension_numbers"][0][0]) == 1

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        scores = inputs[operand].astype(jnp.float32)
        picked = results[0].astype(jnp.float32)
        # A label picks a number from each row, and perhaps several labels do.
        rows = picked.size if is_pick else scores.size / number
        normalizers = jax.nn.logsumexp(scores, axes)
        return {"head/loss": jnp.mean(normalizers) - jnp.sum(picked) / rows}

    return measure


def _some(name: str, position: int, *, of_results: bool) -> Measure:
    """The first elements of an array."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        array = (results if of_results else inputs)[position]
        return {name: array.reshape(-1)[:_MOST_PAIRS].astype(jnp.float32)}

    return measure


def _position(entropy: BinaryCrossEntropy) -> int:
    return next(i for i, one in enumerate(entropy.node.inputs) if one is entropy.targets)


def _first_losses(subject: Subject) -> Iterator[Finding]:
    known = set()
    for entropy in subject.cross_entropies:
        spread = subject.measured.get(entropy.softmax.entry, {}).get("head/spread")
        loss = subject.measured.get(entropy.node, {}).get("head/loss")
        # What is measured in a branch that is not taken is zero.
        if spread is not None and loss is not None and np.any(loss):
            known.add(id(entropy.softmax))
            spread = float(np.max(spread))
            if has_head(subject, entropy.softmax.logits) or spread > _LARGE_SIMILARITY:
                yield from _first_loss(subject, float(np.mean(loss)), spread, entropy.softmax)
    for softmax in _contrasts(subject):
        spread = subject.measured.get(softmax.entry, {}).get("head/spread")
        if spread is not None and np.max(spread) > _LARGE_SIMILARITY and id(softmax) not in known:
            yield from _first_loss(subject, subject.loss, float(np.max(spread)), softmax)
    for entropy in subject.binary_cross_entropies:
        node = maker_of(entropy.logits)
        logits = subject.measured.get(node, {}).get("head/logits") if node is not None else None
        targets = subject.measured.get(entropy.node, {}).get("head/targets")
        if logits is None or targets is None or logits.shape != targets.shape:
            continue
        if np.min(targets) < 0 or np.max(targets) > 1:
            continue
        # The sign of the logits is not known: the one that fits better.
        losses = [np.mean(np.logaddexp(0, s * logits) - targets * s * logits) for s in (1, -1)]
        spread = float(np.sqrt(np.mean(logits**2)))
        yield from _first_loss(subject, float(min(losses)), spread, entropy)


def _contrasts(subject: Subject) -> list[Softmax]:
    """The log-softmaxes in the loss that have no head: those of contrastive losses."""
    return [
        one
        for one in subject.softmaxes
        if one.log_probabilities is not None
        and subject.is_trained(one.logits)
        and head_of(subject, one.logits) is None
        and is_in_loss(subject, one.log_probabilities)
    ]


def _first_loss(
    subject: Subject, loss: float, spread: float, end: Softmax | BinaryCrossEntropy
) -> Iterator[Finding]:
    number = end.number if isinstance(end, Softmax) else 2
    node = end.entry if isinstance(end, Softmax) else end.node
    names = names_of_head(subject, end.logits)
    guessing = math.log(number)
    evidence = {"loss": loss, "log_classes": guessing, "spread": spread, "classes": number}
    excess = loss - guessing
    if math.isfinite(loss) and loss > 0 and abs(subject.loss + loss) < 1e-3 * loss:
        yield Finding(
            "wrong_sign",
            "error",
            f"the loss is {subject.loss:.3g}, minus the cross-entropy: training makes the right "
            "answers improbable.",
            "minimize the negative log-likelihood: put a minus before it.",
            place=place_of(names),
            source=node.line,
            evidence=evidence,
        )
    is_one_hot = not names and spread > _ONE_HOT_SIMILARITY
    if not math.isfinite(loss) or (excess < _HIGH_LOSS and not is_one_hot):
        return
    costs = (
        f"the cross-entropy is {loss:.3g}, where guessing costs log({number:,}) = {guessing:.3g}"
    )
    if spread > _LARGE_LOGITS:
        yield Finding(
            "large_logits",
            "warning",
            f"{costs}, and the logits are large: {spread:.3g} from their mean.",
            f"divide the initial weights of the head by {spread:.2g}, or normalize its input."
            if names
            else f"raise the temperature {spread:.2g} times.",
            place=place_of(names),
            source=node.line,
            evidence=evidence,
        )
    else:
        yield Finding(
            "initial_loss",
            "warning" if excess > _VERY_HIGH_LOSS else "remark",
            f"{costs}: the network is sure of wrong answers.",
            "begin with a head of small weights, or of zeros.",
            place=place_of(names),
            source=node.line,
            evidence=evidence,
        )


def _single_classes(subject: Subject) -> Iterator[Finding]:
    """A softmax over one class is 1, whatever the network does."""
    for softmax in subject.softmaxes:
        if softmax.number != 1 or not subject.is_trained(softmax.logits):
            continue
        if head_of(subject, softmax.logits) is None or not is_in_loss(subject, softmax.logits):
            continue
        yield Finding(
            "constant_loss" if subject.loss else "zero_loss",
            "error",
            "the softmax is over a single class, of shape "
            f"{softmax.logits.shape}: its probability is always 1, and nothing is learned.",
            "use a sigmoid and a binary cross-entropy for one output, or give the head an output "
            "for each class.",
            place=place_of(names_of_head(subject, softmax.logits)),
            source=softmax.entry.line,
            evidence={"shape": list(softmax.logits.shape)},
        )


# Applied twice.

_ELEMENTWISE_OF_CONSTANTS = ("mul", "div", "add", "sub", "max", "min", "clamp")


def _squashed(subject: Subject, value: Value) -> tuple[str, Node] | None:
    """The softmax or sigmoid that a value is, up to views and elementwise constants."""
    softmaxes = {
        id(one.probabilities): one.probabilities.producer
        for one in subject.softmaxes
        if one.probabilities is not None
    }
    nodes = {id(one.node.output): one for one in subject.sigmoids if not one.is_logarithm}
    while True:
        if (made := softmaxes.get(id(value))) is not None:
            return "softmax", made
        if id(value) in nodes:
            return "sigmoid", nodes[id(value)].node
        node = value.producer
        if node is None or _is_sharpening(node):
            return None
        if node.name in VIEWS or node.name in ("slice", "squeeze"):
            value = node.inputs[0]
        elif node.name in _ELEMENTWISE_OF_CONSTANTS:
            others = [one for one in node.inputs if one.depends]
            if len(others) != 1:
                return None
            value = others[0]
        else:
            return None


def _is_sharpening(node: Node) -> bool:
    """Whether an operation multiplies by a large constant."""
    if node.name not in ("mul", "div"):
        return False
    for i, value in enumerate(node.inputs):
        constant = source_of(value).constant
        if constant is not None and (node.name == "mul" or i == 1):
            size = float(np.max(np.abs(np.asarray(constant))))
            return (size if node.name == "mul" else 1 / max(size, 1e-30)) >= _SHARPENING
    return False


def _applied_twice(subject: Subject) -> Iterator[Finding]:
    seen = set()
    outer: list[tuple[str, Node, Value]] = [
        *(("softmax", one.entry, one.logits) for one in subject.softmaxes),
        *(("sigmoid", one.node, one.logits) for one in subject.sigmoids),
    ]
    for name, node, logits in outer:
        inner = _squashed(subject, logits)
        if inner is None or id(inner[1]) in seen:
            continue
        is_loss = is_in_loss(subject, node.output)
        if not is_loss and (name, inner[0]) != ("softmax", "softmax"):
            continue
        seen.add(id(inner[1]))
        names = names_of_head(subject, _logits_before(inner[1]))
        yield _double(name, node, inner, "error" if is_loss else "warning", names)


def _logits_before(squashing: Node) -> Value:
    """What a softmax or a sigmoid is taken of, but for the exponential in it."""
    value = squashing.inputs[-1 if squashing.name == "div" else 0]
    while value.producer is not None and value.producer.name in _IN_SOFTMAX:
        value = value.producer.inputs[0]
    return value


# The operations of a softmax or a sigmoid that is written out.
_IN_SOFTMAX = ("exp", "reduce_sum", "add", "broadcast_in_dim", "reshape", "mul", "neg")


def _double(
    name: str, node: Node, inner: tuple[str, Node], severity: str, names: list[str]
) -> Finding:
    first = inner[1].line or "an earlier line"
    bounds = "between 0 and 1, so that its outputs are nearly the same for all alternatives"
    return Finding(
        "double_softmax",
        severity,
        f"the {name} at {node.line or 'a later line'} is taken of the {inner[0]} at {first}: its "
        f"logits are {bounds}.",
        f"take the {inner[0]} at {first} away: the loss has one of its own."
        if severity == "error"
        else f"take one of them away, the {inner[0]} at {first} or the {name}.",
        place=place_of(names),
        source=inner[1].line,
        evidence={"first": inner[0], "second": name, "first_at": first, "second_at": node.line},
    )
