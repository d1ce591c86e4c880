"""Descent with noise: its variance at each step, and that of its stationary distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gradtx

from ..trajectory import check_refused, wrong_arguments


def run(tx, curvature, count, steps):
    """The updates and points of `count` coordinates in a bowl, from 0."""

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(curvature * x, state, x)
        x = x + updates
        return (x, state), (updates, x)

    start = jnp.zeros(count)
    _, path = lax.scan(step, (start, tx.init(start)), length=steps)
    return path


def test_variance_of_the_noise_falls_with_the_step():
    tx = gradtx.noisy_sgd(0.5, eta=4.0, gamma=1.5, key=0)
    updates, _ = run(tx, 0.0, 20_000, 8)
    # A sample variance of n normal numbers has the relative deviation sqrt(2 / n) = 1%.
    expected = 0.5**2 * 4 / np.arange(1, 9) ** 1.5
    np.testing.assert_allclose(np.var(updates, axis=1), expected, rtol=0.04)
    np.testing.assert_allclose(np.mean(updates, axis=1) / np.sqrt(expected), 0, atol=0.03)


def test_constant_noise_comes_to_rest_with_the_variance_of_an_autoregression():
    # x <- (1 - rate c) x + rate n has the variance rate^2 eta / (1 - (1 - rate c)^2).
    tx = gradtx.noisy_sgd(0.3, eta=2.0, gamma=0.0, key=jax.random.key(1))
    _, points = run(tx, 1.5, 20_000, 30)
    expected = 0.3**2 * 2 / (1 - (1 - 0.3 * 1.5) ** 2)
    np.testing.assert_allclose(np.var(points[-1]), expected, rtol=0.04)


OF_KEY = {
    "noisy_sgd": lambda lib, **key: lib.noisy_sgd(0.1, eta=1.0, **key),
    "add_noise": lambda lib, **key: lib.add_noise(1.0, 0.5, **key),
    "differentially_private_aggregate": lambda lib, **key: lib.differentially_private_aggregate(
        1.0, 1.0, **key
    ),
}


class Optax:
    noisy_sgd = staticmethod(optax.noisy_sgd)
    add_noise = staticmethod(optax.add_noise)
    differentially_private_aggregate = staticmethod(optax.contrib.differentially_private_aggregate)


@pytest.mark.parametrize(
    ("arguments", "category"), [({}, UserWarning), ({"seed": 3}, DeprecationWarning)]
)
@pytest.mark.parametrize("name", OF_KEY)
def test_without_a_key_and_with_a_seed_optax_is_followed(name, arguments, category):
    with pytest.warns(category, match="key") as warned:
        ours = OF_KEY[name](gradtx, **arguments)
    assert [warning.filename for warning in warned] == [__file__]
    assert name in str(warned[0].message)
    with pytest.warns(category):
        theirs = OF_KEY[name](Optax, **arguments)
    g = jnp.arange(6.0).reshape(2, 3)
    with jax.numpy_dtype_promotion("standard"):
        updates, expected = [tx.update(g, tx.init(g))[0] for tx in (ours, theirs)]
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OF_KEY)
def test_a_key_and_a_seed_are_too_many(name):
    with pytest.raises(ValueError, match=f"{name}: takes key or seed, not both, got 1 and 2"):
        OF_KEY[name](gradtx, key=1, seed=2)


def test_run_changes_hands():
    ours, theirs = gradtx.noisy_sgd(0.1, key=7), optax.noisy_sgd(0.1, key=7)
    params = {"a": jnp.ones(3), "b": jnp.ones(())}
    state = theirs.init(params)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, ours.init(params))
    for t in range(4):
        with jax.numpy_dtype_promotion("standard"):
            results = [tx.update(params, state, params) for tx in (ours, theirs)]
        updates, expected = [updates for updates, _ in results]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
        # The state of one library and the other in turn.
        state = results[t % 2][1]


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.noisy_sgd,
        {"learning_rate": 0.1, "key": 0},
        learning_rate=(float("nan"),),
        eta=(-1.0, float("nan")),
        gamma=(-1.0, float("nan")),
        key=(0.5, "seed"),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
