"""The statistics of `signal_report` for whole networks: NumPy's, flax's and equinox's."""

import itertools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import diagnostics

from .signal_statistics import (
    assert_statistics,
    forward_statistics,
    rms,
    sech_squared_is_small,
    tanh_gelu,
    tanh_gelu_slope,
    untouched,
    with_taps,
)

FIELDS = (
    "mean",
    "rms",
    "zero_fraction",
    "dead_fraction",
    "saturated_fraction",
    "grad_rms",
    "weight_grad_rms",
    "weight_rms",
    "input_rms",
    "output_rms",
)


# The plain network, in NumPy and float64.


def plain_network(rng, widths):
    return [
        {
            "kernel": rng.standard_normal((m, n)) * math.sqrt(2 / m),
            "bias": 0.3 * rng.standard_normal(n),
        }
        for m, n in itertools.pairwise(widths)
    ]


def plain_loss(params, x, y, activation):
    *hidden, last = params
    for layer in hidden:
        x = activation(x @ layer["kernel"] + layer["bias"][None])
    return jnp.mean((x @ last["kernel"] + last["bias"][None] - y) ** 2)


def plain_reference(params, x, y, f, slope_of):
    """The forward and the backward pass of the plain network, as in a textbook."""
    inputs, outputs = [], []
    signal = x
    for i, layer in enumerate(params):
        inputs.append(signal)
        outputs.append(signal @ layer["kernel"] + layer["bias"])
        signal = f(outputs[-1]) if i + 1 < len(params) else outputs[-1]
    gradient = 2 * (signal - y) / signal.size
    gradients = []
    for i in reversed(range(len(params))):
        gradients.insert(0, gradient)
        if i > 0:
            gradient = (gradient @ params[i]["kernel"].T) * slope_of(outputs[i - 1])
    return inputs, outputs, gradients


PLAIN = {
    "relu": (jax.nn.relu, lambda z: np.maximum(z, 0), lambda z: z > 0, lambda z: 0 * z > 1),
    "tanh": (jnp.tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2, sech_squared_is_small),
}


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_network(name, x64):
    activation, f, slope_of, is_flat = PLAIN[name]
    rng = np.random.default_rng(0)
    params = plain_network(rng, (5, 8, 7, 6, 3))
    params[1]["bias"][2] = -100.0 if name == "relu" else 9.0
    x, y = rng.standard_normal((16, 5)), rng.standard_normal((16, 3))
    inputs, outputs, gradients = plain_reference(params, x, y, f, slope_of)
    dtype = np.float64 if x64 else np.float32

    def cast(tree):
        return jax.tree.map(lambda array: jnp.asarray(array, dtype), tree)

    def loss_fn(params, x, y):
        return plain_loss(params, x, y, activation)

    with jax.enable_x64(x64):
        report = diagnostics.signal_report(loss_fn, cast(params), cast(x), cast(y))
    rtol = 1e-12 if x64 else 2e-5
    np.testing.assert_allclose(report.loss, np.mean((outputs[-1] - y) ** 2), rtol=rtol)
    assert [layer.name for layer in report.layers] == [f"{i}/kernel" for i in range(4)]
    for i, layer in enumerate(report.layers):
        kernel, z, is_last = params[i]["kernel"], outputs[i], i == 3
        expected = forward_statistics(z if is_last else f(z), False if is_last else is_flat(z))
        expected |= {
            "grad_rms": rms(gradients[i]),
            "weight_grad_rms": rms(inputs[i].T @ gradients[i]),
            "weight_rms": rms(kernel),
            "input_rms": rms(inputs[i]),
            "output_rms": rms(z),
        }
        assert set(expected) == set(FIELDS)
        assert_statistics(layer, expected, rtol)
        assert layer.activation == ("" if is_last else name)
        assert (layer.shape, layer.weight_shape) == (z.shape, kernel.shape)
        assert (layer.fan_in, layer.depth) == (kernel.shape[0], i + 1)
        assert layer.is_hidden is not is_last
        assert layer.rms_by_step == layer.grad_rms_by_step == ()
    if name == "relu":
        assert report.layers[1].dead_fraction == pytest.approx(1 / 7, rel=1e-6)
    else:
        assert report.layers[1].saturated_fraction >= 1 / 7


