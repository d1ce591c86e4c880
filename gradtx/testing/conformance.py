"""The whole contract, clause by clause."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import optax

from gradtx.messages import listed, shown
from gradtx.testing.capabilities import check_capabilities
from gradtx.testing.clause import ULPS, Case, Clause, ExtraArgs, Level
from gradtx.testing.clauses_calling import check_calls, check_purity, check_type
from gradtx.testing.clauses_effects import check_leaks, check_side_effects
from gradtx.testing.clauses_inputs import (
    check_complex,
    check_double_precision,
    check_init_values,
    check_numpy,
)
from gradtx.testing.clauses_late import (
    check_counters,
    check_full_counters,
    check_long_run,
    check_zeros,
)
from gradtx.testing.clauses_mismatch import check_mismatches
from gradtx.testing.clauses_numerics import check_degree, check_half_precision, check_locality
from gradtx.testing.clauses_order import check_order, check_sizes
from gradtx.testing.clauses_random import check_random_keys
from gradtx.testing.clauses_sharding import check_layouts, check_sharding
from gradtx.testing.clauses_structure import (
    check_empty_trees,
    check_masked_leaves,
    check_missing_gradients,
    check_non_parameters,
    check_none_leaves,
    check_state,
    check_updates,
    check_weak_types,
)
from gradtx.testing.clauses_tracing import (
    check_donation,
    check_eval_shape,
    check_jit,
    check_scan,
    check_vmap,
)
from gradtx.testing.clauses_use import check_idle, check_unread_parameters
from gradtx.testing.report import ConformanceError
from gradtx.testing.trees import usual_parameters

_CLAUSES = {
    clause.name: clause
    for clause in (
        check_calls,
        check_purity,
        check_updates,
        check_state,
        check_none_leaves,
        check_masked_leaves,
        check_jit,
        check_vmap,
        check_scan,
        check_eval_shape,
        check_sharding,
        check_leaks,
        check_side_effects,
        check_idle,
        check_random_keys,
        check_long_run,
        check_counters,
        check_zeros,
        check_init_values,
        check_numpy,
        check_order,
        check_sizes,
        check_type,
        check_weak_types,
        check_missing_gradients,
        check_empty_trees,
        check_non_parameters,
        check_unread_parameters,
        check_mismatches,
        check_donation,
        check_layouts,
        check_half_precision,
        check_double_precision,
        check_complex,
        check_full_counters,
        check_locality,
        check_degree,
    )
}

_IS_SOUND = "These are promises; what every transformation must keep (level='must') is kept."


def clauses(level: Level | None = None) -> dict[str, Clause]:
    """The clauses of the contract, by name, in the order in which they are checked.

    Args:
        level: "must": those that every transformation has to keep; "promises": those beyond them;
            None: all.

    Raises:
        ValueError: if there is no such level.

    Example:
        >>> from gradtx.testing import clauses
        >>> list(clauses())[:3]
        ['calls', 'purity', 'updates']
        >>> "half_precision" in clauses("must")
        False
    """
    _check_level("clauses", level)
    return {name: one for name, one in _CLAUSES.items() if level in (None, one.level)}


def check_transformation(
    tx: optax.GradientTransformation,
    params: Any = None,
    *,
    level: Level = "promises",
    promises: Collection[str] | None = None,
    capabilities: Collection[str] = (),
    extra_args: ExtraArgs = None,
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
    ulps: float = ULPS,
) -> None:
    """Check a gradient transformation against the contract, clause by clause.

    There are two levels. What every transformation **must** keep: it is pure, its state keeps its
    structure and types, and it gives the same eager, compiled, mapped, scanned and sharded, with
    tracers, and where leaves are None. What gradtx **promises** beyond it: half precision, messages
    that name the leaf, leaves that are no parameters, optax's type, layouts, and what a kernel
    declares. optax's own transformations keep only some of the promises.

    Args:
        tx: the transformation, of gradtx, optax or your own.
        params: a tree of arrays; None: `hostile_parameters()` in float32, without the array that
            has no elements.
        level: "must" for the first level only, "promises" for both.
        promises: the names of the promises to check; None: all of them.
        capabilities: what the transformation needs, by the names in
            `gradtx.testing.CAPABILITIES`: "value", "grad" and "value_fn" pass these arguments, of
            the loss `sum(params**2) / 2`, to the update; "names", "whole_tree", "shapes" and
            "own_clock" exempt it from the clauses that drop, replace, rename or reshape leaves, or
            take gradients away.
        extra_args: the extra arguments that the update needs, or a function of the parameters
            that returns them as a dictionary. Some clauses call it with parameters of other
            values and dtypes, with None, `optax.MaskedNode`, integers or functions among the
            leaves.
        clauses: the names of the clauses to check, whatever their level; None: all of the level,
            see `gradtx.testing.clauses()`.
        skip: the names of clauses to leave out.
        ulps: how far eager and compiled numbers may differ, in units of the last place of the
            largest number of a leaf. The default leaves room for the rounding of a few dozen
            operations; a method that iterates, such as a matrix root, may need more.

    Raises:
        ConformanceError: if clauses are broken; the message says for each fault what was expected,
            with which input, at which leaf, what was found, and what to look at. Clauses that fail
            for the same reason are listed with it.
        ValueError: if `tx` is not a transformation, or an argument names what does not exist.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> import optax
        >>> from gradtx.testing import check_transformation
        >>> check_transformation(gradtx.sgd(0.1, momentum=0.9))
        >>> check_transformation(optax.sgd(0.1), level="must")
        >>> lookalike = optax.GradientTransformation(*gradtx.sgd(0.1))
        >>> try:
        ...     check_transformation(lookalike, {"w": jnp.ones(2)}, promises=["type"])
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        type: expected an optax.GradientTransformationExtraArgs, got a GradientTransformation
    """
    owner = "check_transformation"
    check_is_transformation(owner, tx)
    chosen = choose(owner, level, promises, clauses, skip)
    params = usual_parameters() if params is None else params
    case = Case(tx, params, extra_args, ulps, check_capabilities(owner, capabilities))
    failures = []
    for clause in chosen.values():
        failure = clause.judge(case)
        if failure is not None:
            failures.append(failure)
            if clause is check_calls:
                break
    if failures:
        must = {name for name, clause in _CLAUSES.items() if clause.level == "must"}
        is_sound = must.issubset(chosen) and must.isdisjoint(one.clause for one in failures)
        raise ConformanceError(failures, remark=_IS_SOUND if is_sound else "") from failures[
            0
        ].error


def choose(
    owner: str,
    level: Level,
    promises: Collection[str] | None,
    clauses: Collection[str] | None,
    skip: Collection[str],
) -> dict[str, Clause]:
    """The clauses that these arguments of `check_transformation` choose, by name."""
    _check_level(owner, level)
    if level == "must" and promises is not None:
        raise ValueError(
            f'{owner}: promises must be None where level is "must", got {shown(promises)}'
        )
    known = {
        "promises": [name for name, one in _CLAUSES.items() if one.level == "promises"],
        "clauses": list(_CLAUSES),
        "skip": list(_CLAUSES),
    }
    given = {"promises": promises or (), "clauses": clauses or (), "skip": skip}
    for argument, names in given.items():
        unknown = [name for name in names if name not in known[argument]]
        if unknown:
            there = listed(known[argument], len(_CLAUSES), near=str(unknown[0]))
            raise ValueError(
                f"{owner}: {argument} has the unknown names {listed(unknown)}; there are {there}"
            )

    def is_chosen(name: str, clause: Clause) -> bool:
        if name in skip or clauses is not None:
            return name not in skip and name in (clauses or ())
        return clause.level == "must" or (
            level == "promises" and (promises is None or name in promises)
        )

    return {name: clause for name, clause in _CLAUSES.items() if is_chosen(name, clause)}


def _check_level(owner: str, level: Level | None) -> None:
    if level not in ("must", "promises", *((None,) if owner == "clauses" else ())):
        raise ValueError(f'{owner}: level must be "must" or "promises", got {shown(level)}')


def check_is_transformation(owner: str, tx: Any) -> None:
    """Refuse what has no `init` and `update`."""
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(f"{owner}: tx must be a gradient transformation, got {shown(tx)}")
