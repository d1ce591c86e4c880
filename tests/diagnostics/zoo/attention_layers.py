"""Parts of transformers in plain JAX."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .materials import affine, attend, cross_entropy, merge_heads, split_heads

Params = dict[str, jax.Array]


def small(key: jax.Array, inputs: int, outputs: int) -> Params:
    """Truncated normal weights, 0.02 at the widths of BERT and GPT-2."""
    return {
        "kernel": jax.random.truncated_normal(key, -2, 2, (inputs, outputs)) / inputs**0.5,
        "bias": jnp.zeros(outputs),
    }


def attention_params(
    keys: Iterator[jax.Array], width: int, out_scale: float = 1.0
) -> dict[str, Params]:
    """The parameters of `self_attention`."""
    out = small(next(keys), width, width)
    out["kernel"] = out["kernel"] * out_scale
    return {"qkv": small(next(keys), width, 3 * width), "out": out}


def self_attention(
    params: dict[str, Params], x: jax.Array, heads: int, mask: Any = None
) -> jax.Array:
    """Attention of several heads, biases included."""
    q, k, v = (split_heads(z, heads) for z in jnp.split(affine(params["qkv"], x), 3, axis=-1))
    return affine(params["out"], merge_heads(attend(q, k, v, mask)))


def causal(length: int) -> np.ndarray:
    """What each place may see: itself, and what stands before it."""
    return np.tril(np.ones((length, length), bool))


def next_token(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The cross-entropy of each token, given those before it."""
    return cross_entropy(logits[:, :-1], tokens[:, 1:])
