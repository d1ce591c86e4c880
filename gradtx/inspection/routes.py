"""Which rules update a leaf, one after another."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from gradtx import trees
from gradtx.compose.parts import Part, effect_of, owner_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.inspection import foreign
from gradtx.inspection.values import closure_of, stateless_schedule
from gradtx.lift import hyperparameters_of, kernel_of, options_of
from gradtx.wrappers.accumulate import MultiSteps
from gradtx.wrappers.hyperparameters import Injected


class Rule(NamedTuple):
    """A transformation on the way of a leaf's gradient to its update.

    Attributes:
        name: of the kernel, the wrapper or the function that made the transformation; with its
            package if that is not gradtx.
        arguments: the numbers and schedules that it was built with, and its choices for this leaf.
        parts: the rules inside of a wrapper, for each transformation that it wraps.
        effect: what it makes of the updates; None if it is not known.
        clock: the places of the wrappers around it in which schedules count other steps.
    """

    name: str
    arguments: Mapping[str, Any]
    parts: tuple[tuple["Rule", ...], ...] = ()
    effect: Effect | None = None
    clock: tuple[int, ...] = ()

    def __str__(self) -> str:
        inside = "; ".join(" -> ".join(map(str, rules)) for rules in self.parts)
        return f"{self.name}({inside})" if inside else self.name


def routes_of(tx: optax.GradientTransformation, params: Any) -> list[tuple[Rule, ...]]:
    """For each leaf of the parameters the rules that it gets, in their order."""
    leaves, treedef = jax.tree.flatten(params)
    routes = _routes(tx, params, treedef.unflatten(range(len(leaves))))
    return [routes[i] for i in range(len(leaves))]


def _routes(
    tx: optax.GradientTransformation, tree: Any, numbers: Any
) -> dict[int, tuple[Rule, ...]]:
    """The rules by the number of the leaf; `numbers` has the structure of `tree`."""
    tx = _unadapted(tx)
    reached = jax.tree.leaves(numbers)
    owner, effect, known_parts = owner_of(tx), effect_of(tx), foreign.optax_parts(tx)
    if not owner and known_parts is None:
        return {number: (rule,) for number, rule in _own_rules(tx, tree, numbers).items()}
    if effect is not None and effect.trains and isinstance(tree, effect.trains[0]):
        return _routes_of_trained(tx, effect, tree, numbers, effect.trains[1])
    routes: list[dict[int, tuple[Rule, ...]]] = []
    for part in _parts(tx) if known_parts is None else known_parts:
        seen, seen_numbers = tree, numbers
        if part.choose is not None:
            flags = part.choose(tree)
            seen, seen_numbers = _chosen(flags, tree), _chosen(flags, numbers)
        routes.append(_routes(part.transformation, seen, seen_numbers))
    # What only puts others together is no rule itself.
    if owner and (effect is None or effect.inside != "all"):
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
    """The parts, those of hyperparameters in the state with the schedules that these come from."""
    if not isinstance(tx.update, Injected):
        return parts_of(tx)
    schedules = {
        name: stateless_schedule(schedule) for name, schedule in tx.update.schedules.items()
    }
    try:
        inner = as_transformation(owner_of(tx), "the factory's result", tx.update.make(schedules))
    except (TypeError, ValueError):
        # Another library's factory that takes numbers only, which stand in the part.
        return parts_of(tx)
    return (Part("", inner),)


def _chosen(flags: Any, tree: Any) -> Any:
    return jax.tree.map(lambda flag, part: part if flag else optax.MaskedNode(), flags, tree)


def _own_rules(tx: optax.GradientTransformation, tree: Any, numbers: Any) -> dict[int, Rule]:
    reached = jax.tree.leaves(numbers)
    kernel = kernel_of(tx)
    if kernel is None:
        effect = effect_of(tx) or foreign.optax_effect(tx.update)
        return dict.fromkeys(reached, Rule(_name_of(tx.update), {}, effect=effect))
    # A kernel of the user's own may have any name.
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
    if made_by in ("stateless", "stateless_with_tree_map") and "f" in closure_of(update):
        return _name_of(closure_of(update)["f"])
    package = _package(update)
    return made_by if package == "gradtx" else f"{package}.{made_by}"


def _package(function: Any) -> str:
    # What `functools.wraps` made has the name of another module, but its own variables.
    module = getattr(function, "__globals__", {}).get("__name__")
    return (module or getattr(function, "__module__", None) or "?").partition(".")[0]


def _unadapted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """What optax's adapter for extra arguments, or an object such as `MultiSteps`, stands for."""
    tx = foreign.unadapted(tx)
    owner = getattr(tx.update, "__self__", None)
    return owner.gradient_transformation() if isinstance(owner, MultiSteps) else tx


def _maker(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]
