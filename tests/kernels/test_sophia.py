"""Sophia's step against its paper, and when it asks for the Hessian."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import (
    COUNT,
    DECAY,
    DOUBLE,
    NON_NEGATIVE,
    SINGLE,
    assert_close,
    at,
    check_refused,
    inputs,
    wrong_arguments,
)

STEPS, INTERVAL = 11, 3


def given_diagonal():
    """Takes the Hessian's diagonal from the extra arguments, and counts how often."""

    def update(updates, state, params=None, *, diagonal, **extra):
        return diagonal, state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)


def sophia(t, g, diagonal, old, *, b1, b2, eps, gamma, clip_threshold, bias_correction=False):
    """Liu et al. 2023, Algorithm 3, lines 6 to 13, without the learning rate."""
    m = b1 * old["mu"] + (1 - b1) * g
    h = old["nu"]
    if t % INTERVAL == 1:
        h = b2 * h + (1 - b2) * diagonal
    m_hat = m / (1 - b1**t) if bias_correction else m
    u = m_hat / np.maximum(gamma * h, eps)
    return np.clip(u, -clip_threshold, clip_threshold), {"mu": m, "nu": h}


def rising(count):
    return 0.5 + jnp.asarray(np.arange(STEPS) / 32)[count]


SETTINGS = {
    "defaults": {},
    "corrected": {"b1": 0.8, "gamma": 0.5, "eps": 0.1, "bias_correction": True},
    "unclipped": {"b1": 0.5, "b2": 0.5, "eps": 0.2, "gamma": 1.0, "clip_threshold": None},
    "schedules": {"b1": rising, "b2": rising, "eps": rising, "clip_threshold": rising},
}
DEFAULTS = {"b1": 0.965, "b2": 0.99, "eps": 1e-8, "gamma": 0.01, "clip_threshold": 1.0}


@pytest.mark.parametrize(
    ("setting", "is_double"),
    [("defaults", False), ("unclipped", False), *((name, True) for name in SETTINGS)],
    ids=lambda value: value if isinstance(value, str) else "double" if value else "single",
)
def test_equation(setting, is_double):
    arguments = SETTINGS[setting]
    gradients, diagonals = inputs(24)
    with jax.enable_x64(is_double):
        tx = gradtx.scale_by_sophia(
            update_interval=INTERVAL, hessian_diagonal_fn=given_diagonal(), **arguments
        )
        update = jax.jit(lambda g, state, h: tx.update(g, state, diagonal=h))
        state = tx.init(jax.tree.map(jnp.asarray, gradients[0]))
        old = {leaf: {"mu": 0.0, "nu": np.zeros_like(g)} for leaf, g in gradients[0].items()}
        for t in range(1, STEPS + 1):
            g, h = gradients[t - 1], diagonals[t - 1]
            updates, state = update(*jax.tree.map(jnp.asarray, (g, state, h)))
            values = {name: at(value, t - 1) for name, value in (DEFAULTS | arguments).items()}
            if values["clip_threshold"] is None:
                values["clip_threshold"] = np.inf
            expected = {}
            for leaf in g:
                expected[leaf], old[leaf] = sophia(t, g[leaf], h[leaf], old[leaf], **values)
            tolerance = DOUBLE if is_double else SINGLE
            # Where curvature cancels, h loses its last digits, and the quotient with it.
            assert_close(updates, expected, 4 * tolerance, f"updates of step {t}")
            for slot in ("mu", "nu"):
                theirs = {leaf: old[leaf][slot] for leaf in old}
                assert_close(getattr(state, slot), theirs, tolerance, f"{slot} of step {t}")


@pytest.mark.parametrize("jitted", [True, False], ids=["compiled", "eager"])
def test_hessian_is_only_asked_for_in_its_steps(jitted):
    calls = []

    def update(updates, state, params=None, **extra):
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    estimator = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = gradtx.scale_by_sophia(update_interval=3, hessian_diagonal_fn=estimator)
    step = jax.jit(tx.update) if jitted else tx.update
    state, total = tx.init(jnp.ones(2)), []
    for _ in range(7):
        _, state = step(jnp.ones(2), state)
        jax.effects_barrier()
        total.append(len(calls))
    assert total == [1, 1, 1, 2, 2, 2, 3]


