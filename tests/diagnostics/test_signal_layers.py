"""Which layers `signal_report` finds, through which transformations, and that nothing is disturbed.

One network, of three tanh layers and a linear head, is written in many ways. All of them must give
what the plain one gives, whose intermediates and gradients are computed explicitly.
"""

import functools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

DEPTH, WIDTH, BATCH = 3, 4, 6


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Each program here runs once: compiling it well takes longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def rms(array):
    return math.sqrt(np.mean(np.abs(np.asarray(array, np.float64)) ** 2))


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.standard_normal((DEPTH, WIDTH, WIDTH))),
        "bias": jnp.asarray(rng.standard_normal((DEPTH, WIDTH))),
        "head": jnp.asarray(rng.standard_normal((WIDTH, 2))),
    }


def batch(seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((BATCH, WIDTH)))


def unstacked(params):
    return {
        "layers": [
            {"kernel": kernel, "bias": bias}
            for kernel, bias in zip(params["kernel"], params["bias"], strict=True)
        ],
        "head": params["head"],
    }


def block(kernel, bias, x):
    return jnp.tanh(x @ kernel + bias[None])


def loss_of(x, head):
    return jnp.mean((x @ head) ** 2)


@functools.cache
def reference():
    """Statistics of the layers in order, from explicit intermediates."""
    with jax.enable_x64(True):
        params, x = numbers(), batch()

        def explicit(params, zeros):
            signal, images = x, []
            for kernel, bias, zero in zip(params["kernel"], params["bias"], zeros, strict=False):
                signal = jnp.tanh(signal @ kernel + bias[None] + zero)
                images.append(signal)
            output = signal @ params["head"] + zeros[-1]
            return jnp.mean(output**2), [*images, output]

        zeros = [*(jnp.zeros((BATCH, WIDTH)) for _ in range(DEPTH)), jnp.zeros((BATCH, 2))]
        (loss, images), (of_params, of_outputs) = jax.value_and_grad(
            explicit, (0, 1), has_aux=True
        )(params, zeros)
    weights = [*params["kernel"], params["head"]]
    of_weights = [*of_params["kernel"], of_params["head"]]
    inputs = [x, *images[:-1]]
    layers = [
        {
            "mean": float(np.mean(images[i])),
            "rms": rms(images[i]),
            "saturated_fraction": np.mean(1 - np.asarray(images[i]) ** 2 < 0.05) * (i < DEPTH),
            "grad_rms": rms(of_outputs[i]),
            "weight_rms": rms(weights[i]),
            "weight_grad_rms": rms(of_weights[i]),
            "input_rms": rms(inputs[i]),
        }
        for i in range(DEPTH + 1)
    ]
    return float(loss), layers


def assert_layer(layer, expected, rtol=1e-9):
    assert expected
    for field, value in expected.items():
        assert getattr(layer, field) == pytest.approx(value, rel=rtol, abs=1e-14), field


LISTED = [*(f"layers/{i}/kernel" for i in range(DEPTH)), "head"]
STACKED = [*(f"kernel[{i}]" for i in range(DEPTH)), "head"]


def through(apply_block):
    """The plain network with some other way to apply a layer."""

    def loss_fn(params, x):
        for layer in params["layers"]:
            x = apply_block(layer["kernel"], layer["bias"], x)
        return loss_of(x, params["head"])

    return loss_fn


def scanned(body=block, **options):
    def loss_fn(params, x):
        def step(x, layer):
            return body(*layer, x), None

        x, _ = lax.scan(step, x, (params["kernel"], params["bias"]), **options)
        return loss_of(x, params["head"])

    return loss_fn


def written_transposed(kernel, bias, x):
    return jnp.tanh((kernel.T @ x.T).T + bias[None])


