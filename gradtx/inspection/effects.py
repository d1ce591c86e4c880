"""What a rule does to the length of the update that it is given.

This tells whether a factor before the rule still acts after it. The rules declare it themselves,
see `gradtx.effect.Effect`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Literal, TypeAlias

from gradtx.inspection.routes import Rule
from gradtx.inspection.values import Value, value_at
from gradtx.kernel import Kernel

# How the updates grow with what the rule is given. "linear": in proportion, by 1 on average or by a
# known factor. "gain": in proportion, by a factor that depends on the data. "own": not at all, but
# for eps. "bends": less than in proportion, or in some steps only. "hidden": by a factor that only
# the run will tell.
Growth: TypeAlias = Literal["linear", "gain", "own", "bends", "hidden", "unknown"]
Becomes: TypeAlias = Literal["keeps", "mixes", "limits", "hides"]


def growth_of(rule: Rule, step: int) -> Growth:
    """How the updates of a rule grow at a step, counted from 0."""
    effect = rule.effect
    if effect.hidden and not (effect.hidden_later and step == 0):
        return "hidden"
    if any(growth_of(other, step) == "unknown" for other in directions(rule)):
        return "unknown"
    if effect.gain:
        return "gain"
    if effect.degree == 1 or not _holds(rule, effect.applies):
        return "linear"
    if effect.degree == 0:
        # While the initial value of a slot counts, the length depends on the gradient's.
        return "bends" if _has_initial_values(rule, step) else "own"
    return "bends" if effect.degree == "between" else "unknown"


def _holds(rule: Rule, option: str) -> bool:
    """Whether what a rule declares holds for this leaf, by the option that says so."""
    return not option or bool(rule.arguments[option])


def _has_initial_values(rule: Rule, step: int) -> bool:
    """Whether a slot begins with a hyperparameter that is not zero, and is not its factor."""
    kernel = rule.effect
    if not isinstance(kernel, Kernel):
        return False
    fills = {slot.fill for slot in kernel.slots}
    starts = kernel.hyperparameters.keys() & fills - kernel.named
    return any(value_at(step, rule.arguments[name]).number for name in starts)


def reason_of(rule: Rule) -> str:
    """Why the learning rate after a rule is not known, in words."""
    foreign = "is not gradtx's own" if "." in rule.name else "is not known"
    return f"{rule.name} {rule.effect.hidden or foreign}"


def directions(rule: Rule) -> list[Rule]:
    """The rules that give a graft its direction but not its length; none for other rules."""
    is_graft = rule.effect.inside == "graft" and len(rule.parts) == 2
    return unwrapped(rule.parts[1]) if is_graft else []


def unwrapped(route: Sequence[Rule]) -> list[Rule]:
    """The rules with those inside of wrappers; the first part of a wrapper makes the updates."""
    rules: list[Rule] = []
    for number, rule in enumerate(route):
        effect = rule.effect
        inner = rule.parts[0] if rule.parts and effect.inside != "aside" else ()
        inside = [
            own._replace(clock=(number, *own.clock)) if own.clock or effect.clock else own
            for own in unwrapped(inner)
        ]
        # What makes another gradient than the one that came acts before the rules that get it.
        rules += [rule, *inside] if effect.inside == "elsewhere" else [*inside, rule]
    return rules


def becomes_of_decay(rule: Rule, step: int) -> Becomes:
    """What a rule does to a weight decay that was added before it."""
    growth = growth_of(rule, step)
    if growth == "unknown":
        return "hides"
    if rule.effect.decay:
        return rule.effect.decay
    if growth == "gain":
        return "hides"
    return "keeps" if growth == "linear" or rule.effect.degree == 1 else "mixes"


def decay_added_by(rule: Rule, step: int) -> Value | None:
    """The weight decay that a rule adds to the updates; None if it adds none."""
    effect = rule.effect
    if not _holds(rule, effect.decay_applies):
        return None
    added = value_at(step, rule.arguments.get(effect.decays, 0.0))
    return added if added.number or added.schedule else None


def has_rate(rule: Rule) -> bool:
    """Whether one of the numbers of a rule is a learning rate."""
    return rule.effect.rate in rule.arguments


def keeps_zero(rule: Rule, step: int) -> bool:
    """Whether the update is zero for a gradient that has always been zero."""
    is_clear = growth_of(rule, step) not in ("hidden", "unknown")
    return is_clear and not rule.effect.moves and decay_added_by(rule, step) is None


def factor_of(rule: Rule, step: int) -> Value:
    """What a rule multiplies the update by, negative where it turns ascent into descent."""
    factor, sense, value = rule.effect.factor, rule.effect.sense, Value(1.0)
    if callable(factor):
        first, *others = (
            value_at(step, rule.arguments[name]) for name in inspect.signature(factor).parameters
        )
        value = first._replace(number=factor(first.number, *(other.number for other in others)))
    elif factor:
        value = value_at(step, rule.arguments[factor])
    if sense == 0:
        return Value(0.0)
    return value._replace(number=-value.number) if sense == -1 else value
