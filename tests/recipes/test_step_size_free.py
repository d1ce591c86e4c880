"""What theory says about step-size-free methods, checked in short runs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx


def descend(tx, loss, start, steps, watch="count"):
    """The points, and a field of the state, of each step."""

    def step(carry, _):
        x, state = carry
        value, gradient = jax.value_and_grad(loss)(x)
        updates, state = tx.update(gradient, state, x, value=value)
        x = gradtx.apply_updates(x, updates)
        return (x, state), (x, optax.tree.get(state, watch))

    run = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, length=steps)[1])
    return [None if x is None else np.asarray(x) for x in run(start)]


def distance_to(target):
    return lambda x: jnp.sum(jnp.abs(x - target))


@pytest.mark.parametrize(("scaling", "factor"), [(1.0, 0.5), (2.0, 0.0), (0.5, 0.75)])
def test_polyak_halves_a_bowl_whatever_its_curvature(scaling, factor):
    # On c ||x||^2 the step is f / ||g||^2 * g = x / 2, times the scaling.
    tx = gradtx.polyak_sgd(max_learning_rate=math.inf, scaling=scaling)
    for curvature in (1e-3, 1.0, 1e3):
        points, _ = descend(tx, lambda x, c=curvature: c * jnp.sum(x**2), jnp.array([4.0, -8.0]), 3)
        wanted = np.array([4.0, -8.0]) * factor**3
        np.testing.assert_allclose(points[-1], wanted, rtol=1e-6, atol=1e-12)


def test_polyak_comes_closer_by_its_whole_gap():
    # ||x' - x*||^2 <= ||x - x*||^2 - (f - f*)^2 / ||g||^2, Polyak 1969.
    curvature = np.array([1.0, 20.0], np.float32)

    def loss(x):
        return (curvature * x**2).sum() / 2 + 3

    points, _ = descend(gradtx.polyak_sgd(10.0, f_min=3.0), loss, jnp.array([3.0, 1.0]), 60)
    for x, new in itertools.pairwise(points):
        gap, gradient = loss(x) - 3, curvature * x
        drop = gap**2 / np.sum(gradient**2)
        assert np.sum(new**2) <= np.sum(x**2) - drop + 1e-6
    # A gap of at least ||x||^2 / 2 with ||g|| <= 20 ||x|| makes it linear: 1 - 1 / (4 * 20).
    assert np.sum(points[-1] ** 2) <= 10 * (1 - 1 / 80) ** 60


def test_momo_without_momentum_is_polyak():
    tx = gradtx.momo(math.inf, beta=0.0)
    points, _ = descend(tx, lambda x: 5 * jnp.sum(x**2), jnp.array([4.0]), 3)
    np.testing.assert_allclose(points[:, 0], [2, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.momo(math.inf, beta=0.0, adapt_lower_bound=True),
        gradtx.momo_adam(math.inf, b1=0.0, adapt_lower_bound=True),
    ],
    ids=["momo", "momo_adam"],
)
def test_without_momentum_the_bound_goes_half_of_the_way_to_the_loss(tx):
    # tau ||g||^2 = f - lb, so that f - tau ||g||^2 / 2 = (f + lb) / 2. From a bound above the loss
    # it starts at f / 2 again.
    def loss(x):
        return (np.array([1.0, 4.0], np.float32) * x**2).sum() / 2 + 5

    points, bounds = descend(tx, loss, jnp.array([3.0, -2.0]), 40, "lb")
    losses = [loss(x) for x in (np.array([3.0, -2.0]), *points[:-1])]
    old, resets = 0.0, 0
    for value, bound in zip(losses, bounds, strict=True):
        resets += value < old
        expected = (value + (value / 2 if value < old else old)) / 2
        np.testing.assert_allclose(bound, expected, rtol=1e-5)
        old = bound
    assert resets


def test_dog_grows_as_its_product_says_and_settles_at_the_length_of_a_step():
    # With unit gradients x_{t+1} = x_t + r_t / sqrt(t), until the target is passed.
    tx = gradtx.dog(init_step=("distance", 1e-3), eps=0.0)
    points, _ = descend(tx, distance_to(3.0), jnp.zeros(1), 400, "max_dist")
    points = points[:, 0]
    expected, r = [0.0], 1e-3
    while expected[-1] < 3:
        r = max(r, expected[-1])
        expected.append(expected[-1] + r / math.sqrt(len(expected)))
    np.testing.assert_allclose(points[: len(expected) - 1], expected[1:], rtol=1e-5)
    assert abs(points[-1] - 3) <= max(points) / math.sqrt(400)


def test_dowg_outgrows_dog_and_settles_at_the_length_of_a_step():
    points, squared = descend(
        gradtx.dowg(init_estim_sq_dist=1e-6, eps=0.0),
        distance_to(3.0),
        jnp.zeros(1),
        400,
        "estim_sq_dist",
    )
    dog, _ = descend(
        gradtx.dog(init_step=("distance", 1e-3), eps=0.0), distance_to(3.0), jnp.zeros(1), 60, "eps"
    )
    assert np.argmax(points > 3) < np.argmax(dog > 3)
    length = squared / np.sqrt(np.cumsum(squared))
    # Each squared distance was taken before its step.
    np.testing.assert_allclose(np.abs(np.diff(points[:, 0])), length[1:], rtol=2e-4)
    assert abs(points[-1, 0] - 3) <= length[-1] * (1 + 1e-5)


def test_prodigy_never_overestimates_the_distance_and_comes_near():
    # r_t <= ||s_t||_1 * max|x* - x_0| holds of every convex loss, because <g, x* - x> <= 0.
    for target in (1e-2, 3.0, 300.0):
        _, estimates = descend(
            gradtx.prodigy(), distance_to(jnp.array([target, 0.0])), jnp.zeros(2), 200, "estim_lr"
        )
        assert np.all(np.diff(estimates) >= 0)
        assert np.max(estimates) <= target * (1 + 1e-5)
        assert estimates[-1] >= target / 5


def test_d_adaptation_follows_the_distance_over_decades():
    # No theorem bounds the estimate of the Adam version from above.
    for target in (1e-2, 3.0, 300.0):
        _, estimates = descend(
            gradtx.dadapt_adamw(), distance_to(target), jnp.zeros(1), 300, "estim_lr"
        )
        assert np.all(np.diff(estimates) >= 0)
        assert target / (1 + math.sqrt(3)) <= estimates[-1] <= 6 * target


@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_cocob_multiplies_its_wealth_until_it_has_arrived(alpha):
    # While every coin shows the same side, the share (t - 1) / max(t, alpha) of the wealth is won.
    points, _ = descend(gradtx.cocob(alpha=alpha), distance_to(10.0), jnp.zeros(1), 400, "eps")
    wealth, expected, t = 1.0, [0.0], 1
    while expected[-1] < 10:
        wealth *= 1 + (t - 1) / max(t, alpha)
        expected.append(t / max(t + 1, alpha) * wealth)
        t += 1
    np.testing.assert_allclose(points[: t - 1, 0], expected[1:], rtol=1e-5)
    # The average obeys Theorem 1, with D = 10 and T coins of size 1.
    bound = 10 * math.sqrt(401 * math.log(1 + 401**2 * 100)) / 400
    assert abs(np.mean(points) - 10) <= bound
