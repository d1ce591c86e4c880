"""The statistics of a layer with norms, residuals, dropout or gates around its nonlinearity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

from .signal_statistics import (
    assert_statistics,
    forward_statistics,
    rms,
    sech_squared_is_small,
    sigmoid,
    silu_slope,
    untouched,
    with_taps,
)


def moments(z):
    mean = jnp.mean(z, axis=0, keepdims=True)
    variance = jnp.mean((z - mean) ** 2, axis=0, keepdims=True)
    return mean, variance


def batch_normalized(z, scale, shift, x=None):
    del x
    mean, variance = moments(z)
    return (z - mean) * lax.rsqrt(variance + 1e-5) * scale[None] + shift[None]


def layer_normalized(z, scale, shift, x):
    del x
    return (
        batch_normalized(z.T, jnp.ones(z.shape[0]), jnp.zeros(z.shape[0])).T * scale[None]
        + (shift[None])
    )


def normalized_by_moments(z, scale, shift, x):
    """With the difference of squares, as in flax."""
    del x
    mean = jnp.mean(z, axis=0, keepdims=True)
    variance = jnp.mean(z**2, axis=0, keepdims=True) - mean**2
    return (z - mean) / jnp.sqrt(variance + 1e-5) * scale[None] + shift[None]


def scaled(z, scale, shift, x):
    del x
    return z * scale[None] + shift[None]


def residual(z, scale, shift, x):
    return x + scaled(z, scale, shift, x)


def residual_and_norm(z, scale, shift, x):
    return batch_normalized(x + z, scale, shift)


SURROUNDINGS = {
    # the function before f, f, and the function of f(...) and x before the next layer
    "batch_norm": (batch_normalized, jax.nn.relu, lambda a, x: a),
    "layer_norm": (layer_normalized, jax.nn.relu, lambda a, x: a),
    "norm_by_moments": (normalized_by_moments, jax.nn.relu, lambda a, x: a),
    "norm_and_tanh": (batch_normalized, jnp.tanh, lambda a, x: a),
    "residual_after": (scaled, jax.nn.relu, lambda a, x: a + x),
    "residual_before": (residual, jax.nn.relu, lambda a, x: a),
    "residual_and_norm": (residual_and_norm, jnp.tanh, lambda a, x: a),
    "mean_after": (scaled, jax.nn.relu, lambda a, x: a - jnp.mean(a, axis=0, keepdims=True)),
    "norm_after": (scaled, jax.nn.relu, lambda a, x: batch_normalized(a, x[0], x[1])),
    "softmax_after": (scaled, jax.nn.relu, lambda a, x: jax.nn.softmax(a)),
}


def test_surroundings_of_a_nonlinearity():
    """Each is a network of its own, side by side with the others."""
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((12, 5)))
        own = {
            "kernel": jnp.asarray(rng.standard_normal((5, 5))),
            "scale": jnp.asarray(rng.uniform(1, 2, 5)),
            "shift": jnp.asarray(rng.standard_normal(5)),
            "head": jnp.asarray(rng.standard_normal((5, 2))),
        }
        params = dict.fromkeys(SURROUNDINGS, own)

        def loss_fn(params, x, tap=untouched):
            losses = []
            for name, (before, f, after) in SURROUNDINGS.items():
                own = params[name]
                z = tap(f"z of {name}", x @ own["kernel"])
                argument = tap(f"argument of {name}", before(z, own["scale"], own["shift"], x))
                image = tap(f"image of {name}", f(argument))
                received = tap(f"x of {name}", after(image, x))
                losses.append(jnp.mean((received @ own["head"]) ** 2))
            return sum(losses)

        outputs, gradients, of_params = with_taps(loss_fn, params, x)
        report = diagnostics.signal_report(loss_fn, params, x)
    layers = {layer.name: layer for layer in report.layers}
    assert len(layers) == 2 * len(SURROUNDINGS)
    for name, (_, f, _) in SURROUNDINGS.items():
        is_tanh = f is jnp.tanh
        flat = sech_squared_is_small(outputs[f"argument of {name}"]) if is_tanh else False
        expected = forward_statistics(outputs[f"image of {name}"], flat) | {
            "grad_rms": rms(gradients[f"z of {name}"]),
            "weight_grad_rms": rms(of_params[name]["kernel"]),
        }
        first, last = layers[f"{name}/kernel"], layers[f"{name}/head"]
        assert_statistics(first, expected, 1e-10)
        assert_statistics(last, {"input_rms": rms(outputs[f"x of {name}"])}, 1e-10)
        assert first.activation == ("tanh" if is_tanh else "relu")


def test_dropout_after_the_nonlinearity():
    def loss_fn(params, x, key):
        keep = jax.random.bernoulli(key, 0.5, (64, 8))
        hidden = jnp.where(keep, jax.nn.relu(x @ params[0]) / 0.5, 0.0)
        return jnp.mean((hidden @ params[1]) ** 2)

    rng = np.random.default_rng(3)
    x, kernel = rng.standard_normal((64, 4)), rng.standard_normal((4, 8))
    params = [jnp.asarray(kernel, jnp.float32), jnp.ones((8, 1))]
    report = diagnostics.signal_report(
        loss_fn, params, jnp.asarray(x, jnp.float32), jax.random.key(0)
    )
    image = np.maximum(x @ kernel, 0)
    assert_statistics(report.layers[0], forward_statistics(image), 1e-5)
    assert report.kind == "healthy"


@pytest.mark.parametrize("gate", ["sigmoid", "silu"])
def test_gated_linear_unit(gate):
    """The output of a gated unit is the product; each branch is a layer of its own."""
    f = {"sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu}[gate]

    def loss_fn(params, x, tap=untouched):
        gates = tap("gate", x @ params["gate"])
        product = f(gates) * tap("value", x @ params["value"])
        return jnp.mean((tap("product", product) @ params["head"]) ** 2)

    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((12, 5)))
        params = {
            "gate": jnp.asarray(rng.standard_normal((5, 7))),
            "value": jnp.asarray(rng.standard_normal((5, 7))),
            "head": jnp.asarray(rng.standard_normal((7, 2))),
        }
        outputs, gradients, of_params = with_taps(loss_fn, params, x)
        report = diagnostics.signal_report(loss_fn, params, x)
    layers = {layer.name: layer for layer in report.layers}
    z = np.asarray(outputs["gate"])
    slope = sigmoid(z) * sigmoid(-z) if gate == "sigmoid" else silu_slope(z)
    image = sigmoid(z) if gate == "sigmoid" else z * sigmoid(z)
    assert_statistics(layers["gate"], forward_statistics(image, np.abs(slope) < 0.05), 1e-10)
    for name in ("gate", "value"):
        expected = {"grad_rms": rms(gradients[name]), "weight_grad_rms": rms(of_params[name])}
        assert_statistics(layers[name], expected, 1e-10)
    assert_statistics(layers["value"], {"output_rms": rms(outputs["value"])}, 1e-10)
    assert_statistics(layers["head"], {"input_rms": rms(outputs["product"])}, 1e-10)
    assert layers["gate"].activation == gate
