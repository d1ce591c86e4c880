"""Sharpness-aware minimization against its equations, and against what a quadratic predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import COUNT, check_refused, wrong_arguments
from .changing_hands import TIMES_VALUE, check_changes_hands

RADIUS, DECAY = 0.3, 0.1
CURVATURE = np.array([0.5, 1.0, 3.0])
START = np.array([1.0, -2.0, 0.5])


def climb(radius=RADIUS):
    return gradtx.chain(gradtx.normalize(), gradtx.sgd(radius))


def descent():
    return gradtx.chain(gradtx.add_decayed_weights(DECAY), gradtx.sgd(0.2, momentum=0.9))


def slope(x, np=np):
    """The gradient of a loss that is not quadratic."""
    return np.asarray(CURVATURE) * x + np.sin(x)


def train(tx, calls, start=START, gradient=slope, **extra):
    """The parameters and the state after each call."""
    params = jnp.asarray(start)
    state, path = tx.init(params), []

    @jax.jit
    def one(params, state):
        updates, state = tx.update(gradient(params, jnp), state, params, **extra)
        return gradtx.apply_updates(params, updates), state

    for _ in range(calls):
        params, state = one(params, state)
        path.append((params, state))
    return path


def equations(steps, climbs, learning_rate, momentum):
    """Equations (2) and (3) with a heavy ball and weight decay, with several climbs if asked."""
    x, velocity = START, 0.0
    for _ in range(steps):
        point = x
        for _ in range(climbs):
            g = slope(point)
            point = point + RADIUS * g / np.linalg.norm(g)
            yield point
        velocity = momentum * velocity + slope(point) + DECAY * x
        x = x - learning_rate * velocity
        yield x


@pytest.mark.parametrize("period", [1, 2, 3])
def test_equations(period):
    with jax.enable_x64(True):
        tx = gradtx.sam(descent(), climb(), period)
        path = train(tx, 4 * period)
        expected = equations(4, period - 1, 0.2, 0.9)
        for (params, _), point in zip(path, expected, strict=True):
            np.testing.assert_allclose(params, point, rtol=1e-12)


@pytest.mark.parametrize("period", [1, 2, 3])
def test_opaque_mode_takes_whole_steps(period):
    with jax.enable_x64(True):
        tx = gradtx.sam(descent(), climb(), period, opaque_mode=True)
        path = train(tx, 4, grad_fn=lambda params, i: slope(params, jnp))
        expected = list(equations(4, period - 1, 0.2, 0.9))[period - 1 :: period]
        for (params, state), point in zip(path, expected, strict=True):
            np.testing.assert_allclose(params, point, rtol=1e-12)
            assert state.cache is None


def test_each_gradient_on_the_way_is_told_its_number():
    seen = []

    def grad_fn(params, i):
        seen.append(i)
        return slope(params, jnp)

    tx = gradtx.sam(gradtx.sgd(0.2), climb(), 4, opaque_mode=True)
    params = jnp.asarray(START)
    tx.update(slope(params, jnp), tx.init(params), params, grad_fn=grad_fn)
    assert seen == [0, 1, 2]


def test_gradients_on_the_way_are_averaged_over_devices():
    # Each element of the batch has its own curvature; the mean must be the one that is used.
    curvatures = jnp.array([1.0, 3.0])
    tx = gradtx.sam(gradtx.sgd(0.1), climb(), opaque_mode=True, batch_axis_name="batch")

    def one(curvature):
        x = jnp.float32(2.0)
        gradient = jax.lax.pmean(curvature * x, "batch")
        return tx.update(gradient, tx.init(x), x, grad_fn=lambda x, i: curvature * x)[0]

    updates = jax.vmap(one, axis_name="batch")(curvatures)
    np.testing.assert_allclose(updates, -0.1 * 2.0 * (2.0 + RADIUS), rtol=1e-6)


def test_step_on_a_quadratic():
    # The gradient of a x^2 / 2 is that at x + rho * sign(x).
    curvature, rate = 4.0, 0.1
    for start in (0.7, -0.2):
        tx = gradtx.sam(gradtx.sgd(rate), climb())
        path = train(tx, 2, start, lambda x, np: curvature * x)
        expected = start - rate * curvature * (start + RADIUS * np.sign(start))
        np.testing.assert_allclose(path[-1][0], expected, rtol=1e-6)


def test_oscillation_around_the_minimum_of_a_quadratic():
    # x -> (1 - c) x - c rho sign(x), with c = lr * a, ends between x and -x: x = c rho / (2 - c).
    curvature, rate = 4.0, 0.1
    tx = gradtx.sam(gradtx.sgd(rate), climb())
    params = jnp.float32(1.0)

    def one(carry, _):
        params, state = carry
        updates, state = tx.update(curvature * params, state, params)
        return (gradtx.apply_updates(params, updates), state), params

    _, path = jax.lax.scan(one, (params, tx.init(params)), length=400)
    amplitude = rate * curvature * RADIUS / (2 - rate * curvature)
    np.testing.assert_allclose(np.abs(path[-20::2]), amplitude, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_returns_exactly_to_where_the_climb_began(dtype):
    start = jnp.asarray(np.random.default_rng(0).normal(size=300) + 4, dtype)
    path = train(gradtx.sam(gradtx.sgd(0.0), climb()), 2, start, lambda x, np: np.sin(x))
    assert np.any(np.asarray(path[0][0] != start))
    np.testing.assert_array_equal(path[1][0], start)


def test_the_climb_starts_again_after_each_step():
    def make(resets):
        return gradtx.sam(gradtx.sgd(0.1), gradtx.sgd(0.1, momentum=0.9), 3, resets)

    for resets in (True, False):
        path = train(make(resets), 3)
        after_climb, after_step = path[1][1].adv_state, path[2][1].adv_state
        expected = jax.tree.map(jnp.zeros_like, after_climb) if resets else after_climb
        jax.tree.map(np.testing.assert_array_equal, after_step, expected)


def test_only_one_transformation_is_carried_out_in_a_call():
    seen = []

    def counting(name):
        def count(updates, params):
            jax.debug.callback(lambda: seen.append(name))
            return updates

        return gradtx.stateless(count)

    train(gradtx.sam(counting("step"), counting("climb"), 3), 6)
    jax.effects_barrier()
    assert seen == ["climb", "climb", "step"] * 2


def test_an_infinite_gradient_on_the_climb_does_not_reach_the_state():
    tx = gradtx.sam(gradtx.adam(0.1), climb())
    params = jnp.ones(2)
    _, state = tx.update(jnp.full(2, jnp.nan), tx.init(params), params)
    for leaf in [*jax.tree.leaves(state.opt_state), state.cache]:
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("resets", [True, False], ids=["reset", "kept"])
def test_a_run_changes_hands_in_the_middle_of_a_step(resets):
    def make(library):
        ascent = library.chain(library.scale(0.5), library.sgd(0.3, momentum=0.5))
        sam = gradtx.sam if library is gradtx else optax.contrib.sam
        return sam(library.adam(0.1), ascent, 3, resets)

    check_changes_hands(make(gradtx), make(optax), at=4, steps=9, rtol=3e-5)


def test_an_opaque_run_changes_hands():
    def make(sam, library):
        ascent = library.chain(library.scale(0.5), library.sgd(0.3))
        return sam(library.sgd(0.1, momentum=0.9), ascent, opaque_mode=True)

    check_changes_hands(
        make(gradtx.sam, gradtx),
        make(optax.contrib.sam, optax),
        at=2,
        steps=4,
        extra=lambda params: {"grad_fn": lambda p, i: jax.tree.map(jnp.sin, p)},
    )


def test_leaves_without_a_gradient():
    tx = gradtx.sam(gradtx.sgd(1.0), gradtx.sgd(0.5), 2)
    params = {"w": jnp.ones(1), "steps": jnp.int32(3), "frozen": jnp.ones(1), "name": jnp.tanh}
    gradients = {"w": jnp.ones(1), "steps": None, "frozen": None, "name": None}
    state = tx.init(params)
    assert state.cache["name"] is None
    for expected in (1.5, 0.0):
        updates, state = tx.update(gradients, state, params)
        assert updates["frozen"] is None
        params = gradtx.apply_updates(params, updates)
        assert (params["w"], params["frozen"], params["steps"]) == (expected, 1.0, 3)


@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "transparent"])
def test_extra_arguments_reach_both_transformations(opaque):
    tx = gradtx.sam(TIMES_VALUE, TIMES_VALUE, 2, opaque_mode=opaque)
    path = train(tx, 1 if opaque else 2, value=2.0, grad_fn=lambda p, i: p * 0 + 5)
    gradient = 5.0 if opaque else slope(START - 2.0 * slope(START))
    np.testing.assert_allclose(path[-1][0], START + 2.0 * gradient, rtol=1e-6)


def test_missing_arguments_are_refused():
    tx = gradtx.sam(gradtx.sgd(0.1), climb())
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    tx = gradtx.sam(gradtx.sgd(0.1), climb(), opaque_mode=True)
    with pytest.raises(ValueError, match="grad_fn"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.sam,
        {"optimizer": gradtx.sgd(0.1), "adv_optimizer": gradtx.sgd(0.1)},
        sync_period=COUNT,
        optimizer=(None, "sgd"),
        adv_optimizer=(None, gradtx.sgd),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
