"""The contract as tests of pytest, one for each clause."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import optax

from gradtx.testing.capabilities import check_capabilities
from gradtx.testing.clause import ULPS, Case, ExtraArgs, Level
from gradtx.testing.conformance import check_is_transformation, choose
from gradtx.testing.report import ConformanceError, Failure, folded
from gradtx.testing.trees import usual_parameters

Transformations = (
    optax.GradientTransformation
    | Callable[[], Any]
    | Mapping[str, "optax.GradientTransformation | Callable[[], Any]"]
)


def transformation_test_suite(
    tx: Transformations,
    params: Any = None,
    *,
    level: Level = "promises",
    promises: Collection[str] | None = None,
    capabilities: Collection[str] = (),
    extra_args: ExtraArgs = None,
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
    ulps: float = ULPS,
) -> Callable[..., None]:
    """Make a test for pytest of `check_transformation`, with a case for each clause.

    A clause that fails for the same reason as an earlier one is skipped, and names it.

    Args:
        tx: the transformation, or a function that makes it, which is called when the first test
            runs; or several of them by name.
        params: as for `check_transformation`, as are all other arguments.
        level: "must" or "promises".
        promises: the names of the promises to check; None: all of them.
        capabilities: what the transformations need.
        extra_args: the extra arguments that the updates need.
        clauses: the names of the clauses to check; None: all of the level.
        skip: the names of clauses to leave out.
        ulps: how far eager and compiled numbers may differ.

    Returns:
        A test to give a name that pytest collects; its cases are called `jit`, `vmap` and so on,
        or `mine-jit` where transformations have names.

    Raises:
        ImportError: if pytest is not installed.
        ValueError: if an argument names what does not exist.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import transformation_test_suite
        >>> test_sgd = transformation_test_suite(gradtx.sgd(0.1))
        >>> test_all = transformation_test_suite(
        ...     {"sgd": lambda: gradtx.sgd(0.1), "lion": lambda: gradtx.lion(0.1)}, level="must"
        ... )
    """
    owner = "transformation_test_suite"
    try:
        import pytest
    except ImportError as error:
        raise ImportError(f'{owner} needs pytest: pip install "gradtx[test]"') from error
    named = dict(tx) if isinstance(tx, Mapping) else {"": tx}
    for one in named.values():
        if not callable(one):
            check_is_transformation(owner, one)
    chosen = choose(owner, level, promises, clauses, skip)
    needs = check_capabilities(owner, capabilities)

    @functools.cache
    def case(name: str) -> Case:
        one = named[name]
        made: Any = one if hasattr(one, "update") or not callable(one) else one()
        check_is_transformation(owner, made)
        return Case(made, usual_parameters() if params is None else params, extra_args, ulps, needs)

    @functools.cache
    def judged(name: str, clause: str) -> Failure | None:
        return chosen[clause].judge(case(name))

    cases = [(name, clause) for name in named for clause in chosen]
    ids = [f"{name}-{clause}" if name else clause for name, clause in cases]

    @pytest.mark.parametrize(("transformation", "clause"), cases, ids=ids)
    def test_contract(transformation: str, clause: str) -> None:
        failure = judged(transformation, clause)
        if failure is None:
            return
        names = list(chosen)[: list(chosen).index(clause) + 1]
        failures = [one for name in names if (one := judged(transformation, name)) is not None]
        for cause, consequences in folded(failures).items():
            if clause in consequences:
                pytest.skip(f"fails for the same reason as {cause}")
        raise ConformanceError([failure]) from failure.error

    return test_contract
