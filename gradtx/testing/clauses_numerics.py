"""Clauses about numbers: narrow dtypes, and what a declared locality or degree promises."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.compose.parts import effect_of, parts_of
from gradtx.effect import Degree
from gradtx.kernel import Kernel
from gradtx.lift import hyperparameters_of, kernel_of
from gradtx.testing.clause import Case, clause
from gradtx.testing.clauses_structure import expect_update_types
from gradtx.testing.comparison import (
    Violation,
    expect_finite,
    expect_same,
    expect_same_types,
    flatten,
)
from gradtx.testing.trees import cast_parameters, is_parameter


@clause(
    "half_precision",
    level="promises",
    asks="updates in float16 and bfloat16",
    given="",
    hint="calculate in float32, `g.astype(jnp.float32)`, and cast the update back; an eps of 1e-8 "
    "is 0 in float16",
)
def check_half_precision(case: Case) -> None:
    """In float16 and bfloat16, zero gradients give finite updates, and tiny and large ones no NaN.

    Updates and states keep their dtypes. Tiny is the smallest subnormal number. Large is the
    largest number whose square float32 can add up; an overflow of float32 itself is not the fault
    of half precision. With bfloat16 the last leaf stays in its dtype, as in mixed precision.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_half_precision
        >>> check_half_precision(gradtx.sgd(0.1), jnp.ones(2))
    """
    update = jax.jit(case.update)
    for dtype in (jnp.float16, jnp.bfloat16):
        limits = jnp.finfo(dtype)
        params = cast_parameters(case.params, dtype)
        if dtype == jnp.bfloat16:
            params = _mixed(params, case.params)
        start = case.tx.init(params)
        for name, value in {
            "zero": 0.0,
            "tiny": float(limits.smallest_subnormal),
            "large": min(float(limits.max), 2.0**60),
        }.items():
            gradients, state = _filled(params, value), start
            for _ in range(2):
                updates, state = update(gradients, state, params)
                what = f"updates for {name} gradients in {limits.dtype}"
                expect_finite(what, updates, infinity=name != "zero")
                expect_update_types(what, case, gradients, updates)
            what = f"the state after steps in {limits.dtype}"
            expect_same_types(what, start, state, weak=False)


def _mixed(narrow: Any, params: Any) -> Any:
    """The narrow parameters with the last one as it was, if there are others."""
    leaves, treedef = jax.tree.flatten(narrow)
    return (
        treedef.unflatten([*leaves[:-1], *jax.tree.leaves(params)[-1:]]) if leaves[1:] else narrow
    )


def _filled(params: Any, value: float) -> Any:
    return jax.tree.map(lambda p: jnp.full_like(p, value) if is_parameter(p) else None, params)


@clause(
    "locality",
    level="promises",
    asks="updates of shuffled leaves",
    given="the elements of each leaf in another order and shape",
    hint="declare `elementwise=False`, or let no element depend on another",
    unless=("shapes",),
)
def check_locality(case: Case) -> None:
    """A kernel declared elementwise looks at each element by itself.

    Its updates are the same for elements in another order or shape, and those of an element do not
    change with its neighbours' gradients, unless a scalar of the whole tree is made of them.

    `gradtx.lift.kernel_of` has the declaration; other transformations promise nothing, and neither
    do kernels that draw random numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_locality
        >>> check_locality(gradtx.trace(0.9), jnp.ones((2, 2)))
    """
    kernel = kernel_of(case.tx)
    if kernel is None or not kernel.elementwise or "key" in kernel.arguments:
        return

    def shuffled(tree: Any) -> Any:
        def shuffle(leaf: Any) -> Any:
            return leaf.reshape(-1)[np.random.default_rng(0).permutation(leaf.size)]

        return jax.tree.map(shuffle, tree)

    params = shuffled(case.params)
    state = case.tx.init(params)
    for i, (expected, _) in enumerate(case.steps):
        updates, state = case.tx.update(
            shuffled(case.gradients(i + 1)), state, params, **case.extra(case.params)
        )
        expect_same("updates of shuffled leaves", shuffled(expected), updates, case.ulps)
    if not kernel.measures:
        _expect_independence(case)


def _expect_independence(case: Case) -> None:
    """Demand that an element's update does not change with the gradients of its neighbours."""

    def others(leaf: Any) -> np.ndarray:
        return (np.arange(leaf.size) % 2 == 1).reshape(leaf.shape)

    def vary(leaf: Any) -> Any:
        return jnp.where(others(leaf), -2 * leaf, leaf) if is_parameter(leaf) else leaf

    expected, _state = case.steps[0]
    changed, _ = case.update(jax.tree.map(vary, case.gradients(1)), case.state, case.params)

    def kept(updates: Any) -> Any:
        return jax.tree.map(lambda u: np.asarray(u)[~others(u)] if is_parameter(u) else u, updates)

    what = "updates beside elements whose gradients change"
    expect_same(what, kept(expected), kept(changed), case.ulps, case.magnitude)


# Powers of two, so that no rounding differs; and large, so that neither eps nor what a
# slot starts with counts.
_LARGE, _TIMES = 1024.0, 4.0
# For what is rounded to bfloat16; another degree would be off by a factor of 4.
_TOLERANCE = 0.05


