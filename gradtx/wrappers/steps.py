"""Which calls of a transformation are steps, and which are not, because a wrapper inside held back.

A wrapper that counts, averages or follows a schedule goes on when the parameters do. What it wraps
may hold back: `MultiSteps` collects gradients, `apply_if_finite` leaves a bad one out, and optax's
do the same. They tell it in their states, and nothing else is read here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import GetAttrKey, tree_flatten_with_path
from optax.contrib import SAMState
from optax.transforms import ConditionallyMaskState

from gradtx import trees
from gradtx.inputs import has_fields
from gradtx.wrappers.branches import Branch, either, zeros_like

Path = tuple[Any, ...]


def is_step(old: Any, new: Any, updates: Any) -> jax.Array | None:
    """Whether a call of a transformation was a step.

    It was, unless a wrapper inside left out what it wraps and nothing moves: no element of the
    updates differs from zero. An update that is zero by itself, as that of a zero gradient, belongs
    to a step. While `sam` climbs the parameters move, but only to come back: its step is the call
    that leads back.

    Args:
        old: the state before the call.
        new: the state after it.
        updates: what the call returned.

    Returns:
        A boolean scalar; None if no wrapper inside can hold back, so that every call is a step.
    """
    after = holding_back(new)
    if not after:
        return None
    climbs = [path for path, kind, _ in after if kind is SAMState]
    held_back: list[jax.Array] = []
    climbing: list[jax.Array] = []
    for (path, kind, now), (_, _, before) in zip(after, holding_back(old), strict=True):
        is_in_climb = any(path[: len(climb)] == climb for climb in climbs)
        (climbing if is_in_climb else held_back).append(_RULES[kind](before, now))
    step = ~_any(climbing)
    return step & (_moves(updates) | ~_any(held_back)) if held_back else step


def in_step(
    owner: str, step: jax.Array | None, advance: Branch, updates: Any, old: Any
) -> tuple[Any, Any]:
    """What a wrapper makes of a call: zero updates and what it kept, unless it was a step.

    Args:
        owner: name of the wrapper, which opens error messages.
        step: what `is_step` returned.
        advance: returns the wrapper's own updates and what it keeps after a step; carried out only
            then.
        updates: the gradients.
        old: what it kept before the call.

    Returns:
        The updates, and what it keeps after the call.
    """
    if step is None:
        return advance()
    return either(owner, step, advance, lambda: (zeros_like(updates), old), updates, old)


def kept_after(owner: str, step: jax.Array | None, advance: Callable[[], Any], old: Any) -> Any:
    """The same for a wrapper that leaves the updates to what it wraps: only what it keeps."""
    return in_step(owner, step, lambda: ((), advance()), (), old)[1]


def is_collecting(state: Any) -> jax.Array:
    """Whether a `MultiSteps` inside has collected some of its gradients, but not yet all."""
    found = holding_back(state)
    nodes = [node for _, kind, node in found if kind is optax.MultiStepsState]
    return _any([jnp.asarray(node.mini_step) > 0 for node in nodes])


def holding_back(state: Any) -> list[tuple[Path, Any, Any]]:
    """The states of wrappers that may hold back, outer ones first: key path, class of optax, state.

    A state of any class is one of those whose fields it has.
    """
    found: list[tuple[Path, Any, Any]] = []
    # Most states have none, and paths take time.
    if all(_kind_of(leaf) is None for leaf in jax.tree.leaves(state, is_leaf=_is_kind)):
        return found
    named, _ = tree_flatten_with_path(state, is_leaf=_is_kind)
    for path, node in named:
        kind = _kind_of(node)
        if kind is None:
            continue
        found.append((path, kind, node))
        # The transformation with which `sam` climbs takes no steps.
        for name in ("opt_state",) if kind is SAMState else kind._fields:
            below = holding_back(getattr(node, name))
            found += [((*path, GetAttrKey(name), *rest), *inner) for rest, *inner in below]
    return found


def _is_masked(old: Any, new: Any) -> Any:
    # It does not tell; but where it acts, whatever counts inside goes on.
    counts = zip(_counts(old.inner_state), _counts(new.inner_state), strict=True)
    return ~_any([jnp.not_equal(before, now) for before, now in counts])


# The states of wrappers that may hold back -> whether they did, from the states before and after.
_RULES: dict[Any, Callable[[Any, Any], jax.Array]] = {
    optax.MultiStepsState: lambda old, new: jnp.equal(new.gradient_step, old.gradient_step),
    optax.ApplyIfFiniteState: lambda old, new: jnp.logical_not(new.last_finite),
    optax.ApplyEvery: lambda old, new: jnp.not_equal(new.count, 0),
    ConditionallyMaskState: _is_masked,
    SAMState: lambda old, new: jnp.not_equal(new.steps_since_sync, 0),
}


def _kind_of(node: Any) -> Any:
    if not (hasattr(node, "_fields") or hasattr(node, "__dataclass_fields__")):
        return None
    return next((kind for kind in _RULES if has_fields(node, kind._fields)), None)


def _is_kind(node: Any) -> bool:
    return _kind_of(node) is not None


def _counts(state: Any) -> Sequence[Any]:
    """The counters in a state: its integers that are not in arrays."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) == 0]
    return [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.integer)]


def _moves(updates: Any) -> jax.Array:
    return _any([_is_nonzero(u) for u in jax.tree.leaves(updates) if trees.is_number(u)])


@jax.jit
def _is_nonzero(update: jax.Array) -> jax.Array:
    return jnp.any(update != 0)


def _any(flags: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_or, flags, jnp.zeros([], bool))
