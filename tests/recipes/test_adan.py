"""Adan against its paper, with its proximal decay of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.testing.comparison import expect_same_types

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)
from ..wrappers.changing_hands import PARAMS, check_changes_hands

CASES = cases(
    gradtx.adan,
    {"learning_rate": 0.5, "b1": 0.8, "b2": 0.7, "b3": 0.9, "eps": 1e-2, "weight_decay": 0.5},
)


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.adan]))
def test_equation(check, case):
    check(case)


def test_a_run_changes_hands():
    # Only at b2 = 0.5 and without decay is optax's equation the paper's.
    settings = {"b1": 0.9, "b2": 0.5, "b3": 0.9}
    rate = optax.linear_schedule(0.2, 0.1, 8)
    check_changes_hands(gradtx.adan(rate, **settings), optax.adan(rate, **settings), at=4, steps=8)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.1, "weight_decay": 0.1},
        {"learning_rate": lambda count: 0.1, "mask": {"matrix": True, "vector": False}},
        {"learning_rate": lambda count: 0.1, "weight_decay": lambda count: 0.1},
    ],
    ids=["numbers", "mask", "schedules"],
)
def test_state_is_that_of_optax(settings):
    ours, theirs = (library.adan(**settings).init(PARAMS) for library in (gradtx, optax))
    expect_same_types("the first state", theirs, ours, weak=False)


def test_masked_leaves_do_not_decay():
    # Without a gradient only the decay is left: p / (1 + learning_rate * weight_decay).
    tx = gradtx.adan(0.5, weight_decay=0.5, mask=gradtx.select("kernel"))
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = gradtx.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], [1.6], rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], [2.0])


def test_the_decay_is_stable_for_any_learning_rate():
    # The decoupled 1 - learning_rate * weight_decay = -9 would grow; the proximal decay is 1 / 11.
    tx = gradtx.adan(10.0, weight_decay=1.0)
    p = jnp.ones(1)
    state, update = tx.init(p), jax.jit(tx.update)
    for t in range(1, 4):
        updates, state = update(jnp.zeros(1), state, p)
        p = p + updates
        np.testing.assert_allclose(p, [11.0**-t], rtol=1e-5)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.adan,
        {"learning_rate": 0.1},
        learning_rate=ANY_NUMBER,
        b1=DECAY,
        b2=DECAY,
        b3=DECAY,
        eps=NON_NEGATIVE,
        eps_root=NON_NEGATIVE,
        weight_decay=NON_NEGATIVE,
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
