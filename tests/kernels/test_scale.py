"""Scaling, weight decay, noise and centring against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)


def scaled(t, g, p, old, *, step_size):
    return step_size * g, {}


def scheduled(t, g, p, old, *, step_size_fn):
    return step_size_fn * g, {}


def descent(t, g, p, old, *, learning_rate, flip_sign=True):
    return learning_rate * g * (-1 if flip_sign else 1), {}


def decayed(t, g, p, old, *, weight_decay=0.0):
    return g + weight_decay * p, {}


def centred(t, g, p, old):
    return (g - np.mean(g, axis=1, keepdims=True) if g.ndim == 2 else g), {}


def warmup(count):
    return (1 + count) / 16


CASES = [
    *cases(gradtx.scale, scaled, {"step_size": 0.0}, {"step_size": -0.3}),
    *cases(gradtx.scale_by_schedule, scheduled, {"step_size_fn": warmup}),
    *cases(
        gradtx.scale_by_learning_rate,
        descent,
        {"learning_rate": 0.1},
        {"learning_rate": warmup},
        {"learning_rate": 3.0, "flip_sign": False},
    ),
    *cases(gradtx.add_decayed_weights, decayed, {}, {"weight_decay": 0.3}),
    *cases(gradtx.centralize, centred, {}),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_no_learning_rate_leaves_the_updates_alone():
    tx = gradtx.scale_by_learning_rate(None)
    g = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], g)


@pytest.mark.parametrize(
    "mask",
    [
        {"kernel": True, "bias": False},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        gradtx.select("kernel"),
    ],
    ids=["tree", "function", "select"],
)
@pytest.mark.parametrize("weight_decay", [0.5, lambda count: 0.5], ids=["number", "schedule"])
def test_weights_outside_the_mask_do_not_decay(mask, weight_decay):
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = gradtx.add_decayed_weights(weight_decay, mask)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], np.full((2, 2), 2.0))
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (3, 2, 2, 5)])
def test_centralized_kernels_have_mean_zero_for_each_first_index(shape):
    g = np.random.default_rng(0).normal(size=shape) + 1
    tx = gradtx.centralize()
    updates = np.asarray(tx.update(jnp.asarray(g), tx.init(g))[0])
    for row, original in zip(updates, g, strict=True):
        np.testing.assert_allclose(row, original - original.mean(), rtol=1e-5, atol=1e-6)


def noise(eta, gamma, key, *, steps=20, size=5):
    """The noise of each step, which is what becomes of gradients of zero."""
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
    [
        *wrong_arguments(gradtx.scale, {}, step_size=ANY_NUMBER),
        *wrong_arguments(gradtx.scale_by_schedule, {}, step_size_fn=(0.1, "high", None)),
        *wrong_arguments(gradtx.scale_by_learning_rate, {}, learning_rate=NON_NEGATIVE),
        *wrong_arguments(gradtx.add_decayed_weights, {}, weight_decay=NON_NEGATIVE),
        *wrong_arguments(
            gradtx.add_noise,
            {"eta": 1.0, "gamma": 0.5, "key": 0},
            eta=NON_NEGATIVE,
            gamma=NON_NEGATIVE,
            key=(None, "high"),
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
