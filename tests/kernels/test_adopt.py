"""ADOPT and ACProp against their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import gradtx
from gradtx.testing.comparison import expect_same_types

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)
from ..wrappers.changing_hands import PARAMS, check_changes_hands


def narrow(count):
    """A bound that most gradients reach."""
    return 0.5 + count / 64


ADOPT = cases(
    gradtx.scale_by_adopt,
    {},
    {"b1": 0.5, "use_clipping": False},
    {"b1": 0.8, "b2": 0.9, "eps": 0.5, "nesterov": True, "clip_value_fn": narrow},
)
ACPROP = cases(
    gradtx.scale_by_acprop,
    {},
    {"b1": 0.5, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-2},
)


@pytest.mark.parametrize(("check", "case"), equation_tests(ADOPT + ACPROP))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("case", [ADOPT[2], ACPROP[1]], ids=["adopt", "acprop"])
def test_complex_gradients(case):
    complex_gradients(case)


@pytest.mark.parametrize("use_clipping", [True, False], ids=["clipped", "unclipped"])
def test_adopt_changes_hands(use_clipping):
    settings = {"b2": 0.9, "nesterov": True, "use_clipping": use_clipping}
    check_changes_hands(
        gradtx.chain(gradtx.scale_by_adopt(**settings), gradtx.scale(-0.1)),
        optax.chain(optax.contrib.scale_by_adopt(**settings), optax.scale(-0.1)),
        at=3,
        steps=8,
    )


def test_acprop_has_the_state_of_optax():
    ours, theirs = gradtx.scale_by_acprop(), optax.contrib.scale_by_acprop()
    expect_same_types("the first state", theirs.init(PARAMS), ours.init(PARAMS), weak=False)
    with jax.numpy_dtype_promotion("standard"):
        _, state = theirs.update(PARAMS, theirs.init(PARAMS))
    expect_same_types("the state", state, ours.update(PARAMS, state)[1], weak=False)


def test_optax_measures_acprops_deviation_before_the_average_moves():
    # With a constant b1 that deviation is the paper's divided by b1.
    ours = gradtx.scale_by_acprop(b1=0.8, eps=0.0, eps_root=0.0)
    theirs = optax.contrib.scale_by_acprop(b1=0.8, eps=0.0, eps_root=0.0)
    state, other = ours.init(jnp.zeros(2)), theirs.init(jnp.zeros(2))
    for t, g in enumerate([[3.0, -1.0], [2.0, 5.0], [-4.0, 0.5]]):
        updates, state = ours.update(jnp.array(g), state)
        with jax.numpy_dtype_promotion("standard"):
            expected, other = theirs.update(jnp.array(g), other)
        np.testing.assert_allclose(updates, expected if t == 0 else expected / 0.8, rtol=1e-5)


def test_adopt_moves_with_the_sign_of_a_constant_gradient_from_the_second_step_on():
    tx = gradtx.scale_by_adopt(b1=0.9)
    state, update = tx.init(jnp.zeros(3)), jax.jit(tx.update)
    for t in range(6):
        updates, state = update(jnp.array([3.0, -1e-3, 0.0]), state)
        np.testing.assert_allclose(updates, (1 - 0.9**t) * np.array([1, -1, 0]), rtol=1e-5)


def test_a_size_that_does_not_know_its_gradient_goes_where_adam_does_not():
    # Reddi et al. 2018, theorem 1: the gradient is C once in three times, else -1; its mean is
    # positive, so that the minimum on [-1, 1] is -1. With b2 = 1 / (1 + C^2) Adam goes to 1.
    c = 4.0
    b2 = 1 / (1 + c**2)

    def end_of(tx):
        tx = gradtx.chain(tx, gradtx.scale_by_learning_rate(0.02))

        def step(carry, t):
            x, state = carry
            updates, state = tx.update(jnp.where(t % 3 == 0, c, -1.0), state)
            return (jnp.clip(x + updates, -1, 1), state), None

        start = jnp.float32(0)
        return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(600))[0][0]

    np.testing.assert_allclose(end_of(gradtx.scale_by_adam(b1=0.0, b2=b2)), 1, atol=0.04)
    adopt = gradtx.scale_by_adopt(b1=0.0, b2=b2, use_clipping=False)
    np.testing.assert_allclose(end_of(adopt), -1, atol=0.04)
    np.testing.assert_allclose(end_of(gradtx.scale_by_acprop(b1=0.9, b2=b2)), -1, atol=0.04)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.scale_by_adopt,
            {},
            b1=DECAY,
            b2=DECAY,
            eps=NON_NEGATIVE,
            mu_dtype=("int32",),
            clip_value_fn=(1.0, None),
        ),
        *wrong_arguments(
            gradtx.scale_by_acprop,
            {},
            b1=DECAY,
            b2=DECAY,
            eps=NON_NEGATIVE,
            eps_root=NON_NEGATIVE,
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
