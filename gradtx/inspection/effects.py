"""What a rule makes of the length of the update that it is given.

By this it is told whether a factor that stands before the rule still acts after it. The rules say
it themselves: see `gradtx.effect.Effect`.
"""

import inspect
from collections.abc import Sequence
from typing import Literal, TypeAlias

from gradtx.inspection.routes import Rule
from gradtx.inspection.values import Value, value_at
from gradtx.kernel import Kernel

# Of the updates: "linear": they grow with what the rule is given, and are as long on average, or
# multiplied by a known number. "gain": they grow with it, by a number that depends on the data.
# "own": they have the same length for all lengths of what the rule is given, but for eps. "bends":
# they grow with it, but less, or in some steps only. "hidden": they are multiplied by a number that
# only the run will tell.
Growth: TypeAlias = Literal["linear", "gain", "own", "bends", "hidden", "unknown"]
Becomes: TypeAlias = Literal["keeps", "mixes", "limits", "hides"]


def growth_of(rule: Rule, step: int) -> Growth:
    """What a rule does at a step, counted from 0."""
    effect = rule.effect
    if effect is None:
        return "unknown"
    if is_hidden(rule, step):
        return "hidden"
    if any(growth_of(other, step) == "unknown" for other in directions(rule)):
        return "unknown"
    if effect.gain:
        return "gain"
    if not _holds(rule, effect.applies):
        return "linear"
    if effect.degree == 0:
        # As long as the start of a slot counts, the length depends on the gradient's.
        return "bends" if _starts_elsewhere(rule, step) else "own"
    if effect.degree == 1:
        return "linear"
    return "bends" if effect.degree == "between" else "unknown"


def is_hidden(rule: Rule, step: int) -> bool:
    """Whether only the run will tell what a rule multiplies the updates by."""
    effect = rule.effect
    return effect is not None and bool(effect.hidden) and not (effect.hidden_later and step == 0)


def _starts_elsewhere(rule: Rule, step: int) -> bool:
    kernel = rule.effect
    if not isinstance(kernel, Kernel):
        return False
    fills = {slot.fill for slot in kernel.slots}
    starts = kernel.hyperparameters.keys() & fills - kernel.named
    return any(value_at(step, rule.arguments[name]).number for name in starts)


def reason_of(rule: Rule) -> str:
    """Why the learning rate after a rule is not known, in words."""
    foreign = "is not gradtx's own" if "." in rule.name else "is not known"
    return f"{rule.name} {rule.effect.hidden if rule.effect and rule.effect.hidden else foreign}"


def directions(rule: Rule) -> list[Rule]:
    """The rules that a graft has the direction from, but not the length; none of another rule."""
    is_graft = inside_of(rule) == "graft" and len(rule.parts) == 2
    return unwrapped(rule.parts[1]) if is_graft else []


def inside_of(rule: Rule) -> str:
    """What the rules inside of a rule do, see `Effect`."""
    return rule.effect.inside if rule.effect else "first"


def unwrapped(route: Sequence[Rule]) -> list[Rule]:
    """The rules with those inside of wrappers; the first part of a wrapper makes the updates."""
    rules: list[Rule] = []
    for number, rule in enumerate(route):
        inner = rule.parts[0] if rule.parts and inside_of(rule) != "aside" else ()
        has_clock = rule.effect is not None and rule.effect.clock
        inside = [
            own._replace(clock=(number, *own.clock)) if own.clock or has_clock else own
            for own in unwrapped(inner)
        ]
        # What gives another gradient than the one that came stands before those that get it.
        rules += [rule, *inside] if inside_of(rule) == "elsewhere" else [*inside, rule]
    return rules


def becomes_of_decay(rule: Rule, step: int) -> Becomes:
    """What a rule makes of a weight decay that was added before it."""
    effect = rule.effect
    growth = growth_of(rule, step)
    if effect is None or growth == "unknown":
        return "hides"
    if effect.decay:
        return effect.decay
    if growth == "gain":
        return "hides"
    return "keeps" if growth == "linear" or effect.degree == 1 else "mixes"


def _holds(rule: Rule, option: str) -> bool:
    """Whether what a rule declares holds for this leaf, by the option that says so."""
    return not option or bool(rule.arguments[option])


def decay_added_by(rule: Rule, step: int) -> Value | None:
    """The weight decay that a rule adds to the updates; None if it adds none."""
    effect = rule.effect
    if effect is None or not _holds(rule, effect.decay_applies):
        return None
    added = value_at(step, rule.arguments.get(effect.decays, 0.0))
    return added if added.number or added.schedule else None


def has_rate(rule: Rule) -> bool:
    """Whether one of the numbers of a rule is a learning rate."""
    return rule.effect is not None and rule.effect.rate in rule.arguments


def keeps_zero(rule: Rule, step: int) -> bool:
    """Whether the update is zero for a gradient that has always been zero."""
    is_clear = growth_of(rule, step) not in ("hidden", "unknown")
    is_still = rule.effect is not None and not rule.effect.moves
    return is_clear and is_still and decay_added_by(rule, step) is None


def factor_of(rule: Rule, step: int) -> Value:
    """What a rule multiplies the update by, negative where it turns ascent into descent."""
    effect = rule.effect
    if effect is None:
        return Value(1.0)
    factor, value = effect.factor, Value(1.0)
    if callable(factor):
        first, *others = (
            value_at(step, rule.arguments[name]) for name in inspect.signature(factor).parameters
        )
        value = first._replace(number=factor(first.number, *(other.number for other in others)))
    elif factor:
        value = value_at(step, rule.arguments[factor])
    sense = 1 if effect.sense == "factor" else effect.sense
    return value._replace(number=sense * value.number) if sense else Value(0.0)
