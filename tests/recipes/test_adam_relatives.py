"""ACProp, ADOPT, MADGRAD, MARS and Adam-mini against their papers, with learning rate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import gradtx
from gradtx.testing.comparison import expect_same_types

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    STEPS,
    cases,
    check_refused,
    double,
    inputs,
    run,
    wrong_arguments,
)
from ..wrappers.changing_hands import PARAMS, check_changes_hands

CASES = [
    *cases(
        gradtx.acprop,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps_root": 1e-2, "weight_decay": 0.1},
    ),
    *cases(
        gradtx.adopt,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps": 0.1},
    ),
    *cases(
        gradtx.madgrad,
        {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-2},
    ),
    *cases(
        gradtx.mars,
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 1e-2, "gamma": 0.5},
    ),
    *cases(
        gradtx.adamini,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps_root": 1e-2, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equation(case):
    double(case)


def test_madgrad_changes_hands():
    # optax adds eps to the learning rate.
    check_changes_hands(
        gradtx.madgrad(lambda count: 0.1 / (1 + count) + 1e-2, weight_decay=0.1, eps=1e-2),
        optax.contrib.madgrad(lambda count: 0.1 / (1 + count), weight_decay=0.1, eps=1e-2),
        at=4,
        steps=8,
    )


def test_acprop_has_the_state_of_optax():
    settings = {"learning_rate": lambda count: 0.1, "mask": {"matrix": True, "vector": False}}
    ours, theirs = gradtx.acprop(**settings), optax.contrib.acprop(**settings)
    expect_same_types("the first state", theirs.init(PARAMS), ours.init(PARAMS), weak=False)


def test_mars_without_correction_is_adamw_of_a_bounded_gradient():
    settings = {"b1": 0.8, "b2": 0.9, "weight_decay": 0.1}
    mars = gradtx.mars(0.1, gamma=0.0, **settings)
    bounded = gradtx.multi_transform(
        {"matrix": gradtx.clip_by_global_norm(1.0), "vector": gradtx.clip_by_global_norm(1.0)},
        {"matrix": "matrix", "vector": "vector"},
    )
    adamw = gradtx.chain(bounded, gradtx.adamw(0.1, **settings))
    trajectories = [run(tx, *inputs(STEPS)) for tx in (mars, adamw)]
    for (ours, _), (expected, _) in zip(*trajectories, strict=True):
        for leaf, update in expected.items():
            np.testing.assert_allclose(ours[leaf], update, rtol=1e-5, atol=1e-6)


def test_mars_descends_at_the_rate_of_its_linear_recurrence():
    # With b1 = 1/2 and a divisor that is eps: m' = (m + x' + gamma * (x' - x)) / 2 and
    # x'' = x' - rate * m', so that 2 z^2 - (3 - rate * (1 + gamma)) z + 1 - rate * gamma = 0.
    rate, gamma, eps = 0.05, 0.5, 2.0**60
    with jax.enable_x64(True):
        tx = gradtx.chain(
            gradtx.scale_by_mars(0.5, gamma, max_norm=math.inf),
            gradtx.scale_by_adam(0.5, 0.9, eps),
            gradtx.scale_by_learning_rate(rate * eps),
        )

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(x, state)
            return (x + updates, state), x

        start = jnp.ones(())
        _, x = jax.lax.scan(step, (start, tx.init(start)), None, 80)
    roots = np.roots([2, -3 + rate * (1 + gamma), 1 - rate * gamma])
    np.testing.assert_allclose(x[-1] / x[-2], max(roots), rtol=1e-12)


VALID = {"learning_rate": 0.1}
MOMENTS = {"learning_rate": ANY_NUMBER, "b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.acprop, VALID, **MOMENTS, eps_root=NON_NEGATIVE, weight_decay=NON_NEGATIVE
        ),
        *wrong_arguments(gradtx.adopt, VALID, **MOMENTS, clip_value_fn=(1.0,)),
        *wrong_arguments(
            gradtx.madgrad,
            VALID,
            learning_rate=NON_NEGATIVE,
            momentum=DECAY,
            weight_decay=NON_NEGATIVE,
            eps=NON_NEGATIVE,
        ),
        *wrong_arguments(
            gradtx.mars, VALID, **MOMENTS, gamma=ANY_NUMBER, weight_decay=NON_NEGATIVE
        ),
        *wrong_arguments(
            gradtx.adamini, VALID, **MOMENTS, weight_decay=NON_NEGATIVE, blocks=("last",)
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
