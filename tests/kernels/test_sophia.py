"""Sophia's step against its paper, and when it asks for the Hessian."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.testing import references

from ..trajectory import (
    COUNT,
    DECAY,
    DOUBLE,
    NON_NEGATIVE,
    SINGLE,
    assert_close,
    check_refused,
    inputs,
    run,
    wrong_arguments,
)

STEPS, INTERVAL = 11, 3


def given_diagonal():
    """Takes the Hessian's diagonal from the extra arguments, and counts how often."""

    def update(updates, state, params=None, *, diagonal, **extra):
        return diagonal, state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)


def rising(count):
    return 0.5 + jnp.asarray(np.arange(STEPS) / 32)[count]


SETTINGS = {
    "defaults": {},
    "corrected": {"b1": 0.8, "gamma": 0.5, "eps": 0.1, "bias_correction": True},
    "unclipped": {"b1": 0.5, "b2": 0.5, "eps": 0.2, "gamma": 1.0, "clip_threshold": None},
    "schedules": {"b1": rising, "b2": rising, "eps": rising, "clip_threshold": rising},
}
REFERENCE = references.scale_by_sophia(update_interval=INTERVAL)


@pytest.mark.parametrize(
    ("setting", "is_double"),
    [("defaults", False), ("unclipped", False), *((name, True) for name in SETTINGS)],
    ids=lambda value: value if isinstance(value, str) else "double" if value else "single",
)
def test_equation(setting, is_double):
    arguments = SETTINGS[setting] | {"update_interval": INTERVAL}
    gradients, diagonals = (trees[:STEPS] for trees in inputs(24))
    leaves, hessians = ([list(tree.values()) for tree in trees] for trees in (gradients, diagonals))
    # The estimates are a tree too, so that each leaf is an equation for itself.
    reference = references.scale_by_sophia(**arguments)
    runs = [
        reference.run([[g[i]] for g in leaves], [[g[i]] for g in leaves], given)
        for i in range(len(leaves[0]))
        for given in [[{"diagonal": h[i]} for h in hessians]]
    ]
    tolerance = DOUBLE if is_double else SINGLE
    with jax.enable_x64(is_double):
        tx = gradtx.scale_by_sophia(hessian_diagonal_fn=given_diagonal(), **arguments)
        extra = [{"diagonal": h} for h in diagonals]
        found = run(tx, gradients, gradients, extra=extra)
        for t, ((updates, state), *right) in enumerate(zip(found, *runs, strict=True), start=1):
            names = gradients[0]
            expected = {name: u for name, ([u], _) in zip(names, right, strict=True)}
            # Where curvature cancels, h loses its last digits, and the quotient with it.
            assert_close(updates, expected, 4 * tolerance, f"updates of step {t}")
            for slot in ("mu", "nu"):
                theirs = {name: new[slot] for name, (_, [new]) in zip(names, right, strict=True)}
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
                step = functools.partial(REFERENCE.step, update_interval=INTERVAL, diagonal=0.0)
                expected, new = step(3, np.float64(g[name]), None, old)
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
    ("every", "limit", "printed"),
    [
        (2, 1.0, ["0.75", "0.75"]),
        (0, 1.0, []),
        (3, lambda count: jnp.array([1.0, 0.6, 0.3, 0.2])[count], ["0.25"]),
    ],
    ids=["every-second", "never", "schedule"],
)
def test_win_rate_is_printed_when_asked_for(capfd, every, limit, printed):
    tx = gradtx.scale_by_sophia(
        b1=0.0,
        b2=0.0,
        gamma=1.0,
        clip_threshold=limit,
        hessian_diagonal_fn=given_diagonal(),
        verbose=True,
        print_win_rate_every_n_steps=every,
    )
    # One element in four is clipped at 1, and one more at each limit below.
    gradient = jnp.array([2.0, 0.5, 0.25, -0.75], jnp.float16)
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
