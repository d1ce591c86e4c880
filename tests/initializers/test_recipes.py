"""LeCun's, Glorot's and He's rules: the published variances and limits, and jax's numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradtx import initializers as gi

KEY = jax.random.key(2)
SHAPE = (200, 500)

# The variance that each paper asks for, for 200 inputs and 500 outputs: without and with a bias.
VARIANCES = {
    "lecun": (1 / 200, 1 / 201),
    "glorot": (2 / 700, 2 / 701),
    "xavier": (2 / 700, 2 / 701),
    "he": (2 / 200, 2 / 201),
    "kaiming": (2 / 200, 2 / 201),
}


@pytest.mark.parametrize("count_bias", [False, True], ids=["weights only", "bias counted"])
@pytest.mark.parametrize("rule", VARIANCES)
def test_uniform(rule, count_bias, assert_distributed):
    kernel = getattr(gi, f"{rule}_uniform")(count_bias=count_bias)(KEY, SHAPE)
    limit = math.sqrt(3 * VARIANCES[rule][count_bias])
    assert_distributed(kernel, stats.uniform(-limit, 2 * limit))
    # The largest of 100,000 distinguishes a limit of sqrt(6/700) from one of sqrt(6/701).
    assert limit * (1 - 2e-4) < abs(np.asarray(kernel)).max() <= np.float32(limit)


def test_published_limits():
    kernel = np.asarray(gi.glorot_uniform(count_bias=True)(KEY, SHAPE))
    assert abs(kernel).max() == pytest.approx(math.sqrt(6 / (1 + 200 + 500)), rel=2e-4)
    kernel = np.asarray(gi.glorot_uniform()(KEY, SHAPE))
    assert abs(kernel).max() == pytest.approx(math.sqrt(6 / (200 + 500)), rel=2e-4)


@pytest.mark.parametrize("count_bias", [False, True], ids=["weights only", "bias counted"])
@pytest.mark.parametrize("rule", VARIANCES)
def test_normal(rule, count_bias, assert_distributed):
    kernel = getattr(gi, f"{rule}_normal")(count_bias=count_bias)(KEY, SHAPE)
    scale = math.sqrt(VARIANCES[rule][count_bias]) / stats.truncnorm(-2, 2).std()
    assert_distributed(kernel, stats.truncnorm(-2, 2, scale=scale))
    assert 2 * scale * (1 - 2e-3) < abs(np.asarray(kernel)).max() <= 2 * scale * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("rule", VARIANCES)
def test_same_numbers_as_jax(rule, kind):
    name = f"{rule}_{kind}"
    axes = {"in_axis": 0, "out_axis": (1, 2), "batch_axis": 3, "dtype": jnp.float32}
    ours = getattr(gi, name)(**axes)(KEY, (16, 4, 8, 3))
    peers = getattr(jax.nn.initializers, name)(**axes)(KEY, (16, 4, 8, 3))
    np.testing.assert_allclose(ours, peers, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize(("alias", "name"), [("xavier", "glorot"), ("kaiming", "he")])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_aliases(alias, name, kind):
    assert getattr(gi, f"{alias}_{kind}") is getattr(gi, f"{name}_{kind}")


@pytest.mark.parametrize("rule", ["lecun", "glorot", "he"])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_missing_axis(rule, kind):
    name = f"{rule}_{kind}"
    with pytest.raises(ValueError, match=rf"^{name}: shape=\(5,\) has 1 axes"):
        getattr(gi, name)()(KEY, (5,))
