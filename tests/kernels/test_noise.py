"""Noise against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import gradtx

from ..trajectory import NON_NEGATIVE, check_refused, wrong_arguments


def noise(eta, gamma, key, *, steps=20, size=5):
    """The noise of each step: the updates for zero gradients."""
    params = {"a": jnp.zeros(size), "b": jnp.zeros((size, 1))}
    tx = gradtx.add_noise(eta, gamma, key)
    state, samples = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update(params, state)
        samples.append(np.concatenate([updates["a"], updates["b"][:, 0]]))
    assert state.count == steps
    return np.array(samples)


def test_noise_is_normal_and_its_variance_falls_with_the_step():
    size = 20_000
    for t, sample in enumerate(noise(0.5, 0.55, 0, steps=4, size=size), start=1):
        variance = 0.5 / t**0.55
        assert abs(sample.mean()) < 5 * np.sqrt(variance / (2 * size))
        # The variance of a sample of n has a relative standard error of sqrt(2 / n).
        assert abs(sample.var() / variance - 1) < 5 * np.sqrt(2 / (2 * size))
        assert stats.kstest(sample / np.sqrt(variance), stats.norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize("given_as", ["number", "array", "schedule"])
def test_noise_scales_as_its_formula(given_as):
    t = np.arange(1, 21)[:, None]
    unit = noise(1.0, 0.0, 7)
    eta, gamma = {
        "number": (0.3, 1.5),
        "array": (jnp.asarray(0.3), jnp.asarray(1.5)),
        "schedule": (lambda count: 0.3 / (1 + count), 0.5),
    }[given_as]
    # The schedule divides by t a third of the way to an exponent of 1.5.
    np.testing.assert_allclose(noise(eta, gamma, 7), unit * np.sqrt(0.3 / t**1.5), rtol=4e-6)


def test_noise_is_new_at_each_step_and_in_each_leaf():
    samples = noise(1.0, 0.0, 3, steps=100)
    a, b = samples[:, :5], samples[:, 5:]
    for one, other in ((a, b), (samples[1:], samples[:-1])):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.size)


def test_noise_is_a_function_of_its_key():
    first = noise(1.0, 0.0, 3)
    np.testing.assert_array_equal(first, noise(1.0, 0.0, jax.random.key(3)))
    np.testing.assert_array_equal(first, noise(1.0, 0.0, jax.random.PRNGKey(3)))
    assert not np.any(first == noise(1.0, 0.0, 4))


def test_noise_is_added_to_the_gradient():
    g = jnp.array([100.0, -200.0, 0.0, 1.0, 2.0])
    tx = gradtx.add_noise(1.0, 0.0, 0)
    added, _ = tx.update(g, tx.init(g))
    alone, _ = tx.update(jnp.zeros(5), tx.init(g))
    np.testing.assert_allclose(added, g + alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.add_noise,
        {"eta": 1.0, "gamma": 0.5, "key": 0},
        eta=NON_NEGATIVE,
        gamma=NON_NEGATIVE,
        key=("high",),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
