"""The experiments on initialization: their claims fail with other weights.

That they hold is what `python -m examples.experiments --quick` tells. Their
formulas and key figures are recomputed here in plain NumPy and SciPy.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from examples.experiments import bias, depth, elbows, experiment
from gradtx import initializers


def failures(name):
    outcome = experiment.load(name).run(experiment.Settings(quick=True))
    return " | ".join(check.statement for check in outcome.checks if not check.holds)


def test_elbows_of_other_weights_are_noticed(monkeypatch):
    def wrong(_):
        return lambda key, shape: initializers.normal(1.0 if len(shape) == 2 else 1.2)(key, shape)

    monkeypatch.setattr(elbows, "normal", wrong)
    # What is noticed are the elbows before training.
    monkeypatch.setattr(elbows, "STEPS", 10)
    # The function that was compiled with the right weights must not be reused, nor this one kept.
    monkeypatch.setattr(elbows, "fits", jax.jit(jax.vmap(inspect.unwrap(elbows.fits))))
    noticed = failures("elbows")
    for sentence in ("normal: the elbows are distributed", "quartiles", "normal: 50.0%"):
        assert sentence in noticed


def test_a_bias_that_kills_units_is_noticed(monkeypatch):
    monkeypatch.setitem(bias.RULES, "constant", initializers.constant(-1.5))
    noticed = failures("bias")
    for sentence in ("test loss after", "leaves no more units dead", "ahead of zero"):
        assert sentence in noticed


def test_weights_of_other_variances_are_noticed(monkeypatch):
    right = initializers.variance_scaling
    monkeypatch.setattr(depth, "variance_scaling", lambda s, *given: right(1.1 * s, *given))
    monkeypatch.setattr(depth, "he_normal", initializers.lecun_normal)
    noticed = failures("depth")
    for name in (*depth.NETWORKS, "variance 2 / fan_in: times 1.000 a layer with 512"):
        assert name in noticed


def test_the_elbows_have_the_distributions_of_quotients():
    x = np.array([-7.0, -1.0, -0.3, 0.0, 0.5, 1.0, 2.0, 30.0])
    np.testing.assert_allclose(elbows.distribution(elbows.NORMAL, x), stats.cauchy.cdf(x))
    np.testing.assert_allclose(elbows.distribution(elbows.SPREAD, x), stats.uniform(-1, 2).cdf(x))
    # P(-b / w < x) for w, b ~ U(-1, 1), by summing over a grid of midpoints of w.
    w = (np.arange(100_000) + 0.5) / 100_000
    expected = [np.mean(np.clip((1 + q * w) / 2, 0, 1)) for q in x]
    np.testing.assert_allclose(elbows.distribution(elbows.UNIFORM, x), expected, atol=1e-6)


@pytest.mark.parametrize("start", [elbows.NORMAL, elbows.UNIFORM, elbows.SPREAD])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(start):
    samples = np.random.default_rng(0).normal(size=500)
    expected = stats.kstest(samples, lambda x: elbows.distribution(start, x)).statistic
    assert elbows.distance(samples, start) == pytest.approx(expected)


def test_the_share_of_lost_elbows_in_numpy():
    rng = np.random.default_rng(0)
    for draw in (rng.standard_normal, lambda n: rng.uniform(-1, 1, n)):
        w, b = draw(200_000), draw(200_000)
        bends, dead = np.mean(np.abs(b / w) < 1), np.mean(b <= -np.abs(w))
        np.testing.assert_allclose((bends, 1 - bends - dead, dead), (0.5, 0.25, 0.25), atol=0.005)


def test_units_are_sorted_by_what_they_do_on_the_data():
    # Elbows at 0.5, at -3 towards the data, at 3 away from it, and at 2 towards it.
    layer = jnp.array([[2.0, 1.0, 1.0, -1.0]]), jnp.array([-1.0, 3.0, -3.0, 2.0])
    np.testing.assert_allclose(elbows.shares(layer), (0.25, 0.5, 0.25))


def test_all_starts_draw_what_their_names_say():
    layers = elbows.first_layers(jax.random.key(0), 20_000)
    assert list(layers) == list(elbows.STARTS)
    for name, (kernel, b) in layers.items():
        w, b = np.asarray(kernel[0]), np.asarray(b)
        if name == elbows.UNIFORM:
            assert stats.kstest(w, stats.uniform(-1, 2).cdf).pvalue > 1e-3
            assert stats.kstest(b, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        else:
            assert stats.kstest(w, stats.norm.cdf).pvalue > 1e-3
        if name == elbows.ZERO:
            np.testing.assert_array_equal(b, 0)
        if name == elbows.SPREAD:
            assert np.max(np.abs(b / w)) <= 1 + 1e-6


def test_every_rule_starts_from_the_same_kernels():
    first, second, last = bias.networks(jax.random.key(0), 24)
    for layer, (fan_in, units) in ((first, (64, 64)), (second, (64, 64)), (last, (64, 10))):
        kernels, biases = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        assert kernels.shape == (24, 4, fan_in, units)
        np.testing.assert_array_equal(kernels, np.broadcast_to(kernels[:, :1], kernels.shape))
        assert kernels.std() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
        xavier, zero, positive, small = np.moveaxis(biases, 1, 0)
        assert xavier.std() == pytest.approx(65**-0.5, rel=0.1)
        np.testing.assert_array_equal(zero, 0)
        np.testing.assert_array_equal(positive, np.float32(0.01))
        assert small.std() == pytest.approx(0.01, rel=0.1)
        assert len(np.unique(xavier)) > 0.99 * xavier.size


def test_dead_units_are_counted_in_each_layer():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(30, 5))
    layers = [
        {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[1])}
        for shape in ((5, 40), (40, 40), (40, 3))
    ]
    first = np.maximum(images @ layers[0]["kernel"] + layers[0]["bias"], 0)
    second = np.maximum(first @ layers[1]["kernel"] + layers[1]["bias"], 0)
    expected = [np.mean(np.all(h == 0, axis=0)) for h in (first, second)]
    assert min(expected) > 0
    as_jax = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), layers)
    shares = bias.dead_units(as_jax, jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_the_probability_by_chance_is_that_of_all_shuffles():
    results = np.array([[1.0, 2.0, 4.0], [0.5, 3.0, 3.5]])
    variances = [
        np.mean([results[0], results[1][list(order)]], axis=0).var()
        for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    ]
    expected = np.mean(np.array(variances) >= variances[0] - 1e-12)
    assert 0 < expected < 1
    assert bias.probability_by_chance(results, 0) == pytest.approx(expected, abs=0.03)


def test_results_that_depend_on_the_rule_are_not_chance():
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=(12, 1))
    alike = seeds + 0.1 * rng.normal(size=(12, 4))
    assert bias.probability_by_chance(alike, 0) > 0.01
    assert bias.probability_by_chance(alike + np.array([0.3, 0, 0, 0]), 0) < 1e-3


@pytest.mark.parametrize(
    ("activation", "s", "forward", "backward"),
    [(jax.nn.relu, 2.0, 1.0, 1.0), (jax.nn.relu, 1.0, 0.5, 0.5), (jax.nn.relu, 1.5, 0.75, 0.75)],
)
def test_rectifiers_multiply_mean_squares_by_half_of_s(activation, s, forward, backward):
    squares, gradients = depth.expected_signals(activation, s)
    layers = np.arange(depth.DEPTH)
    np.testing.assert_allclose(squares, forward ** (layers + 1.0), rtol=1e-4)
    np.testing.assert_allclose(gradients[::-1], backward**layers, rtol=1e-4)


@pytest.mark.parametrize("s", [1.0, 2.0])
def test_tanh_follows_the_integrals_of_the_formulas(s):
    squares, gradients = depth.expected_signals(jnp.tanh, s)
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    weights = weights / math.sqrt(2 * math.pi)
    q, expected, factors = 1.0, [], []
    for _ in range(depth.DEPTH):
        z = math.sqrt(s * q) * nodes
        factors.append(s * np.sum(weights * np.cosh(z) ** -4.0))
        q = np.sum(weights * np.tanh(z) ** 2)
        expected.append(q)
    np.testing.assert_allclose(squares, expected, rtol=1e-4)
    for layer in range(depth.DEPTH):
        assert gradients[layer] == pytest.approx(np.prod(factors[layer + 1 :]), rel=1e-3)


def test_signals_are_those_of_a_forward_and_a_backward_pass():
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(6, 8)) / 2, rng.normal(size=(8, 8)) / 2.5
    x = rng.normal(size=(3, 6))
    key = jax.random.key(4)

    def init(_key, shape):
        return jnp.asarray(first if shape[0] == 6 else other, jnp.float32)

    squares, gradients = depth.signals(key, jnp.asarray(x, jnp.float32), init, jnp.tanh, 8)
    activations = [np.tanh(x @ first)]
    for _ in range(depth.DEPTH - 1):
        activations.append(np.tanh(activations[-1] @ other))
    np.testing.assert_allclose(squares, [np.mean(h**2) for h in activations], rtol=1e-3)

    gradient = np.asarray(jax.random.normal(jax.random.split(key)[1], (3, 8)), np.float64)
    for layer in reversed(range(depth.DEPTH)):
        assert gradients[layer] == pytest.approx(np.mean(gradient**2), rel=1e-3)
        gradient = (gradient * (1 - activations[layer] ** 2)) @ other.T
