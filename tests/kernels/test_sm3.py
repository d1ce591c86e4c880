"""SM3: its paper, the sums that it bounds, AdaGrad where they are the same, and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    Case,
    check_equation,
    check_refused,
    complex_gradients,
    double_and_optax,
    with_hyperparameters,
    wrong_arguments,
)
from ..wrappers.changing_hands import check_changes_hands

SUMS = Case(gradtx.scale_by_sm3)
AVERAGES = Case(gradtx.scale_by_sm3, {"b1": 0.5, "b2": 0.75, "eps": 1e-2}, steps=14)


def test_equation_in_double_precision_and_optax():
    for case in (SUMS, AVERAGES):
        double_and_optax(case)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(SUMS, id="numbers"),
        pytest.param(with_hyperparameters(AVERAGES, jnp.asarray), id="arrays"),
        pytest.param(
            with_hyperparameters(AVERAGES, lambda value: lambda count: jnp.float32(value)),
            id="schedules",
        ),
    ],
)
def test_equation_in_single_precision(case):
    check_equation(case)


def test_complex_gradients_count_by_their_modulus():
    complex_gradients(AVERAGES)


def test_bounds_lie_above_the_sums_and_below_those_of_the_simpler_algorithm():
    # Anil et al. 2019, Proposition 3; SM3-I adds the largest square of each set.
    tx = gradtx.scale_by_sm3()
    rng = np.random.default_rng(5)
    state = tx.init(jnp.zeros((3, 4, 2)))
    sums, simple = np.zeros((3, 4, 2)), [np.zeros(n) for n in (3, 4, 2)]
    update = jax.jit(tx.update)
    for _ in range(20):
        g = np.float32(rng.normal(size=sums.shape) * np.exp(rng.normal(size=sums.shape)))
        _, state = update(jnp.asarray(g), state)
        sums += np.float64(g) ** 2
        lowest = np.full(sums.shape, np.inf)
        for axis, bound in enumerate(state.mu):
            others = tuple(i for i in range(3) if i != axis)
            simple[axis] += np.max(np.float64(g) ** 2, axis=others)
            assert np.all(bound <= simple[axis] * (1 + 1e-5))
            lowest = np.minimum(lowest, np.expand_dims(bound, others))
        assert np.all(lowest >= sums * (1 - 1e-5))


def test_vectors_and_scalars_are_those_of_adagrad():
    params = {"vector": jnp.zeros(5), "scalar": jnp.zeros([])}
    sm3 = gradtx.scale_by_sm3(b1=0.0, eps=1e-3)
    adagrad = gradtx.scale_by_rss(initial_accumulator_value=0.0, eps=1e-3)
    states = [sm3.init(params), adagrad.init(params)]
    rng = np.random.default_rng(6)
    for t in range(4):
        g = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
        g["vector"] = g["vector"].at[:2].multiply(float(t > 1))
        one, states[0] = sm3.update(g, states[0])
        other, states[1] = adagrad.update(g, states[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-7), one, other)


def test_memory_of_the_bounds_grows_with_the_sides():
    params = jax.ShapeDtypeStruct((300, 500, 2), jnp.float32)
    state = jax.eval_shape(gradtx.scale_by_sm3().init, params)
    assert [bound.shape for bound in state.mu] == [(300,), (500,), (2,)]
    assert state.nu.shape == params.shape


def test_runs_change_hands():
    check_changes_hands(gradtx.sm3(0.1), optax.sm3(0.1), at=3, steps=6)


def test_descent_goes_the_way_of_adagrad_on_any_curvature():
    # Where all elements are alike SM3 is AdaGrad, whose path in a bowl a / 2 x^2 does not depend
    # on a. For small steps d sqrt(s) / dx = -a x / (2 rate), so that sqrt(s) ends at
    # a x_0^2 / (4 rate) and x falls by 1 - 4 rate^2 / x_0^2 in each step, but for O(rate log).
    rate = 0.02
    tx = gradtx.chain(gradtx.scale_by_sm3(b1=0.0, eps=0.0), gradtx.scale(-rate))

    def path(curvature):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(curvature * x, state)
            x = gradtx.apply_updates(x, updates)
            return (x, state), x[0, 1]

        start = jnp.ones((2, 3))
        return jax.lax.scan(step, (start, tx.init(start)), length=4000)[1]

    with jax.enable_x64(True):
        flat, steep = np.asarray(jax.jit(jax.vmap(path))(jnp.array([1e-3, 1e3])))
    np.testing.assert_allclose(flat, steep, rtol=1e-9)
    ratios = flat[-100:] / flat[-101:-1]
    np.testing.assert_allclose(1 - ratios, 4 * rate**2, rtol=0.06)


def test_constant_gradients_move_by_the_inverse_root_of_the_step():
    tx = gradtx.scale_by_sm3(b1=0.0, eps=0.0)
    g = jnp.array([[3.0, -1e-6], [1e-6, -0.5]])
    state, update = tx.init(g), jax.jit(tx.update)
    for _ in range(5):
        updates, state = update(g, state)
    # Each element is the largest of its row or column, and no bound is shared with a larger one.
    np.testing.assert_allclose(jnp.diagonal(updates), np.array([1, -1]) / np.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.scale_by_sm3, {}, b1=DECAY, b2=(1.5, *NON_NEGATIVE), eps=NON_NEGATIVE
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_a_leaf_that_is_missing_is_named_and_no_other():
    params = {"kernel": jnp.ones((2, 3)), "scale": jnp.float32(1), "vector": jnp.ones(3)}
    tx = gradtx.scale_by_sm3()
    state = tx.init(params)
    for missing in params:
        updates = {name: leaf for name, leaf in params.items() if name != missing}
        with pytest.raises(ValueError, match=rf"differ at '{missing}/0': updates has no leaf"):
            tx.update(updates, state)
