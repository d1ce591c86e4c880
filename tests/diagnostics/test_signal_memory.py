"""The temporary memory of `signal_report` is that of the gradient and a few arrays of one layer.

Nothing runs here: the memory that XLA assigns is compared with that of `jax.value_and_grad`.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gradtx.diagnostics.signal.measuring import evaluation
from gradtx.diagnostics.tracing.traced import trace_loss

pytestmark = pytest.mark.usefixtures("usual_compilation")

DEPTH = 5


def convolutions():
    """Weights of 147 kB each, which the backward pass transposes, and signals of 16 kB."""
    params = [jnp.zeros((3, 3, 64, 64))] * DEPTH

    def loss_fn(params, x):
        for kernel in params:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = x + jax.nn.relu(
                lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            )
        return jnp.mean(jnp.square(x))

    return loss_fn, params, jnp.zeros((1, 8, 8, 64)), 8 * 8 * 64 * 4


def widths():
    """Weights of 5 shapes, of up to 278 kB each, and signals of 3 kB at most."""
    sizes = [192 + 16 * i for i in range(DEPTH + 1)]
    params = [jnp.zeros((fan_in, fan_out)) for fan_in, fan_out in pairwise(sizes)]

    def loss_fn(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return jnp.mean(jnp.square(x))

    return loss_fn, params, jnp.zeros((2, sizes[0])), 2 * sizes[-1] * 4


def perceptron():
    """Weights of 16 kB each, and signals of 131 kB."""
    params = [(jnp.zeros((64, 64)), jnp.zeros(64))] * DEPTH

    def loss_fn(params, x):
        for kernel, bias in params:
            x = jax.nn.gelu(x @ kernel + bias[None])
        return jnp.mean(jnp.square(x))

    return loss_fn, params, jnp.zeros((512, 64)), 512 * 64 * 4


def checkpoints():
    """Signals of 16 kB, which a scan keeps, and of 262 kB, which it calculates again."""
    params = jnp.zeros((DEPTH, 16, 256)), jnp.zeros((DEPTH, 256, 16))

    @jax.checkpoint
    def block(x, kernels):
        rise, fall = kernels
        return x + jax.nn.gelu(x @ rise) @ fall, None

    def loss_fn(params, x):
        return jnp.mean(jnp.square(lax.scan(block, x, params)[0]))

    return loss_fn, params, jnp.zeros((256, 16)), 256 * 256 * 4


def temporaries(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("network", [convolutions, widths, perceptron, checkpoints])
def test_memory_beyond_that_of_the_gradient(network):
    loss_fn, params, x, signal = network()
    traced = trace_loss("test", loss_fn, params, (x,), has_aux=False)
    of_gradient = temporaries(jax.value_and_grad(loss_fn), params, x)
    of_report = temporaries(evaluation(traced, [], []), traced.params, traced.data)
    # A layer's weights: their gradient, a transposed copy of them, and what is left of those of the
    # layer before. Its signal: the image and the slope of the nonlinearity, and their gradients.
    # What is kept until the end, as one array for each layer, exceeds this.
    weights = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert of_report <= of_gradient + 3 * weights + 4 * signal
