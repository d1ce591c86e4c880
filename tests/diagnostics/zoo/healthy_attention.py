"""Transformers for images, adapted ones, and relatives of attention."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, truncated_normal

from .attention_layers import attention_params, causal, next_token, self_attention, small
from .case import SetUp, healthy
from .materials import (
    affine,
    cross_entropy,
    images,
    keys,
    labels,
    layer_norm,
    linen_set_up,
    norm,
    sentences,
)


@healthy("ViT", "linen", "Dosovitskiy et al. 2021, class token and zero head", is_trained=True)
def vit():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(32, (4, 4), (4, 4), padding="VALID")(x).reshape(len(x), 9, 32)
            token = self.param("token", nn.initializers.zeros, (1, 1, 32))
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 32)), x], axis=1)
            x = x + self.param("positions", normal(0.02), (1, 10, 32))
            for _ in range(2):
                y = nn.LayerNorm()(x)
                x = x + nn.MultiHeadDotProductAttention(4)(y)
                y = nn.gelu(nn.Dense(64)(nn.LayerNorm()(x)))
                x = x + nn.Dense(32)(y)
            return nn.Dense(10, kernel_init=nn.initializers.zeros)(nn.LayerNorm()(x)[:, 0])

    return linen_set_up(Network(), cross_entropy, *images())


@healthy("CaiT", "linen", "Touvron et al. 2021, layer scale and class attention")
def cait():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = truncated_normal(0.02)
            x = nn.Conv(32, (4, 4), (4, 4), padding="VALID")(x).reshape(len(x), 9, 32)
            x = x + self.param("positions", init, (1, 9, 32))
            for i in range(3):
                scale = self.param(f"scale_{i}", nn.initializers.constant(1e-4), (2, 32))
                x = x + scale[0] * nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
                y = nn.gelu(nn.Dense(64, kernel_init=init)(nn.LayerNorm()(x)))
                x = x + scale[1] * nn.Dense(32, kernel_init=init)(y)
            token = jnp.broadcast_to(self.param("token", init, (1, 1, 32)), (len(x), 1, 32))
            y = nn.LayerNorm()(jnp.concatenate([token, x], axis=1))
            token = token + nn.MultiHeadDotProductAttention(4)(y[:, :1], y)
            return nn.Dense(10, kernel_init=init)(nn.LayerNorm()(token)[:, 0])

    return linen_set_up(Network(), cross_entropy, *images())


@healthy("MLP-Mixer", "linen", "Tolstikhin et al. 2021", is_trained=True)
def mixer():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(24, (4, 4), (4, 4), padding="VALID")(x).reshape(len(x), 9, 24)
            for _ in range(2):
                y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
                y = nn.Dense(9)(nn.gelu(nn.Dense(16)(y)))
                x = x + jnp.swapaxes(y, 1, 2)
                x = x + nn.Dense(24)(nn.gelu(nn.Dense(48)(nn.LayerNorm()(x))))
            return nn.Dense(10, kernel_init=nn.initializers.zeros)(jnp.mean(nn.LayerNorm()(x), 1))

    return linen_set_up(Network(), cross_entropy, *images())


@healthy("linear transformer", "jax", "Katharopoulos et al. 2020, a scan over kernel features")
def linear_attention():
    def attention(params, x):
        q, k, v = jnp.split(affine(params["qkv"], x), 3, axis=-1)
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1

        def step(state, qkv):
            total, normalizer = state
            q, k, v = qkv
            total += k[:, :, None] * v[:, None, :]
            normalizer += k
            y = jnp.einsum("ni,nij->nj", q, total) / jnp.sum(q * normalizer, -1, keepdims=True)
            return (total, normalizer), y

        start = (jnp.zeros((len(x), 32, 32)), jnp.zeros((len(x), 32)))
        _, y = jax.lax.scan(step, start, [z.swapaxes(0, 1) for z in (q, k, v)])
        return affine(params["out"], y.swapaxes(0, 1))

    def loss_fn(params, tokens):
        x = params["table"][tokens] + params["positions"]
        for block in params["blocks"]:
            x = x + attention(block["attention"], layer_norm(block["norm1"], x))
            y = jax.nn.gelu(affine(block["up"], layer_norm(block["norm2"], x)))
            x = x + affine(block["down"], y)
        return next_token(affine(params["head"], layer_norm(params["norm"], x)), tokens)

    k = keys()

    def block():
        return {
            "norm1": norm(32),
            "attention": attention_params(k, 32),
            "norm2": norm(32),
            "up": small(next(k), 32, 64),
            "down": small(next(k), 64, 32),
        }

    params = {
        "table": jax.random.normal(next(k), (32, 32)),
        "positions": 0.1 * jax.random.normal(next(k), (12, 32)),
        "blocks": [block() for _ in range(2)],
        "norm": norm(32),
        "head": small(next(k), 32, 32),
    }
    return SetUp(loss_fn, params, (sentences(),))


@healthy("Switch transformer", "jax", "Fedus et al. 2022, experts with a balancing loss")
def switch_transformer():
    def experts(params, x):
        p = jax.nn.softmax(x @ params["router"], axis=-1)
        chosen = jnp.argmax(p, axis=-1)
        one_hot = jax.nn.one_hot(chosen, 4)
        hidden = jax.nn.relu(jnp.einsum("nti,eij->ntej", x, params["up"]))
        outputs = jnp.einsum("ntej,ejk->ntek", hidden, params["down"])
        y = jnp.einsum("ntek,nte->ntk", outputs, one_hot * p)
        balance = 4 * jnp.sum(jnp.mean(one_hot, axis=(0, 1)) * jnp.mean(p, axis=(0, 1)))
        return y, balance

    def loss_fn(params, tokens):
        x, balance = params["table"][tokens] + params["positions"], 0.0
        for block in params["blocks"]:
            y = layer_norm(block["norm1"], x)
            x = x + self_attention(block["attention"], y, 4, causal(12))
            y, term = experts(block["experts"], layer_norm(block["norm2"], x))
            x, balance = x + y, balance + term
        logits = affine(params["head"], layer_norm(params["norm"], x))
        return next_token(logits, tokens) + 0.01 * balance

    k = keys()

    def block():
        weights = {
            "router": 0.1 * jax.random.normal(next(k), (32, 4)) / 32**0.5,
            "up": jax.random.normal(next(k), (4, 32, 32)) / 32**0.5,
            "down": jax.random.normal(next(k), (4, 32, 32)) / 32**0.5,
        }
        attention = attention_params(k, 32)
        return {"norm1": norm(32), "attention": attention, "norm2": norm(32), "experts": weights}

    params = {
        "table": jax.random.normal(next(k), (32, 32)),
        "positions": 0.1 * jax.random.normal(next(k), (12, 32)),
        "blocks": [block() for _ in range(2)],
        "norm": norm(32),
        "head": small(next(k), 32, 32),
    }
    return SetUp(loss_fn, params, (sentences(),))


@healthy("Perceiver", "equinox", "Jaegle et al. 2021, latent queries and maximum length")
def perceiver():
    class Network(eqx.Module):
        latents: jax.Array
        positions: jax.Array
        read: eqx.nn.MultiheadAttention
        think: eqx.nn.MultiheadAttention
        norms: list
        mlp: eqx.nn.MLP
        head: eqx.nn.Linear

        def __init__(self, key):
            a, b, c, d, e, f = jax.random.split(key, 6)
            self.latents = 0.02 * jax.random.normal(a, (4, 32))
            self.positions = jax.random.normal(f, (36, 8))
            self.read = eqx.nn.MultiheadAttention(
                2, 32, key_size=11, value_size=11, output_size=32, key=b
            )
            self.think = eqx.nn.MultiheadAttention(4, 32, dropout_p=0.0, key=c)
            self.norms = [eqx.nn.LayerNorm(32) for _ in range(4)]
            self.mlp = eqx.nn.MLP(32, 32, 64, 1, activation=jax.nn.gelu, key=d)
            self.head = eqx.nn.Linear(32, 10, key=e)

        def __call__(self, x):
            x = jnp.concatenate([x.reshape(36, 3), self.positions], axis=-1)
            z = self.latents + self.read(jax.vmap(self.norms[0])(self.latents), x, x)
            for _ in range(2):
                y = jax.vmap(self.norms[1])(z)
                z = z + self.think(y, y, y)
                z = z + jax.vmap(self.mlp)(jax.vmap(self.norms[2])(z))
            return self.head(self.norms[3](jnp.mean(z, axis=0)))

    model = Network(jax.random.key(0))

    def loss_fn(model, x, y):
        return cross_entropy(jax.vmap(model)(x), y)

    return SetUp(loss_fn, model, images(size=6))


@healthy("LoRA", "jax", "Hu et al. 2022, one factor zero, base weights fixed")
def lora():
    k = keys()
    base = {
        "table": jax.random.normal(next(k), (32, 32)),
        "layers": [jax.random.normal(next(k), (32, 32)) / 32**0.5 for _ in range(3)],
        "head": jax.random.normal(next(k), (32, 2)) / 32**0.5,
    }

    def loss_fn(params, tokens, y):
        x = jnp.mean(base["table"][tokens], axis=1)
        for weights, adapter in zip(base["layers"], params["adapters"], strict=True):
            x = jnp.tanh(x @ weights + (x @ adapter["a"]) @ adapter["b"])
        return cross_entropy(x @ (base["head"] + params["head"]["a"] @ params["head"]["b"]), y)

    def adapter(outputs):
        a = jax.random.normal(next(k), (32, 4)) / 32**0.5
        return {"a": a, "b": jnp.zeros((4, outputs))}

    params = {"adapters": [adapter(32) for _ in range(3)], "head": adapter(2)}
    return SetUp(loss_fn, params, (sentences(16), labels(16, 2)))


@healthy("prefix tuning", "jax", "Li and Liang 2021, a soft prompt before a fixed transformer")
def prefix_tuning():
    k = keys()
    base = {"table": jax.random.normal(next(k), (32, 32)), "attention": attention_params(k, 32)}
    head = small(next(k), 32, 2)

    def loss_fn(params, tokens, y):
        prompt = jnp.broadcast_to(params["prompt"], (len(tokens), 4, 32))
        x = jnp.concatenate([prompt, base["table"][tokens]], axis=1)
        x = x + self_attention(base["attention"], layer_norm(norm(32), x), 4)
        return cross_entropy(affine(params["head"], jnp.mean(x, axis=1)), y)

    params = {"prompt": 0.5 * jax.random.normal(next(k), (4, 32)), "head": head}
    return SetUp(loss_fn, params, (sentences(16), labels(16, 2)))
