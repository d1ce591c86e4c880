"""The statistics of half-precision, very large or small, and complex numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import diagnostics

from .signal_statistics import assert_statistics, forward_statistics, rms, untouched, with_taps


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [("bfloat16", 2e-2), ("float16", 3e-3)],
)
def test_half_precision(dtype, rtol):
    """Statistics of the numbers in the network, far more accurate than these numbers."""
    rng = np.random.default_rng(9)
    x = jnp.asarray(rng.standard_normal((16, 8)), dtype)
    params = [jnp.asarray(rng.standard_normal((8, 8)) * 300, dtype), jnp.full((8, 1), 1e-3, dtype)]

    def loss_fn(params, x, tap=untouched):
        hidden = tap("hidden", jax.nn.relu(x @ params[0]))
        return jnp.mean((hidden @ params[1]).astype(jnp.float32) ** 2)

    report = diagnostics.signal_report(loss_fn, params, x)
    hidden, gradients, _ = with_taps(loss_fn, params, x)
    image = np.asarray(hidden["hidden"], np.float64)
    # The squares of these numbers overflow float16.
    assert np.max(image) > 256
    assert_statistics(report.layers[0], forward_statistics(image), 1e-5)
    through = np.asarray(gradients["hidden"], np.float64) * (image > 0)
    assert_statistics(report.layers[0], {"grad_rms": rms(through)}, rtol)


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=["tiny", "huge"])
def test_squares_neither_overflow_nor_vanish(scale):
    rng = np.random.default_rng(10)
    x, kernel = rng.standard_normal((16, 8)), rng.standard_normal((8, 8))

    def loss_fn(params, x):
        return jnp.mean(jax.nn.relu(x @ params[0])) * (1 / scale)

    report = diagnostics.signal_report(
        loss_fn, [jnp.asarray(kernel * scale, jnp.float32)], jnp.asarray(x, jnp.float32)
    )
    (layer,) = report.layers
    assert_statistics(layer, forward_statistics(np.maximum(x @ kernel, 0) * scale), 1e-5)
    assert layer.weight_rms == pytest.approx(rms(kernel) * scale, rel=1e-5)
    assert layer.weight_grad_rms == pytest.approx(
        rms(x.T @ (x @ kernel > 0) / (16 * 8 * scale)), rel=1e-5
    )


def test_complex_weights():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((16, 4)) + 1j * rng.standard_normal((16, 4))
    kernel = rng.standard_normal((4, 3)) + 1j * rng.standard_normal((4, 3))

    def loss_fn(params, x):
        return jnp.mean(jnp.abs(x @ params["kernel"]) ** 2)

    params = {"kernel": jnp.asarray(kernel, jnp.complex64)}
    (layer,) = diagnostics.signal_report(loss_fn, params, jnp.asarray(x, jnp.complex64)).layers
    z = x @ kernel

    def complex_rms(array):
        return math.sqrt(np.mean(np.abs(array) ** 2))

    assert layer.output_rms == pytest.approx(complex_rms(z), rel=1e-5)
    assert layer.weight_rms == pytest.approx(complex_rms(kernel), rel=1e-5)
    assert layer.grad_rms == pytest.approx(complex_rms(2 * z / z.size), rel=1e-5)
    gradient = x.conj().T @ (2 * z / z.size)
    assert layer.weight_grad_rms == pytest.approx(complex_rms(gradient), rel=1e-5)


def test_a_part_in_double_precision():
    """A norm is summed up in float64, also where float32 is all that the program has else."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)
    y = jnp.asarray(rng.standard_normal((16, 1)), jnp.float32)
    params = {"w": jnp.asarray(rng.standard_normal((8, 8)) / 3, jnp.float32), "v": jnp.ones((8, 1))}

    def loss_fn(params, x, y):
        errors = jnp.tanh(x @ params["w"]) @ params["v"] - y
        return jnp.mean(errors**2) + 1e-3 * gradtx.global_norm(params)

    assert "float64" in str(jax.make_jaxpr(loss_fn)(params, x, y))
    checked = diagnostics.check_up(loss_fn, params, x, y)
    assert np.isclose(checked.signal.loss, loss_fn(params, x, y), rtol=1e-6)
    assert "not_examined" not in {finding.kind for finding in checked.findings}
