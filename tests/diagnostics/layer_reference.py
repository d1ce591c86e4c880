"""A network of three tanh layers and a linear head, and its statistics.

Many tests write it in a different way. All of them must give what explicit intermediates and
gradients give.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .signal_statistics import rms

DEPTH, WIDTH, BATCH = 3, 4, 6

LISTED = [*(f"layers/{i}/kernel" for i in range(DEPTH)), "head"]
STACKED = [*(f"kernel[{i}]" for i in range(DEPTH)), "head"]


def numbers():
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.standard_normal((DEPTH, WIDTH, WIDTH))),
        "bias": jnp.asarray(rng.standard_normal((DEPTH, WIDTH))),
        "head": jnp.asarray(rng.standard_normal((WIDTH, 2))),
    }


def batch():
    return jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, WIDTH)))


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
        differentiated = jax.jit(jax.value_and_grad(explicit, (0, 1), has_aux=True))
        (loss, images), (of_params, of_outputs) = differentiated(params, zeros)
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


# Ways to write it that several tests use.


def through(apply_block):
    """The plain network with a different way to apply a layer."""

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


def written_per_sample(kernel, bias, x):
    return jax.vmap(lambda sample: jnp.tanh(sample @ kernel + bias))(x)


@jax.custom_vjp
def block_with_vjp(kernel, bias, x):
    return block(kernel, bias, x)


block_with_vjp.defvjp(
    lambda *arguments: (block(*arguments), arguments),
    lambda arguments, gradient: jax.vjp(block, *arguments)[1](gradient),
)


def in_a_branch(kernel, bias, x):
    return lax.cond(jnp.sum(x) < 1e9, lambda x: block(kernel, bias, x), lambda x: x, x)