def test_state_is_that_of_optax_and_goes_on_from_it():
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def loss(p):
        return jnp.sum(p["w"] ** 4) + p["b"] ** 2

    theirs = optax.contrib.sophia(0.1, weight_decay=0.0, update_interval=INTERVAL)
    ours = gradtx.sophia(0.1, weight_decay=0.0, update_interval=INTERVAL)
    chex.assert_trees_all_equal_structs(ours.init(params), theirs.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(params), theirs.init(params))
    steps = {tx: jax.jit(functools.partial(tx.update, obj_fn=loss)) for tx in (theirs, ours)}
    state = theirs.init(params)
    for tx in (theirs, theirs, ours, theirs):
        old_state, g = state[0], jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = steps[tx](g, state, params)
        if tx is ours:  # the third step, which leaves the Hessian as it is
            for name in params:
                old = {"mu": np.float64(old_state.mu[name]), "nu": np.float64(old_state.nu[name])}
                expected, new = sophia(3, np.float64(g[name]), None, old, **DEFAULTS)
                np.testing.assert_allclose(updates[name], -0.1 * expected, rtol=1e-6)
                np.testing.assert_allclose(state[0].mu[name], new["mu"], rtol=1e-6)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_structs(state, ours.init(params))
    assert state[0].count == 4


def test_estimator_of_optax_may_be_used():
    x = jnp.array([3.0, 4.0])

    def loss(x):
        return jnp.sum(jnp.array([1.0, 50.0]) * x**2)

    tx = gradtx.scale_by_sophia(
        b1=0.0,
        b2=0.0,
        gamma=1.0,
        clip_threshold=None,
        hessian_diagonal_fn=optax.contrib.hutchinson_estimator_diag_hessian(),
    )
    updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, obj_fn=loss)
    np.testing.assert_allclose(updates, x, rtol=1e-6)


def test_half_precision_is_calculated_and_kept_in_single():
    def update(updates, state, params=None, **extra):
        return 1e5 * updates, state  # which float16 cannot hold

    estimator = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = gradtx.scale_by_sophia(b1=0.0, b2=0.5, gamma=2.0, hessian_diagonal_fn=estimator)
    gradient = jnp.array([1.0], jnp.float16)
    updates, state = tx.update(gradient, tx.init(gradient))
    assert state.nu.dtype == jnp.float32
    assert updates.dtype == jnp.float16
    np.testing.assert_allclose(state.nu, [5e4])
    np.testing.assert_allclose(updates, [1e-5], rtol=1e-2)  # subnormal in float16


@pytest.mark.parametrize(
    ("every", "printed"), [(2, ["0.75", "0.75"]), (0, [])], ids=["every-second", "never"]
)
def test_win_rate_is_printed_when_asked_for(capfd, every, printed):
    tx = gradtx.scale_by_sophia(
        b1=0.0,
        b2=0.0,
        gamma=1.0,
        hessian_diagonal_fn=given_diagonal(),
        verbose=True,
        print_win_rate_every_n_steps=every,
    )
    gradient = jnp.array([2.0, 0.5, 0.25, -0.5])  # one element in four is clipped
    state, step = tx.init(gradient), jax.jit(tx.update)
    for _ in range(4):
        _, state = step(gradient, state, diagonal=jnp.ones(4))
    jax.effects_barrier()
    lines = capfd.readouterr().out.splitlines()
    assert [next(word for word in line.split() if word[0] == "0") for line in lines] == printed


def test_complex_numbers_are_refused():
    with pytest.raises(ValueError, match=r"scale_by_sophia: complex.*'w'"):
        gradtx.scale_by_sophia().init({"w": jnp.ones(2, jnp.complex64)})


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_sophia,
        {},
        b1=DECAY,
        b2=DECAY,
        eps=NON_NEGATIVE,
        gamma=NON_NEGATIVE,
        clip_threshold=NON_NEGATIVE,
        update_interval=COUNT,
        print_win_rate_every_n_steps=(-1, 0.5),
        hessian_diagonal_fn=(0.5,),
        mu_dtype=(int, "wide"),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
