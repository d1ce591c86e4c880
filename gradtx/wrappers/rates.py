"""The learning rates in use, read from a transformation together with its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, tree_flatten_with_path
from optax.schedules import WrappedSchedule

from gradtx import trees
from gradtx.arguments import evaluate
from gradtx.compose.parts import effect_of, parts_of
from gradtx.effect import Effect
from gradtx.lift import hyperparameters_of, kernel_of
from gradtx.wrappers.hyperparameters import Injected
from gradtx.wrappers.steps import Path, holding_back

# The fields of a state whose count is only there for a schedule.
SCHEDULE_FIELDS = (("count",), ("count", "inner_state"))


def learning_rates_of(
    tx: optax.GradientTransformation, state: Any, path: Path = ()
) -> Iterator[tuple[Path, jax.Array]]:
    """The learning rates of the step from a state, with their places in it."""
    if isinstance(tx.update, Injected):  # its part was made with the values of the first step
        return
    kernel = kernel_of(tx)
    if kernel is not None and "learning_rate" in kernel.hyperparameters:
        value = hyperparameters_of(tx)["learning_rate"]
        if callable(value):
            value = evaluate(value, _count(tx, state))
        value = jnp.array(value)  # a copy, because the caller may donate the state
        is_real = jnp.issubdtype(value.dtype, jnp.floating)
        yield path, value.astype(trees.compute_dtype(value.dtype if is_real else float))
    for part, place, inner_state in _inner_states(tx, state):
        yield from learning_rates_of(part, inner_state, (*path, *place))


def scheduled_rates_of(
    tx: optax.GradientTransformation, state: Any, schedule: Callable[[Any], Any]
) -> dict[str, jax.Array]:
    """The values of a schedule in the step from a state: place -> value.

    Its count is that of the transformations of this library that have this schedule or, if there
    are none, of all states that count for a schedule. Those that the same wrappers hold back have
    the same count, and are one place. If there is only one place, it is "".
    """
    found = list(_followers(tx, state, schedule, ())) or _schedule_counts(state)
    barriers = [path for path, *_ in holding_back(state)]
    apart: dict[Any, tuple[Path, Any]] = {}
    for path, count in found:
        above = tuple(i for i, barrier in enumerate(barriers) if path[: len(barrier)] == barrier)
        apart.setdefault(above, (path, count))
    places = places_of([path for path, _ in apart.values()])
    return {
        place: evaluate(schedule, jnp.asarray(count))
        for place, (_, count) in zip(places, apart.values(), strict=True)
    }


def _followers(
    tx: optax.GradientTransformation, state: Any, schedule: Callable[[Any], Any], path: Path
) -> Iterator[tuple[Path, Any]]:
    """The counts of the transformations that have a schedule, with their places."""
    if isinstance(tx.update, Injected):
        for name, own in tx.update.schedules.items():
            if isinstance(own, WrappedSchedule) and own.schedule_fn is schedule:
                place = GetAttrKey("hyperparams_states"), DictKey(name)
                yield (*path, *place), state.hyperparams_states[name].count
    elif any(value is schedule for value in hyperparameters_of(tx).values()):
        yield path, _count(tx, state)
    for part, place, inner_state in _inner_states(tx, state):
        yield from _followers(part, inner_state, schedule, (*path, *place))


def _schedule_counts(state: Any) -> list[tuple[Path, Any]]:
    """The counts in a state that are only there for a schedule, with their places."""

    def is_schedule(node: Any) -> bool:
        return getattr(node, "_fields", ()) in SCHEDULE_FIELDS

    named, _ = tree_flatten_with_path(state, is_leaf=is_schedule)
    return [(path, node.count) for path, node in named if is_schedule(node)]


def _count(tx: optax.GradientTransformation, state: Any) -> Any:
    kernel = kernel_of(tx)
    return getattr(state, (*(kernel.counts if kernel else ()), "count")[0])


def _inner_states(
    tx: optax.GradientTransformation, state: Any
) -> Iterator[tuple[optax.GradientTransformation, Path, Any]]:
    """The parts of a transformation, each with the place of its state in that of the whole."""
    parts, effect = parts_of(tx), effect_of(tx) or Effect()
    if effect.inside == "graft":  # the second part gives a direction, whatever its learning rate
        parts = parts[:1]
    labels = [part.label for part in parts]
    for part, (place, inner) in zip(parts, _states_inside(effect, labels, state), strict=False):
        yield part.transformation, place, inner


def _states_inside(effect: Effect, labels: Sequence[str], state: Any) -> list[tuple[Path, Any]]:
    """The states of the transformations inside, with their places in that of the whole."""
    fields = [place for place in effect.states if place in getattr(state, "_fields", ())]
    if fields:
        return [((GetAttrKey(str(name)),), getattr(state, str(name))) for name in fields]
    if effect.inside != "all":
        return [((), state)]
    if hasattr(state, "inner_states"):  # of groups
        groups = {str(label): masked.inner_state for label, masked in state.inner_states.items()}
        first, last = GetAttrKey("inner_states"), GetAttrKey("inner_state")
        return [((first, DictKey(label), last), groups[label]) for label in labels]
    if isinstance(state, Mapping):
        return [((DictKey(label),), state[label]) for label in labels]
    numbers = [place for place in effect.states if isinstance(place, int)] or range(len(labels))
    return [((SequenceKey(number),), state[number]) for number in numbers]


def places_of(paths: list[Path]) -> list[str]:
    """Names of paths: their labels, or all keys where these are the same; "" for a single path."""
    if len(paths) == 1:
        return [""]
    labels = [tuple(key for key in path if isinstance(key, DictKey)) for path in paths]
    return list(map(trees.path_name, labels if len(set(labels)) == len(paths) else paths))
