"""Which rules update a leaf, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from gradtx import trees
from gradtx.compose.parts import Part, effect_of, owner_of, parts_of
from gradtx.compose.sequence import as_transformation, stateless, stateless_with_tree_map
from gradtx.effect import Effect
from gradtx.inspection import foreign
from gradtx.inspection.values import closure_of, stateless_schedule
from gradtx.lift import hyperparameters_of, kernel_of, options_of
from gradtx.wrappers.accumulate import MultiSteps
from gradtx.wrappers.hyperparameters import Injected

# Of gradtx and optax: these only apply a function, which the user wrote.
_STATELESS = (stateless.__name__, stateless_with_tree_map.__name__)


class Rule(NamedTuple):
    """A transformation on the way from a leaf's gradient to its update.

    Attributes:
        name: the name of the kernel, the wrapper or the function that made the transformation, with
            its package if that is not gradtx.
        arguments: its hyperparameters, and its options for this leaf.
        parts: for each transformation that a wrapper wraps, the rules inside it.
        effect: what it does to the updates; its degree is None if that is not known.
        clock: the places of the wrappers around it in which schedules count other steps.
    """

    name: str
    arguments: Mapping[str, Any]
    parts: tuple[tuple[Rule, ...], ...] = ()
    effect: Effect = Effect()
    clock: tuple[int, ...] = ()

    def __str__(self) -> str:
        inside = "; ".join(" -> ".join(map(str, rules)) for rules in self.parts)
        return f"{self.name}({inside})" if inside else self.name


def routes_of(tx: optax.GradientTransformation, params: Any) -> list[tuple[Rule, ...]]:
    """For each leaf of the parameters its rules, in their order."""
    leaves, treedef = jax.tree.flatten(params)
    routes = _routes(tx, params, treedef.unflatten(range(len(leaves))))
    return [routes[i] for i in range(len(leaves))]


def _routes(
    tx: optax.GradientTransformation, tree: Any, numbers: Any
) -> dict[int, tuple[Rule, ...]]:
    """The rules by the number of the leaf; `numbers` has the structure of `tree`."""
    tx = _unadapted(tx)
    reached = jax.tree.leaves(numbers)
    owner, effect = owner_of(tx), effect_of(tx) or Effect()
    known_parts = foreign.optax_parts(tx)
    if not owner and known_parts is None:
        return {number: (rule,) for number, rule in _own_rules(tx, tree, numbers).items()}
    if effect.trains is not None and isinstance(tree, effect.trains[0]):
        return _routes_of_trained(tx, effect, tree, numbers, effect.trains[1])
    routes: list[dict[int, tuple[Rule, ...]]] = []
    for part in _parts(tx) if known_parts is None else known_parts:
        seen, seen_numbers = tree, numbers
        if part.choose is not None:
            flags = part.choose(tree)
            seen, seen_numbers = _chosen(flags, tree), _chosen(flags, numbers)
        routes.append(_routes(part.transformation, seen, seen_numbers))
    # A chain and the like are not rules themselves.
    if owner and effect.inside != "all":
        return {
            i: (Rule(owner, {}, tuple(route.get(i, ()) for route in routes), effect),)
            for i in reached
        }
    return {i: tuple(rule for route in routes for rule in route.get(i, ())) for i in reached}


def _routes_of_trained(
    tx: optax.GradientTransformation, effect: Effect, tree: Any, numbers: Any, trained: str
) -> dict[int, tuple[Rule, ...]]:
    """The rules where one field of the parameters is trained and the others follow it."""
    owner, (part,) = owner_of(tx), _parts(tx)
    own = _routes(part.transformation, getattr(tree, trained), getattr(numbers, trained))
    routes = {i: (Rule(owner, {}, (rules,), effect),) for i, rules in own.items()}
    for field in {*tree._fields} - {trained}:
        following = Effect(hidden=f"follow the {trained} ones")
        rule = Rule(f"{field} weights of {owner}", {}, effect=following)
        routes |= dict.fromkeys(jax.tree.leaves(getattr(numbers, field)), (rule,))
    return routes


def _parts(tx: optax.GradientTransformation) -> tuple[Part, ...]:
    """The parts; where hyperparameters are in the state, that with the schedules they come from."""
    if not isinstance(tx.update, Injected):
        return parts_of(tx)
    schedules = {
        name: stateless_schedule(schedule) for name, schedule in tx.update.schedules.items()
    }
    try:
        inner = as_transformation(owner_of(tx), "the factory's result", tx.update.make(schedules))
    except (TypeError, ValueError):
        # Another library's factory that takes only numbers: the part has those of the first step.
        return parts_of(tx)
    return (Part("", inner),)


def _chosen(flags: Any, tree: Any) -> Any:
    return jax.tree.map(lambda flag, part: part if flag else optax.MaskedNode(), flags, tree)


def _own_rules(tx: optax.GradientTransformation, tree: Any, numbers: Any) -> dict[int, Rule]:
    reached = jax.tree.leaves(numbers)
    kernel = kernel_of(tx)
    if kernel is None:
        effect = effect_of(tx) or foreign.optax_effect(tx.update) or Effect()
        return dict.fromkeys(reached, Rule(_name_of(tx.update), {}, effect=effect))
    # A user's own kernel may have any name, so that its package tells.
    package = _package(getattr(kernel.step, "func", kernel.step))
    name = kernel.name if package == "gradtx" else f"{package}.{kernel.name}"
    return {
        i: Rule(name, options | hyperparameters_of(tx), effect=kernel)
        for i, options in zip(trees.flatten(numbers)[0], options_of(tx, tree), strict=True)
        if i is not None
    }


def _name_of(update: Any) -> str:
    """The name of the function that made an update function, with its package if not gradtx."""
    made_by = _maker(update)
    if made_by in _STATELESS and "f" in closure_of(update):
        return _name_of(closure_of(update)["f"])
    package = _package(update)
    return made_by if package == "gradtx" else f"{package}.{made_by}"


def _package(function: Any) -> str:
    # `functools.wraps` copies the name of the module, but not the variables.
    module = getattr(function, "__globals__", {}).get("__name__")
    return (module or getattr(function, "__module__", None) or "?").partition(".")[0]


def _unadapted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """What is behind optax's adapter for extra arguments, or an object such as `MultiSteps`."""
    tx = foreign.unadapted(tx)
    owner = getattr(tx.update, "__self__", None)
    return owner.gradient_transformation() if isinstance(owner, MultiSteps) else tx


def _maker(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]