@clause(
    "degree",
    level="promises",
    asks="updates of the kernels",
    given="gradients of lengths that differ",
    hint="declare the degree and the sense that the equation has",
)
def check_degree(case: Case) -> None:
    """A kernel's updates grow with the gradient, and point along it or against it, as it declares.

    For 4 g a degree of 1 promises updates that differ 4 times as much from those of a zero
    gradient, so that weight decay and noise do not matter, 0 promises those of g but for eps, and
    "between" at most those of a degree of 1. A sense promises the sign of the inner product with a
    gradient that stays the same; a sense of 0, that nothing moves. The kernels
    of a chain are asked one by one; what declares nothing promises nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_degree
        >>> check_degree(gradtx.trace(0.9), jnp.ones((2, 2)))
    """
    for tx in _links(case.tx):
        kernel = kernel_of(tx)
        if kernel is None or not kernel.is_declared:
            continue
        update = jax.jit(functools.partial(tx.update, **case.extra(case.params)))
        link = optax.GradientTransformationExtraArgs(tx.init, update)
        if kernel.degree is not None:
            _check_degree(case, link, kernel)
        factor = hyperparameters_of(tx).get(str(kernel.factor), 1.0)
        if not callable(factor):
            sense = np.sign(factor) * (1 if kernel.sense == "factor" else kernel.sense)
            _check_sense(case, link, kernel.name, sense)


def _links(tx: optax.GradientTransformation) -> Iterator[optax.GradientTransformation]:
    """The links of a chain, and of the chains in it; anything else is its own only one."""
    effect, parts = effect_of(tx), parts_of(tx)
    is_chain = effect is not None and effect.inside == "all"
    if is_chain and all(part.choose is None for part in parts):
        for part in parts:
            yield from _links(part.transformation)
    else:
        yield tx


def _check_degree(case: Case, tx: optax.GradientTransformation, kernel: Kernel) -> None:

    def updates_for(times: float) -> list[Any]:
        state, found = tx.init(case.params), []
        for step in (1, 2, 3):
            gradients = jax.tree.map(lambda g: g * times, case.gradients(step))
            updates, state = tx.update(gradients, state, case.params)
            found.append(updates)
        # In the first step a variance may still be zero, and eps all that is divided by.
        return found[1:]

    growth = {0: "1", 1: f"{_TIMES:g}", "between": f"at most {_TIMES:g}"}[kernel.degree]
    for one, more, still in zip(*map(updates_for, (_LARGE, _TIMES * _LARGE, 0.0)), strict=True):
        named = zip(flatten(one)[0], flatten(more)[0], flatten(still)[0], strict=True)
        for (path, u), (_, v), (_, zero) in named:
            if is_parameter(u) and u.size and not _grows(u, v, zero, kernel.degree):
                raise Violation(
                    path,
                    f"the updates of {kernel.name} for {_TIMES:g} g to be {growth} times those "
                    f"for g, as its degree of {kernel.degree} says",
                    f"lengths of {_length(v):.3g} and {_length(u):.3g}",
                )


def _check_sense(case: Case, tx: optax.GradientTransformation, name: str, sense: float) -> None:
    gradients, found, moved = case.gradients(1), 0.0, 0.0
    state, still = tx.init(case.params), tx.init(case.params)
    for _ in range(3):
        updates, state = tx.update(gradients, state, case.params)
        zero, still = tx.update(jax.tree.map(jnp.zeros_like, gradients), still, case.params)
        found += sum(map(_inner_product, *map(jax.tree.leaves, (gradients, updates, zero))))
        differences = jax.tree.map(lambda u, v: u - v, updates, zero)
        moved += sum(map(_length, jax.tree.leaves(differences)))
    if sense == 0 and moved > 0:
        expected = f"no updates of {name}, as its sense says"
        raise Violation("", expected, f"a length of {moved:.3g}")
    if sense * found < 0:
        way = "along" if sense > 0 else "against"
        raise Violation(
            "",
            f"the updates of {name} to point {way} the gradient, as its sense says",
            f"an inner product of {found:.3g}",
        )


def _inner_product(gradient: Any, update: Any, still: Any) -> float:
    g, u, v = (np.asarray(x).astype(np.complex128) for x in (gradient, update, still))
    return float(np.real(np.vdot(g, u - v)))


def _length(updates: Any) -> float:
    return float(np.linalg.norm(np.asarray(updates).astype(np.complex128)))


def _grows(once: Any, more: Any, still: Any, degree: Degree | None) -> bool:
    """Whether updates for g, more of it and 0 are as far apart as the degree says."""
    u, v, start = (
        np.asarray(x, np.promote_types(x.dtype, np.float32)) for x in (once, more, still)
    )
    if degree == "between":
        return _length(v - start) <= (1 + _TOLERANCE) * _TIMES * _length(u - start)
    error = v - start - _TIMES * (u - start) if degree == 1 else v - u
    size = max(np.max(np.abs(u)), np.max(np.abs(v)))
    return bool(np.max(np.abs(error)) <= _TOLERANCE * size)