def written_with_reshape(kernel, bias, x):
    heads = jnp.einsum("bi,iho->bho", x, kernel.reshape(WIDTH, 2, WIDTH // 2))
    return jnp.tanh(heads + bias.reshape(2, -1)[None]).reshape(x.shape)


def written_per_sample(kernel, bias, x):
    return jax.vmap(lambda sample: jnp.tanh(sample @ kernel + bias))(x)


def written_as_convolution(kernel, bias, x):
    return jnp.tanh(
        lax.conv_general_dilated(
            x[:, None, None], kernel[None, None], (1, 1), "SAME", dimension_numbers=SPATIAL_LAST
        )[:, 0, 0]
        + bias[None]
    )


SPATIAL_LAST = ("NHWC", "HWIO", "NHWC")


def bias_as_an_input(kernel, bias, x):
    """Homogeneous coordinates: the bias is a column of the weights, and 1 an input."""
    ones = jnp.ones((x.shape[0], 1))
    return jnp.tanh(jnp.concatenate([x, ones], 1) @ jnp.concatenate([kernel, bias[None]]))


@jax.custom_jvp
def block_with_jvp(kernel, bias, x):
    return block(kernel, bias, x)


block_with_jvp.defjvp(lambda primals, tangents: jax.jvp(block, primals, tangents))


@jax.custom_vjp
def block_with_vjp(kernel, bias, x):
    return block(kernel, bias, x)


block_with_vjp.defvjp(
    lambda *arguments: (block(*arguments), arguments),
    lambda arguments, gradient: jax.vjp(block, *arguments)[1](gradient),
)


@jax.custom_vjp
def tanh_with_vjp(z):
    return jnp.tanh(z)


tanh_with_vjp.defvjp(
    lambda z: (jnp.tanh(z), jnp.tanh(z)), lambda image, gradient: (gradient * (1 - image**2),)
)


@jax.custom_jvp
def tanh_with_jvp(z):
    return jnp.tanh(z)


tanh_with_jvp.defjvps(lambda tangent, image, z: tangent * (1 - image**2))


def in_a_branch(kernel, bias, x):
    return lax.cond(jnp.sum(x) < 1e9, lambda x: block(kernel, bias, x), lambda x: x, x)


def in_a_switch(kernel, bias, x):
    other = [lambda x: x, lambda x: block(kernel, bias, x), lambda x: block(-kernel, bias, x)]
    return lax.switch(jnp.sum(x > 1e9) + 1, other, x)


WAYS = {
    "plain": through(block),
    "nested_jit": jax.jit(through(jax.jit(lambda *arguments: jax.jit(block)(*arguments)))),
    "checkpoint": through(jax.checkpoint(block)),
    "transposed": through(written_transposed),
    "heads": through(written_with_reshape),
    "per_sample": through(written_per_sample),
    "vmapped_loss": lambda params, x: jnp.mean(
        jax.vmap(through(written_per_sample), in_axes=(None, 0))(params, x[:, None])
    ),
    "custom_jvp": through(block_with_jvp),
    "custom_jvp_activation": through(lambda w, b, x: tanh_with_jvp(x @ w + b[None])),
    "custom_vjp_activation": through(lambda w, b, x: tanh_with_vjp(x @ w + b[None])),
    "custom_vjp_in_jit_in_checkpoint": through(jax.checkpoint(jax.jit(block_with_vjp))),
    "switch": through(in_a_switch),
    "bias_first": through(lambda w, b, x: jnp.tanh(b[None] + x @ w)),
    "bias_broadcast": through(lambda w, b, x: jnp.tanh(x @ w + jnp.broadcast_to(b, x.shape))),
    "optimization_barrier": through(lambda w, b, x: lax.optimization_barrier(block(w, b, x))),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_a_network(way):
    loss, expected = reference()
    report = diagnostics.signal_report(WAYS[way], unstacked(numbers()), batch())
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == LISTED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)
    assert [layer.activation != "" for layer in report.layers] == [True] * DEPTH + [False]
    assert [layer.is_hidden for layer in report.layers] == [True] * DEPTH + [False]
    assert [layer.depth for layer in report.layers] == [1, 2, 3, 4]
    assert [layer.fan_in for layer in report.layers] == [WIDTH] * (DEPTH + 1)
    assert [layer.units for layer in report.layers[:DEPTH]] == [WIDTH] * DEPTH


def test_convolution_of_one_point():
    loss, expected = reference()
    report = diagnostics.signal_report(
        through(written_as_convolution), unstacked(numbers()), batch()
    )
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == LISTED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)


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
    "scan_of_checkpoint": scanned(jax.checkpoint(block)),
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
    (of_outputs, of_kernels), images = jax.grad(explicit, (0, 1), has_aux=True)(zeros, kernels)
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

    gradients, images = jax.grad(explicit, has_aux=True)(jnp.zeros((2, *x.shape)))
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


# Branches.


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_branch_not_taken_is_not_reported(is_first):
    def loss_fn(params, x, is_first):
        image = lax.cond(
            is_first,
            lambda x: jnp.tanh(x @ params["first"]),
            lambda x: jax.nn.relu(x @ params["second"] @ params["third"]),
            x,
        )
        return loss_of(image, params["head"])

    rng = np.random.default_rng(5)
    params = {
        name: jnp.asarray(rng.standard_normal((WIDTH, 2 if name == "head" else WIDTH)))
        for name in ("first", "second", "third", "head")
    }
    x = batch()
    report = diagnostics.signal_report(loss_fn, params, x, jnp.asarray(is_first))
    names = ["first", "head"] if is_first else ["second", "third", "head"]
    assert [layer.name for layer in report.layers] == names
    product = np.asarray(x) @ np.asarray(params["second"]) @ np.asarray(params["third"])
    image = np.tanh(x @ params["first"]) if is_first else np.maximum(product, 0)
    assert_layer(report.layers[-2], {"rms": rms(image)})
    assert_layer(report.layers[-1], {"input_rms": rms(image)})
    other = {"second", "third"} if is_first else {"first"}
    gradients = jax.grad(loss_fn)(params, x, jnp.asarray(is_first))
    for layer in report.layers:
        assert layer.name not in other
        assert_layer(layer, {"weight_grad_rms": rms(gradients[layer.name])})


def test_branch_taken_in_some_iterations_is_measured_there():
    def loss_fn(params, x):
        def step(x, i):
            return lax.cond(i % 2 == 0, lambda x: jnp.tanh(x @ params["w"]), lambda x: x, x), None

        return jnp.mean(lax.scan(step, x, jnp.arange(5))[0] ** 2)

    kernel = jnp.asarray(np.random.default_rng(6).standard_normal((WIDTH, WIDTH)))
    (layer,) = diagnostics.signal_report(loss_fn, {"w": kernel}, batch()).layers
    images = [batch()]
    for _ in range(3):
        images.append(np.tanh(np.asarray(images[-1]) @ np.asarray(kernel)))
    assert layer.rms_by_step == pytest.approx([rms(image) for image in images[1:]], rel=1e-9)


# Derivatives that a function brings along.


def test_gradients_are_those_of_a_custom_rule():
    """Behind a reversed and scaled gradient, everything is reversed and scaled."""

    @jax.custom_vjp
    def layer(kernel, x):
        return jnp.tanh(x @ kernel)

    def backwards(residuals, gradient):
        of_kernel, of_x = jax.vjp(lambda kernel, x: jnp.tanh(x @ kernel), *residuals)[1](gradient)
        return 10.0 * of_kernel, -3.0 * of_x

    layer.defvjp(lambda kernel, x: (layer(kernel, x), (kernel, x)), backwards)

    def loss_fn(params, x):
        return loss_of(layer(params["second"], jnp.tanh(x @ params["first"])), params["head"])

    def ordinary(params, x):
        hidden = jnp.tanh(x @ params["first"])
        return loss_of(jnp.tanh(hidden @ params["second"]), params["head"])

    stack = numbers()
    params = {"first": stack["kernel"][0], "second": stack["kernel"][1], "head": stack["head"]}
    report = diagnostics.signal_report(loss_fn, params, batch())
    without = jax.grad(ordinary)(params, batch())
    layers = {one.name: one for one in report.layers}
    assert list(layers) == ["first", "second", "head"]
    assert_layer(layers["second"], {"weight_grad_rms": 10 * rms(without["second"])})
    assert_layer(layers["first"], {"weight_grad_rms": 3 * rms(without["first"])})
    assert_layer(layers["head"], {"weight_grad_rms": rms(without["head"])})

    def from_output(zero):
        hidden = jnp.tanh(batch() @ params["first"])
        return loss_of(jnp.tanh(hidden @ params["second"] + zero), params["head"])

    gradient = jax.grad(from_output)(jnp.zeros((BATCH, WIDTH)))
    assert_layer(layers["second"], {"grad_rms": rms(gradient)})


def test_straight_through_activation():
    """The slope of a step, for saturation and gradients, is the one that its rule brings along."""

    @jax.custom_vjp
    def sign(z):
        return jnp.sign(z)

    sign.defvjp(
        lambda z: (jnp.sign(z), z), lambda z, gradient: (jnp.where(jnp.abs(z) < 1, gradient, 0.0),)
    )

    def loss_fn(params, x):
        return loss_of(sign(x @ params["w"]), params["head"])

    params = {"w": numbers()["kernel"][0], "head": numbers()["head"]}
    first, _ = diagnostics.signal_report(loss_fn, params, batch()).layers
    z = np.asarray(batch()) @ np.asarray(params["w"])
    output = np.sign(z) @ np.asarray(params["head"])
    gradient = (2 * output / output.size) @ np.asarray(params["head"]).T * (np.abs(z) < 1)
    expected = {
        "rms": 1.0,
        "zero_fraction": 0.0,
        "saturated_fraction": np.mean(np.abs(z) >= 1),
        "grad_rms": rms(gradient),
        "weight_grad_rms": rms(np.asarray(batch()).T @ gradient),
    }
    assert_layer(first, expected)


# What happens to the weights before they meet the data.


def masked(params, x, mask):
    return jnp.tanh(x @ (params["w"] * mask)), params["w"] * mask


def low_rank(params, x, mask):
    del mask
    weights = params["w"] + params["a"] @ params["b"]
    return jnp.tanh(x @ weights), weights


def standardized(params, x, mask):
    del mask
    weights = params["w"] - jnp.mean(params["w"], axis=0, keepdims=True)
    weights = weights / jnp.sqrt(jnp.mean(weights**2, axis=0, keepdims=True))
    return jnp.tanh(x @ weights), weights


def weight_normalized(params, x, mask):
    del mask
    norm = jnp.linalg.norm(params["w"], axis=0, keepdims=True)
    weights = params["w"] / norm * params["a"].T
    return jnp.tanh(x @ weights), weights


def transposed(params, x, mask):
    del mask
    return jnp.tanh(x @ params["w"].T), params["w"]


def cast(params, x, mask):
    del mask
    weights = params["w"].astype(jnp.float32).astype(jnp.float64)
    return jnp.tanh(x @ weights), weights


def scaled(params, x, mask):
    del mask
    weights = 0.5 * params["w"]
    return jnp.tanh(x @ weights), weights


MADE = {
    "masked": masked,
    "low_rank": low_rank,
    "standardized": standardized,
    "weight_normalized": weight_normalized,
    "transposed": transposed,
    "cast": cast,
    "scaled": scaled,
}


@pytest.mark.parametrize("how", MADE)
def test_weights_made_from_a_parameter(how):
    def loss_fn(params, x, mask):
        return loss_of(MADE[how](params, x, mask)[0], params["head"])

    rng = np.random.default_rng(7)
    params = {"w": numbers()["kernel"][0], "head": numbers()["head"]}
    if how in ("low_rank", "weight_normalized"):
        params["a"] = jnp.asarray(rng.standard_normal((WIDTH, 1)))
        params["b"] = jnp.asarray(rng.standard_normal((1, WIDTH)))
    mask = jnp.asarray(rng.random((WIDTH, WIDTH)) < 0.5, jnp.float64)
    report = diagnostics.signal_report(loss_fn, params, batch(), mask)
    image, weights = MADE[how](params, batch(), mask)
    gradients = jax.grad(loss_fn)(params, batch(), mask)
    assert [layer.name for layer in report.layers] == ["w", "head"]
    expected = {
        "rms": rms(image),
        "weight_rms": rms(weights),
        "weight_grad_rms": rms(gradients["w"]),
        "input_rms": rms(batch()),
    }
    assert_layer(report.layers[0], expected)


def test_two_low_rank_factors_are_two_layers():
    def loss_fn(params, x):
        return loss_of(x @ params["w"] + x @ params["a"] @ params["b"], params["head"])

    rng = np.random.default_rng(8)
    shapes = {"w": (WIDTH, WIDTH), "a": (WIDTH, 2), "b": (2, WIDTH), "head": (WIDTH, 2)}
    params = {key: jnp.asarray(rng.standard_normal(shape)) for key, shape in shapes.items()}
    report = diagnostics.signal_report(loss_fn, params, batch())
    gradients = jax.grad(loss_fn)(params, batch())
    assert [layer.name for layer in report.layers] == ["w", "a", "b", "head"]
    assert [layer.depth for layer in report.layers] == [1, 1, 2, 3]
    for layer in report.layers:
        assert_layer(layer, {"weight_grad_rms": rms(gradients[layer.name])})


def test_concatenated_weights():
    """Several products as one, as attentions, gated units and recurrent cells are often written."""

    def loss_fn(params, x):
        both = jnp.tanh(x @ jnp.concatenate([params["a"], params["b"]], axis=1))
        return loss_of(both[:, :WIDTH] * both[:, WIDTH:], params["head"])

    params = dict(zip("ab", numbers()["kernel"], strict=False)) | {"head": numbers()["head"]}
    report = diagnostics.signal_report(loss_fn, params, batch())
    assert len(report.layers) == 2
    first = report.layers[0]
    weights = np.concatenate([params["a"], params["b"]], axis=1)
    assert_layer(first, {"weight_rms": rms(weights), "output_rms": rms(batch() @ weights)})
    assert first.name.startswith("a")


def test_optimized_lstm_of_flax():
    """Its cell concatenates the weights of its gates."""
    network = nn.RNN(nn.OptimizedLSTMCell(3, param_dtype=jnp.float64, dtype=jnp.float64))
    x = jnp.asarray(np.random.default_rng(15).standard_normal((2, 5, WIDTH)))
    variables = network.init(jax.random.key(0), x)
    report = diagnostics.signal_report(
        lambda variables, x: jnp.mean(network.apply(variables, x)[:, -1] ** 2), variables, x
    )
    assert {layer.fan_in for layer in report.layers} == {3, WIDTH}
    assert all(len(layer.rms_by_step) == 5 for layer in report.layers)


def test_homogeneous_coordinates():
    """The bias is a row of the weights, and 1 an input."""
    loss, _ = reference()
    report = diagnostics.signal_report(through(bias_as_an_input), unstacked(numbers()), batch())
    assert report.loss == pytest.approx(loss, rel=1e-12)
    together = [f"{name} + {name.replace('kernel', 'bias')}" for name in LISTED[:-1]]
    assert [layer.name for layer in report.layers] == [*together, LISTED[-1]]
    assert_layer(report.layers[0], {"rms": reference()[1][0]["rms"]})
    assert report.layers[0].fan_in == WIDTH + 1


def test_dynamic_slice_of_a_stack():
    """One layer of a stack, chosen while the program runs."""

    def loss_fn(params, x, i):
        return loss_of(block(params["kernel"][i], params["bias"][i], x), params["head"])

    params, x = numbers(), batch()
    report = diagnostics.signal_report(loss_fn, params, x, jnp.asarray(1))
    image = np.tanh(np.asarray(x) @ np.asarray(params["kernel"][1]) + np.asarray(params["bias"][1]))
    first, last = report.layers
    assert first.name.startswith("kernel")
    assert_layer(first, {"rms": rms(image), "weight_rms": rms(params["kernel"][1])})
    assert_layer(last, {"input_rms": rms(image)})


def test_tied_weights_are_met_twice():
    """An encoder and a decoder with the same weights: two layers of one parameter."""

    def loss_fn(params, x):
        hidden = jnp.tanh(x @ params["w"])
        return jnp.mean((hidden @ params["w"].T - x) ** 2)

    kernel = jnp.asarray(np.random.default_rng(9).standard_normal((WIDTH, 3)))
    first, second = diagnostics.signal_report(loss_fn, {"w": kernel}, batch()).layers
    assert first.name == second.name == "w"
    hidden = np.tanh(np.asarray(batch()) @ np.asarray(kernel))
    output = hidden @ np.asarray(kernel).T
    gradient = 2 * (output - np.asarray(batch())) / output.size
    assert_layer(first, {"rms": rms(hidden), "input_rms": rms(batch())})
    assert_layer(second, {"rms": rms(output), "input_rms": rms(hidden), "grad_rms": rms(gradient)})
    back = gradient @ np.asarray(kernel) * (1 - hidden**2)
    assert_layer(first, {"grad_rms": rms(back)})
    whole = rms(jax.grad(loss_fn)({"w": kernel}, batch())["w"])
    assert_layer(first, {"weight_grad_rms": whole})
    assert_layer(second, {"weight_grad_rms": whole})


def test_tied_to_an_embedding():
    """Looking rows up is no layer; the product with the same table at the end is one."""

    def loss_fn(params, tokens):
        hidden = jnp.tanh(params["embedding"][tokens] @ params["w"])
        return jnp.mean((hidden @ params["embedding"].T) ** 2)

    rng = np.random.default_rng(10)
    params = {
        "embedding": jnp.asarray(rng.standard_normal((7, WIDTH))),
        "w": jnp.asarray(rng.standard_normal((WIDTH, WIDTH))),
    }
    tokens = jnp.asarray(rng.integers(0, 7, (BATCH, 3)))
    report = diagnostics.signal_report(loss_fn, params, tokens)
    assert [layer.name for layer in report.layers] == ["w", "embedding"]
    rows = np.asarray(params["embedding"])[np.asarray(tokens)]
    assert_layer(report.layers[0], {"input_rms": rms(rows)})


def test_products_of_signals_or_of_parameters_are_no_layers():
    def loss_fn(params, x):
        query, key = x @ params["query"], x @ params["key"]
        scores = query @ key.T
        weights = params["a"] @ params["b"]
        return jnp.mean(scores**2) + jnp.sum(weights**2) + jnp.mean(x * params["scale"][None])

    rng = np.random.default_rng(11)
    params = {
        key: jnp.asarray(rng.standard_normal((WIDTH, WIDTH))) for key in ("query", "key", "a", "b")
    } | {"scale": jnp.ones(WIDTH)}
    report = diagnostics.signal_report(loss_fn, params, batch())
    assert [layer.name for layer in report.layers] == ["query", "key"]


# Convolutions.

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
    image = loss_fn(params, x)[1]
    gradients, _ = jax.grad(loss_fn, has_aux=True)(params, x)
    of_output, _ = jax.grad(loss_fn, 2, has_aux=True)(params, x, jnp.zeros(image.shape))
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


# Arguments of all kinds.


def test_data_may_be_closed_over():
    loss, expected = reference()
    x = batch()
    report = diagnostics.signal_report(
        lambda params: through(block)(params, x), unstacked(numbers())
    )
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == LISTED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)


