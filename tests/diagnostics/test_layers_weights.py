"""Layers whose weights are computed from parameters, are slices of them, or are used twice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import diagnostics

from .layer_reference import (
    BATCH,
    LISTED,
    WIDTH,
    assert_layer,
    batch,
    block,
    loss_of,
    numbers,
    reference,
    through,
    unstacked,
)
from .signal_statistics import rms

pytestmark = pytest.mark.usefixtures("double_precision")


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


def test_weights_made_from_a_parameter():
    """Each way is a network of its own, side by side with the others."""

    def loss_fn(params, x, mask):
        losses = []
        for how, made in MADE.items():
            image, _ = made(params[how], x, mask)
            losses.append(loss_of(image, params[how]["head"]))
        return sum(losses)

    rng = np.random.default_rng(7)
    own = {"w": numbers()["kernel"][0], "head": numbers()["head"]}
    factors = {
        "a": jnp.asarray(rng.standard_normal((WIDTH, 1))),
        "b": jnp.asarray(rng.standard_normal((1, WIDTH))),
    }
    params = {
        how: own | (factors if how in ("low_rank", "weight_normalized") else {}) for how in MADE
    }
    mask = jnp.asarray(rng.random((WIDTH, WIDTH)) < 0.5, jnp.float64)
    report = diagnostics.signal_report(loss_fn, params, batch(), mask)

    @jax.jit
    def explicit(params, x, mask):
        gradients = jax.grad(loss_fn)(params, x, mask)
        return {
            how: (*made(params[how], x, mask), gradients[how]["w"]) for how, made in MADE.items()
        }

    layers = {layer.name: layer for layer in report.layers}
    assert [*layers] == [f"{how}/{name}" for how in MADE for name in ("w", "head")]
    for how, (image, weights, gradient) in explicit(params, batch(), mask).items():
        expected = {
            "rms": rms(image),
            "weight_rms": rms(weights),
            "weight_grad_rms": rms(gradient),
            "input_rms": rms(batch()),
        }
        assert_layer(layers[f"{how}/w"], expected)


def test_two_low_rank_factors_are_two_layers():
    def loss_fn(params, x):
        return loss_of(x @ params["w"] + x @ params["a"] @ params["b"], params["head"])

    rng = np.random.default_rng(8)
    shapes = {"w": (WIDTH, WIDTH), "a": (WIDTH, 2), "b": (2, WIDTH), "head": (WIDTH, 2)}
    params = {key: jnp.asarray(rng.standard_normal(shape)) for key, shape in shapes.items()}
    report = diagnostics.signal_report(loss_fn, params, batch())
    gradients = jax.jit(jax.grad(loss_fn))(params, batch())
    assert [layer.name for layer in report.layers] == ["w", "a", "b", "head"]
    assert [layer.depth for layer in report.layers] == [1, 1, 2, 3]
    for layer in report.layers:
        assert_layer(layer, {"weight_grad_rms": rms(gradients[layer.name])})


def test_concatenated_weights():
    """Several products in one, as attention, gated units and recurrent cells are often written."""

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


def test_name_of_many_concatenated_weights_is_cut():
    def loss_fn(params, x):
        kernel = jnp.concatenate([params[f"p{i:02}"] for i in range(40)], axis=1)
        return jnp.mean(jnp.tanh(x @ kernel) ** 2)

    columns = {f"p{i:02}": np.ones((WIDTH, 1)) for i in range(40)}
    (layer,) = diagnostics.signal_report(loss_fn, columns, batch()).layers
    assert layer.name == " + ".join([*(f"p{i:02}" for i in range(10)), "30 more"])


def test_optimized_lstm_of_flax():
    """Its cell concatenates the weights of its gates."""
    network = nn.RNN(nn.OptimizedLSTMCell(3, param_dtype=jnp.float64, dtype=jnp.float64))
    x = jnp.asarray(np.random.default_rng(15).standard_normal((2, 5, WIDTH)))
    variables = jax.jit(network.init)(jax.random.key(0), x)
    report = diagnostics.signal_report(
        lambda variables, x: jnp.mean(network.apply(variables, x)[:, -1] ** 2), variables, x
    )
    assert {layer.fan_in for layer in report.layers} == {3, WIDTH}
    assert all(len(layer.rms_by_step) == 5 for layer in report.layers)


def bias_as_an_input(kernel, bias, x):
    """Homogeneous coordinates: the bias is a column of the weights, and 1 an input."""
    ones = jnp.ones((x.shape[0], 1))
    return jnp.tanh(jnp.concatenate([x, ones], 1) @ jnp.concatenate([kernel, bias[None]]))


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
    whole = rms(jax.jit(jax.grad(loss_fn))({"w": kernel}, batch())["w"])
    assert_layer(first, {"weight_grad_rms": whole})
    assert_layer(second, {"weight_grad_rms": whole})


def test_tied_to_an_embedding():
    """Looking up rows is not a layer; the product with the same table at the end is one."""

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


def test_products_of_signals_or_of_parameters_are_not_layers():
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
