"""Which numbers a network can output, and which ones its targets are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.marginals import is_in_loss, names_of_head
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of, uses_of

_BOUNDED = {
    "tanh": (-1.0, 1.0),
    "erf": (-1.0, 1.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "logistic": (0.0, 1.0),
    "exp": (0.0, math.inf),
    "exp2": (0.0, math.inf),
    "abs": (0.0, math.inf),
    "square": (0.0, math.inf),
    "sqrt": (0.0, math.inf),
}
_PASSING = VIEWS | {"slice", "squeeze", "reduce_max", "reduce_min", "gather", "loop_stack"}
_UNION = ("concatenate", "select_n")
# How a difference goes on to the loss: a square, or an absolute value, of it and its multiples.
_AFTER_DIFFERENCE = VIEWS | {"mul", "div", "neg", "select_n"}
_DISTANCES = ("square", "abs", "integer_pow")
# What is left out of a range may be noise, or rounded.
_MARGIN = 0.05
_FEW = 0.05
# Adam with its usual rate of 1e-3 needs 200,000 steps for a bias of 200.
_OTHER_SCALE = 200.0
_DEPTH = 40
# Logits between -1 and 1 give the best of ten classes at most 45 per cent.
_NARROW = 3.0


@dataclass(frozen=True)
class Range:
    """The numbers that a value can have.

    Attributes:
        low: none is below.
        high: none is above.
        node: the operation that bounds them; None: nothing does.
    """

    low: float = -math.inf
    high: float = math.inf
    node: Node | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether there are numbers that the value cannot have."""
        return self.node is not None and (self.low > -math.inf or self.high < math.inf)


_ALL = Range()


def range_of(subject: Subject, value: Value, depth: int = _DEPTH) -> Range:
    """The numbers that a value can have, from the operations that make it."""
    if value.producer is None:
        if value.constant is None or value.size > 1:
            return _ALL
        number = float(np.real(np.asarray(value.constant)).item())
        return Range(number, number)
    node = value.producer
    if any(one.probabilities is value for one in subject.softmaxes):
        return Range(0.0, 1.0, node)
    if any(one.node is node and not one.is_logarithm for one in subject.sigmoids):
        return Range(0.0, 1.0, node)
    if node.name in _BOUNDED:
        return Range(*_BOUNDED[node.name], node)
    if node.name == "integer_pow":
        return Range(0.0, math.inf, node) if node.equation.params["y"] % 2 == 0 else _ALL
    if depth == 0:
        return _ALL
    if node.name in _PASSING:
        return range_of(subject, node.inputs[0], depth - 1)
    if node.name in _UNION:
        inputs = _cases(node) if node.name == "select_n" else node.inputs
        parts = [range_of(subject, one, depth - 1) for one in inputs]
        low, high = min(p.low for p in parts), max(p.high for p in parts)
        return Range(low, high, next((p.node for p in parts if p.node), None))
    if node.name == "log1p":
        return Range(0.0, math.inf, node) if range_of(subject, node.inputs[0]).low >= 0 else _ALL
    if node.name in _ARITHMETIC:
        parts = [range_of(subject, one, depth - 1) for one in node.inputs]
        return _arithmetic(node, parts)
    return _ALL


def _cases(select: Node) -> list[Value]:
    """What a `select_n` chooses from, unless it is for a NaN."""
    predicate = source_of(select.inputs[0]).producer
    if predicate is not None and predicate.name == "ne":
        first, second = map(source_of, predicate.inputs)
        if first is second:
            return select.inputs[1:2]
    return select.inputs[1:]


_ARITHMETIC = ("add", "sub", "mul", "div", "neg", "max", "min", "clamp")


def _arithmetic(node: Node, parts: Sequence[Range]) -> Range:
    lows, highs = [p.low for p in parts], [p.high for p in parts]
    maker = next((p.node for p in parts if p.node is not None), None)
    if node.name == "neg":
        return Range(-highs[0], -lows[0], maker)
    if node.name == "add":
        return Range(sum(lows), sum(highs), maker)
    if node.name == "sub":
        return Range(lows[0] - highs[1], highs[0] - lows[1], maker)
    if node.name == "max":
        return Range(max(lows), max(highs), node if max(lows) > min(lows) else maker)
    if node.name == "min":
        return Range(min(lows), min(highs), node if min(highs) < max(highs) else maker)
    if node.name == "clamp":
        return Range(lows[0], highs[2], node)
    # Of products, those with a constant factor.
    i = next((i for i, p in enumerate(parts) if p.low == p.high), None)
    if i is None or (node.name == "div" and (i == 0 or lows[1] == 0)):
        return _ALL
    factor = lows[i] if node.name == "mul" else 1 / lows[1]
    ends = sorted(factor * end if factor else 0.0 for end in (lows[1 - i], highs[1 - i]))
    return Range(ends[0], ends[1], maker)


