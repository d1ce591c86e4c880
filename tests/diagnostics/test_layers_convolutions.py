"""Convolutions of all layouts as layers of `signal_report`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

from .layer_reference import LISTED, assert_layer, batch, numbers, reference, through, unstacked
from .signal_statistics import rms

pytestmark = pytest.mark.usefixtures("double_precision")


SPATIAL_LAST = ("NHWC", "HWIO", "NHWC")


def written_as_convolution(kernel, bias, x):
    return jnp.tanh(
        lax.conv_general_dilated(
            x[:, None, None], kernel[None, None], (1, 1), "SAME", dimension_numbers=SPATIAL_LAST
        )[:, 0, 0]
        + bias[None]
    )


def test_convolution_of_one_point():
    loss, expected = reference()
    report = diagnostics.signal_report(
        through(written_as_convolution), unstacked(numbers()), batch()
    )
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == LISTED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)


CONVOLUTIONS = {
    # shapes of input and kernel, layouts, groups, fan_in
    "2d": ((2, 6, 6, 3), (3, 3, 3, 4), ("NHWC", "HWIO", "NHWC"), 1, 27),
    "channels_first": ((2, 3, 6, 6), (4, 3, 3, 3), ("NCHW", "OIHW", "NCHW"), 1, 27),
    "grouped": ((2, 6, 6, 4), (3, 3, 2, 6), ("NHWC", "HWIO", "NHWC"), 2, 18),
    "depthwise": ((2, 6, 6, 4), (3, 3, 1, 4), ("NHWC", "HWIO", "NHWC"), 4, 9),
    "1d": ((2, 9, 3), (5, 3, 4), ("NWC", "WIO", "NWC"), 1, 15),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution(kind):
    of_input, of_kernel, layout, groups, fan_in = CONVOLUTIONS[kind]
    rng = np.random.default_rng(12)
    x = jnp.asarray(rng.standard_normal(of_input))
    kernel = np.asarray(rng.standard_normal(of_kernel))
    # One channel whose outputs are all below zero: its kernel, and a bias.
    channel_axis = layout[1].index("O")
    channels = of_kernel[channel_axis]
    bias = np.zeros(channels)
    bias[1] = -1e3
    place = tuple(slice(None) if letter == "C" else None for letter in layout[2])

    def loss_fn(params, x, zeros=None):
        z = lax.conv_general_dilated(
            x,
            params["kernel"],
            (2,) * (x.ndim - 2),
            "SAME",
            dimension_numbers=layout,
            feature_group_count=groups,
        )
        z = z + jnp.broadcast_to(params["bias"][place], z.shape)
        z = z if zeros is None else z + zeros
        image = jax.nn.relu(z)
        return jnp.mean(image**2), image

    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    (layer,) = diagnostics.signal_report(loss_fn, params, x, has_aux=True).layers
    zeros = jnp.zeros(jax.eval_shape(loss_fn, params, x)[1].shape)
    differentiated = jax.jit(jax.grad(loss_fn, (0, 2), has_aux=True))
    (gradients, of_output), image = differentiated(params, x, zeros)
    expected = {
        "rms": rms(image),
        "mean": np.mean(np.asarray(image)),
        "zero_fraction": np.mean(np.asarray(image) == 0),
        "dead_fraction": 1 / channels,
        "grad_rms": rms(of_output),
        "weight_rms": rms(kernel),
        "weight_grad_rms": rms(gradients["kernel"]),
    }
    assert_layer(layer, expected)
    assert (layer.units, layer.fan_in, layer.shape) == (channels, fan_in, image.shape)
    assert layer.activation == "relu"
