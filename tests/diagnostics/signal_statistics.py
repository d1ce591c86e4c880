"""The statistics of a layer in NumPy, and the gradients at its output by zeros added by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def rms(array):
    return math.sqrt(np.mean(np.abs(np.asarray(array, np.float64)) ** 2))


def forward_statistics(image, flat=False):
    """What the report should say about f(z), given whether f is flat for each element."""
    image = np.asarray(image, np.float64)
    all_but_units = tuple(range(image.ndim - 1))
    return {
        "mean": image.mean(),
        "rms": rms(image),
        "zero_fraction": np.mean(image == 0),
        "dead_fraction": np.mean(np.all(image == 0, axis=all_but_units)),
        "saturated_fraction": np.mean(np.broadcast_to(flat, image.shape)),
    }


def assert_statistics(layer, expected, rtol):
    assert expected
    for field, value in expected.items():
        exact = field.endswith("_fraction")
        np.testing.assert_allclose(
            getattr(layer, field), value, rtol=1e-6 if exact else rtol, atol=1e-12, err_msg=field
        )


def untouched(name, z):
    """Marks a place in a loss where `with_taps` adds zeros and records the values."""
    del name
    return z


def with_taps(loss_fn, params, *args):
    """The outputs z of all taps of a loss, the gradients there, and those of the parameters."""

    def tapped(params, zeros):
        seen = {}

        def tap(name, z):
            seen[name] = z if zeros is None else z + zeros[name]
            return seen[name]

        return loss_fn(params, *args, tap=tap), seen

    shapes = jax.eval_shape(lambda p: tapped(p, None)[1], params)
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    gradients, outputs = jax.jit(jax.grad(tapped, (0, 1), has_aux=True))(params, zeros)
    return outputs, gradients[1], gradients[0]


# Nonlinearities that several tests use.


def sech_squared_is_small(z):
    return 1 - np.tanh(np.asarray(z, np.float64)) ** 2 < 0.05


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def silu_slope(z):
    return sigmoid(z) * (1 + z * (1 - sigmoid(z)))


def tanh_gelu(z):
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def tanh_gelu_slope(z):
    inner = np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    stretch = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return 0.5 * (1 + inner) + 0.5 * z * (1 - inner**2) * stretch
