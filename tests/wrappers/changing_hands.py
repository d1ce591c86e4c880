"""Runs that are continued by the other library, optax or gradtx, in the middle."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from gradtx.testing.comparison import expect_same_types

PARAMS = {"matrix": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "vector": jnp.array([-1.5, 0.25, 2.0])}


def smooth(params: Any, step: jax.Array) -> Any:
    """Gradients of a smooth loss that is different at each step."""
    return jax.tree.map(lambda p: jnp.sin(2.0 * p + step) + 0.5 * p, params)


# Multiplies the updates with an extra argument.
TIMES_VALUE = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(),
    lambda updates, state, params=None, *, value, **extra: (
        jax.tree.map(lambda u: value * u, updates),
        state,
    ),
)


def check_changes_hands(
    ours: Any,
    theirs: Any,
    *,
    at: int,
    steps: int,
    params: Any = PARAMS,
    gradient: Callable[[Any, jax.Array], Any] = smooth,
    extra: Callable[[Any], dict[str, Any]] = lambda params: {},
    rtol: float = 1e-5,
) -> None:
    """Assert that a run that is resumed by either library ends like one of optax alone.

    Args:
        ours: the transformation of gradtx.
        theirs: the same of optax.
        at: after how many steps the run changes hands.
        steps: how many it has.
        params: where it starts.
        gradient: a function of the parameters and the step.
        extra: the extra arguments of the update.
        rtol: relative to the largest element of an array.
    """

    def stepper(tx: Any) -> Any:
        @jax.jit
        def one(params: Any, state: Any, step: jax.Array) -> Any:
            updates, state = tx.update(gradient(params, step), state, params, **extra(params))
            return gradtx.apply_updates(params, updates), state

        return one

    # Some of optax's transformations mix dtypes, which the strict test process would refuse.
    with jax.numpy_dtype_promotion("standard"):
        start = {name: tx.init(params) for name, tx in (("ours", ours), ("theirs", theirs))}
        expect_same_types("the first state", start["theirs"], start["ours"], weak=False)
        step_of = {"ours": stepper(ours), "theirs": stepper(theirs)}

        def run(first: str, second: str) -> list[Any]:
            point, state, path = params, start[first], []
            for t in range(steps):
                name = first if t < at else second
                point, state = step_of[name](point, state, jnp.float32(t))
                path.append((point, state))
            return path

        expected = run("theirs", "theirs")
        for first, second in (("ours", "theirs"), ("theirs", "ours")):
            path = run(first, second)
            for (point, state), (right, right_state) in zip(path, expected, strict=True):
                expect_same_types("the state", right_state, state, weak=False)
                jax.tree.map(lambda a, b: _check_close(a, b, rtol), point, right)
                jax.tree.map(lambda a, b: _check_close(a, b, rtol), state, right_state)


def _check_close(found: Any, expected: Any, rtol: float) -> None:
    size = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * size)
