"""Updates that are released every few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import COUNT, cases, check_refused, equation_tests, wrong_arguments

CASES = cases(gradtx.apply_every, {}, {"k": 5})


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("k", [3, jnp.int32(3)], ids=["int", "array"])
def test_the_counter_runs_from_zero_as_that_of_optax(k):
    # So that the step number stays exact in float32 in runs of any length.
    ours, theirs = gradtx.apply_every(k), optax.apply_every(3)
    g = jnp.ones(2)
    state, expected = ours.init(g), theirs.init(g)
    for _ in range(7):
        updates, state = ours.update(g, state)
        with jax.numpy_dtype_promotion("standard"):
            theirs_updates, expected = theirs.update(g, expected)
        np.testing.assert_array_equal(updates, theirs_updates)
        np.testing.assert_array_equal(state.count, expected.count)
        assert type(state) is type(expected)


def test_what_was_let_go_is_forgotten_even_if_it_is_not_finite():
    tx = gradtx.apply_every(2)
    state, update = tx.init(jnp.zeros(())), jax.jit(tx.update)
    emitted = []
    for g in (jnp.inf, 1.0, 2.0, 3.0):
        updates, state = update(jnp.float32(g), state)
        emitted.append(float(updates))
    assert emitted == [0, np.inf, 0, 5]


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(gradtx.apply_every, {}, k=(*COUNT, lambda count: 2)),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
