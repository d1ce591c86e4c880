"""The finding for a signal or gradient that changes along the trunk of a network."""

from __future__ import annotations

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gradtx.diagnostics.signal import advice, trends
from gradtx.diagnostics.signal.diagnosis import Diagnosis, listing
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.passage import Passage


@dataclass(frozen=True)
class Segment:
    """What happens from one place where layers receive the signal to the next.

    Attributes:
        layers: the layers in between.
        change: the logarithm of the factor by which the signal changes forwards, or the gradient
            backwards.
        parts: how much of that each kind of operation contributes.
        lines: the line where each kind contributes most.
        places: the number of places of the largest sum or mean.
    """

    layers: tuple[LayerSignal, ...]
    change: float
    parts: dict[str, float]
    lines: dict[str, str]
    places: int


def covers(trunk: Sequence[Passage], layers: Sequence[LayerSignal]) -> bool:
    """Whether a trunk says enough about a network to be judged by."""
    names = {layer.name for passage in trunk for layer in passage.layers}
    points = [passage for passage in trunk if passage.layers]
    hidden = trends.hidden(layers)
    return len(points) > 2 and 2 * sum(one.name in names for one in hidden) >= len(hidden)


def trend_along(what: str, trunk: Sequence[Passage]) -> trends.Trend:
    """How the "signal" or the "gradient" changes from one layer or block to the next."""
    values = [_value(what, trunk[i]) for i in _points(what, trunk)]
    layers = [layer for passage in trunk for layer in passage.layers]
    return trends.trend_of(values if what == "signal" else values[::-1], trends.chance_of(layers))


def change_along(what: str, trunk: Sequence[Passage]) -> Diagnosis | None:
    """The finding about the "signal" or the "gradient" along a trunk, if there is a problem."""
    trend = trend_along(what, trunk)
    if not trend.is_notable():
        return None
    points = _points(what, trunk)
    segments = [_segment(what, trunk, i, j) for i, j in itertools.pairwise(points)]
    grows = trend.factor > 1
    # The segments that change it at least half as much as the average one.
    share = math.log(trend.factor) / 2 if trend.factor else -math.inf
    found = [one for one in segments if (one.change >= share if grows else one.change <= share)]
    affected = found or segments
    factor = trend.factor
    if factor and found and 2 * len(found) < len(segments):
        # If few of them are affected, report their change and not the average over all.
        factor = math.exp(sum(one.change for one in found) / len(found))
    parts: dict[str, float] = defaultdict(float)
    for one in affected:
        for kind, change in one.parts.items():
            parts[kind] += change if grows else -change
    cause = max(parts, key=lambda kind: parts[kind])
    affected = [one for one in affected if abs(one.parts.get(cause, 0.0)) > abs(one.change) / 2]
    return _finding(what, trend, factor, cause, affected)


def _points(what: str, trunk: Sequence[Passage]) -> list[int]:
    """The places of the trunk where layers receive the signal."""
    points = [i for i, passage in enumerate(trunk) if passage.layers]
    if what == "gradient":
        # Nothing before the first layer has to learn.
        return [i for i in points if i > 0]
    if len(points) > 1 and points[0] == 0:
        first, second = (abs(_logarithm(trunk[i].rms)) for i in points[:2])
        if second < first:
            # Inputs of any scale may be brought to the usual one.
            return points[1:]
    return points


def _segment(what: str, trunk: Sequence[Passage], start: int, end: int) -> Segment:
    parts: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    lines: dict[str, str] = {}
    before = ""
    for i in range(start, end):
        kind = trunk[i + 1].operation
        # The division that makes a mean of a sum.
        kind = before = "pooling" if (before, kind) == ("pooling", "scaling") else kind
        change = _logarithm(_value(what, trunk[i + 1])) - _logarithm(_value(what, trunk[i]))
        parts[kind] += change if what == "signal" else -change
        if abs(change) >= largest[kind]:
            largest[kind], lines[kind] = abs(change), trunk[i + 1].line
    places = max(passage.places for passage in trunk[start + 1 : end + 1])
    return Segment(trunk[start].layers, sum(parts.values()), dict(parts), lines, places)


def _finding(
    what: str, trend: trends.Trend, factor: float, cause: str, affected: Sequence[Segment]
) -> Diagnosis:
    grows = trend.factor > 1
    kind, verb = ("exploding", "grows") if grows else ("vanishing", "shrinks")
    layers = list({layer.name: layer for one in affected for layer in one.layers}.values())
    per = "block" if len(layers) > 1.5 * len(affected) else "layer"
    place, fix = _blame(what, cause, factor, affected, layers)
    sentence = (
        f"{kind}: the {named(what)} {verb} by a factor of {factor:.3g} per {per} "
        f"({trend.in_all:.2g} in total), {place}. To fix it, {fix}."
    )
    if grows:
        sentence += " Until then, use clip_by_global_norm(1.0)."
    return Diagnosis(kind, tuple(layer.name for layer in layers), factor, sentence)


def _blame(
    what: str, cause: str, factor: float, affected: Sequence[Segment], layers: list[LayerSignal]
) -> tuple[str, str]:
    """Where it happens, and what to do about it."""
    after = f"after {listing(layers)}"
    worst = max(affected, key=lambda one: abs(one.parts.get(cause, 0.0)))
    at = f" at {worst.lines[cause]}" if worst.lines.get(cause) else ""
    if cause == "pooling":
        over = f"over {worst.places:,} places" if worst.places > 1 else "over places"
        return f"in the sum or mean {over}{at}, {after}", advice.against_pooling(factor)
    if cause == "scaling":
        return f"in the multiplication{at}, {after}", advice.against_scaling(factor)
    if cause == "sum":
        place = f"in the sum of each block with its input{at}, {after}"
        return place, advice.against_sums(layers, factor, len(affected))
    fix = advice.against_change(what, layers, factor)
    return (
        f"in {listing(layers)}",
        f"{fix}, or put a batch_norm or layer_norm before the nonlinearities",
    )


def named(what: str) -> str:
    """What to call it in a sentence."""
    return "backpropagated gradient" if what == "gradient" else what


def _value(what: str, passage: Passage) -> float:
    return passage.rms if what == "signal" else passage.gradient


def _logarithm(value: float) -> float:
    return math.log(max(value, sys.float_info.min))
