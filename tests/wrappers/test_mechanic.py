"""Mechanic against its paper and optax, and the scale that it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import gradtx
from gradtx.compose.parts import parts_of
from gradtx.testing import references

from ..trajectory import NON_NEGATIVE, Case, check_equation, check_refused, wrong_arguments
from .changing_hands import check_changes_hands

ARGUMENTS = {"weight_decay": 0.25, "eps": 0.125, "s_init": 0.5, "num_betas": 3}


def mechanized_sgd(learning_rate, **arguments):
    return gradtx.mechanize(gradtx.sgd(learning_rate), **arguments)


@pytest.mark.parametrize("clip_rewards", [False, True])
def test_equation(clip_rewards):
    arguments = ARGUMENTS | {"learning_rate": 0.5, "clip_rewards": clip_rewards}
    check_in_double_precision(arguments)


def check_in_double_precision(arguments):
    with jax.enable_x64(True):
        check_equation(Case(mechanized_sgd, arguments, steps=20), points=True)


def test_equation_with_defaults():
    check_in_double_precision({"learning_rate": 0.5})


def test_equation_with_arrays_and_schedules():
    arguments = ARGUMENTS | {
        "weight_decay": lambda count: 0.25 * (1 - count / 64),
        "eps": jnp.float32(0.125),
        "s_init": jnp.float32(0.5),
        "learning_rate": lambda count: 0.5 * (1 - count / 64),
    }
    check_in_double_precision(arguments)


def test_a_run_changes_hands_with_optax():
    ours = gradtx.mechanize(gradtx.adam(0.1), s_init=0.1, clip_rewards=True)
    theirs = contrib.mechanize(optax.adam(0.1), s_init=0.1)
    check_changes_hands(ours, theirs, at=3, steps=6, rtol=3e-5)


def test_the_scale_follows_the_curvature_over_decades():
    # Gradient descent with rate 1 on curvature * x^2 / 2 wants the scale 1 / curvature.
    tx = gradtx.mechanize(gradtx.sgd(1.0))
    start = jnp.array([2.0, -2.0, -0.5])

    def run(curvature):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(curvature * x, state, x)
            return (gradtx.apply_updates(x, updates), state), None

        (x, state), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=300)
        return jnp.linalg.norm(x) / jnp.linalg.norm(start), jnp.sum(state.s)

    with jax.enable_x64(True):
        curvatures = np.array([1e-2, 1.0, 1e2, 1e4])
        start = start.astype(jnp.float64)
        errors, scales = jax.jit(jax.vmap(run))(jnp.asarray(curvatures))
    assert np.all(np.asarray(errors) < 0.05)
    relative = np.asarray(scales) * curvatures
    assert np.all((relative > 1 / 100) & (relative < 1)), relative
    assert np.max(relative) < 10 * np.min(relative)


def test_it_starts_where_the_first_update_finds_the_parameters():
    tx = gradtx.mechanize(gradtx.sgd(1.0))
    elsewhere = jnp.array([5.0, 6.0])
    _, state = jax.jit(tx.update)(jnp.ones(2), tx.init(jnp.zeros(2)), elsewhere)
    np.testing.assert_array_equal(state.x0, elsewhere)


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
def test_a_run_that_starts_at_zero(weight_decay):
    target = np.array([3.0, -4.0])
    with jax.enable_x64(True):
        tx = gradtx.mechanize(gradtx.sgd(0.5), weight_decay, s_init=0.1)
        x, found, old = np.zeros(2), jnp.zeros(2), {}
        state = tx.init(found)
        for t in range(1, 9):
            updates, state = tx.update(found - target, state, found)
            found = found + updates
            settings = {"learning_rate": 0.5, "weight_decay": weight_decay, "s_init": 0.1}
            expected, old = references.mechanized_sgd.step(t, x - target, x, old, **settings)
            x = x + expected
            np.testing.assert_allclose(found, x, rtol=1e-12)
    # The scale grows from s_init on, although nothing can be decayed in the first step.
    assert np.all(np.abs(x) > 0.1)


def test_parameters_come_back_to_zero():
    # p = 0 later on, and far smaller numbers than the gradient's, whose quotient would overflow.
    tx = gradtx.mechanize(gradtx.sgd(1.0))
    state = tx.init(jnp.ones(2))
    for params in (jnp.ones(2), jnp.zeros(2), jnp.full(2, 1e-37)):
        updates, state = jax.jit(tx.update)(jnp.full(2, 1e3), state, params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((updates, state)))


def test_extra_arguments_and_parts():
    inner = gradtx.polyak_sgd()
    tx = gradtx.mechanize(inner, s_init=1.0)
    params = jnp.array([3.0, 4.0])
    updates, _ = jax.jit(tx.update)(2 * params, tx.init(params), params, value=25.0)
    np.testing.assert_allclose(updates, -params / 2, rtol=1e-6)
    assert [part.transformation for part in parts_of(tx)] == [inner]


def test_missing_parameters_are_refused():
    tx = gradtx.mechanize(gradtx.sgd(1.0))
    with pytest.raises(ValueError, match="mechanize: needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_a_state_of_other_parameters_is_refused():
    tx = gradtx.mechanize(gradtx.sgd(1.0))
    params = {"w": jnp.ones(2)}
    state = tx.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"mechanize: shapes differ at 'w'.*\(3,\)"):
        tx.update(params, state, params)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.mechanize,
        {"base_optimizer": gradtx.sgd(1.0)},
        base_optimizer=(None, gradtx.sgd),
        weight_decay=NON_NEGATIVE[:2],
        eps=(0.0, -1.0),
        s_init=(0.0, lambda count: 1.0),
        num_betas=(0, 1.5),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
