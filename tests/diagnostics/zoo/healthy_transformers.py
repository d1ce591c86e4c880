"""Transformers as they were published for language."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.linen.initializers import normal

from .attention_layers import attention_params, causal, next_token, self_attention, small
from .case import SetUp, healthy
from .materials import (
    affine,
    attend,
    cross_entropy,
    keys,
    layer_norm,
    linen_set_up,
    merge_heads,
    nnx_set_up,
    norm,
    sentences,
    split_heads,
)


@healthy("BERT", "linen", "Devlin et al. 2019, masked words and padding", is_trained=True)
def bert():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens, is_word):
            embed = nn.Embed(34, 32, embedding_init=normal(0.02))
            positions = self.param("positions", normal(0.02), (12, 32))
            x = nn.LayerNorm()(embed(tokens) + positions)
            mask = nn.make_attention_mask(is_word, is_word)
            for _ in range(2):
                x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(4)(x, mask=mask))
                x = nn.LayerNorm()(x + nn.Dense(32)(nn.gelu(nn.Dense(64)(x))))
            x = nn.LayerNorm()(nn.gelu(nn.Dense(32)(x)))
            return embed.attend(x) + self.param("bias", nn.initializers.zeros, (34,))

    rng = np.random.default_rng(0)
    words = np.asarray(sentences())
    is_word = np.arange(12) < rng.integers(6, 13, (8, 1))
    is_asked = is_word & (rng.random((8, 12)) < 0.3)
    tokens = np.where(is_asked, 33, np.where(is_word, words, 32))
    model = Network()
    arrays = [jnp.asarray(x) for x in (tokens, is_word, words, is_asked)]

    def loss_fn(params, tokens, is_word, words, is_asked):
        log_p = jax.nn.log_softmax(model.apply(params, tokens, is_word))
        log_p = jnp.take_along_axis(log_p, words[..., None], axis=-1)[..., 0]
        return -jnp.sum(log_p * is_asked) / jnp.sum(is_asked)

    params = model.init(jax.random.key(0), *arrays[:2])
    return SetUp(loss_fn, params, tuple(arrays))


@healthy("GPT-2", "jax", "Radford et al. 2019, scaled residual layers, tied table", is_trained=True)
def gpt2():
    def loss_fn(params, tokens):
        x = params["table"][tokens] + params["positions"]
        for block in params["blocks"]:
            y = layer_norm(block["norm1"], x)
            x = x + self_attention(block["attention"], y, 4, causal(12))
            y = jax.nn.gelu(affine(block["up"], layer_norm(block["norm2"], x)))
            x = x + affine(block["down"], y)
        return next_token(layer_norm(params["norm"], x) @ params["table"].T, tokens)

    k, depth = keys(), 4

    def block():
        scale = (2 * depth) ** -0.5
        down = small(next(k), 64, 32)
        return {
            "norm1": norm(32),
            "attention": attention_params(k, 32, scale),
            "norm2": norm(32),
            "up": small(next(k), 32, 64),
            "down": down | {"kernel": down["kernel"] * scale},
        }

    params = {
        "table": 0.02 * jax.random.normal(next(k), (32, 32)),
        "positions": 0.01 * jax.random.normal(next(k), (12, 32)),
        "blocks": [block() for _ in range(depth)],
        "norm": norm(32),
    }
    return SetUp(loss_fn, params, (sentences(),))


class _LlamaBlock(eqx.Module):
    query: eqx.nn.Linear
    key_value: eqx.nn.Linear
    out: eqx.nn.Linear
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norm1: eqx.nn.RMSNorm
    norm2: eqx.nn.RMSNorm
    rotary: eqx.nn.RotaryPositionalEmbedding

    def __init__(self, key):
        sizes = [(32, 32), (32, 32), (32, 32), (32, 64), (32, 64), (64, 32)]
        layers = [
            eqx.nn.Linear(*size, use_bias=False, key=k)
            for size, k in zip(sizes, jax.random.split(key, 6), strict=True)
        ]
        self.query, self.key_value, self.out, self.gate, self.up, self.down = layers
        self.norm1, self.norm2 = eqx.nn.RMSNorm(32), eqx.nn.RMSNorm(32)
        self.rotary = eqx.nn.RotaryPositionalEmbedding(8)

    def __call__(self, x):
        y = jax.vmap(self.norm1)(x)
        # Four heads of queries share two of keys and values.
        q = jax.vmap(self.query)(y).reshape(-1, 4, 8).transpose(1, 0, 2)
        kv = jax.vmap(self.key_value)(y).reshape(-1, 4, 8).transpose(1, 0, 2)
        q, k = jax.vmap(self.rotary)(q), jax.vmap(self.rotary)(kv[:2])
        k, v = jnp.repeat(k, 2, axis=0), jnp.repeat(kv[2:], 2, axis=0)
        y = attend(q, k, v, causal(len(x))).transpose(1, 0, 2).reshape(-1, 32)
        x = x + jax.vmap(self.out)(y)
        y = jax.vmap(self.norm2)(x)
        y = jax.nn.silu(jax.vmap(self.gate)(y)) * jax.vmap(self.up)(y)
        return x + jax.vmap(self.down)(y)


@healthy("LLaMA", "equinox", "Touvron et al. 2023: RMSNorm, SwiGLU, rotation", is_trained=True)
def llama():
    class Network(eqx.Module):
        embed: eqx.nn.Embedding
        blocks: list
        norm: eqx.nn.RMSNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            a, b, *block_keys = jax.random.split(key, 4)
            self.embed = eqx.nn.Embedding(weight=0.02 * jax.random.normal(a, (32, 32)))
            self.blocks = [_LlamaBlock(k) for k in block_keys]
            self.norm = eqx.nn.RMSNorm(32)
            self.head = eqx.nn.Linear(32, 32, use_bias=False, key=b)

        def __call__(self, tokens):
            x = jax.vmap(self.embed)(tokens)
            for block in self.blocks:
                x = block(x)
            return jax.vmap(self.head)(jax.vmap(self.norm)(x))

    def loss_fn(model, tokens):
        return next_token(jax.vmap(model)(tokens), tokens)

    return SetUp(loss_fn, Network(jax.random.key(0)), (sentences(),))


def _rms_norm(scale, x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


@healthy("T5", "jax", "Raffel et al. 2020, relative bias, unscaled scores of small queries")
def t5():
    width, heads = 32, 4
    distance = np.arange(12)[None] - np.arange(12)[:, None]
    bucket = np.clip(distance + 8, 0, 15)

    def scores(params, q, k):
        return split_heads(q @ params["q"], heads) @ jnp.swapaxes(
            split_heads(k @ params["k"], heads), -1, -2
        )

    def attention(params, x, memory, bias):
        p = jax.nn.softmax(scores(params, x, memory) + bias, axis=-1)
        return merge_heads(p @ split_heads(memory @ params["v"], heads)) @ params["o"]

    def feed_forward(params, x):
        return jax.nn.relu(_rms_norm(params["norm"], x) @ params["up"]) @ params["down"]

    def loss_fn(params, source, target):
        x = params["table"][source]
        bias = params["bias"]["encoder"][bucket].transpose(2, 0, 1)
        for layer in params["encoder"]:
            y = _rms_norm(layer["norm"], x)
            x = x + attention(layer, y, y, bias)
            x = x + feed_forward(layer["mlp"], x)
        memory = _rms_norm(params["norm"]["encoder"], x)
        bias = params["bias"]["decoder"][bucket].transpose(2, 0, 1)
        bias = jnp.where(causal(12), bias, -1e9)
        y = params["table"][jnp.pad(target[:, :-1], ((0, 0), (1, 0)))]
        for layer in params["decoder"]:
            z = _rms_norm(layer["norm"], y)
            y = y + attention(layer, z, z, bias)
            z = _rms_norm(layer["cross"]["norm"], y)
            y = y + attention(layer["cross"], z, memory, 0.0)
            y = y + feed_forward(layer["mlp"], y)
        y = _rms_norm(params["norm"]["decoder"], y) * width**-0.5
        return cross_entropy(y @ params["table"].T, target)

    k = keys()

    def weights(inputs, outputs, variance):
        return variance**0.5 * jax.random.normal(next(k), (inputs, outputs))

    def attention_params():
        return {
            "q": weights(width, width, 1 / (width * width // heads)),
            "k": weights(width, width, 1 / width),
            "v": weights(width, width, 1 / width),
            "o": weights(width, width, 1 / width),
            "norm": jnp.ones(width),
        }

    def feed_forward_params():
        up, down = weights(width, 64, 1 / width), weights(64, width, 1 / 64)
        return {"up": up, "down": down, "norm": jnp.ones(width)}

    def decoder():
        cross, mlp = attention_params(), feed_forward_params()
        return attention_params() | {"cross": cross, "mlp": mlp}

    params = {
        "table": jax.random.normal(next(k), (32, width)),
        "bias": {name: weights(16, heads, 1 / width) for name in ("encoder", "decoder")},
        "encoder": [attention_params() | {"mlp": feed_forward_params()} for _ in range(2)],
        "decoder": [decoder() for _ in range(2)],
        "norm": {name: jnp.ones(width) for name in ("encoder", "decoder")},
    }
    source = sentences()
    return SetUp(loss_fn, params, (source, source[:, ::-1]))


@healthy("Transformer-XL", "jax", "Dai et al. 2019, a memory without gradient")
def transformer_xl():
    def attention(params, x, memory, mask):
        context = jnp.concatenate([jax.lax.stop_gradient(memory), x], axis=1)
        q = split_heads(affine(params["q"], x), 4)
        k, v = (split_heads(z, 4) for z in jnp.split(affine(params["kv"], context), 2, axis=-1))
        return affine(params["out"], merge_heads(attend(q, k, v, mask)))

    def segment(params, tokens, memories):
        x = params["table"][tokens]
        kept = []
        for block, memory in zip(params["blocks"], memories, strict=True):
            kept.append(x)
            mask = np.tril(np.ones((6, 12), bool), 6)
            x = layer_norm(block["norm1"], x + attention(block, x, memory, mask))
            y = affine(block["down"], jax.nn.relu(affine(block["up"], x)))
            x = layer_norm(block["norm2"], x + y)
        return affine(params["head"], x), kept

    def loss_fn(params, tokens, memories):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        first, memories = segment(params, inputs[:, :6], memories)
        second, _ = segment(params, inputs[:, 6:], memories)
        return cross_entropy(jnp.concatenate([first, second], axis=1), targets)

    k = keys()

    def block():
        return {
            "q": small(next(k), 32, 32),
            "kv": small(next(k), 32, 64),
            "out": small(next(k), 32, 32),
            "up": small(next(k), 32, 64),
            "down": small(next(k), 64, 32),
            "norm1": norm(32),
            "norm2": norm(32),
        }

    params = {
        "table": 0.5 * jax.random.normal(next(k), (32, 32)),
        "blocks": [block() for _ in range(2)],
        "head": small(next(k), 32, 32),
    }
    memories = [0.5 * jax.random.normal(next(k), (8, 6, 32)) for _ in range(2)]
    return SetUp(loss_fn, params, (sentences(length=13), memories))


@healthy("original transformer", "nnx", "Vaswani et al. 2017, norms behind, smoothed labels")
def original_transformer():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(32, 32, rngs=rngs)
            heads = {"num_heads": 4, "in_features": 32, "decode": False, "rngs": rngs}
            self.attention = nnx.List([nnx.MultiHeadAttention(**heads) for _ in range(3)])
            self.norms = nnx.List([nnx.LayerNorm(32, rngs=rngs) for _ in range(5)])
            self.up = nnx.List([nnx.Linear(32, 64, rngs=rngs) for _ in range(2)])
            self.down = nnx.List([nnx.Linear(64, 32, rngs=rngs) for _ in range(2)])

        def feed_forward(self, i, x):
            return self.down[i](nnx.relu(self.up[i](x)))

        def __call__(self, tokens):
            angle = np.arange(12)[:, None] / 100.0 ** (np.arange(16) / 16)
            positions = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
            positions = jnp.asarray(positions, jnp.float32)
            x = 32**0.5 * self.embed(tokens) + positions
            x = self.norms[0](x + self.attention[0](x))
            memory = self.norms[1](x + self.feed_forward(0, x))
            shifted = jnp.pad(tokens[:, ::-1][:, :-1], ((0, 0), (1, 0)))
            y = 32**0.5 * self.embed(shifted) + positions
            mask = nnx.make_causal_mask(shifted)
            y = self.norms[2](y + self.attention[1](y, mask=mask))
            y = self.norms[3](y + self.attention[2](y, memory))
            y = self.norms[4](y + self.feed_forward(1, y))
            return self.embed.attend(y)

    def loss(logits, targets):
        log_p = jax.nn.log_softmax(logits)
        smooth = 0.9 * jax.nn.one_hot(targets, 32) + 0.1 / 32
        return -jnp.mean(jnp.sum(smooth * log_p, axis=-1))

    tokens = sentences()
    return nnx_set_up(Network(nnx.Rngs(0)), loss, tokens, tokens[:, ::-1])


@healthy("transformer in bfloat16", "linen", "Micikevicius et al. 2018, parameters in float32")
def bfloat16_transformer():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            half = {"dtype": jnp.bfloat16}
            x = nn.Embed(32, 32, embedding_init=normal(0.02), **half)(tokens)
            x = x + self.param("positions", normal(0.02), (12, 32)).astype(jnp.bfloat16)
            mask = nn.make_causal_mask(tokens)
            for _ in range(2):
                y = nn.LayerNorm(**half)(x)
                x = x + nn.MultiHeadDotProductAttention(4, **half)(y, mask=mask)
                y = nn.gelu(nn.Dense(64, **half)(nn.LayerNorm(**half)(x)))
                x = x + nn.Dense(32, **half)(y)
            x = nn.LayerNorm(**half)(x)
            return nn.Dense(32, **half)(x).astype(jnp.float32)

    tokens = sentences()
    return linen_set_up(Network(), next_token, tokens, tokens)
