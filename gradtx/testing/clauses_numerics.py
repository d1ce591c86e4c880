"""Clauses about numbers: narrow dtypes, and what a declared locality promises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.lift import kernel_of
from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import expect_finite, expect_same
from gradtx.testing.trees import cast_parameters, is_parameter


@clause("half_precision")
def check_half_precision(case: Case) -> None:
    """In float16 and bfloat16, zero gradients give finite updates, and tiny and large ones no NaN.

    Tiny is the smallest subnormal number. Large is the largest number whose square float32 can
    add up; an overflow of float32 itself is not the fault of half precision.

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


def _filled(params: Any, value: float) -> Any:
    return jax.tree.map(lambda p: jnp.full_like(p, value) if is_parameter(p) else None, params)


@clause("locality")
def check_locality(case: Case) -> None:
    """A kernel declared elementwise gives the same for elements in another order or shape.

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
