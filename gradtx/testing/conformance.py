"""The whole contract, clause by clause."""

from collections.abc import Collection
from typing import Any

import optax

from gradtx.messages import listed, shown
from gradtx.testing.clause import ULPS, Case, Clause, ConformanceError, ExtraArgs
from gradtx.testing.clauses_calling import check_purity, check_type
from gradtx.testing.clauses_mismatch import check_mismatches
from gradtx.testing.clauses_numerics import check_degree, check_half_precision, check_locality
from gradtx.testing.clauses_sharding import check_layouts, check_sharding
from gradtx.testing.clauses_structure import (
    check_empty_trees,
    check_masked_leaves,
    check_non_parameters,
    check_none_leaves,
    check_state,
    check_updates,
)
from gradtx.testing.clauses_tracing import (
    check_donation,
    check_eval_shape,
    check_jit,
    check_scan,
    check_vmap,
)
from gradtx.testing.trees import hostile_parameters

_CLAUSES = {
    clause.name: clause
    for clause in (
        check_type,
        check_purity,
        check_updates,
        check_state,
        check_none_leaves,
        check_masked_leaves,
        check_empty_trees,
        check_non_parameters,
        check_mismatches,
        check_jit,
        check_vmap,
        check_scan,
        check_eval_shape,
        check_donation,
        check_sharding,
        check_layouts,
        check_half_precision,
        check_locality,
        check_degree,
    )
}


def clauses() -> dict[str, Clause]:
    """All clauses of the contract, by name, in the order in which they are checked.

    Example:
        >>> from gradtx.testing import clauses
        >>> list(clauses())[:3]
        ['type', 'purity', 'updates']
    """
    return dict(_CLAUSES)


def check_transformation(
    tx: optax.GradientTransformation,
    params: Any = None,
    *,
    extra_args: ExtraArgs = None,
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
    ulps: float = ULPS,
) -> None:
    """Check a gradient transformation against the contract, clause by clause.

    The clauses hide, drop and replace leaves. A transformation that depends on certain leaves
    cannot satisfy all of them: skip "none_leaves", "masked_leaves", "non_parameters" and
    "mismatches" for one that chooses leaves by name or needs a loss of all of them, and
    "none_leaves" for one whose state changes without a gradient, such as `average_params`. optax's
    own transformations break several clauses.

    Args:
        tx: the transformation, of gradtx, optax or your own.
        params: a tree of arrays; None: `hostile_parameters()`.
        extra_args: the extra arguments that the update needs, or a function of the parameters
            that returns them as a dictionary. Some clauses call it with parameters of other
            values and dtypes, with None, `optax.MaskedNode`, integers or functions among the
            leaves.
        clauses: the names of the clauses to check; None: all, see `gradtx.testing.clauses()`.
        skip: the names of clauses to leave out.
        ulps: how far eager and compiled numbers may differ, in units of the last place of the
            largest number of a leaf. The default leaves room for the rounding of a few dozen
            operations; a method that iterates, such as a matrix root, may need more.

    Raises:
        ConformanceError: if clauses are broken; the message names each, with the leaf, what was
            expected and what was found.
        ValueError: if `tx` is not a transformation, or `clauses` or `skip` names an unknown clause.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> import optax
        >>> from gradtx.testing import check_transformation
        >>> check_transformation(gradtx.sgd(0.1, momentum=0.9))
        >>> lookalike = optax.GradientTransformation(*gradtx.sgd(0.1))
        >>> try:
        ...     check_transformation(lookalike, {"w": jnp.ones(2)}, clauses=["type", "updates"])
        ... except AssertionError as error:
        ...     print(error)
        type: expected an optax.GradientTransformationExtraArgs, got a GradientTransformation
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(
            f"check_transformation: tx must be a gradient transformation, got {shown(tx)}"
        )
    for argument, names in (("clauses", clauses or ()), ("skip", skip)):
        unknown = [name for name in names if name not in _CLAUSES]
        if unknown:
            raise ValueError(
                f"check_transformation: {argument} has the unknown names {listed(unknown)}; "
                f"there are {listed(_CLAUSES, len(_CLAUSES), near=str(unknown[0]))}"
            )
    case = Case(tx, hostile_parameters() if params is None else params, extra_args, ulps)
    failures, first = {}, None
    for name, clause in _CLAUSES.items():
        if name in skip or (clauses is not None and name not in clauses):
            continue
        failure, cause = clause.judge(case)
        if failure is not None:
            failures[name], first = failure, first or cause
    if failures:
        raise ConformanceError(failures) from first
