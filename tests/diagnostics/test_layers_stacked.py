"""Layers whose parameters are stacked in one array, and layers in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

from .layer_reference import (
    BATCH,
    DEPTH,
    LISTED,
    STACKED,
    WIDTH,
    assert_layer,
    batch,
    block,
    block_with_vjp,
    in_a_branch,
    loss_of,
    numbers,
    reference,
    scanned,
    through,
    unstacked,
    written_per_sample,
)
from .signal_statistics import rms

pytestmark = pytest.mark.usefixtures("double_precision")


def sliced(params, x):
    for i in range(DEPTH):
        x = block(params["kernel"][i], params["bias"][i], x)
    return loss_of(x, params["head"])


def unstacked_by_tree(params, x):
    for kernel, bias in zip(list(params["kernel"]), list(params["bias"]), strict=True):
        x = block(kernel, bias, x)
    return loss_of(x, params["head"])


STACKED_WAYS = {
    "scan": scanned(),
    "scan_unrolled": scanned(unroll=2),
    "checkpoint_of_scan": jax.checkpoint(scanned(jax.checkpoint(block))),
    "scan_of_custom_vjp": scanned(block_with_vjp),
    "scan_of_cond": scanned(in_a_branch),
    "slices": sliced,
    "unstacked": unstacked_by_tree,
}


@pytest.mark.parametrize("way", STACKED_WAYS)
def test_stacked_parameters(way):
    loss, expected = reference()
    report = diagnostics.signal_report(STACKED_WAYS[way], numbers(), batch())
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == STACKED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)
        assert layer.rms_by_step == ()
    assert [layer.depth for layer in report.layers] == [1, 2, 3, 4]


def test_reversed_scan_is_reported_as_it_is_evaluated():
    _, expected = reference()
    report = diagnostics.signal_report(scanned(reverse=True), flipped(numbers()), batch())
    assert [layer.name for layer in report.layers] == [*STACKED[:-1][::-1], "head"]
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)
    assert [layer.depth for layer in report.layers] == [1, 2, 3, 4]


def flipped(params):
    return {key: value if key == "head" else value[::-1] for key, value in params.items()}


def test_nested_scans():
    """Two layers in the inner loop, three times."""
    rng = np.random.default_rng(3)
    kernels = jnp.asarray(rng.standard_normal((3, 2, WIDTH, WIDTH)))
    x = batch()

    def loss_fn(params, x):
        def inner(x, kernel):
            return jnp.tanh(x @ kernel), None

        def outer(x, kernels):
            return lax.scan(inner, x, kernels)[0], None

        return jnp.mean(lax.scan(outer, x, params["kernel"])[0] ** 2)

    report = diagnostics.signal_report(loss_fn, {"kernel": kernels}, x)
    names = [f"kernel[{i}][{j}]" for i in range(3) for j in range(2)]
    assert [layer.name for layer in report.layers] == names

    def explicit(zeros, kernels):
        signal, images = x, []
        for i in range(3):
            for j in range(2):
                signal = jnp.tanh(signal @ kernels[i, j] + zeros[i, j])
                images.append(signal)
        return jnp.mean(signal**2), images

    zeros = jnp.zeros((3, 2, *x.shape))
    differentiated = jax.jit(jax.grad(explicit, (0, 1), has_aux=True))
    (of_outputs, of_kernels), images = differentiated(zeros, kernels)
    for n, (layer, image) in enumerate(zip(report.layers, images, strict=True)):
        index = divmod(n, 2)
        expected = {
            "rms": rms(image),
            "grad_rms": rms(of_outputs[index]),
            "weight_rms": rms(kernels[index]),
            "weight_grad_rms": rms(of_kernels[index]),
        }
        assert_layer(layer, expected)
        assert layer.depth == n + 1


def test_recurrence_inside_of_a_scan_over_layers():
    """Stacked recurrent networks: a loop over steps in a loop over layers."""
    rng = np.random.default_rng(4)
    steps = 5
    kernels = jnp.asarray(rng.standard_normal((2, WIDTH, WIDTH)))
    x = jnp.asarray(rng.standard_normal((steps, BATCH, WIDTH)))

    def loss_fn(params, x):
        def layer(signals, kernel):
            def step(state, signal):
                state = jnp.tanh(state @ kernel + signal)
                return state, state

            return lax.scan(step, jnp.zeros((BATCH, WIDTH)), signals)[1], None

        return jnp.mean(lax.scan(layer, x, params["kernel"])[0] ** 2)

    def explicit(zeros):
        signals, images = list(x), []
        for kernel, of_layer in zip(kernels, zeros, strict=True):
            state, outputs = jnp.zeros((BATCH, WIDTH)), []
            for signal, zero in zip(signals, of_layer, strict=True):
                state = jnp.tanh(state @ kernel + zero + signal)
                outputs.append(state)
            signals = outputs
            images.append(jnp.stack(outputs))
        return jnp.mean(jnp.stack(signals) ** 2), images

    gradients, images = jax.jit(jax.grad(explicit, has_aux=True))(jnp.zeros((2, *x.shape)))
    report = diagnostics.signal_report(loss_fn, {"kernel": kernels}, x)
    assert [layer.name for layer in report.layers] == ["kernel[0]", "kernel[1]"]
    for layer, image, gradient in zip(report.layers, images, gradients, strict=True):
        assert_layer(layer, {"rms": rms(image), "grad_rms": rms(gradient)})
        np.testing.assert_allclose(layer.rms_by_step, list(map(rms, image)), rtol=1e-9)
        np.testing.assert_allclose(layer.grad_rms_by_step, list(map(rms, gradient)), rtol=1e-9)


def test_scan_over_samples_measures_all_of_them():
    loss, expected = reference()

    def loss_fn(params, x):
        losses = lax.map(lambda sample: through(written_per_sample)(params, sample[None]), x)
        return jnp.mean(losses)

    report = diagnostics.signal_report(loss_fn, unstacked(numbers()), batch())
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == LISTED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)


def test_fori_loop_with_a_counted_index():
    loss, _ = reference()

    def loss_fn(params, x):
        def body(i, x):
            return block(params["kernel"][i], params["bias"][i], x)

        return loss_of(lax.fori_loop(0, DEPTH, body, x), params["head"])

    report = diagnostics.signal_report(loss_fn, numbers(), batch())
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name.partition("[")[0] for layer in report.layers][-1] == "head"
    _, expected = reference()
    assert_layer(report.layers[-1], expected[-1])
    first = report.layers[0]
    images = [of_layer["rms"] for of_layer in expected[:DEPTH]]
    assert first.rms_by_step == pytest.approx(images, rel=1e-9)
    gradients = [of_layer["grad_rms"] for of_layer in expected[:DEPTH]]
    assert first.grad_rms_by_step == pytest.approx(gradients, rel=1e-9)
