"""Fans counted by hand, and the distributions that variance scaling promises for them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradtx import initializers as gi

KEY = jax.random.key(1)

FANS = {
    # shape, axes, fan_in, fan_out, each counted by hand
    "dense": ((300, 200), {}, 300, 200),
    "torch layout": ((200, 300), {"in_axis": 1, "out_axis": 0}, 300, 200),
    "convolution": ((3, 3, 16, 32), {}, 144, 288),
    "convolution 1d": ((5, 8, 4), {}, 40, 20),
    "convolution 3d": ((2, 3, 4, 5, 6), {}, 120, 144),
    "depthwise": ((3, 3, 1, 64), {}, 9, 576),
    "query": ((64, 4, 16), {"in_axis": 0, "out_axis": (1, 2)}, 64, 64),
    "query, negative axes": ((64, 4, 16), {"in_axis": -3, "out_axis": (-2, -1)}, 64, 64),
    "grouped query": ((64, 2, 16), {"in_axis": 0, "out_axis": (1, 2)}, 64, 32),
    "attention output": ((4, 16, 128), {"in_axis": (0, 1), "out_axis": 2}, 64, 128),
    "experts": ((8, 30, 20), {"batch_axis": 0}, 30, 20),
    "convolution of experts": ((8, 3, 30, 20), {"batch_axis": (0,)}, 90, 60),
    "vector": ((7,), {"in_axis": 0, "out_axis": ()}, 7, 1),
    "embedding": ((1000, 64), {"out_axis": 0}, 64, 64),
    "empty": ((0, 5), {}, 0, 5),
}


@pytest.mark.parametrize("name", FANS)
def test_fans(name):
    shape, axes, fan_in, fan_out = FANS[name]
    assert gi.compute_fans(shape, **axes) == (fan_in, fan_out)


# Width of each distribution in units of its standard deviation: [-bound, bound].
BOUNDS = {
    "uniform": math.sqrt(3),
    "normal": math.inf,
    "truncated_normal": 2 / stats.truncnorm(-2, 2).std(),
}
LAWS = {
    "uniform": lambda deviation: stats.uniform(-math.sqrt(3) * deviation, 12**0.5 * deviation),
    "normal": lambda deviation: stats.norm(0, deviation),
    "truncated_normal": lambda deviation: stats.truncnorm(
        -2, 2, scale=deviation / stats.truncnorm(-2, 2).std()
    ),
}
# For shape (3, 3, 16, 700): fan_in = 9·16 = 144, fan_out = 9·700 = 6300.
DIVISORS = {
    "fan_in": (144, 145),
    "fan_out": (6300, 6300),
    "fan_avg": (3222, 3222.5),
    "fan_geo_avg": (math.sqrt(144 * 6300), math.sqrt(145 * 6300)),
}


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("mode", DIVISORS)
def test_distribution(mode, distribution, assert_distributed):
    kernel = gi.variance_scaling(3.0, mode, distribution)(KEY, (3, 3, 16, 700))
    deviation = math.sqrt(3.0 / DIVISORS[mode][0])
    assert_distributed(kernel, LAWS[distribution](deviation))
    bound = BOUNDS[distribution] * deviation * (1 + 2 * np.finfo(np.float32).eps)
    assert abs(np.asarray(kernel)).max() <= bound


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("mode", DIVISORS)
def test_count_bias_only_rescales(mode, distribution):
    shape = (3, 3, 16, 700)
    plain = gi.variance_scaling(3.0, mode, distribution)(KEY, shape)
    counted = gi.variance_scaling(3.0, mode, distribution, count_bias=True)(KEY, shape)
    without_bias, with_bias = DIVISORS[mode]
    ratio = np.asarray(counted) / np.asarray(plain)
    np.testing.assert_allclose(ratio, math.sqrt(without_bias / with_bias), rtol=1e-6)


@pytest.mark.parametrize("distribution", LAWS)
def test_distribution_in_float64(distribution, assert_distributed):
    with jax.enable_x64(True):
        kernel = gi.variance_scaling(1.0, "fan_in", distribution)(KEY, (100, 1000))
        peer = jax.nn.initializers.variance_scaling(1.0, "fan_in", distribution)(KEY, (100, 1000))
    assert kernel.dtype == jnp.float64
    assert_distributed(kernel, LAWS[distribution](0.1))
    # Here the corrections for truncation agree to all digits, not only those of float32.
    np.testing.assert_allclose(kernel, peer, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_variance_in_half_precision(distribution, dtype, assert_moments):
    kernel = gi.variance_scaling(1.0, "fan_in", distribution)(KEY, (100, 1000), dtype)
    assert kernel.dtype == dtype
    assert_moments(kernel, LAWS[distribution](0.1))


def modulus_cdf(distribution, modulus):
    """P(|w| <= modulus) for complex w with E|w|² = 1."""
    squared = modulus**2
    if distribution == "uniform":
        return np.clip(squared / 2, 0, 1)
    if distribution == "normal":
        return 1 - np.exp(-squared)
    # |z|² is exponential given |z|² < 4; its mean, integrated by parts, is 1 - 4/(e⁴ - 1).
    mean = 1 - 4 / (math.exp(4) - 1)
    return np.clip((1 - np.exp(-squared * mean)) / (1 - math.exp(-4)), 0, 1)


@pytest.mark.parametrize("distribution", LAWS)
def test_complex_weights(distribution):
    kernel = gi.variance_scaling(1.0, "fan_in", distribution)(KEY, (100, 1000), jnp.complex64)
    assert kernel.dtype == jnp.complex64
    w = 10 * np.asarray(kernel).ravel()
    assert stats.kstest(abs(w), functools.partial(modulus_cdf, distribution)).pvalue > 1e-3
    assert stats.kstest(np.angle(w), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    # E|w|⁴ is at most 2, as for the normal, so the standard error of E|w|² is at most 1/√n.
    assert abs(np.mean(abs(w) ** 2) - 1) < 5 / math.sqrt(w.size)
    assert abs(np.mean(w.real * w.imag)) < 5 / math.sqrt(w.size)


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("name", ["torch layout", "convolution", "grouped query", "embedding"])
def test_same_numbers_as_jax(name, distribution):
    shape, axes, _, _ = FANS[name]
    arguments = (2.0, "fan_avg", distribution)
    ours = gi.variance_scaling(*arguments, **axes)(KEY, shape)
    peers = jax.nn.initializers.variance_scaling(*arguments, **axes)(KEY, shape)
    np.testing.assert_allclose(ours, peers, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("distribution", LAWS)
def test_same_complex_numbers_as_jax(distribution):
    arguments = (2.0, "fan_geo_avg", distribution)
    with jax.enable_x64(True):
        ours = gi.variance_scaling(*arguments)(KEY, (3, 4, 5), jnp.complex128)
        peers = jax.nn.initializers.variance_scaling(*arguments)(KEY, (3, 4, 5), jnp.complex128)
    if distribution == "truncated_normal":
        # jax leaves the probability 1 - e⁻⁴ of staying below the cut out of its E|z|² = 1 - 5e⁻⁴.
        correction = math.sqrt((1 - 5 * math.exp(-4)) / (1 - 4 / (math.exp(4) - 1)))
    else:
        correction = 1
    np.testing.assert_allclose(ours, correction * np.asarray(peers), rtol=1e-12)


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("mode", DIVISORS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 0)])
def test_empty_kernels(shape, mode, distribution):
    kernel = gi.variance_scaling(1.0, mode, distribution)(KEY, shape)
    assert kernel.shape == shape
    assert kernel.dtype == jnp.float32


def test_zero_scale():
    kernel = gi.variance_scaling(0.0, "fan_in", "normal")(KEY, (3, 4))
    np.testing.assert_array_equal(kernel, np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("variance_scaling", (-1.0, "fan_in", "normal"), "scale must be .* got -1.0"),
        ("variance_scaling", (math.nan, "fan_in", "normal"), "scale must be .* got nan"),
        ("variance_scaling", (1.0, "fan", "normal"), "mode must be one of .* got 'fan'"),
        ("variance_scaling", (1.0, "fan_in", "cauchy"), "distribution .* got 'cauchy'"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        getattr(gi, name)(*arguments)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((5,), {}, r"shape=\(5,\) has 1 axes .* in_axis=-2, out_axis=-1, batch_axis=\(\)"),
        ((), {}, r"shape=\(\) has 0 axes"),
        ((5, 4), {"out_axis": (1, 2)}, r"shape=\(5, 4\) .* out_axis=\(1, 2\)"),
        ((5, 4), {"batch_axis": -3}, r"shape=\(5, 4\) .* batch_axis=-3"),
    ],
)
def test_missing_axes(shape, axes, message):
    init = gi.variance_scaling(1.0, "fan_in", "normal", **axes)
    with pytest.raises(ValueError, match=f"^variance_scaling: {message}"):
        init(KEY, shape)
    with pytest.raises(ValueError, match=f"^compute_fans: {message}"):
        gi.compute_fans(shape, **axes)