def test_units_of_linear_layers_too():
    def loss_fn(params, x):
        hidden = jnp.tanh(x @ params["hidden"])
        heads = (hidden @ params["linear"]).reshape(8, 2, 3)
        return jnp.mean(heads**2) + jnp.mean((hidden @ params["head"]) ** 2)

    shapes = {"hidden": (4, 5), "linear": (5, 6), "head": (5, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    report = diagnostics.signal_report(loss_fn, params, jnp.ones((8, 4)))
    units = {layer.name: layer.units for layer in report.layers}
    assert units == {"hidden": 5, "linear": 6, "head": 2}


# A convolutional network of flax, with batch normalization; flax itself is the peer.


class ConvolutionalNetwork(nn.Module):
    is_probed: bool = False

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate((4, 6)):
            x = nn.Conv(features, (3, 3), name=f"conv{i}", use_bias=i == 0)(x)
            x = self.perturb(f"z_conv{i}", x) if self.is_probed else x
            x = nn.relu(nn.BatchNorm(use_running_average=False, name=f"norm{i}")(x))
            self.sow("intermediates", f"a_conv{i}", x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for name, features in (("dense", 8), ("head", 3)):
            x = nn.Dense(features, name=name)(x)
            x = self.perturb(f"z_{name}", x) if self.is_probed else x
            x = nn.relu(x) if name == "dense" else x
            self.sow("intermediates", f"a_{name}", x)
        return x


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))


def test_flax_network_with_batch_norm():
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 2))
    labels = jax.nn.one_hot(jnp.arange(6) % 3, 3)
    probed = ConvolutionalNetwork(is_probed=True)
    variables = jax.jit(probed.init)(jax.random.key(1), images)

    def loss_fn(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, state = ConvolutionalNetwork().apply(variables, images, mutable=["batch_stats"])
        return cross_entropy(logits, labels), state

    def reference(params, perturbations):
        logits, state = probed.apply(
            {**variables, "params": params, "perturbations": perturbations},
            images,
            mutable=["batch_stats", "intermediates"],
        )
        return cross_entropy(logits, labels), state["intermediates"]

    differentiated = jax.jit(jax.value_and_grad(reference, argnums=(0, 1), has_aux=True))
    (loss, intermediates), (of_params, of_outputs) = differentiated(
        variables["params"], variables["perturbations"]
    )
    report = diagnostics.signal_report(
        loss_fn, variables["params"], variables["batch_stats"], images, labels, has_aux=True
    )
    np.testing.assert_allclose(report.loss, float(loss), rtol=1e-6)
    names = ["conv0", "conv1", "dense", "head"]
    assert len(report.layers) == 4
    for name, layer in zip(names, report.layers, strict=True):
        assert name in layer.name
        assert "kernel" in layer.name
        expected = forward_statistics(intermediates[f"a_{name}"][0]) | {
            "grad_rms": rms(of_outputs[f"z_{name}"]),
            "weight_grad_rms": rms(of_params[name]["kernel"]),
            "weight_rms": rms(variables["params"][name]["kernel"]),
        }
        assert_statistics(layer, expected, 3e-5)
        assert layer.activation == ("" if name == "head" else "relu")
    assert [layer.fan_in for layer in report.layers] == [18, 36, 24, 8]
    assert report.layers[1].shape == (6, 4, 4, 6)
    assert report.kind == "healthy", report.verdict


# A transformer block of equinox, vmapped, against the same block written out with einsum.


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norms: list
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key, width, heads):
        keys = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(
            heads, width, use_output_bias=True, key=keys[0], inference=True
        )
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.up = eqx.nn.Linear(width, 2 * width, key=keys[1])
        self.down = eqx.nn.Linear(2 * width, width, key=keys[2])

    def __call__(self, x):
        normalized = jax.vmap(self.norms[0])(x)
        x = x + self.attention(normalized, normalized, normalized)
        hidden = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x)))
        return x + jax.vmap(self.down)(hidden)


def written_out(block, x, y, tap=untouched):
    """The same on the whole batch at once: samples b, positions s, heads h, widths d."""

    def normalized(x, norm):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * norm.weight[None, None] + (
            norm.bias[None, None]
        )

    attention = block.attention
    inputs = normalized(x, block.norms[0])

    def projected(name):
        z = tap(name, jnp.einsum("bsi,oi->bso", inputs, getattr(attention, name).weight))
        return z.reshape(*z.shape[:2], attention.num_heads, -1)

    query, key, value = map(projected, ("query_proj", "key_proj", "value_proj"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    shares = jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True)
    heads = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(inputs.shape)
    output = jnp.einsum("bsi,oi->bso", heads, attention.output_proj.weight)
    x = x + tap("output_proj", output + attention.output_proj.bias[None, None])
    hidden = jnp.einsum("bsi,oi->bso", normalized(x, block.norms[1]), block.up.weight)
    hidden = tap("up", hidden + block.up.bias[None, None])
    inner = jnp.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))
    hidden = 0.5 * hidden * (1 + inner)
    output = jnp.einsum("bsi,oi->bso", hidden, block.down.weight)
    return jnp.mean((x + tap("down", output + block.down.bias[None, None]) - y) ** 2)


def test_equinox_transformer_block():
    with jax.enable_x64(True):
        block = eqx.filter_jit(Block)(jax.random.key(0), 8, 2)
        x, y = jax.random.normal(jax.random.key(1), (2, 4, 6, 8))

        def loss_fn(block, x, y):
            return jnp.mean((jax.vmap(block)(x) - y) ** 2)

        arrays, static = eqx.partition(block, eqx.is_inexact_array)

        def explicit(arrays, tap):
            return written_out(eqx.combine(arrays, static), x, y, tap)

        outputs, gradients, of_params = with_taps(explicit, arrays)
        report = diagnostics.signal_report(loss_fn, block, x, y)
        loss = eqx.filter_jit(written_out)(block, x, y)
    np.testing.assert_allclose(report.loss, float(loss), rtol=1e-12)
    names = ["query_proj", "key_proj", "value_proj", "output_proj", "up", "down"]
    assert len(report.layers) == len(names)
    for name in names:
        (layer,) = (one for one in report.layers if name in one.name)
        owner = of_params.attention if name.endswith("proj") else of_params
        z = np.asarray(outputs[name])
        image = tanh_gelu(z) if name == "up" else z
        flat = np.abs(tanh_gelu_slope(z)) < 0.05 if name == "up" else False
        expected = forward_statistics(image, flat) | {
            "grad_rms": rms(gradients[name]),
            "weight_grad_rms": rms(getattr(owner, name).weight),
            "output_rms": rms(z),
        }
        assert_statistics(layer, expected, 1e-9)
        assert layer.activation == ("gelu" if name == "up" else "")
        assert math.prod(layer.shape) == z.size
        assert layer.fan_in == (16 if name == "down" else 8)
    assert [one.name for one in report.layers][-2:] == [
        next(one.name for one in report.layers if "up" in one.name),
        next(one.name for one in report.layers if "down" in one.name),
    ]
    assert report.kind == "healthy", report.verdict
