"""One network written in many ways: `signal_report` finds the same layers through all of them."""

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
    WIDTH,
    assert_layer,
    batch,
    block,
    block_with_vjp,
    loss_of,
    numbers,
    reference,
    through,
    unstacked,
    written_per_sample,
)
from .signal_statistics import rms

pytestmark = pytest.mark.usefixtures("double_precision")


def written_transposed(kernel, bias, x):
    return jnp.tanh((kernel.T @ x.T).T + bias[None])


def written_with_reshape(kernel, bias, x):
    heads = jnp.einsum("bi,iho->bho", x, kernel.reshape(WIDTH, 2, WIDTH // 2))
    return jnp.tanh(heads + bias.reshape(2, -1)[None]).reshape(x.shape)


@jax.custom_jvp
def block_with_jvp(kernel, bias, x):
    return block(kernel, bias, x)


block_with_jvp.defjvp(lambda primals, tangents: jax.jvp(block, primals, tangents))


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


def in_a_switch(kernel, bias, x):
    other = [lambda x: x, lambda x: block(kernel, bias, x), lambda x: block(-kernel, bias, x)]
    return lax.switch(jnp.sum(x > 1e9) + 1, other, x)


BLOCKS = {
    "checkpoint": jax.checkpoint(block),
    "checkpoint_of_the_product": lambda w, b, x: jnp.tanh(
        jax.checkpoint(jnp.matmul)(x, w) + b[None]
    ),
    "checkpoint_of_the_rest": lambda w, b, x: jax.checkpoint(lambda z: jnp.tanh(z + b[None]))(
        x @ w
    ),
    "checkpoint_with_a_policy": jax.checkpoint(block, policy=jax.checkpoint_policies.dots_saveable),
    "checkpoint_of_a_switch": jax.checkpoint(in_a_switch),
    "transposed": written_transposed,
    "heads": written_with_reshape,
    "per_sample": written_per_sample,
    "custom_jvp": block_with_jvp,
    "custom_jvp_activation": lambda w, b, x: tanh_with_jvp(x @ w + b[None]),
    "custom_vjp_activation": lambda w, b, x: tanh_with_vjp(x @ w + b[None]),
    "switch": in_a_switch,
    "bias_first": lambda w, b, x: jnp.tanh(b[None] + x @ w),
    "bias_broadcast": lambda w, b, x: jnp.tanh(x @ w + jnp.broadcast_to(b, x.shape)),
    "optimization_barrier": lambda w, b, x: lax.optimization_barrier(block(w, b, x)),
}

NETWORKS = {
    "nested_jit": jax.jit(through(jax.jit(lambda *arguments: jax.jit(block)(*arguments)))),
    "checkpoint_of_all": jax.checkpoint(through(block)),
    "vmapped_loss": lambda params, x: jnp.mean(
        jax.vmap(through(written_per_sample), in_axes=(None, 0))(params, x[:, None])
    ),
    "custom_vjp_in_jit_in_checkpoint": through(jax.checkpoint(jax.jit(block_with_vjp))),
}


def mixed(names):
    """The network with each of its layers written in a way of its own."""
    blocks = [BLOCKS[name] for name in names]

    def loss_fn(params, x):
        for apply_block, layer in zip(blocks, params["layers"], strict=True):
            x = apply_block(layer["kernel"], layer["bias"], x)
        return loss_of(x, params["head"])

    return loss_fn


MIXED = [list(BLOCKS)[i : i + DEPTH] for i in range(0, len(BLOCKS), DEPTH)]
WAYS = NETWORKS | {", ".join(names): mixed(names) for names in MIXED}


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


# Custom derivatives.


def test_gradients_are_those_of_a_custom_rule():
    """If a gradient is reversed and scaled, so are all gradients before it."""

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
    without = jax.jit(jax.grad(ordinary))(params, batch())
    layers = {one.name: one for one in report.layers}
    assert list(layers) == ["first", "second", "head"]
    assert_layer(layers["second"], {"weight_grad_rms": 10 * rms(without["second"])})
    assert_layer(layers["first"], {"weight_grad_rms": 3 * rms(without["first"])})
    assert_layer(layers["head"], {"weight_grad_rms": rms(without["head"])})

    def from_output(zero):
        hidden = jnp.tanh(batch() @ params["first"])
        return loss_of(jnp.tanh(hidden @ params["second"] + zero), params["head"])

    gradient = jax.jit(jax.grad(from_output))(jnp.zeros((BATCH, WIDTH)))
    assert_layer(layers["second"], {"grad_rms": rms(gradient)})


def test_straight_through_activation():
    """The slope of a step, for saturation and gradients, is that of its custom derivative."""

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
