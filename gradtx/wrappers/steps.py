"""Which calls of a transformation are steps, and in which a wrapper inside holds the step back.

A wrapper that counts, averages or follows a schedule must advance only when the parameters do. What
it wraps may hold a step back: `MultiSteps` while it collects gradients, `apply_if_finite` if one is
not finite, and optax's wrappers too. Their states tell, and nothing else is read here. The rules
for optax's classes, which this library shares, are below; a class of its own has a method
`held_back`, from the state before the call to a boolean scalar.
"""

from __future__ import annotations

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

    It was, unless a wrapper inside held the step back and all updates are zero. Updates that are
    zero for another reason, such as a zero gradient, belong to a step. While `sam` climbs, the
    parameters move only to come back later: its step is the call that leads back.

    Args:
        old: the state before the call.
        new: the state after it.
        updates: what the call returned.

    Returns:
        A boolean scalar; None if no wrapper inside can hold a step back, so that each call is one.
    """
    after = holding_back(new)
    if not after:
        return None
    climbs = [path for path, kind, _ in after if kind is SAMState]
    held_back: list[jax.Array] = []
    climbing: list[jax.Array] = []
    for (path, kind, now), (_, _, before) in zip(after, holding_back(old), strict=True):
        is_in_climb = any(path[: len(climb)] == climb for climb in climbs)
        flag = _RULES[kind](before, now) if kind in _RULES else now.held_back(before)
        (climbing if is_in_climb else held_back).append(flag)
    step = ~_any(climbing)
    return step & (_moves(updates) | ~_any(held_back)) if held_back else step


def is_move(old: Any, new: Any, updates: Any) -> jax.Array | None:
    """Whether a call of a transformation was a step, or one in which `sam` climbs.

    Args:
        old: the state before the call.
        new: the state after it.
        updates: what the call returned.

    Returns:
        A boolean scalar; None if no wrapper inside can hold a step back.
    """
    step = is_step(old, new, updates)
    return None if step is None else step | _moves(updates)


def in_step(
    owner: str, step: jax.Array | None, advance: Branch, updates: Any, old: Any
) -> tuple[Any, Any]:
    """A wrapper's updates and state after a call: zero updates and the old state for no step.

    Args:
        owner: name of the wrapper, which opens error messages.
        step: what `is_step` returned.
        advance: returns the updates and the new state; it runs only in a step.
        updates: the gradients.
        old: the state before the call.

    Returns:
        The updates and the state after the call.
    """
    if step is None:
        return advance()
    return either(owner, step, advance, lambda: (zeros_like(updates), old), updates, old)


def kept_after(owner: str, step: jax.Array | None, advance: Callable[[], Any], old: Any) -> Any:
    """The state of a wrapper after a call, which does not change unless that was a step."""
    return in_step(owner, step, lambda: ((), advance()), (), old)[1]


def counted(step: jax.Array | None, count: Any) -> jax.Array:
    """The count of a wrapper after a call."""
    new = jnp.asarray(optax.safe_increment(count))
    return new if step is None else jnp.where(step, new, count)


def is_collecting(state: Any) -> jax.Array:
    """Whether a `MultiSteps` inside has collected some, but not all, of its gradients."""
    found = holding_back(state)
    nodes = [node for _, kind, node in found if kind is optax.MultiStepsState]
    return _any([jnp.asarray(node.mini_step) > 0 for node in nodes])


def holding_back(state: Any) -> list[tuple[Path, Any, Any]]:
    """The states of wrappers that may hold steps back, outer ones first.

    For each its key path; its class, or the class of optax whose fields it has; and the state.
    """
    found: list[tuple[Path, Any, Any]] = []
    # Most states have none, and finding paths takes time.
    if all(_kind_of(leaf) is None for leaf in jax.tree.leaves(state, is_leaf=_is_kind)):
        return found
    named, _ = tree_flatten_with_path(state, is_leaf=_is_kind)
    for path, node in named:
        kind = _kind_of(node)
        if kind is None:
            continue
        found.append((path, kind, node))
        # What `sam` climbs with takes no steps.
        for name in ("opt_state",) if kind is SAMState else kind._fields:
            below = holding_back(getattr(node, name))
            found += [((*path, GetAttrKey(name), *rest), *inner) for rest, *inner in below]
    return found


def _is_masked(old: Any, new: Any) -> Any:
    # Its state does not tell, but where it acts, all counts inside advance.
    counts = zip(_counts(old.inner_state), _counts(new.inner_state), strict=True)
    return ~_any([jnp.not_equal(before, now) for before, now in counts])


# Class of optax -> whether it held a step back, from the states before and after.
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
    if hasattr(node, "_fields") and callable(getattr(node, "held_back", None)):
        return type(node)
    return next((kind for kind in _RULES if has_fields(node, kind._fields)), None)


def _is_kind(node: Any) -> bool:
    return _kind_of(node) is not None


def _counts(state: Any) -> Sequence[Any]:
    """The counters in a state: its integer scalars."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) == 0]
    return [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.integer)]


def _moves(updates: Any) -> jax.Array:
    return _any([_is_nonzero(u) for u in jax.tree.leaves(updates) if trees.is_number(u)])


@jax.jit
def _is_nonzero(update: jax.Array) -> jax.Array:
    return jnp.any(update != 0)


def _any(flags: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_or, flags, jnp.zeros([], bool))
