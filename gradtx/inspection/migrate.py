"""Continuing from an optimizer state with another optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from optax.contrib import ScheduleFreeState

from gradtx import trees
from gradtx.inputs import check_order
from gradtx.inspection.arguments import checked_params, checked_transformation
from gradtx.inspection.layouts import each_by_itself, in_layout_of
from gradtx.inspection.ownership import KeyPath, entries_of
from gradtx.inspection.places import (
    Place,
    classes_by_fields,
    has_classes,
    place_of,
    possible_places,
)
from gradtx.messages import listed
from gradtx.precision.quantized import in_full
from gradtx.tables import collapsed
from gradtx.wrappers.grouped import GroupedState

_NO_MATCH = "not in the old state"
_TOGETHER = "starts afresh with"
# The fields of optax's states that repeat arguments of the transformation.
_ARGUMENTS = {
    (optax.InjectHyperparamsState.__name__, "hyperparams"),
    (optax.InjectStatefulHyperparamsState.__name__, "hyperparams"),
    (ScheduleFreeState.__name__, "b1"),
    (GroupedState.__name__, "places"),
}
# Where schedules are counted, and where the hyperparameters that may have them are.
_COUNTS = (attrgetter("counts_for_schedule"), attrgetter("counts_for_hyperparameters"))
# The number of lines in each section of a report.
_LINES = 10
_RESTART = "a schedule's count: the schedule starts again at step 0"


@dataclass(frozen=True, repr=False)
class Migration:
    """What became of an optimizer state, as `migrate` returns it.

    As text it has one line for layers that are treated alike, and at most ten lines per attribute.

    Attributes:
        carried: path in the new state -> path in the old state that its values come from.
        fresh: path in the new state -> why it is as `init` made it.
        dropped: the paths in the old state that were not used.
    """

    carried: Mapping[str, str]
    fresh: Mapping[str, str]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        moves: dict[tuple[str, str], int] = defaultdict(int)
        for new, old in self.carried.items():
            moves[_without_common_end(old, new)] += 1
        carried = [
            (f"{number} {'as before' if old == new else f'from {old} to {new}'}", number)
            for (old, new), number in moves.items()
        ]
        reasons = list(self.fresh.values())
        fresh = [
            (f"{path}: {reasons[indices[0]]}", len(indices))
            for path, indices in collapsed(list(self.fresh.items()))
        ]
        dropped = [
            (path, len(indices)) for path, indices in collapsed([(p, "") for p in self.dropped])
        ]
        lines = [
            *_section(f"carried: {len(self.carried)}", carried),
            *_section(f"started afresh: {len(self.fresh)}", fresh),
            *_section(f"dropped: {len(self.dropped)}", dropped),
        ]
        return "\n".join(lines)

    __repr__ = __str__


def _section(heading: str, lines: list[tuple[str, int]]) -> list[str]:
    """A heading, the first lines, and the number of leaves in the others."""
    left = sum(number for _, number in lines[_LINES:])
    more = [f"    and {left:,} more"] if left else []
    return [heading, *(f"    {text}" for text, _ in lines[:_LINES]), *more]


def migrate(state: Any, new_tx: optax.GradientTransformation, params: Any) -> tuple[Any, Migration]:
    """Carry an optimizer state over to another optimizer, as far as the two agree.

    An array that belongs to a parameter is carried if the old state has one array in a field of
    the same name (`mu`, `nu`, `trace`, ...), for a parameter of the same path, and of the same
    shape. If it has several, the class of the state (`ScaleByAdamState`, ...) decides, then the
    labels of `named_chain` or `partition`, then, if both states have equally many, their order. An
    array that is still ambiguous starts afresh, as the report says. The arrays that one state has
    for a parameter, such as both moments of Adam, are carried together or not at all.

    A number that does not belong to a parameter, such as a count, is carried from the state that
    the arrays beside it come from. If these come from states whose numbers differ, all of them
    start afresh, because moments without their count would be corrected for a start at zero that
    they did not have. A count without arrays, such as that of a schedule, is carried from states of
    the same class; if the old state has more or fewer of these, they must be equal. If it has none,
    the count of a schedule is that of the old state's schedules, wherever they are, provided that
    these are equal: a schedule may move into `inject_hyperparams` and out of it. If the old state
    has hyperparameters but no schedules, it is their count of steps. If a schedule has to start
    again, the report says so.

    The arrays of parameters that `grouped` keeps together are carried one by one, from and to any
    other layout, if the old state is for parameters of the structure of `params`.

    Arrays in 8 bits are carried to and from arrays in full, see `quantize_state`; what comes from
    full ones is rounded to the nearest code.

    Hyperparameters in the state are those of `new_tx`. A new parameter has moments of zero beside a
    count that continues, so that its first steps are not corrected for the start at zero: Adam's
    may be three times too long.

    Args:
        state: the old state, of gradtx or optax. It is best to restore a checkpoint into the
            classes of the states; in plain dictionaries, keys are taken for field names.
        new_tx: the transformation to continue with.
        params: the parameters to continue with.

    Returns:
        The state of `new_tx`, in which each array is a copy in the dtype that `new_tx` stores and
        on the devices where `new_tx.init(params)` puts it, and a `Migration`, to be printed before
        training continues.

    Raises:
        ValueError: if `new_tx` is not a transformation, `state` or `params` is one, or these two
            were swapped.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
        >>> state = gradtx.adam(1e-3).init(params)
        >>> tx = gradtx.chain(gradtx.clip(1.0), gradtx.adamw(1e-3), gradtx.ema(0.9))
        >>> state, report = gradtx.migrate(state, tx, params)
        >>> print(report)
        carried: 5
            5 from / to /1
        started afresh: 3
            2/count: belongs to ema, which starts afresh: not in the old state
            2/ema/bias: not in the old state
            2/ema/kernel: not in the old state
        dropped: 0
    """
    check_order("migrate", state, params)
    new_tx = checked_transformation("migrate", "new_tx", new_tx)
    checked_params("migrate", params)
    state = in_full(each_by_itself(state, params, with_places=False))
    made = new_tx.init(params)
    full = in_full(made)
    new_state = each_by_itself(full, params)
    places = [place_of(new_state, entry) for entry in entries_of(new_tx, new_state, params)]
    is_plain = not has_classes(state)
    classes = classes_by_fields(new_state)
    old_places = [
        place
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        for place in possible_places(state, path, leaf, is_plain=is_plain, classes=classes)
    ]
    decided = _decide(places, old_places)
    leaves = [
        place.leaf if isinstance(found, str) else _copied(found.leaf, place.leaf)
        for place, found in zip(places, decided, strict=True)
    ]
    found_for = list(zip(places, decided, strict=True))
    carried = {new.name: old.name for new, old in found_for if isinstance(old, Place)}
    hint = ", which lacks the classes of states" if is_plain and old_places else ""
    fresh = {
        new.name: reason.replace(_NO_MATCH, _NO_MATCH + hint)
        for new, reason in found_for
        if isinstance(reason, str)
    }
    used = set(carried.values())
    dropped = tuple(dict.fromkeys(old.name for old in old_places if old.name not in used))
    new_state = in_layout_of(full, jax.tree.structure(new_state).unflatten(leaves), params)
    new_state = jax.tree.map(_laid_out_like, made, trees.encoded_like(made, new_state))
    return new_state, Migration(carried, fresh, dropped)


def _decide(places: Sequence[Place], old_places: Sequence[Place]) -> list[Place | str]:
    """For each place in the new state the place that it is carried from, or why there is none.

    Arrays that belong to parameters come first, because the counts beside them depend on them.
    """
    decided: dict[KeyPath, Place | str] = {
        place.path: "set by the new optimizer"
        for place in places
        if (place.state_class, place.slot[0]) in _ARGUMENTS and place.parameter is None
    }
    owned = [place for place in places if place.parameter is not None]
    for new, old in _by_slot(owned, old_places):
        decided |= _matched(new, old)
    for arrays in _grouped(owned, lambda place: (place.holder, place.parameter)).values():
        missing = [place.slot[0] for place in arrays if isinstance(decided[place.path], str)]
        for place in arrays:
            if missing and isinstance(decided[place.path], Place):
                decided[place.path] = f"{_TOGETHER} {missing[0]}"
    for holder in {place.holder for place in owned}:
        arrays = [place for place in owned if place.holder == holder]
        numbers = [
            place for place in places if place.holder == holder and place.path not in decided
        ]
        decided |= _with_their_arrays(arrays, numbers, decided, old_places)
    alone = [place for place in places if place.path not in decided]
    for new, old in _by_slot(alone, old_places):
        decided |= _matched_alone(new, old)
    for place in alone:
        reason = decided[place.path]
        if isinstance(reason, str) and any(counts(place) for counts in _COUNTS):
            decided[place.path] = _schedule_count(place, reason, old_places)
    return [decided[place.path] for place in places]


def _by_slot(
    places: Iterable[Place], old_places: Iterable[Place]
) -> list[tuple[list[Place], list[Place]]]:
    """The places of each slot in the new state, with those in the old state."""
    olds = _grouped(old_places, lambda place: place.slot)
    news = _grouped(places, lambda place: place.slot)
    return [(group, olds.get(slot, [])) for slot, group in news.items()]


def _grouped(places: Iterable[Place], key: Callable[[Place], Any]) -> dict[Any, list[Place]]:
    groups: dict[Any, list[Place]] = defaultdict(list)
    for place in places:
        groups[key(place)].append(place)
    return dict(groups)


def _matched(new: list[Place], old: list[Place]) -> dict[KeyPath, Place | str]:
    """Pair the places of one slot: by class and labels, then by class, then by type alone."""
    decided: dict[KeyPath, Place | str] = {}
    left = old
    stages: list[tuple[Callable[[Place], Any], bool]] = [
        (lambda place: (place.type, place.state_class, place.labels), True),
        (lambda place: (place.type, place.state_class), False),
        (lambda place: place.type, False),
    ]
    for kind_of, has_order in stages:
        olds = _grouped(left, kind_of)
        for kind, group in _grouped([p for p in new if p.path not in decided], kind_of).items():
            found = olds.get(kind, [])
            if len(found) == len(group) and (has_order or len(group) == 1):
                decided |= {own.path: match for own, match in zip(group, found, strict=True)}
                taken = {match.path for match in found}
                left = [place for place in left if place.path not in taken]
            elif found:
                names = listed(place.name for place in found)
                reason = f"ambiguous: {len(group)} here could continue {names}"
                decided |= {own.path: reason for own in group}
    for place in new:
        others = sorted({_type_name(other) for other in left if other.type != place.type})
        reason = f"{_type_name(place)}, was {' and '.join(others)}" if others else _NO_MATCH
        decided.setdefault(place.path, reason)
    return decided


def _with_their_arrays(
    arrays: list[Place],
    numbers: list[Place],
    decided: Mapping[KeyPath, Place | str],
    old_places: Sequence[Place],
) -> dict[KeyPath, Place | str]:
    """Carry the numbers of a state from where its arrays come from, or else neither of them."""
    found = [decided[place.path] for place in arrays]
    sources = {match.holder for match in found if isinstance(match, Place)}
    if not sources:
        # The first that starts afresh for a reason of its own.
        slot, why = next(
            (place.slot[0], reason)
            for place, reason in zip(arrays, found, strict=True)
            if isinstance(reason, str) and not reason.startswith(_TOGETHER)
        )
        reason = f"belongs to {slot}, which starts afresh: {why}"
        return {number.path: reason for number in numbers}
    new: dict[KeyPath, Place | str] = {}
    for number in numbers:
        olds = [old for old in old_places if old.holder in sources and old.slot == number.slot]
        olds = [old for old in olds if old.type == number.type]
        if olds and not _all_equal(olds):
            reason = f"ambiguous: {listed(old.name for old in olds)} differ"
            carried = [place for place in arrays if isinstance(decided[place.path], Place)]
            return {place.path: reason for place in [*carried, *numbers]}
        new[number.path] = olds[0] if olds else _NO_MATCH
    return new


def _matched_alone(new: list[Place], old: list[Place]) -> dict[KeyPath, Place | str]:
    """Pair numbers without arrays beside them, and only with those of the same class."""
    decided: dict[KeyPath, Place | str] = {}
    for state_class, group in _grouped(new, lambda place: place.state_class).items():
        same = [
            place
            for place in old
            if place.state_class == state_class and place.type == group[0].type
        ]
        matches = _matched(group, same)
        is_complete = all(isinstance(match, Place) for match in matches.values())
        if same and not is_complete and _all_equal(same):
            matches = {place.path: same[0] for place in group}
        decided |= matches
    return decided


def _schedule_count(place: Place, reason: str, old_places: Sequence[Place]) -> Place | str:
    """The count of the old state's schedules or, without any, of its hyperparameters' steps."""
    for counts in _COUNTS:
        olds = [
            old
            for old in old_places
            if counts(old) and (old.slot, old.type) == (place.slot, place.type)
        ]
        if olds and _all_equal(olds):
            return olds[0]
        if olds:
            reason = f"{listed(old.name for old in olds)} differ"
            break
    return reason if place.counts_for_hyperparameters else f"{_RESTART}; {reason}"


def _without_common_end(old: str, new: str) -> tuple[str, str]:
    olds, news = old.split("/"), new.split("/")
    while olds and news and olds[-1] == news[-1]:
        olds.pop()
        news.pop()
    return f"/{'/'.join(olds)}", f"/{'/'.join(news)}"


def _type_name(place: Place) -> str:
    shape, kind = place.type
    return f"{kind} of shape {list(shape)}"


def _all_equal(places: Sequence[Place]) -> bool:
    first, *others = (_numbers(place.leaf) for place in places)
    return all(np.array_equal(first, other) for other in others)


def _numbers(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _copied(old: Any, new: Any) -> jax.Array:
    if np.ndim(old) == 0 and _is_bound(old) and not _is_bound(new):
        # A step binds numbers of the whole tree to the devices of the parameters, the old ones.
        is_key = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        data = jnp.asarray(_numbers(old))
        old = jax.random.wrap_key_data(data, impl=jax.random.key_impl(old)) if is_key else data
    # A copy, because the caller may donate the old state.
    return _laid_out_like(new, jnp.array(old, dtype=new.dtype, copy=True))


def _laid_out_like(new: Any, array: Any) -> Any:
    """An array on the devices of another one, if that is bound to any."""
    return jax.device_put(array, new.sharding) if _is_bound(new) else array


def _is_bound(array: Any) -> bool:
    is_concrete = isinstance(array, jax.Array) and not isinstance(array, Tracer)
    return is_concrete and array.committed
