"""The learning rate and the weight decay that the rules of a leaf result in.

A number is given only if it is the one that acts. If it depends on the data, on the loss or on a
rule whose effect is not known, there is a reason in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gradtx.inspection.effects import (
    becomes_of_decay,
    decay_added_by,
    directions,
    factor_of,
    growth_of,
    has_rate,
    keeps_zero,
    reason_of,
    unwrapped,
)
from gradtx.inspection.routes import Rule
from gradtx.inspection.values import Value

_NO_RATE = "no learning rate"


class Rate(NamedTuple):
    """The learning rate of a leaf.

    Attributes:
        value: its value; None if it is not known.
        reason: why it is not known; "" if it is.
    """

    value: Value | None
    reason: str = ""


class WeightDecay(NamedTuple):
    """A weight decay as it is at one step, and where it acts.

    Attributes:
        number: its value; "per step": the share of the weights that a step takes away.
        schedule: the names of the schedules that it comes from; "" where it is constant.
        step: the step, counted from 0, at which the schedules have these values.
        kind: "decoupled": added after what adapts, and multiplied by the learning rate, as in
            AdamW; "L2": added to the gradient, before what adapts, averages or clips, as the
            gradient of number / 2 * ||p||^2; "per step": added to the finished step, and not
            multiplied by the learning rate; "unknown": changed by a later rule in a way that is not
            known.
        grows: whether its sign makes the weights grow.
    """

    number: float
    schedule: str = ""
    step: int = 0
    kind: Literal["decoupled", "L2", "per step", "unknown"] = "decoupled"
    grows: bool = False

    def __str__(self) -> str:
        marks = {"L2": "L2", "unknown": "?"}
        notes = [marks.get(self.kind, ""), Value(*self[:3]).origin, "grows" if self.grows else ""]
        note = ", ".join(filter(None, notes))
        unit = " per step" if self.kind == "per step" else ""
        return f"{self.number:.4g}{unit}" + (f" ({note})" if note else "")


def is_frozen(route: Sequence[Rule], step: int) -> bool:
    """Whether the update is set to zero and stays zero."""
    rules = unwrapped(route)
    zeros = [i for i, rule in enumerate(rules) if rule.effect.sense == 0]
    return bool(zeros) and all(keeps_zero(rule, step) for rule in rules[zeros[-1] + 1 :])


def is_known(route: Sequence[Rule], step: int) -> bool:
    """Whether it is known what each rule does, so that no decay is missing."""
    return all(growth_of(rule, step) != "unknown" for rule in unwrapped(route))


def learning_rate(route: Sequence[Rule], step: int) -> Rate:
    """Minus the product of the factors from the last rule that gives updates a length of its own.

    Factors before that rule count only by their sign.
    """
    rules = unwrapped(route)
    reason = _reason_for_no_rate(rules, step)
    if reason:
        return Rate(None, reason)
    factors = [_factor(rule, step) for rule in rules]
    start = _start(rules, step)
    for i in range(len(rules)):
        reason = _reason_at(rules, factors, start, i, step)
        if reason:
            return Rate(None, reason)
    earlier = _product(factors[:start])
    if earlier == 0:
        return Rate(Value(0.0, _names(factors[:start]), step))
    # Zero has no sign here.
    number = math.copysign(1.0, -earlier) * _product(factors[start:]) + 0.0
    return Rate(Value(number, _names(factors[start:]), step))


def weight_decay(route: Sequence[Rule], step: int) -> tuple[WeightDecay, ...]:
    """The weight decays of all rules that have one."""
    rules, rate = unwrapped(route), learning_rate(route, step)
    decays = [_decay_of(rules, i, rate, step) for i in range(len(rules))]
    # A decay in the direction of a graft does not change the length.
    turned = [decay_added_by(own, step) for rule in rules for own in directions(rule)]
    decays += [added and WeightDecay(*added, kind="unknown") for added in turned]
    return tuple(decay for decay in decays if decay)


def _reason_for_no_rate(rules: Sequence[Rule], step: int) -> str:
    """Why the rules have no learning rate; "" if they have one."""
    for rule in rules:
        if growth_of(rule, step) == "unknown":
            return reason_of(rule)
    if not any(map(has_rate, rules)):
        hidden = [rule for rule in rules if growth_of(rule, step) == "hidden"]
        return reason_of(hidden[-1]) if hidden else _NO_RATE
    return _reason_of_clocks(rules)


def _reason_of_clocks(rules: Sequence[Rule]) -> str:
    """A reason if the schedules count different steps, so that they cannot be shown at one."""
    clocks = {rule.clock for rule in rules if any(map(callable, rule.arguments.values()))}
    names = {rule.name for rule in rules if rule.effect.clock}
    if len(clocks) < 2:
        return ""
    return f"schedules inside and outside of {' and '.join(sorted(names))}"


def _reason_at(
    rules: Sequence[Rule], factors: Sequence[Value], start: int, i: int, step: int
) -> str:
    """Why the length of the update is not known because of rule i; "" if it is."""
    if rules[i].effect.inside == "elsewhere":
        # The gradient that its optimizer gets may not have passed the rules before it.
        return _after_a_factor(rules[i], factors[:i], keeps_sign=False)
    growth = growth_of(rules[i], step)
    if i < start:
        return ""
    if growth == "hidden":
        return reason_of(rules[i])
    if growth == "gain" and growth_of(rules[start], step) != "own":
        return f"{rules[i].name} has a factor of its own"
    return _after_a_factor(rules[i], factors[start:i]) if growth == "bends" else ""


def _after_a_factor(rule: Rule, factors: Sequence[Value], *, keeps_sign: bool = True) -> str:
    """A reason if the factors before a rule are not 1; "" if they are."""
    number, schedules = _product(factors), _names(factors)
    if schedules:
        return f"{rule.name} after {schedules}"
    is_one = (abs(number) if keeps_sign else number) == 1
    return "" if is_one else f"{rule.name} after a factor of {abs(number):.4g}"


def _decay_of(rules: Sequence[Rule], i: int, rate: Rate, step: int) -> WeightDecay | None:
    """The weight decay of rule i; None if it has none."""
    added = decay_added_by(rules[i], step)
    if added is None:
        return None
    factors = [_factor(rule, step) for rule in rules]
    before = _product(factors[_start(rules[: i + 1], step) : i])
    after = _product(factors[i:])
    kind = _kind_before(rules, i, step)
    is_finished = before != 1 or rate.reason not in ("", _NO_RATE)
    # If the gradient is set to zero, the learning rate does not apply to a later decay.
    is_alone = rate.value is not None and rate.value.number == 0 and after != 0
    if kind == "unknown" or _reason_of_clocks(rules):
        return WeightDecay(*added, kind="unknown")
    grows = rate.reason != _NO_RATE and math.copysign(1.0, after) > 0
    if kind == "decoupled" and (is_finished or is_alone) and _is_linear(rules[i:], step):
        names = _names([added, *factors[i:]])
        return WeightDecay(-added.number * after + 0.0, names, step, "per step", grows)
    # Relative to the factor that a gradient or direction of this length would get.
    return WeightDecay(added.number / (before or 1.0), added.schedule, added.step, kind, grows)


def _kind_before(rules: Sequence[Rule], i: int, step: int) -> Literal["decoupled", "L2", "unknown"]:
    """What the rules after rule i make of its decay."""
    before, after = (
        {becomes_of_decay(rule, step) for rule in own} for own in (rules[:i], rules[i + 1 :])
    )
    if "hides" in after:
        return "unknown"
    if "mixes" in after:
        return "L2"
    if "limits" in after:
        # A direction that is clipped together with a decay is no longer that of a gradient.
        return "unknown" if "mixes" in before else "L2"
    return "decoupled"


def _is_linear(rules: Sequence[Rule], step: int) -> bool:
    """Whether rules do no more to a decay than multiply it by their factors."""
    return all(growth_of(rule, step) == "linear" for rule in rules)


def _start(rules: Sequence[Rule], step: int) -> int:
    """The index of the last rule that gives updates a length of its own; 0 if there is none."""
    return max((i for i, rule in enumerate(rules) if growth_of(rule, step) == "own"), default=0)


def _factor(rule: Rule, step: int) -> Value:
    """What a rule multiplies the update by; for a graft the product of its parts' signs."""
    if rule.effect.inside == "graft":
        magnitude, direction = (
            _product([_factor(own, step) for own in unwrapped(part)]) for part in rule.parts
        )
        return Value(math.copysign(1.0, magnitude * direction) if magnitude * direction else 0.0)
    return factor_of(rule, step)


def _product(factors: Sequence[Value]) -> float:
    """The product, whose zero keeps its sign."""
    return math.prod(factor.number for factor in factors)


def _names(factors: Sequence[Value]) -> str:
    return " × ".join(factor.schedule for factor in factors if factor.schedule)
