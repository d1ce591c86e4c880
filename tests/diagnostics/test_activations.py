"""Elbows against the zeros of the argument; gains against closed forms and quadrature."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import gradtx
from gradtx.diagnostics import activation_gain, relu_elbows


@pytest.mark.parametrize("shape", [(6,), (1, 6)], ids=["vector", "matrix"])
def test_elbow_of_one_input_is_where_the_unit_starts_to_bend(shape):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=6), rng.normal(size=6)
    elbows = np.asarray(relu_elbows(jnp.asarray(w.reshape(shape)), jnp.asarray(b)))
    np.testing.assert_allclose(elbows, -b / w, rtol=3e-7)
    # A unit is active on one side of its elbow and inactive on the other.
    sides = np.maximum(w * (elbows + np.array([[-1e-3], [1e-3]])) + b, 0)
    assert ((sides > 0).sum(axis=0) == 1).all()


@pytest.mark.parametrize("inputs", [2, 5])
def test_elbow_of_several_inputs_is_the_signed_distance_of_the_hyperplane(inputs):
    rng = np.random.default_rng(inputs)
    w, b = rng.normal(size=(inputs, 4)), rng.normal(size=4)
    elbows = np.asarray(relu_elbows(jnp.asarray(w), jnp.asarray(b)))
    # The point at that distance along the weights lies on the hyperplane.
    points = w / np.sqrt((w**2).sum(axis=0)) * elbows
    np.testing.assert_allclose((points * w).sum(axis=0) + b, 0, atol=2e-6)


def test_elbows_in_double_precision():
    with jax.enable_x64(True):
        w, b = np.array([[3.0, 1.0], [4.0, -1.0]]), np.array([1.0, 2.0])
        elbows = relu_elbows(w, b)
        assert elbows.dtype == jnp.float64
        np.testing.assert_allclose(elbows, [-0.2, -math.sqrt(2)], rtol=1e-15)
        assert relu_elbows(w, b.astype(np.float32)).dtype == jnp.float64


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_elbows_of_half_precision_are_calculated_in_single(dtype):
    w, b = jnp.array([[300.0], [400.0]], dtype), jnp.array([2.0], dtype)
    elbows = relu_elbows(w, b)
    assert elbows.dtype == jnp.float32
    np.testing.assert_allclose(elbows, [-2 / 500], rtol=2e-7)  # 300 and 400 are exact in both


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_elbows_do_not_overflow(scale):
    elbows = relu_elbows(jnp.array([[3.0], [4.0]]) * scale, jnp.array([10.0]) * scale)
    np.testing.assert_allclose(elbows, [-2.0], rtol=5e-7)


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 2)], ids=str)
def test_unit_without_weights_has_no_elbow(shape):
    w = jnp.zeros(shape).at[..., 1].set(1.0)
    elbows = np.asarray(relu_elbows(w, jnp.array([1.0, 0.0])))
    assert np.isnan(elbows[0])
    assert elbows[1] == 0


def test_elbows_under_jit_and_vmap():
    rng = np.random.default_rng(3)
    w = jnp.asarray(rng.normal(size=(4, 3, 5)), jnp.float32)
    b = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    batch = jax.jit(jax.vmap(relu_elbows))(w, b)
    for i in range(4):
        np.testing.assert_allclose(batch[i], relu_elbows(w[i], b[i]), rtol=3e-7)


@pytest.mark.parametrize(
    ("w", "b", "message"),
    [
        (np.ones((2, 3)), np.ones(2), r"bias must have shape \(3,\).*got shape \(2,\)"),
        (np.ones(3), np.ones((1, 3)), r"bias must have shape \(3,\).*got shape \(1, 3\)"),
        (np.ones((1, 2, 3)), np.ones(3), r"weights must have shape.*got shape \(1, 2, 3\)"),
        (np.float32(1.0), np.ones(1), r"weights must have shape.*got shape \(\)"),
        (np.ones(3, int), np.ones(3), "weights must hold real floating-point.*int"),
        (np.ones(3), np.ones(3, complex), "bias must hold real floating-point.*complex"),
    ],
    ids=["lengths", "bias-matrix", "rank-3", "scalar", "integers", "complex"],
)
def test_elbows_refuse(w, b, message):
    with pytest.raises(ValueError, match=f"relu_elbows: {message}"):
        relu_elbows(w, b)


OFF_GRID = 0.3137


def off_grid_kink(x):
    return jnp.where(x > OFF_GRID, 1 + x - OFF_GRID, 1.0)


def normal_density(z):
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def tail(c):
    """P(z > c)."""
    return special.ndtr(-c)


# E[z^2; z > c] = c phi(c) + P(z > c), E[z; z > c] = phi(c).
SQUARE_ABOVE_ONE = normal_density(1) + tail(1)
CLOSED_FORMS = {
    "identity": (lambda x: x, 1),
    "relu": (jax.nn.relu, 1 / 2),
    "leaky_relu": (lambda x: jax.nn.leaky_relu(x, 0.25), (1 + 0.25**2) / 2),
    "abs": (jnp.abs, 1),
    "squared_relu": (lambda x: jax.nn.relu(x) ** 2, 3 / 2),
    "cube": (lambda x: x**3, 15),
    "exp": (jnp.exp, math.exp(2)),
    "sin": (jnp.sin, (1 - math.exp(-2)) / 2),
    "erf": (jax.scipy.special.erf, 2 / math.pi * math.asin(2 / 3)),
    # E[(z Phi(z))^2] = 1/4 + asin(1/2) / 2 pi + ... = 1/3 + 1 / (2 sqrt(3) pi).
    "gelu": (
        lambda x: jax.nn.gelu(x, approximate=False),
        1 / 3 + 1 / (2 * math.sqrt(3) * math.pi),
    ),
    "selu": (jax.nn.selu, 1),
    "hard_tanh": (lambda x: jnp.clip(x, -1, 1), 1 - 2 * SQUARE_ABOVE_ONE + 2 * tail(1)),
    "hard_shrink": (lambda x: jnp.where(jnp.abs(x) > 1, x, 0), 2 * SQUARE_ABOVE_ONE),
    "heaviside": (lambda x: (x > 0).astype(jnp.float32), 1 / 2),
    "boolean": (lambda x: x > 0, 1 / 2),
    "sign": (jnp.sign, 1),
    "zero": (jnp.zeros_like, 0),
    "half_precision": (lambda x: jax.nn.relu(jnp.sign(x)).astype(jnp.bfloat16), 1 / 2),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_gain_in_closed_form(name):
    fn, expected = CLOSED_FORMS[name]
    gain = activation_gain(fn)
    assert type(gain) is float
    np.testing.assert_allclose(gain, expected, rtol=1.5e-7)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_gain_in_closed_form_in_double_precision(name):
    with jax.enable_x64(True):
        fn, expected = CLOSED_FORMS[name]
        np.testing.assert_allclose(activation_gain(fn), expected, rtol=1e-13)


# With their kinks, where the quadrature must be split.
INTEGRALS = {
    "tanh": (jnp.tanh, np.tanh, [0]),
    "sigmoid": (jax.nn.sigmoid, special.expit, [0]),
    "silu": (jax.nn.silu, lambda z: z * special.expit(z), [0]),
    "softplus": (jax.nn.softplus, lambda z: np.logaddexp(z, 0), [0]),
    "elu": (jax.nn.elu, lambda z: z if z > 0 else np.expm1(z), [0]),
    "mish": (jax.nn.mish, lambda z: z * np.tanh(np.logaddexp(z, 0)), [0]),
    "hard_swish": (jax.nn.hard_swish, lambda z: z * np.clip(z + 3, 0, 6) / 6, [-3, 3]),
    "hard_sigmoid": (jax.nn.hard_sigmoid, lambda z: np.clip(z + 3, 0, 6) / 6, [-3, 3]),
    "relu6": (jax.nn.relu6, lambda z: np.clip(z, 0, 6), [0, 6]),
    "shifted_relu": (lambda x: jax.nn.relu(x - 0.5), lambda z: max(z - 0.5, 0), [0.5]),
}


def by_quad(fn, kinks):
    pieces = itertools.pairwise([-12, *kinks, 12])
    return sum(
        integrate.quad(lambda z: fn(z) ** 2 * normal_density(z), a, b, epsabs=1e-13, epsrel=0)[0]
        for a, b in pieces
    )


@pytest.mark.parametrize("name", INTEGRALS)
def test_gain_against_adaptive_quadrature(name):
    fn, twin, kinks = INTEGRALS[name]
    expected = by_quad(twin, kinks)
    np.testing.assert_allclose(activation_gain(fn), expected, rtol=1.5e-7)
    with jax.enable_x64(True):
        np.testing.assert_allclose(activation_gain(fn), expected, rtol=1e-12)


def test_gain_of_a_kink_off_the_grid():
    expected = by_quad(lambda z: 1 + max(z - OFF_GRID, 0), [OFF_GRID])
    np.testing.assert_allclose(activation_gain(off_grid_kink), expected, rtol=0, atol=1e-7)


def test_gain_of_a_step_off_the_grid():
    gain = activation_gain(lambda x: (x > OFF_GRID).astype(jnp.float32))
    np.testing.assert_allclose(gain, tail(OFF_GRID), rtol=0, atol=2e-4)


def test_gain_is_what_a_sample_of_normal_numbers_shows():
    z = np.random.default_rng(0).normal(size=1_000_000)
    squares = np.tanh(z) ** 2
    error = squares.std() / 1000
    assert abs(squares.mean() - activation_gain(jnp.tanh)) < 4 * error


def test_initializer_of_the_gain_keeps_the_mean_square_through_many_layers():
    width, keys = 512, jax.random.split(jax.random.key(0), 9)
    init = gradtx.initializers.variance_scaling(
        1 / activation_gain(jax.nn.silu), "fan_in", "normal"
    )
    x = jax.random.normal(keys[0], (64, width))
    for key in keys[1:]:
        x = jax.nn.silu(x) @ init(key, (width, width))
    # Each layer preserves it up to relative noise of about 1 / sqrt(width), here times 8.
    assert abs(float(jnp.mean(x**2)) - 1) < 4 * math.sqrt(8 / width)


def test_gain_while_tracing():
    @jax.jit
    def scaled(x):
        return x / activation_gain(jax.nn.relu)

    np.testing.assert_allclose(scaled(jnp.float32(1.0)), 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        ("relu", "fn must be a function of an array, got 'relu'"),
        (jnp.sum, r"fn must return an array of the shape.*got shape \(\) from sum"),
        (lambda x: 1.0, r"fn must return an array of the shape.*got shape \(\)"),
        (jax.nn.glu, r"fn must return an array of the shape.*from glu"),
        (jax.nn.softmax, "fn must be elementwise, got softmax"),
        (jnp.log, "fn must be finite, got log"),
        (lambda x: jnp.exp(x * x), "fn must be finite"),
        (lambda x: jnp.exp(x * x / 4), r"fn must grow more slowly than exp\(z\^2 / 4\)"),
    ],
    ids=[
        "no-function",
        "sum",
        "constant",
        "half",
        "mixing",
        "not-finite",
        "overflow",
        "no-mean-square",
    ],
)
def test_gain_refuses(fn, message):
    with pytest.raises(ValueError, match=f"activation_gain: {message}"):
        activation_gain(fn)
