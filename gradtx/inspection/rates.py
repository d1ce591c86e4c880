"""The numbers in which the rules of a leaf result: learning rate and weight decay."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gradtx.inspection.routes import Rule
from gradtx.inspection.values import Value, value_at

# The rules that multiply all updates by one number, and the name of that number.
_FACTORS = {
    "adan": "learning_rate",
    "multiply_learning_rate": "factor",
    "scale": "step_size",
    "scale_by_learning_rate": "learning_rate",
    "scale_by_schedule": "step_size",
}
# Their updates grow with the gradient, so that a factor before them is one behind them. Of these,
# some mix the updates of several steps.
_MOMENTS = (
    "ema",
    "scale_by_mars",
    "scale_by_optimistic_gradient",
    "simple_moving_average",
    "trace",
)
_PASSING = (*_FACTORS, *_MOMENTS, "apply_every", "fromage", "zero_nans")
# Their updates have the same length for all lengths of the gradient, although they keep nothing.
_NORMALIZING = (
    "lars",
    "normalize",
    "normalize_by_update_norm",
    "scale_by_trust_ratio",
)
# Their updates grow with the gradient, but less or more than it does.
_BENDING = ("momo", "momo_adam", "scale_by_madgrad", "scale_by_polyak", "scale_by_sophia")
# Rules with a learning rate of their own that do not turn the sign, and the one that turns it
# without any.
_UPHILL = ("fromage", "scale_by_rprop")
_DOWNHILL = ("adan", "scale_by_cocob")


class WeightDecay(NamedTuple):
    """A weight decay as it is at one step, and where it acts.

    Attributes:
        number: its value; "per step": the share of the weights that a step takes away.
        schedule: the names of the schedules that it comes from; "" where it is constant.
        step: the step, counted from 0, at which the schedules have these values.
        kind: "decoupled": added to the update behind what adapts, and multiplied by the learning
            rate, as in AdamW; "L2": added to the gradient, before what adapts or averages, as the
            gradient of number / 2 * ||p||^2 is; "per step": added to the finished step, and not
            multiplied by the learning rate; "unknown": before a rule that is not gradtx's.
        grows: whether its sign is such that the weights grow by it.
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


def unwrapped(route: Sequence[Rule]) -> list[Rule]:
    """The rules with those inside of wrappers; the first part of a wrapper makes the updates."""
    rules = []
    for rule in route:
        rules += [*unwrapped(rule.parts[0]), rule] if rule.parts else [rule]
    return rules


def is_known(rule: Rule) -> bool:
    """Whether a rule is gradtx's own, so that its numbers can be read."""
    return "." not in rule.name


def is_frozen(rules: Sequence[Rule]) -> bool:
    """Whether the update is set to zero, and nothing but multiplied afterwards."""
    zeros = [i for i, rule in enumerate(rules) if rule.name.endswith("set_to_zero")]
    return bool(zeros) and all(rule.name in _FACTORS for rule in rules[zeros[-1] + 1 :])


def learning_rate(rules: Sequence[Rule], step: int) -> Value | None:
    """Minus the product of the factors from the last rule on that makes the length its own.

    Of the factors before that rule, only the sign counts.

    Returns:
        The learning rate at the step; None if it is not known.
    """
    has_rate = any("learning_rate" in rule.arguments for rule in rules)
    # A rule that is not gradtx's may have a learning rate and a sign of its own.
    is_scaled = bool({rule.name for rule in rules} & {"scale", "scale_by_schedule"})
    if not (has_rate or (is_scaled and all(map(is_known, rules)))):
        return None
    factors = [_factor(rule, step) for rule in rules]
    start = _start(rules)
    for i in range(start, len(rules)):
        is_clear = is_known(rules[i]) and rules[i].name not in _BENDING
        if not is_clear and any(abs(f.number) != 1 or f.schedule for f in factors[start:i]):
            return None
    sign = math.copysign(1.0, -_product(factors[:start]))
    # Zero has no sign here.
    number = sign * _product(factors[start:]) + 0.0
    return Value(number, _names(factors[start:]), step)


def weight_decay(rules: Sequence[Rule], step: int) -> tuple[WeightDecay, ...]:
    """The weight decays of all rules that have one."""
    rate = learning_rate(rules, step)
    factors = [_factor(rule, step) for rule in rules]
    decays = []
    for i, rule in enumerate(rules):
        is_decaying = "weight_decay" in rule.arguments and rule.arguments.get("decays", True)
        if not is_decaying or rule.name in _FACTORS:
            continue
        added = value_at(step, rule.arguments["weight_decay"])
        if not added.number and not added.schedule:
            continue
        before = _product(factors[_start(rules[: i + 1]) : i])
        after = _product(factors[i:])
        later = rules[i + 1 :]
        grows = rate is not None and math.copysign(1.0, after) > 0
        if not all(map(is_known, later)):
            decay = WeightDecay(*added, kind="unknown")
        elif any(_adapts(other) or other.name in _MOMENTS for other in later):
            decay = WeightDecay(*added, kind="L2", grows=grows)
        elif before != 1 and rate is not None and not any(map(_normalizes, later)):
            names = _names([added, *factors[i:]])
            share = -added.number * after + 0.0
            decay = WeightDecay(share, names, step, kind="per step", grows=grows)
        else:
            decay = WeightDecay(*added, grows=grows)
        if decay.kind in ("decoupled", "L2"):
            # As a multiple of what a gradient or direction of this length would be multiplied by.
            decay = decay._replace(number=added.number / before if before else math.inf)
        decays.append(decay)
    return tuple(decays)


def _adapts(rule: Rule) -> bool:
    """Whether a rule gives each element a length of its own."""
    return rule.name == "scale_by_sign" or (
        (rule.keeps_slots or rule.name in _BENDING) and rule.name not in _PASSING
    )


def _normalizes(rule: Rule) -> bool:
    """Whether the length of a rule's update is its own, and not that of what it is given."""
    return rule.name in _NORMALIZING or (_adapts(rule) and rule.name not in _BENDING)


def _start(rules: Sequence[Rule]) -> int:
    """The index of the last rule that normalizes, 0 without one."""
    return max((i for i, rule in enumerate(rules) if _normalizes(rule)), default=0)


def _factor(rule: Rule, step: int) -> Value:
    """What a rule multiplies the update by; minus one more for what turns ascent into descent."""
    name = _FACTORS.get(rule.name, "learning_rate")
    has_rate = name in rule.arguments and rule.name != "fromage"
    value = value_at(step, rule.arguments[name]) if has_rate else Value(1.0)
    turns = rule.name in _DOWNHILL or rule.arguments.get(
        "flip_sign", name == "learning_rate" and has_rate and rule.name not in _UPHILL
    )
    return value._replace(number=-value.number) if turns else value


def _product(factors: Sequence[Value]) -> float:
    """The product, whose zero keeps its sign."""
    return math.prod(factor.number for factor in factors)


def _names(factors: Sequence[Value]) -> str:
    return " × ".join(factor.schedule for factor in factors if factor.schedule)
