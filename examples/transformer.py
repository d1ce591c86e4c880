"""A small transformer that predicts the next token of a sequence, as plain functions.

The layers are stacked: each array of `params["layers"]` has a first axis of layers, over which
`jax.lax.scan` runs. Optimizers for matrices take such an array as a batch of matrices.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradtx.initializers import lecun_normal, normal, variance_scaling
from gradtx.normalization import rms_norm


class Shape(NamedTuple):
    """The size of a transformer.

    Attributes:
        vocabulary: the number of different tokens.
        context: the largest number of tokens that it sees at once.
        layers: the number of blocks of attention and a two-layer network.
        width: the number of features of a token.
        heads: the number of attention heads, which divides the width.
    """

    vocabulary: int
    context: int = 64
    layers: int = 2
    width: int = 64
    heads: int = 4


@functools.partial(jax.jit, static_argnames="shape")
def init_transformer(key: jax.Array, shape: Shape) -> Any:
    """Random parameters."""
    n, width = shape.layers, shape.width
    keys = iter(jax.random.split(key, 7))
    kernel = lecun_normal(batch_axis=0)
    # What is added to the residual stream, two summands per layer, has variance 1 in total.
    last = variance_scaling(0.5 / n, "fan_in", "normal", batch_axis=0)
    return {
        "embedding": {
            "tokens": normal(0.1)(next(keys), (shape.vocabulary, width)),
            "positions": normal(0.1)(next(keys), (shape.context, width)),
        },
        "layers": {
            "attention": {
                "scale": jnp.ones((n, width)),
                "in": {"kernel": kernel(next(keys), (n, width, 3 * width))},
                "out": {"kernel": last(next(keys), (n, width, width))},
            },
            "mlp": {
                "scale": jnp.ones((n, width)),
                "in": {"kernel": kernel(next(keys), (n, width, 4 * width))},
                "out": {"kernel": last(next(keys), (n, 4 * width, width))},
            },
        },
        "head": {
            "scale": jnp.ones(width),
            "kernel": normal(0.02)(next(keys), (width, shape.vocabulary)),
        },
    }


def apply_transformer(params: Any, tokens: jax.Array, heads: int) -> jax.Array:
    """The logits of the token after each one, shape (batch, length, vocabulary)."""
    embedding, head = params["embedding"], params["head"]
    x = embedding["tokens"][tokens] + embedding["positions"][None, : tokens.shape[1]]

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        x = x + attention(layer["attention"], x, heads)
        return x + _mlp(layer["mlp"], x), None

    x, _ = jax.lax.scan(block, x, params["layers"], unroll=True)
    return rms_norm(x, head["scale"]) @ head["kernel"]


def attention(params: Any, x: jax.Array, heads: int) -> jax.Array:
    """What each token takes over from itself and those before it, of the shape of x."""
    batch, length, width = x.shape
    inner = rms_norm(x, params["scale"]) @ params["in"]["kernel"]
    # On a CPU, these products of matrices take half the time of jax.nn.dot_product_attention.
    query, key, value = (
        part.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)
        for part in jnp.split(inner, 3, axis=-1)
    )
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(width // heads)
    seen = jnp.tril(jnp.ones((length, length), bool))[None, None]
    weights = jax.nn.softmax(scores, where=seen)
    mixed = (weights @ value).transpose(0, 2, 1, 3)
    return mixed.reshape(x.shape) @ params["out"]["kernel"]


def _mlp(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.gelu(rms_norm(x, params["scale"]) @ params["in"]["kernel"])
    return hidden @ params["out"]["kernel"]


def loss_fn(params: Any, sequences: jax.Array, *, heads: int) -> jax.Array:
    """The mean cross-entropy of each token given those before it, in nats.

    Args:
        params: the parameters.
        sequences: tokens, shape (batch, length + 1).
        heads: the number of attention heads.
    """
    logits = apply_transformer(params, sequences[:, :-1], heads)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), sequences[:, 1:, None], axis=-1)
    return -jnp.mean(chosen)


@functools.partial(jax.jit, static_argnames=("heads", "length"))
def generate(
    params: Any,
    key: jax.Array,
    start: jax.Array,
    *,
    heads: int,
    length: int,
    temperature: float = 0.8,
) -> jax.Array:
    """Sample a continuation token by token.

    Args:
        params: the parameters.
        key: the PRNG key.
        start: the tokens to continue, shape (context,).
        heads: the number of attention heads.
        length: how many tokens to sample.
        temperature: what the logits are divided by: below 1, likely tokens become likelier.

    Returns:
        The sampled tokens, shape (length,).
    """

    def step(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply_transformer(params, window[None], heads)[0, -1]
        token = jax.random.categorical(key, logits / temperature)
        return jnp.append(window[1:], token), token

    return jax.lax.scan(step, start, jax.random.split(key, length))[1]
