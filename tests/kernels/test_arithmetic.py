"""The shared formulas against double precision, and at the points where they could fail."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.kernels.arithmetic import debias, log_decay, safe_divide
from gradtx.lengths import clip_factor, clip_room, clip_to_norm, in_its_unit

STEPS = np.array([1, 2, 3, 10, 1000, 2**24])


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.9, 0.999, 0.999999])
def test_debias_does_not_cancel(decay):
    t = jnp.asarray(STEPS, jnp.float32)
    expected = 1 / -np.expm1(STEPS * np.log(decay)) if decay else np.ones(len(STEPS))
    np.testing.assert_allclose(debias(jnp.float32(1), decay, t), expected, rtol=3e-7)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.9, 0.999, 0.999999])
def test_debias_with_an_array_for_decay_is_right_for_the_number_in_it(decay):
    decay = jnp.float32(decay)
    rounded = float(decay)
    expected = 1 / -np.expm1(STEPS * np.log(rounded)) if rounded else np.ones(len(STEPS))
    t = jnp.asarray(STEPS, jnp.float32)
    np.testing.assert_allclose(debias(jnp.float32(1), decay, t), expected, rtol=3e-7)


def test_log_decay_of_a_number_is_a_number():
    assert log_decay(0.999) == math.log(0.999)
    assert log_decay(0.0) == -math.inf


def test_safe_divide():
    numerator = jnp.array([0.0, 6.0, -1.0, 0.0])
    denominator = jnp.array([0.0, 3.0, 0.0, 2.0])
    np.testing.assert_array_equal(safe_divide(numerator, denominator), [0, 2, -np.inf, 0])


def test_safe_divide_has_a_finite_derivative_at_zero():
    slopes = jax.grad(safe_divide, argnums=(0, 1))(jnp.float32(0), jnp.float32(0))
    assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize(
    ("norm", "max_norm", "factor"),
    [(0.0, 1.0, 1.0), (0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (4.0, 1.0, 0.25), (0.0, 0.0, 1.0)],
)
def test_clip_factor(norm, max_norm, factor):
    def of_norm(norm):
        return clip_factor(in_its_unit(norm), max_norm)

    assert of_norm(jnp.float32(norm)) == factor
    assert np.isfinite(jax.grad(of_norm)(jnp.float32(norm)))


def test_clip_factor_passes_nan_on():
    assert np.isnan(clip_factor(in_its_unit(jnp.float32(np.nan)), 1.0))


@pytest.mark.parametrize("max_norm", [1e-29, 1e-12, 1.8e-9, 2e-9, 0.01, 1e20])
def test_room_is_a_power_of_two_that_keeps_a_factor_ordinary(max_norm):
    room = clip_room(max_norm)
    assert math.frexp(room)[0] == 0.5
    assert room == 1 if max_norm >= 2**-29 else 2**-29 <= room * max_norm <= 2**-28
    assert clip_room(jnp.float32(max_norm)) == room
    smallest = clip_factor(in_its_unit(jnp.float32(2.0**96)), max_norm, room)
    assert np.isclose(float(smallest), room * max_norm / 2.0**96, rtol=1e-6)
    assert smallest >= np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize("max_norm", [1e-12, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("times", [0.0, 0.5, 1.0, 1.001, 1e3, 1e15])
def test_a_gradient_is_shortened_to_its_limit_or_stays_as_it_is(max_norm, times):
    norm = np.float32(max_norm) * np.float32(times)
    g = jnp.asarray([0.6, -0.8], jnp.float32) * norm
    clipped = np.asarray(clip_to_norm(g, in_its_unit(jnp.float32(norm)), max_norm), np.float64)
    if times <= 1:
        np.testing.assert_array_equal(clipped, g)
    else:
        right = np.asarray(g, np.float64) * (np.float32(max_norm) / np.float64(norm))
        np.testing.assert_allclose(clipped, right, rtol=1e-6)
