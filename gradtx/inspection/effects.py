"""What a rule makes of the length of the update that it is given.

By this it is told whether a factor that stands before the rule still acts behind it.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from gradtx.inspection.routes import SLOW, Rule
from gradtx.inspection.values import Value, value_at

Effect: TypeAlias = Literal["factor", "linear", "gain", "own", "bends", "hidden", "unknown"]

# The rules that multiply all updates by one number, and the name of that number.
FACTORS = {
    "adan": "learning_rate",
    "multiply_learning_rate": "factor",
    "normalize_by_update_norm": "scale_factor",
    "scale": "step_size",
    "scale_by_learning_rate": "learning_rate",
    "scale_by_optimistic_gradient": "alpha",
    "scale_by_schedule": "step_size",
}
# They mix the updates of several steps.
AVERAGES = (
    "ema",
    "scale_by_mars",
    "scale_by_optimistic_gradient",
    "simple_moving_average",
    "trace",
)
# They change the lengths of a leaf's gradient and of a decay that was added to it alike.
WHOLE_LEAF = ("lars", "normalize", "normalize_by_update_norm", "scale_by_trust_ratio")
# They shorten what is too long, and nothing else.
LIMITS = (
    "adaptive_grad_clip",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "differentially_private_aggregate",
    "keep_params_nonnegative",
)
# Their schedules count other steps than those of what stands around them.
CLOCKS = ("MultiSteps", "sam")

_NAMES: dict[Effect, str] = {
    # Their updates are those that they are given, times a number.
    "factor": "adan fromage multiply_learning_rate scale scale_by_learning_rate scale_by_schedule "
    "set_to_zero",
    # Their updates grow with what they are given, and are as long on average.
    "linear": "add_decayed_weights add_noise apply_every apply_if_finite as_matrices "
    "average_params centralize ema flatten graft inject_hyperparams lookahead monitor MultiSteps "
    "record_history reduce_on_plateau sam scale_by_newton scale_by_optimistic_gradient "
    "schedule_free simple_moving_average snapshot split_real_and_imaginary trace with_hyperparams "
    "with_metrics zero_nans",
    # Their updates grow with what they are given, by a factor that depends on the data.
    "gain": "cautious scale_by_galore scale_by_param_block_norm scale_by_param_block_rms "
    "scale_by_shape",
    # Their updates have the same length for all lengths of what they are given, but for eps.
    "own": "lars normalize normalize_by_update_norm scale_by_adadelta scale_by_adam "
    "scale_by_adamax scale_by_adamini scale_by_adan scale_by_ademamix scale_by_adopt "
    "scale_by_amsgrad scale_by_belief scale_by_factored_rms scale_by_lion scale_by_muon "
    "scale_by_normuon scale_by_novograd scale_by_rms scale_by_rprop scale_by_rss "
    "scale_by_shampoo scale_by_sign scale_by_simplified_ademamix scale_by_sm3 scale_by_soap "
    "scale_by_stddev scale_by_trust_ratio scale_by_yogi",
    # Their updates grow with what they are given, but less than it, or in some steps only.
    "bends": "scale_by_acprop scale_by_mars scale_by_radam scale_by_sophia " + " ".join(LIMITS),
}
# Their updates are multiplied by a number that only the run will tell.
_HIDDEN = {
    "conditionally_mask": "acts in some steps only",
    "conditionally_transform": "acts in some steps only",
    "dadapt_adamw": "finds its own step size",
    "mechanize": "learns a factor",
    "momo": "finds its own step size",
    "momo_adam": "finds its own step size",
    "prodigy": "finds its own step size",
    "scale_by_cocob": "finds its own step size",
    "scale_by_distance_over_gradients": "finds its own step size",
    "scale_by_dog": "finds its own step size",
    "scale_by_dowg": "finds its own step size",
    "scale_by_madgrad": "takes a root of the learning rate",
    "scale_by_polyak": "finds its own step size",
    SLOW: "follow the fast ones",
}
# Of these, what multiplies a gradient and a decay that was added to it alike.
_MULTIPLYING = ("conditionally_mask", "conditionally_transform", "mechanize", "reduce_on_plateau")
# The same, but not in the first step.
_HIDDEN_LATER = {
    "reduce_on_plateau": "has a factor that depends on the loss",
    "scale_by_rprop": "changes its step sizes",
}
_EFFECTS: dict[str, Effect] = {
    name: effect for effect, names in _NAMES.items() for name in names.split()
}
# The length of their updates depends on that of the gradient as long as this start counts.
_STARTS = {
    "scale_by_rms": "initial_scale",
    "scale_by_rss": "initial_accumulator_value",
    "scale_by_stddev": "initial_scale",
    "scale_by_yogi": "initial_accumulator_value",
}
# What moves a parameter whose gradient is zero, beside weight decay.
_MOVING = (
    "add_noise",
    "differentially_private_aggregate",
    "fromage",
    "keep_params_nonnegative",
    "sam",
)


def effect_of(rule: Rule, step: int) -> Effect:
    """What a rule does at a step, counted from 0."""
    name = rule.meaning
    if name in _HIDDEN or (name in _HIDDEN_LATER and step):
        return "hidden"
    if name in _STARTS and value_at(step, rule.arguments[_STARTS[name]]).number:
        return "bends"
    if not rule.arguments.get("trusts", True):
        return "linear"
    # A graft has its length from its first part, but its sign from its second.
    others = unwrapped(rule.parts[1]) if name == "graft" and len(rule.parts) == 2 else []
    if any(effect_of(other, step) == "unknown" for other in others):
        return "unknown"
    return _EFFECTS.get(name, "unknown")


def reason_of(rule: Rule) -> str:
    """Why the learning rate behind a rule is not known, in words."""
    hidden = _HIDDEN | _HIDDEN_LATER
    foreign = "is not known" if rule.meaning else "is not gradtx's own"
    return f"{rule.name} {hidden.get(rule.meaning, foreign)}"


def unwrapped(route: Sequence[Rule]) -> list[Rule]:
    """The rules with those inside of wrappers; the first part of a wrapper makes the updates."""
    rules: list[Rule] = []
    for number, rule in enumerate(route):
        # What estimates the curvature for Sophia makes no updates.
        inner = rule.parts[0] if rule.parts and rule.meaning != "scale_by_sophia" else ()
        inside = [
            own._replace(clock=(number, *own.clock)) if own.clock or rule.meaning in CLOCKS else own
            for own in unwrapped(inner)
        ]
        # Before sam's optimizer stands what gives it another gradient than that which came.
        rules += [rule, *inside] if rule.meaning == "sam" else [*inside, rule]
    return rules


def mixes(rule: Rule, step: int) -> bool:
    """Whether a rule adapts or averages, so that it does not keep a sum apart."""
    is_adapting = effect_of(rule, step) in ("own", "bends", "hidden")
    is_adapting &= rule.meaning not in (*WHOLE_LEAF, *LIMITS, *_MULTIPLYING)
    return is_adapting or rule.meaning in AVERAGES


def decay_added_by(rule: Rule, step: int) -> Value | None:
    """The weight decay that a rule adds to the updates; None if it adds none."""
    added = value_at(step, rule.arguments.get("weight_decay", 0.0))
    # adan's last rule only divides by what was added before.
    is_decaying = rule.arguments.get("decays", True) and rule.meaning not in FACTORS
    return added if is_decaying and (added.number or added.schedule) else None


def keeps_zero(rule: Rule, step: int) -> bool:
    """Whether the update is zero for a gradient that has always been zero."""
    is_clear = effect_of(rule, step) not in ("hidden", "unknown") and rule.meaning not in _MOVING
    return is_clear and decay_added_by(rule, step) is None