def test_parameters_may_be_closed_over_as_data():
    """Only what is given as `params` is a layer; frozen weights are not."""
    frozen = numbers()["kernel"][0]

    def loss_fn(params, x):
        return loss_of(jnp.tanh(x @ frozen), params["head"])

    report = diagnostics.signal_report(loss_fn, {"head": numbers()["head"]}, batch())
    assert [layer.name for layer in report.layers] == ["head"]


def test_leaves_that_are_no_parameters_are_left_alone():
    def loss_fn(params, x, options):
        assert options["depth"] == 1
        assert params["name"] is None
        hidden = params["activation"](x @ params["w"]) * params["table"][1].astype(x.dtype)
        return loss_of(hidden, params["head"])

    params = {
        "w": numbers()["kernel"][0],
        "head": numbers()["head"],
        "activation": jnp.tanh,
        "name": None,
        "table": jnp.asarray([1, 2]),
    }
    report = diagnostics.signal_report(loss_fn, params, batch(), {"depth": 1, "mode": "train"})
    assert [layer.name for layer in report.layers] == ["w", "head"]
    image = np.tanh(np.asarray(batch()) @ np.asarray(params["w"]))
    assert_layer(report.layers[1], {"input_rms": 2 * rms(image)})


def test_numpy_arrays():
    loss, expected = reference()
    params = jax.tree.map(np.asarray, unstacked(numbers()))
    report = diagnostics.signal_report(through(block), params, np.asarray(batch()))
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert_layer(report.layers[0], expected[0])


