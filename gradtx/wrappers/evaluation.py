"""The parameters to evaluate, whichever wrapper keeps them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import SAMState, ScheduleFreeState

from gradtx import boxes, trees
from gradtx.inputs import check_order
from gradtx.leaves import Aligned
from gradtx.wrappers.schedule_free import evaluated_leaf


def eval_params(state: Any, params: Any) -> Any:
    """The parameters to evaluate: the averaged ones, where the optimizer keeps an average.

        average_params:  a / (sum of its weights)
        schedule_free:   x = (y - (1 - b1) * z) / b1
        lookahead:       the slow parameters
        sam:             those where the climb began, while it climbs
        anything else:   the parameters themselves

    Args:
        state: the state of any optimizer of gradtx or optax; these wrappers are found at any depth.
            In a group of `partition` a wrapper counts for the leaves of that group.
        params: the parameters that are trained; for `lookahead` the pair of fast and slow ones.

    Returns:
        A tree of the structure and dtypes of the parameters.

    Raises:
        ValueError: if two wrappers keep an average of the same leaf, the trees differ, or `state`
            and `params` were swapped.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([4.0])
        >>> for tx in (gradtx.sgd(1.0), gradtx.average_params(gradtx.sgd(1.0), decay=0.5)):
        ...     p, state = params, tx.init(params)
        ...     for _ in range(2):
        ...         updates, state = tx.update(jnp.array([1.0]), state, p)
        ...         p = gradtx.apply_updates(p, updates)
        ...     print(gradtx.eval_params(state, p).round(1))
        [2.]
        [2.3]
    """
    check_order("eval_params", state, params)
    if isinstance(params, optax.LookaheadParams):
        params = params.slow
    # nnx.Optimizer keeps its state in other boxes than those of the parameters.
    structure, params = jax.tree.structure(params), boxes.opened(params)
    averaged: set[int] = set()
    # Averages belong to the parameters where a climb began, so that the climb is undone first.
    for keeper in sorted(_keepers(state), key=lambda node: not isinstance(node, SAMState)):
        if isinstance(keeper, SAMState) and keeper.cache is None:
            continue
        params, places = _evaluated_by(keeper, params)
        if isinstance(keeper, SAMState):
            continue
        if averaged & places:
            raise ValueError(
                "eval_params: two wrappers keep an average of the parameter "
                f"'{trees.paths(params)[min(averaged & places)]}'"
            )
        averaged |= places
    return structure.unflatten(jax.tree.leaves(params))


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    """The parameters x of `schedule_free` to evaluate, from the parameters y that are trained.

        x = (y - (1 - b1) * z) / b1

    Args:
        state: a `ScheduleFreeState`, or a state that holds one.
        params: the parameters y.

    Returns:
        A tree of the structure and dtypes of the parameters.

    Raises:
        ValueError: if the state has no `ScheduleFreeState`, the trees differ, or `state` and
            `params` were swapped.

    Source:
        Defazio et al. 2024, "The road less scheduled", equation (3).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.schedule_free_sgd(0.1)
        >>> params = jnp.array([4.0])
        >>> print(gradtx.schedule_free_eval_params(tx.init(params), params))
        [4.]
    """
    check_order("schedule_free_eval_params", state, params)
    if not any(isinstance(keeper, ScheduleFreeState) for keeper in _keepers(state)):
        raise ValueError(
            f"schedule_free_eval_params: found no ScheduleFreeState in {type(state).__name__}"
        )
    return eval_params(state, params)


def _keepers(state: Any) -> list[Any]:
    """The states that keep parameters to evaluate, each before those inside it."""

    def is_keeper(node: Any) -> bool:
        if isinstance(node, SAMState | ScheduleFreeState):
            return True
        return hasattr(node, "_fields") and callable(getattr(node, "evaluated", None))

    found = [node for node in jax.tree.leaves(state, is_leaf=is_keeper) if is_keeper(node)]
    return found + [keeper for node in found for keeper in _keepers(tuple(node))]


def _evaluated_by(keeper: Any, params: Any) -> tuple[Any, set[int]]:
    """The parameters with those that a wrapper keeps in their place, and the numbers of these."""
    kept, evaluate_leaf = _rule(keeper)
    aligned = Aligned(
        "eval_params",
        {"params": params, "the average": boxes.opened(kept)},
        # Leaves of other groups are a MaskedNode, and only parameters have an average.
        takes_part=lambda *leaf: all(map(trees.is_parameter, leaf)),
        subtrees=True,
    )
    new = map(evaluate_leaf, aligned.parts(), aligned.parts("the average"))
    return aligned.tree_of(new), set(aligned.active)


def _rule(keeper: Any) -> tuple[Any, Callable[[Any, Any], jax.Array]]:
    """What a wrapper keeps, and the function that evaluates a parameter with its part of that.

    These are the rules of optax's classes; one of this library's own has a method `evaluated`.
    """
    if isinstance(keeper, ScheduleFreeState):
        return keeper.z, functools.partial(evaluated_leaf, keeper)
    if isinstance(keeper, SAMState):
        is_climbing = keeper.steps_since_sync > 0
        return keeper.cache, lambda p, start: jnp.where(
            is_climbing, jnp.asarray(start).astype(jnp.result_type(p)), p
        )
    return keeper.evaluated()
