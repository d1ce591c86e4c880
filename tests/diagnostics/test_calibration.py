"""The chance that a healthy network looks sick: its bound, and networks drawn from each family."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gradtx import diagnostics
from gradtx.diagnostics.signal import trends

from .calibration import FAMILIES, Draw, wilson
from .remedies import assert_healthy


def norms_of_random_networks(width, depth, number, samples):
    """The norms before and after each layer of relu networks with weights of variance 2 / n."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((number, samples, width))
    norms = [np.linalg.norm(x, axis=(1, 2))]
    for _ in range(depth):
        weights = rng.standard_normal((number, width, width)) * math.sqrt(2 / width)
        x = np.maximum(x @ weights, 0)
        norms.append(np.linalg.norm(x, axis=(1, 2)))
    return np.array(norms).T


def layers_of(width, depth):
    return [SimpleNamespace(units=width, fan_in=width, depth=i + 1) for i in range(depth)]


def test_logarithm_of_the_norm_has_the_stated_moments():
    width, depth = 48, 20
    norms = norms_of_random_networks(width, depth, 300, 1)
    change = np.log(norms[:, -1] / norms[:, 0])
    variance = 5 * depth / (4 * width)
    assert np.mean(change) == pytest.approx(-variance, rel=0.25)
    assert np.var(change) == pytest.approx(variance, rel=0.25)
    chance = trends.chance_of(layers_of(width, depth))
    assert chance == pytest.approx(math.exp(variance + 3 * math.sqrt(variance)))


def test_narrow_networks_are_rarely_called_sick_by_chance():
    width, depth = 10, 10
    chance = trends.chance_of(layers_of(width, depth))
    norms = norms_of_random_networks(width, depth, 1000, 16)
    with_bound = [trends.trend_of(one, chance).is_notable() for one in norms]
    without = [trends.trend_of(one).is_notable() for one in norms]
    assert np.mean(with_bound) < 0.01
    assert np.mean(without) > 5 * max(np.mean(with_bound), 0.002)


def test_bound_of_wide_networks_is_not_larger_than_usual():
    assert trends.chance_of(layers_of(512, 100)) < trends.FACTOR_IN_ALL
    # However narrow and deep, a network does not get away with any change.
    assert trends.chance_of(layers_of(4, 100)) == 1000.0


@pytest.mark.parametrize(
    ("alarms", "number", "interval"),
    [(0, 300, (0.0, 0.01264)), (7, 350, (0.00972, 0.04070)), (5, 10, (0.23659, 0.76341))],
)
def test_intervals_of_wilson(alarms, number, interval):
    """Against the roots of its defining equation, (p - share)^2 = z^2 p (1 - p) / n."""
    assert wilson(alarms, number) == pytest.approx(interval, abs=1e-4)
    for p in wilson(alarms, number):
        share = alarms / number
        assert (p - share) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / number, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_loss(family):
    network = FAMILIES[family](Draw(3))
    loss = jax.eval_shape(network.loss_fn, network.params, *network.args)
    assert (loss.shape, loss.dtype) == ((), np.float32)


# Other tests have convolutions and attention.
@pytest.mark.parametrize("family", [*FAMILIES][:2] + [*FAMILIES][-2:])
def test_a_network_of_a_family_is_healthy(family):
    network = FAMILIES[family](Draw(3))
    report = diagnostics.signal_report(network.loss_fn, network.params, *network.args)
    assert_healthy(report)
