"""The statistics of a recurrence in a scan, against the same recurrence unrolled by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import diagnostics

from .signal_statistics import assert_statistics, forward_statistics, rms, untouched, with_taps


def scanned_loss(params, x, y):
    def step(state, inputs):
        z = inputs @ params["input"] + state @ params["recurrent"] + params["bias"][None]
        state = jnp.tanh(z)
        return state, state

    _, states = lax.scan(step, jnp.zeros((x.shape[1], 5), x.dtype), x)
    return jnp.mean((states[-1] @ params["head"] - y) ** 2)


def unrolled_loss(params, x, y, tap=untouched):
    state = jnp.zeros((x.shape[1], 5), x.dtype)
    for t in range(x.shape[0]):
        product = tap(f"input{t}", x[t] @ params["input"])
        recurrent = tap(f"recurrent{t}", state @ params["recurrent"])
        state = tap(f"state{t}", jnp.tanh(product + recurrent + params["bias"][None]))
    return jnp.mean((tap("head", state @ params["head"]) - y) ** 2)


def test_scanned_recurrence():
    rng = np.random.default_rng(7)
    steps = 6
    with jax.enable_x64(True):
        shapes = {"input": (3, 5), "recurrent": (5, 5), "bias": (5,), "head": (5, 2)}
        params = {key: jnp.asarray(rng.standard_normal(shape)) for key, shape in shapes.items()}
        x, y = jnp.asarray(rng.standard_normal((steps, 4, 3))), jnp.zeros((4, 2))
        outputs, gradients, of_params = with_taps(unrolled_loss, params, x, y)
        report = diagnostics.signal_report(scanned_loss, params, x, y)
    layers = {layer.name: layer for layer in report.layers}
    assert list(layers) == ["input", "recurrent", "head"]
    states = np.stack([outputs[f"state{t}"] for t in range(steps)])
    # The state is the tanh of the sum of both products.
    flat = 1 - states**2 < 0.05
    for name in ("input", "recurrent"):
        layer = layers[name]
        backwards = [rms(gradients[f"{name}{t}"]) for t in range(steps)]
        forwards = [rms(outputs[f"{name}{t}"]) for t in range(steps)]
        expected = forward_statistics(states, flat) | {
            "grad_rms": math.sqrt(np.mean(np.square(backwards))),
            "weight_grad_rms": rms(of_params[name]),
            "output_rms": math.sqrt(np.mean(np.square(forwards))),
        }
        assert layer.activation == "tanh"
        assert layer.shape == (4, 5)
        assert_statistics(layer, expected, 1e-10)
        np.testing.assert_allclose(layer.rms_by_step, [rms(s) for s in states], rtol=1e-10)
        np.testing.assert_allclose(layer.grad_rms_by_step, backwards, rtol=1e-10)
    previous = [np.zeros((4, 5)), *states[:-1]]
    assert_statistics(layers["recurrent"], {"input_rms": rms(previous)}, 1e-10)
    expected = forward_statistics(outputs["head"]) | {"grad_rms": rms(gradients["head"])}
    assert_statistics(layers["head"], expected, 1e-10)
    assert layers["head"].rms_by_step == ()


def test_input_projection_outside_of_the_recurrence():
    rng = np.random.default_rng(8)
    params = {
        "input": jnp.asarray(rng.standard_normal((3, 5)), jnp.float32),
        "recurrent": jnp.asarray(rng.standard_normal((5, 5)), jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((6, 4, 3)), jnp.float32)

    def loss_fn(params, x, unroll=None, tap=untouched):
        def step(state, inputs, name="recurrent"):
            state = jnp.tanh(inputs + tap(name, state @ params["recurrent"]))
            return state, None

        products, state = x @ params["input"], jnp.zeros((4, 5))
        if unroll is None:
            state, _ = lax.scan(step, state, products)
        else:
            for t in range(6):
                state = tap(f"state{t}", step(state, products[t], f"recurrent{t}")[0])
        return jnp.sum(state**2)

    outputs, gradients, of_params = with_taps(loss_fn, params, x, True)
    layers = {one.name: one for one in diagnostics.signal_report(loss_fn, params, x).layers}
    assert list(layers) == ["input", "recurrent"]
    states = [rms(outputs[f"state{t}"]) for t in range(6)]
    backwards = [rms(gradients[f"recurrent{t}"]) for t in range(6)]
    np.testing.assert_allclose(layers["recurrent"].rms_by_step, states, rtol=1e-5)
    np.testing.assert_allclose(layers["recurrent"].grad_rms_by_step, backwards, rtol=1e-5)
    assert layers["input"].rms_by_step == ()
    for name, layer in layers.items():
        assert_statistics(layer, {"weight_grad_rms": rms(of_params[name])}, 1e-5)
