"""The statistics after each nonlinearity, and the name that `signal_report` gives it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from gradtx import diagnostics

from .signal_statistics import (
    assert_statistics,
    forward_statistics,
    rms,
    sigmoid,
    silu_slope,
    tanh_gelu,
    tanh_gelu_slope,
)


def heaviside(z):
    return (z > 0).astype(float)


def normal_density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


SELU = 1.0507009873554805, 1.6732632423543772


# The function, its NumPy version, its slope, and whether it flattens smoothly.


ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda z: np.maximum(z, 0), heaviside, False),
    "maximum": (lambda z: jnp.maximum(z, 0), lambda z: np.maximum(z, 0), heaviside, False),
    "where": (lambda z: jnp.where(z > 0, z, 0), lambda z: np.maximum(z, 0), heaviside, False),
    "times_step": (
        lambda z: z * (z > 0).astype(z.dtype),
        lambda z: np.maximum(z, 0),
        heaviside,
        False,
    ),
    "leaky_relu": (
        lambda z: jax.nn.leaky_relu(z, 0.1),
        lambda z: np.where(z > 0, z, 0.1 * z),
        lambda z: np.where(z > 0, 1, 0.1),
        False,
    ),
    "abs": (jnp.abs, np.abs, np.sign, False),
    "relu6": (
        jax.nn.relu6,
        lambda z: np.clip(z, 0, 6),
        lambda z: ((z > 0) & (z < 6)).astype(float),
        False,
    ),
    "hard_tanh": (
        jax.nn.hard_tanh,
        lambda z: np.clip(z, -1, 1),
        lambda z: (np.abs(z) < 1).astype(float),
        False,
    ),
    "clip": (
        lambda z: jnp.clip(z, -1, 2),
        lambda z: np.clip(z, -1, 2),
        lambda z: ((z > -1) & (z < 2)).astype(float),
        False,
    ),
    "tanh": (jnp.tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2, True),
    "sigmoid": (jax.nn.sigmoid, sigmoid, lambda z: sigmoid(z) * sigmoid(-z), True),
    "handmade_sigmoid": (
        lambda z: 1 / (1 + jnp.exp(-z)),
        sigmoid,
        lambda z: sigmoid(z) * sigmoid(-z),
        True,
    ),
    "scaled_tanh": (
        lambda z: 1.7159 * jnp.tanh(z * 2 / 3),
        lambda z: 1.7159 * np.tanh(z * 2 / 3),
        lambda z: 1.7159 * 2 / 3 * (1 - np.tanh(z * 2 / 3) ** 2),
        True,
    ),
    "erf": (
        jax.scipy.special.erf,
        scipy.special.erf,
        lambda z: 2 / math.sqrt(math.pi) * np.exp(-(z**2)),
        True,
    ),
    "gelu_tanh": (jax.nn.gelu, tanh_gelu, tanh_gelu_slope, True),
    "gelu_erf": (
        lambda z: jax.nn.gelu(z, approximate=False),
        lambda z: z * scipy.special.ndtr(z),
        lambda z: scipy.special.ndtr(z) + z * normal_density(z),
        True,
    ),
    "handmade_gelu": (
        lambda z: 0.5 * z * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        tanh_gelu,
        tanh_gelu_slope,
        True,
    ),
    "silu": (jax.nn.silu, lambda z: z * sigmoid(z), silu_slope, True),
    "handmade_silu": (lambda z: z * jax.nn.sigmoid(z), lambda z: z * sigmoid(z), silu_slope, True),
    "softplus": (jax.nn.softplus, lambda z: np.logaddexp(z, 0), sigmoid, True),
    "soft_sign": (
        jax.nn.soft_sign,
        lambda z: z / (1 + np.abs(z)),
        lambda z: 1 / (1 + np.abs(z)) ** 2,
        False,
    ),
    "elu": (
        jax.nn.elu,
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1, np.exp(np.minimum(z, 0))),
        True,
    ),
    "selu": (
        jax.nn.selu,
        lambda z: SELU[0] * np.where(z > 0, z, SELU[1] * np.expm1(np.minimum(z, 0))),
        lambda z: SELU[0] * np.where(z > 0, 1, SELU[1] * np.exp(np.minimum(z, 0))),
        True,
    ),
    "square": (jnp.square, np.square, lambda z: 2 * z, False),
    "sin": (jnp.sin, np.sin, np.cos, False),
}


@functools.cache
def report_of_all_activations():
    """One network with all of them side by side, and its inputs."""
    rng = np.random.default_rng(1)
    x, kernel = rng.standard_normal((32, 4)), 2.0 * rng.standard_normal((4, 6))
    bias, head = 0.1 * rng.standard_normal(6), rng.standard_normal((6, 2))
    bias[0] = -60.0

    def loss_fn(params, x):
        outputs = {
            name: ACTIVATIONS[name][0](x @ own["kernel"] + own["bias"][None]) @ own["head"]
            for name, own in params.items()
        }
        return sum(jnp.sum(output) for output in outputs.values())

    with jax.enable_x64(True):
        own = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias), "head": jnp.asarray(head)}
        params = dict.fromkeys(ACTIVATIONS, own)
        report = diagnostics.signal_report(loss_fn, params, jnp.asarray(x))
    return {layer.name: layer for layer in report.layers}, x, kernel, bias, head


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    _, f, slope_of, is_smooth = ACTIVATIONS[name]
    layers, x, kernel, bias, head = report_of_all_activations()
    z = x @ kernel + bias
    image, slope = f(z), slope_of(z)
    flat = np.abs(slope) < 0.05 if is_smooth else (slope == 0) & (image != 0)
    gradient = np.sum(head, axis=1) * slope
    first, last = layers[f"{name}/kernel"], layers[f"{name}/head"]
    expected = forward_statistics(image, flat) | {
        "grad_rms": rms(gradient),
        "weight_grad_rms": rms(x.T @ gradient),
        "output_rms": rms(z),
    }
    assert_statistics(first, expected, 1e-10)
    assert_statistics(last, forward_statistics(image @ head) | {"input_rms": rms(image)}, 1e-10)
    assert first.activation
    assert last.activation == ""


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        *((name, name) for name in ("relu", "leaky_relu", "relu6", "hard_tanh", "tanh", "sigmoid")),
        *((name, name) for name in ("silu", "softplus", "soft_sign", "elu", "selu", "erf")),
        ("gelu_tanh", "gelu"),
        ("gelu_erf", "gelu"),
        ("handmade_gelu", "gelu"),
        ("handmade_silu", "silu"),
        ("scaled_tanh", "tanh"),
    ],
)
def test_activation_has_the_name_that_people_know(activation, name):
    assert report_of_all_activations()[0][f"{activation}/kernel"].activation == name
