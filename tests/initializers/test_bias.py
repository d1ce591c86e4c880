"""Bias rules: the variance of a unit is shared with its weights, or negligible."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradtx import initializers as gi

KEY = jax.random.key(3)


@pytest.mark.parametrize("fan_in", [1, 99, 4095])
def test_bias_normal(fan_in, assert_distributed):
    law = stats.norm(0, 1 / math.sqrt(fan_in + 1))
    assert_distributed(gi.bias_normal(fan_in)(KEY, (100_000,)), law)


def test_small_random(assert_distributed):
    assert_distributed(gi.small_random()(KEY, (100_000,)), stats.norm(0, 0.01))
    assert_distributed(gi.small_random(0.3)(KEY, (100_000,)), stats.norm(0, 0.3))


def test_default_dtype():
    assert gi.bias_normal(3, jnp.bfloat16)(KEY, (5,)).dtype == jnp.bfloat16
    assert gi.small_random(dtype=jnp.float16)(KEY, (5,)).dtype == jnp.float16


def test_bias_and_kernel_that_counts_it_give_unit_variance():
    kernel_key, bias_key, input_key = jax.random.split(KEY, 3)
    kernel = gi.lecun_normal(count_bias=True)(kernel_key, (3, 100_000))
    bias = gi.bias_normal(fan_in=3)(bias_key, (100_000,))
    x = jax.random.normal(input_key, (3, 100_000))
    z = np.asarray(jnp.sum(x * kernel, 0) + bias)
    # Each product of two normals has kurtosis 9 and the bias 3, so that of z is at most
    # 3 + (3·6)/4² and the standard error of its variance at most √(4/n).
    assert abs(z.var() - 1) < 5 * math.sqrt(4 / z.size)


@pytest.mark.parametrize("fan_in", [0, -3, 0.5, math.nan, math.inf])
def test_fan_in_below_one(fan_in):
    message = f"^bias_normal: fan_in must be a finite number >= 1, got {fan_in}"
    with pytest.raises(ValueError, match=message):
        gi.bias_normal(fan_in)


def test_negative_deviation():
    message = r"^small_random: stddev must be a finite number >= 0, got -0\.1"
    with pytest.raises(ValueError, match=message):
        gi.small_random(-0.1)
