"""The findings for a signal or gradient that vanishes or explodes over layers or steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradtx.diagnostics.signal import advice, along, trends
from gradtx.diagnostics.signal.diagnosis import Diagnosis, listing
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.passage import Passage


def changing(
    layers: Sequence[LayerSignal], loss: float, trunk: Sequence[Passage]
) -> Diagnosis | None:
    """A signal or gradient that explodes or vanishes, over layers or steps of a recurrence."""
    if loss and not any(layer.weight_grad_rms for layer in layers):
        return Diagnosis(
            "vanishing",
            tuple(layer.name for layer in layers),
            0.0,
            "vanishing: no gradient reaches any layer, although the loss is not zero. Look for a "
            "stop_gradient, an argmax, a comparison or a rounding between the layers and the loss.",
        )
    for layer in layers:
        if not layer.is_recurrent:
            continue
        for what, steps in (
            ("signal", layer.rms_by_step),
            ("gradient", layer.grad_rms_by_step[::-1]),
        ):
            trend = trends.trend_of(trends.reached_steps(steps))
            unit = "gated step" if layer.is_gate else "step"
            if trend.is_notable(unit):
                return _change_by_step(what, trend, layer)
    for what, trend in trends.notable_over_layers(layers).items():
        if not along.covers(trunk, layers):
            return _change_by_layer(what, trend, layers)
        # A branch may scale what is its own on purpose; what counts is the trunk.
        diagnosis = along.change_along(what, trunk)
        if diagnosis is not None:
            return diagnosis
    return None


def _change_by_step(what: str, trend: trends.Trend, layer: LayerSignal) -> Diagnosis:
    kind, verb = ("exploding", "grows") if trend.factor > 1 else ("vanishing", "shrinks")
    fix = advice.against_change_by_step(trend.factor, is_gated=layer.is_gate)
    return Diagnosis(
        kind,
        (layer.name,),
        trend.factor,
        f"{kind}: the {along.named(what)} {verb} by a factor of {trend.factor:.3g} per step of the "
        f"recurrence ({trend.in_all:.2g} in total), in layer '{layer.name}'. To fix it, {fix}.",
    )


def _change_by_layer(what: str, trend: trends.Trend, layers: Sequence[LayerSignal]) -> Diagnosis:
    grows = trend.factor > 1
    kind, verb = ("exploding", "grows") if grows else ("vanishing", "shrinks")
    hidden = trends.hidden(layers)
    changes = trends.signal_changes(hidden) if what == "signal" else trends.gradient_changes(hidden)
    # The layers that change it at least half as much as the average layer.
    share = math.log(trend.factor) / 2 if trend.factor else -math.inf
    found = [
        (layer, change)
        for layer, change in zip(hidden, changes, strict=True)
        if (change >= share if grows else change <= share)
    ]
    affected = [layer for layer, _ in found] or hidden
    factor = trend.factor
    if factor and found and 2 * len(found) < len(hidden):
        # If few layers are affected, report their change and not the average over all.
        factor = math.exp(sum(change for _, change in found) / len(found))
    fix = advice.against_change(what, affected, factor)
    sentence = (
        f"{kind}: the {along.named(what)} {verb} by a factor of {factor:.3g} per layer "
        f"({trend.in_all:.2g} in total), in {listing(affected)}. To fix it, {fix}, or put a "
        "batch_norm or layer_norm before the nonlinearities."
    )
    if grows:
        sentence += " Until then, use clip_by_global_norm(1.0)."
    return Diagnosis(kind, tuple(layer.name for layer in affected), factor, sentence)