def test_equinox_module_with_functions_and_static_fields():
    network = eqx.nn.MLP(WIDTH, 2, 8, 2, activation=jax.nn.relu, key=jax.random.key(0))

    def loss_fn(network, x):
        return jnp.mean(jax.vmap(network)(x) ** 2)

    report = diagnostics.signal_report(loss_fn, network, batch())
    assert [layer.name for layer in report.layers] == [f"layers/{i}/weight" for i in range(3)]
    signal, units = np.asarray(batch()), (8, 8, 2)
    for i, (layer, linear) in enumerate(zip(report.layers, network.layers, strict=True)):
        assert_layer(layer, {"input_rms": rms(signal)})
        z = signal @ np.asarray(linear.weight).T + np.asarray(linear.bias)
        signal = np.maximum(z, 0) if i < 2 else z
        expected = {"rms": rms(signal), "zero_fraction": np.mean(signal == 0)}
        assert_layer(layer, expected)
        assert sorted(layer.shape) == sorted((BATCH, units[i]))


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "raw"])
def test_prng_key_and_dropout(typed):
    key = jax.random.key(3) if typed else jax.random.PRNGKey(3)

    def loss_fn(params, x, key):
        hidden = jnp.tanh(x @ params["w"])
        keep = jax.random.bernoulli(key, 0.5, hidden.shape)
        return loss_of(jnp.where(keep, hidden, 0.0), params["head"])

    params = {"w": numbers()["kernel"][0], "head": numbers()["head"]}
    first, last = diagnostics.signal_report(loss_fn, params, batch(), key).layers
    image = np.tanh(np.asarray(batch()) @ np.asarray(params["w"]))
    keep = np.asarray(jax.random.bernoulli(key, 0.5, image.shape))
    assert_layer(first, {"rms": rms(image), "zero_fraction": 0.0})
    assert_layer(last, {"input_rms": rms(image * keep)})


