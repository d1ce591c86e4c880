"""The statistics of `signal_report` against NumPy, explicit intermediates and flax.

Gradients at a layer's output are those with respect to zeros that are added there by hand.
"""

import functools
import itertools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax

from gradtx import diagnostics

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


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Each program here runs once: compiling it well takes longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def rms(array):
    return math.sqrt(np.mean(np.abs(np.asarray(array, np.float64)) ** 2))


def forward_statistics(image, flat=False, unit_axes=(-1,)):
    """What the report is to say of f(z), given whether f is flat for each element."""
    image = np.asarray(image, np.float64)
    units = {axis % image.ndim for axis in unit_axes}
    others = tuple(set(range(image.ndim)) - units)
    return {
        "mean": image.mean(),
        "rms": rms(image),
        "zero_fraction": np.mean(image == 0),
        "dead_fraction": np.mean(np.all(image == 0, axis=others)),
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
    """Stands in a loss where `with_taps` adds zeros and remembers what passes."""
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


def sech_squared_is_small(z):
    return 1 - np.tanh(np.asarray(z, np.float64)) ** 2 < 0.05


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
    """Forwards and backwards through the plain network, as in a textbook."""
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


# Nonlinearities: the function, its transcription, its slope, and whether it becomes flat smoothly.


def heaviside(z):
    return (z > 0).astype(float)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def normal_density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def tanh_gelu(z):
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def tanh_gelu_slope(z):
    inner = np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    stretch = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return 0.5 * (1 + inner) + 0.5 * z * (1 - inner**2) * stretch


def silu_slope(z):
    return sigmoid(z) * (1 + z * (1 - sigmoid(z)))


SELU = 1.0507009873554805, 1.6732632423543772

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
    """One network with all of them next to each other, and what went into it."""
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


# What stands around the nonlinearity.


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
    """With the difference of squares, as flax does it."""
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
    # what is before f, f, what is done with f(...) before the next layer, given x
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


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_of_a_nonlinearity(name):
    before, f, after = SURROUNDINGS[name]
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((12, 5)))
        params = {
            "kernel": jnp.asarray(rng.standard_normal((5, 5))),
            "scale": jnp.asarray(rng.uniform(1, 2, 5)),
            "shift": jnp.asarray(rng.standard_normal(5)),
            "head": jnp.asarray(rng.standard_normal((5, 2))),
        }

        def loss_fn(params, x, tap=untouched):
            z = tap("z", x @ params["kernel"])
            image = tap("f(z)", f(before(z, params["scale"], params["shift"], x)))
            received = tap("x", after(image, x))
            return jnp.mean((received @ params["head"]) ** 2)

        outputs, gradients, of_params = with_taps(loss_fn, params, x)
        report = diagnostics.signal_report(loss_fn, params, x)
        argument = before(outputs["z"], params["scale"], params["shift"], x)
    flat = sech_squared_is_small(argument) if f is jnp.tanh else False
    expected = forward_statistics(outputs["f(z)"], flat) | {
        "grad_rms": rms(gradients["z"]),
        "weight_grad_rms": rms(of_params["kernel"]),
    }
    first, last = report.layers
    assert_statistics(first, expected, 1e-10)
    assert_statistics(last, {"input_rms": rms(outputs["x"])}, 1e-10)
    assert first.activation == ("tanh" if f is jnp.tanh else "relu")


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
    """The signal that leaves a gated unit is the product; each branch is a layer of its own."""
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
    variables = probed.init(jax.random.key(1), images)

    def loss_fn(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, state = ConvolutionalNetwork().apply(variables, images, mutable=["batch_stats"])
        return cross_entropy(logits, labels), state

    @jax.jit
    def reference(params, perturbations):
        logits, state = probed.apply(
            {**variables, "params": params, "perturbations": perturbations},
            images,
            mutable=["batch_stats", "intermediates"],
        )
        return cross_entropy(logits, labels), state["intermediates"]

    (loss, intermediates), (of_params, of_outputs) = jax.value_and_grad(
        reference, argnums=(0, 1), has_aux=True
    )(variables["params"], variables["perturbations"])
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
    """The same on the whole batch at once: samples b, places s, heads h, widths d."""

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
        block = Block(jax.random.key(0), 8, 2)
        x, y = jax.random.normal(jax.random.key(1), (2, 4, 6, 8))

        def loss_fn(block, x, y):
            return jnp.mean((jax.vmap(block)(x) - y) ** 2)

        arrays, static = eqx.partition(block, eqx.is_inexact_array)

        def explicit(arrays, tap):
            return written_out(eqx.combine(arrays, static), x, y, tap)

        outputs, gradients, of_params = with_taps(explicit, arrays)
        report = diagnostics.signal_report(loss_fn, block, x, y)
        loss = written_out(block, x, y)
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


# A recurrence in a scan, against the same recurrence unrolled by hand.


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
    # The state follows from the recurrent product, and the input's, by the same tanh.
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


# Other dtypes.


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [("bfloat16", 2e-2), ("float16", 3e-3)],
)
def test_half_precision(dtype, rtol):
    """Statistics of the numbers in the network, with an accuracy far above their own."""
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
