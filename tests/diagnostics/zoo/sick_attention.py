"""Attention: scores, masks and their axes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    dense,
    keys,
    labels,
    linen_set_up,
    merge_heads,
    normal,
    sentences,
    split_heads,
)

LENGTHS = np.random.default_rng(0).integers(3, 9, (12, 1))


def _params(width=64, gain=1.0):
    k = keys()
    return {
        "table": jax.random.normal(next(k), (33, width)),
        "qkv": dense(next(k), width, 3 * width, gain),
        "out": dense(next(k), width, width, 1.0),
        "head": dense(next(k), width, 4, 1.0),
    }


def _qkv(params, x):
    return (split_heads(z, 2) for z in jnp.split(affine(params["qkv"], x), 3, axis=-1))


def _classified(params, x, p, v, y, is_counted=None):
    x = x + affine(params["out"], merge_heads(p @ v))
    logits = affine(params["head"], x)
    if is_counted is None:
        return cross_entropy(logits, y)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)[..., 0]
    return -jnp.sum(log_p * is_counted) / jnp.sum(is_counted)


def _tags():
    """Sentences with padding, which words there are, and a tag for each place."""
    is_word = jnp.asarray(np.arange(12) < LENGTHS)
    tokens = jnp.where(is_word, sentences(12), 32)
    return tokens, is_word, tokens % 4


@sick(
    "scores without 1 / sqrt(d)",
    "jax",
    "Stack Overflow, why scale dot-product attention; Vaswani et al. 2017",
    kinds="unscaled_attention one_hot_attention",
    where="qkv",
    how="the weights are nearly one-hot, and no gradient passes the softmax",
)
def unscaled(cured=False):
    def loss_fn(params, tokens, y):
        x = params["table"][tokens]
        q, k, v = _qkv(params, x)
        scores = q @ jnp.swapaxes(k, -1, -2)  # fault
        scores = scores / 32**0.5 if cured else scores
        p = jax.nn.softmax(scores, axis=-1)  # fault
        return _classified(params, x, p, v, y)

    tokens = sentences(12)
    return SetUp(loss_fn, _params(), (tokens, tokens % 4))


@sick(
    "scores times sqrt(d)",
    "jax",
    "GitHub issues, the scale of attention multiplied instead of divided",
    kinds="unscaled_attention one_hot_attention",
    where="qkv",
    how="the weights are one-hot from the start",
)
def wrongly_scaled(cured=False):
    def loss_fn(params, tokens, y):
        x = params["table"][tokens]
        q, k, v = _qkv(params, x)
        scores = q @ jnp.swapaxes(k, -1, -2)  # fault
        scores = scores * 32 ** (-0.5 if cured else 0.5)  # fault
        p = jax.nn.softmax(scores, axis=-1)  # fault
        return _classified(params, x, p, v, y)

    tokens = sentences(12)
    return SetUp(loss_fn, _params(), (tokens, tokens % 4))


@sick(
    "queries and keys far too large",
    "equinox",
    "Zhai et al. 2023, entropy collapse; GitHub issues on attention that is one-hot",
    kinds="one_hot_attention",
    where=r"query|key|attention",
    how="one key takes all the weight, and the scores do not learn",
)
def large_queries(cured=False):
    class Network(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        head: eqx.nn.Linear

        def __call__(self, x):
            x = x + self.attention(x, x, x)  # fault
            return self.head(jnp.mean(x, axis=0))

    a, b = jax.random.split(jax.random.key(0))
    attention = eqx.nn.MultiheadAttention(2, 32, key=a)
    if not cured:
        attention = eqx.tree_at(
            lambda layer: (layer.query_proj.weight, layer.key_proj.weight),
            attention,
            replace_fn=lambda weight: 8 * weight,
        )
    model = Network(attention, eqx.nn.Linear(32, 4, key=b))

    def loss_fn(model, x, y):
        return cross_entropy(jax.vmap(model)(x), y)

    return SetUp(loss_fn, model, (normal(12, 8, 32), labels(12, 4)))


@sick(
    "a causal mask the wrong way round",
    "jax",
    "PyTorch forum, does True mean masked or visible",
    kinds="empty_mask nan",
    how="the last place sees nothing, and the others see what they have to predict",
)
def inverted_mask(cured=False):
    visible = np.tril(np.ones((12, 12), bool))

    def loss_fn(params, tokens, y):
        x = params["table"][tokens]
        q, k, v = _qkv(params, x)
        scores = q @ jnp.swapaxes(k, -1, -2) / 32**0.5
        scores = jnp.where(visible if cured else ~visible, scores, -1e9)  # fault
        p = jax.nn.softmax(scores, axis=-1)  # fault
        return _classified(params, x, p, v, y)

    tokens = sentences(12)
    return SetUp(loss_fn, _params(), (tokens, tokens % 4))


@sick(
    "padding that is not masked",
    "jax",
    "Hugging Face warning about a missing attention mask where there is padding",
    kinds="full_mask padding",
    where=r"args\[1\]",
    how="the mask is made of ones: words read the padding",
)
def mask_of_ones(cured=False):
    def loss_fn(params, tokens, is_word, y, is_counted):
        x = params["table"][tokens]
        q, k, v = _qkv(params, x)
        scores = q @ jnp.swapaxes(k, -1, -2) / 32**0.5
        scores = jnp.where(is_word[:, None, None, :], scores, -1e9)  # fault
        p = jax.nn.softmax(scores, axis=-1)  # fault
        return _classified(params, x, p, v, y, is_counted)

    tokens, is_word, y = _tags()
    mask = is_word if cured else jnp.ones_like(is_word)
    return SetUp(loss_fn, _params(), (tokens, mask, y, is_word))


@sick(
    "a mask of zeros and ones that is added",
    "jax",
    "Stack Overflow, additive and multiplicative attention masks",
    kinds="full_mask padding",
    where=r"args\[1\]",
    how="1 is added to the scores of words, and the padding stays visible",
)
def added_mask(cured=False):
    def loss_fn(params, tokens, is_word, y):
        x = params["table"][tokens]
        q, k, v = _qkv(params, x)
        scores = q @ jnp.swapaxes(k, -1, -2) / 32**0.5
        mask = is_word[:, None, None, :].astype(jnp.float32)
        scores = scores + (1e9 * (mask - 1) if cured else mask)  # fault
        p = jax.nn.softmax(scores, axis=-1)  # fault
        return _classified(params, x, p, v, y, is_word)

    return SetUp(loss_fn, _params(), _tags())


@sick(
    "-inf in all places of a row",
    "jax",
    "PyTorch issue on NaN for fully masked rows; jax issue 19490",
    kinds="empty_mask nan",
    where=r"args\[1\]",
    how="the softmax of a row of -inf is NaN",
)
def empty_rows(cured=False):
    def loss_fn(params, tokens, is_word, y, is_counted):
        x = params["table"][tokens]
        q, k, v = _qkv(params, x)
        scores = q @ jnp.swapaxes(k, -1, -2) / 32**0.5
        scores = jnp.where(is_word[:, None, None, :], scores, -jnp.inf)  # fault
        p = jax.nn.softmax(scores, axis=-1)  # fault
        return _classified(params, x, p, v, y, is_counted)

    tokens, is_word, y = _tags()
    mask = is_word if cured else is_word.at[3].set(False)
    return SetUp(loss_fn, _params(), (tokens, mask, y, is_word))


@sick(
    "a padding mask with True for padding",
    "linen",
    "PyTorch forum, key_padding_mask has the other convention",
    kinds="empty_mask full_mask padding",
    where=r"args\[0\]|MultiHeadDotProductAttention_0",
    how="words see only the padding; a sentence without padding sees nothing",
)
def inverted_padding(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            tokens, is_visible = inputs
            x = nn.Embed(33, 32)(tokens)
            mask = is_visible[:, None, None, :]
            x = x + nn.MultiHeadDotProductAttention(2)(x, mask=mask)  # fault
            return nn.Dense(4)(x)

    is_word = jnp.asarray(np.arange(12) < np.maximum(LENGTHS, 3))
    is_word = is_word.at[0].set(True)
    tokens = jnp.where(is_word, sentences(12), 32)
    inputs = (tokens, is_word if cured else ~is_word)

    def loss(logits, y, is_word):
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)[..., 0]
        return -jnp.sum(log_p * is_word) / jnp.sum(is_word)

    return linen_set_up(Network(), loss, inputs, tokens % 4, is_word.astype(jnp.float32))