# Where outputs and targets meet.


@dataclass(eq=False)
class Difference:
    """A difference of a prediction and a target, whose size the loss measures."""

    node: Node
    prediction: int

    @property
    def target(self) -> int:
        """Which operand is the target."""
        return 1 - self.prediction


def differences(subject: Subject) -> Iterator[Difference]:
    """The differences of predictions and targets whose size the loss measures."""
    for node in subject.graph.named("sub"):
        for i, value in enumerate(node.inputs):
            other = node.inputs[1 - i]
            if not (subject.is_trained(value) and subject.is_given(value)):
                continue
            if subject.is_trained(other) or not subject.is_given(other) or value.size < 2:
                continue
            if is_measured_by_loss(node.output) and is_in_loss(subject, node.output):
                yield Difference(node, i)


def is_measured_by_loss(difference: Value) -> bool:
    """Whether a difference is squared, or its absolute value is taken."""
    for node, i in uses_of(difference, _AFTER_DIFFERENCE):
        if node.name in _DISTANCES:
            return node.name != "integer_pow" or node.equation.params["y"] % 2 == 0
        if node.name == "dot_general" and source_of(node.inputs[1 - i]) is source_of(difference):
            return True
    return any(
        node.name == "mul" and len({id(source_of(one)) for one in node.inputs}) == 1
        for node, _ in uses_of(difference)
    )


def requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for `findings`."""
    for one in differences(subject):
        bounds = range_of(subject, one.node.inputs[one.prediction])
        yield one.node, _measure("ranges", one.target, one.prediction, bounds)
    for entropy in subject.binary_cross_entropies:
        target = next(i for i, v in enumerate(entropy.node.inputs) if v is entropy.targets)
        yield entropy.node, _measure("shares", target, target, Range(0.0, 1.0))


def _measure(key: str, target: int, prediction: int, bounds: Range) -> Measure:
    low, high = bounds.low, bounds.high

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        targets = inputs[target].astype(jnp.float32)
        size = jnp.sqrt(jnp.mean(targets**2))
        width = high - low if math.isfinite(high - low) else size
        outside = (targets < low - _MARGIN * width) | (targets > high + _MARGIN * width)
        predicted = inputs[prediction].astype(jnp.float32)
        return {
            f"{key}/low": jnp.min(targets, initial=jnp.inf),
            f"{key}/high": jnp.max(targets, initial=-jnp.inf),
            f"{key}/outside": jnp.mean(outside.astype(jnp.float32)),
            f"{key}/size": size,
            f"{key}/predicted": jnp.sqrt(jnp.mean(predicted**2)),
        }

    return measure


def findings(subject: Subject) -> Iterator[Finding]:
    """Targets that the outputs cannot reach."""
    seen = set()
    for one in differences(subject):
        value = one.node.inputs[one.target]
        measured = _measured(subject, one.node, "ranges")
        names = _names(subject, value)
        if measured is None or tuple(names) in seen:
            continue
        bounds = range_of(subject, one.node.inputs[one.prediction])
        finding = _beyond(one.node, bounds, measured, names) or _of_other_scale(
            one.node, measured, names
        )
        if finding is not None:
            seen.add(tuple(names))
            yield finding
    for entropy in subject.binary_cross_entropies:
        measured = _measured(subject, entropy.node, "shares")
        names = _names(subject, entropy.targets)
        if measured is not None and measured["outside"] > _FEW and tuple(names) not in seen:
            seen.add(tuple(names))
            yield _no_probabilities(entropy.node, measured, names)

    yield from _bounded_logits(subject)


def _bounded_logits(subject: Subject) -> Iterator[Finding]:
    """Logits that a nonlinearity bounds, so that not every probability can be expressed."""
    ends = [
        *((one.softmax.logits, one.softmax.entry) for one in subject.cross_entropies),
        *((one.logits, one.node) for one in subject.binary_cross_entropies if one.logits),
    ]
    for logits, node in ends:
        bounds = range_of(subject, logits)
        maker = bounds.node
        # Softmaxes and sigmoids are found elsewhere; others are bounded widely on purpose.
        if maker is None or maker.name not in ("max", "clamp", "tanh", "log1p"):
            continue
        if any(range_of(subject, one).is_bounded for one in maker.inputs):
            continue
        if bounds.low != 0 and bounds.high - bounds.low > _NARROW:
            continue
        called = _FAMILIAR.get(maker.name, maker.name)
        yield Finding(
            "target_out_of_range",
            "error",
            f"the {called} at {maker.line or 'the end'} bounds the logits of the cross-entropy at "
            f"{node.line or 'the end'}, so that not every probability can be expressed.",
            f"take the {called} away from the output: logits may be any numbers.",
            place=place_of(names_of_head(subject, source_of(maker.inputs[0]))),
            source=maker.line or node.line,
            evidence={"low": bounds.low, "high": bounds.high},
        )


def _names(subject: Subject, value: Value) -> list[str]:
    return [subject.name(d) for d in subject.data if value.depends >> (d.argument or 0) & 1]


def _measured(subject: Subject, node: Node, key: str) -> dict[str, float] | None:
    arrays = subject.measured.get(node, {})
    if f"{key}/low" not in arrays:
        return None
    reductions = {"low": np.min, "high": np.max}
    names = ("low", "high", "outside", "size", "predicted")
    values = {n: float(reductions.get(n, np.mean)(arrays[f"{key}/{n}"])) for n in names}
    return values if all(map(math.isfinite, values.values())) else None


def _beyond(
    node: Node, bounds: Range, measured: dict[str, float], names: list[str]
) -> Finding | None:
    if not bounds.is_bounded or bounds.node is None or measured["outside"] <= _FEW:
        return None
    maker = _FAMILIAR.get(bounds.node.name, bounds.node.name)
    ends = (
        f"at least {bounds.low:.3g}"
        if bounds.high == math.inf
        else f"at most {bounds.high:.3g}"
        if bounds.low == -math.inf
        else f"between {bounds.low:.3g} and {bounds.high:.3g}"
    )
    return Finding(
        "target_out_of_range",
        "error",
        f"the {maker} at {bounds.node.line or 'the end'} makes outputs that are {ends}, but the "
        f"targets in {' and '.join(names)} go from {measured['low']:.4g} to "
        f"{measured['high']:.4g}: {100 * measured['outside']:.0f}% of them cannot be reached.",
        "use a cross-entropy of the logits and the labels, or compare with one-hot codes."
        if maker == "softmax"
        else f"take the {maker} away from the output, or bring the targets into its range.",
        place=place_of(names),
        source=bounds.node.line or node.line,
        evidence={
            "low": bounds.low,
            "high": bounds.high,
            "lowest_target": measured["low"],
            "highest_target": measured["high"],
            "share": measured["outside"],
        },
    )


# The names by which the operations are known.
_FAMILIAR = {
    "logistic": "sigmoid",
    "div": "softmax",
    "max": "relu",
    "clamp": "clip",
    "log1p": "softplus",
}


def _of_other_scale(node: Node, measured: dict[str, float], names: list[str]) -> Finding | None:
    ratio = measured["size"] / max(measured["predicted"], 1.0)
    if ratio < _OTHER_SCALE:
        return None
    return Finding(
        "target_out_of_range",
        "warning",
        f"the targets in {' and '.join(names)} have the size {measured['size']:.3g}, but the "
        f"network's outputs {measured['predicted']:.2g}: it will take very long to get there.",
        "standardize the targets: subtract their mean, divide by their standard deviation, and "
        "undo that for predictions.",
        place=place_of(names),
        source=node.line,
        evidence={
            "size_of_targets": measured["size"],
            "size_of_outputs": measured["predicted"],
        },
    )


def _no_probabilities(node: Node, measured: dict[str, float], names: list[str]) -> Finding:
    low, high = measured["low"], measured["high"]
    cure = "give the cross-entropy targets between 0 and 1"
    if (low, high) == (-1, 1):
        cure += ": (y + 1) / 2, or use the loss log(1 + exp(-y z)), which is made for -1 and 1"
    elif (low, high) == (1, 2):
        cure += ": subtract 1"
    return Finding(
        "target_out_of_range",
        "error",
        f"the targets of the binary cross-entropy in {' and '.join(names)} go from {low:.4g} to "
        f"{high:.4g}, but they are to be probabilities: the loss has no minimum.",
        f"{cure}.",
        place=place_of(names),
        source=node.line,
        evidence={"lowest_target": low, "highest_target": high, "share": measured["outside"]},
    )