def test_auxiliary_output():
    _, expected = reference()

    def loss_fn(params, x):
        return through(block)(params, x), {"logits": x, "text": "anything"}

    report = diagnostics.signal_report(loss_fn, unstacked(numbers()), batch(), has_aux=True)
    assert_layer(report.layers[1], expected[1])


def test_integer_and_boolean_data():
    def loss_fn(params, x, labels, keep):
        logits = jax.nn.one_hot(x, 5, dtype=jnp.float64) @ params["w"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -jnp.sum(jnp.where(keep[:, None], chosen, 0.0))

    params = {"w": jnp.asarray(np.random.default_rng(13).standard_normal((5, 3)))}
    x, labels = jnp.asarray([0, 4, 2, 1]), jnp.asarray([0, 1, 2, 0])
    keep = jnp.asarray([True, False, True, True])
    (layer,) = diagnostics.signal_report(loss_fn, params, x, labels, keep).layers
    gradient = jax.grad(loss_fn)(params, x, labels, keep)["w"]
    logits = np.asarray(params["w"])[np.asarray(x)]
    assert_layer(layer, {"rms": rms(logits), "weight_grad_rms": rms(gradient)})


# What is refused.


def identity_loss(params, x):
    return loss_of(x, params["head"])


REFUSED = {
    "not_callable": (3, {"head": 1.0}, False, "loss_fn must be a function, got 3"),
    "no_parameters": (identity_loss, {"head": 1}, False, "params must have inexact arrays"),
    "empty_params": (identity_loss, {}, False, "params must have inexact arrays"),
    "no_layer": (lambda p, x: jnp.sum(x) * p["head"].sum(), None, False, "must have a layer"),
    "vector_loss": (
        lambda p, x: jnp.sum(x @ p["head"], 0),
        None,
        False,
        r"float64 of shape \(2,\)",
    ),
    "integer_loss": (
        lambda p, x: jnp.sum(x @ p["head"]).astype(int),
        None,
        False,
        "real scalar, got int64",
    ),
    "complex_loss": (
        lambda p, x: lax.complex(jnp.sum(x @ p["head"]), 1.0),
        None,
        False,
        "real scalar, got complex128",
    ),
    "unexpected_aux": (lambda p, x: (loss_of(x, p["head"]), x), None, False, "real scalar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    loss_fn, params, has_aux, message = REFUSED[case]
    params = {"head": numbers()["head"]} if params is None else params
    with pytest.raises(ValueError, match=f"signal_report: .*{message}"):
        diagnostics.signal_report(loss_fn, params, batch(), has_aux=has_aux)


# Side effects.


def test_nothing_leaks_and_nothing_is_changed():
    params, x = numbers(), batch()
    before = jax.tree.map(np.array, params)
    with jax.checking_leaks():
        report = diagnostics.signal_report(scanned(jax.checkpoint(in_a_branch)), params, x)
    assert [layer.name for layer in report.layers] == STACKED
    jax.tree.map(np.testing.assert_array_equal, params, before)
    for value in vars(report.layers[0]).values():
        assert isinstance(value, (str, int, float, bool, tuple))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_batch(kind):
    """A batch that is spread over devices is measured as a whole."""
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))

    def put(tree, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.device_put(tree, sharding)

    x = jnp.asarray(np.random.default_rng(14).standard_normal((8, WIDTH)))
    params = {"w": numbers()["kernel"][0], "head": numbers()["head"]}

    def loss_fn(params, x):
        return loss_of(jnp.tanh(x @ params["w"]), params["head"])

    first, _ = diagnostics.signal_report(loss_fn, put(params), put(x, "batch")).layers
    image = np.tanh(np.asarray(x) @ np.asarray(params["w"]))
    gradient = jax.grad(loss_fn)(params, x)["w"]
    assert_layer(first, {"rms": rms(image), "weight_grad_rms": rms(gradient)})
