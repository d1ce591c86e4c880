"""The numbers in which the rules of a leaf result: learning rate and weight decay."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradtx.inspection.routes import Rule
from gradtx.lift import evaluate

# The rules that multiply all updates by one number, and the name of that number.
_FACTORS = {
    "multiply_learning_rate": "factor",
    "scale": "step_size",
    "scale_by_learning_rate": "learning_rate",
    "scale_by_schedule": "step_size",
}


class Value(NamedTuple):
    """A hyperparameter as it is at the first step.

    Attributes:
        number: its value.
        schedule: the name of the schedule that it comes from; "" where it is constant.
    """

    number: float
    schedule: str = ""

    def __str__(self) -> str:
        return f"{self.number:.4g}" + (f" ({self.schedule})" if self.schedule else "")


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


def learning_rate(rules: Sequence[Rule]) -> Value | None:
    """Minus the product of all factors of the update; None if it is not known."""
    names = {rule.name for rule in rules}
    # Some rules are whole optimizers, which take their learning rate, and the sign, themselves.
    own = [rule for rule in rules if "learning_rate" in rule.arguments]
    own = [] if "scale_by_learning_rate" in names else own
    # A rule that is not gradtx's may have a learning rate and a sign of its own.
    is_complete = all(map(is_known, rules)) and names & {"scale", "scale_by_schedule"}
    if not (own or is_complete or "scale_by_learning_rate" in names):
        return None
    product = [_at_start(rule.arguments["learning_rate"]) for rule in own]
    sign = -1.0
    for i, rule in enumerate(rules):
        if rule.name not in _FACTORS:
            continue
        is_rate = rule.name in ("scale_by_learning_rate", "multiply_learning_rate")
        # Before a rule that adapts, a scale belongs to the gradient.
        if is_rate or not any(later.keeps_slots for later in rules[i + 1 :]):
            product.append(_at_start(rule.arguments[_FACTORS[rule.name]]))
            sign *= -1.0 if rule.arguments.get("flip_sign", False) else 1.0
    number = sign * math.prod(value.number for value in product)
    schedules = " × ".join(value.schedule for value in product if value.schedule)
    return Value(abs(number) if own else number, schedules)


def weight_decay(rules: Sequence[Rule]) -> Value | None:
    """The sum of the weight decays; None if there are none that are known."""
    decays = [
        _at_start(rule.arguments["weight_decay"])
        for rule in rules
        if "weight_decay" in rule.arguments and rule.arguments.get("decays", True)
    ]
    decays = [decay for decay in decays if decay.number or decay.schedule]
    if not decays:
        return None
    schedules = " + ".join(decay.schedule for decay in decays if decay.schedule)
    return Value(sum(decay.number for decay in decays), schedules)


def _at_start(value: Any) -> Value:
    if not callable(value):
        return Value(float(value))
    function = getattr(value, "func", value)
    name = getattr(function, "__qualname__", type(function).__qualname__).split(".<locals>")[0]
    is_anonymous = "<lambda>" in name or not hasattr(function, "__qualname__")
    number = float(evaluate(value, jnp.int32(0)))
    return Value(number, "schedule" if is_anonymous else name)
