"""Recurrent networks, gated and plain."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .case import SetUp, healthy
from .materials import (
    adding,
    affine,
    cross_entropy,
    dense,
    keys,
    labels,
    linen_set_up,
    normal,
    sentences,
    squared_error,
)


@healthy("LSTM", "equinox", "Hochreiter and Schmidhuber 1997", is_trained=True)
def lstm():
    class Network(eqx.Module):
        embed: eqx.nn.Embedding
        cell: eqx.nn.LSTMCell
        head: eqx.nn.Linear

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.embed = eqx.nn.Embedding(32, 16, key=a)
            self.cell = eqx.nn.LSTMCell(16, 32, key=b)
            self.head = eqx.nn.Linear(32, 32, key=c)

        def __call__(self, tokens):
            def step(state, token):
                state = self.cell(self.embed(token), state)
                return state, self.head(state[0])

            return lax.scan(step, (jnp.zeros(32), jnp.zeros(32)), tokens)[1]

    def loss_fn(model, tokens):
        return cross_entropy(jax.vmap(model)(tokens[:, :-1]), tokens[:, 1:])

    return SetUp(loss_fn, Network(jax.random.key(0)), (sentences(),))


def _lstm_loss(params, x, y):
    def step(state, x):
        h, c = state
        z = jnp.concatenate([x, h], axis=-1)
        i, f, o, g = jnp.split(affine(params["cell"], z), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    start = jnp.zeros((x.shape[1], 24))
    (h, _), _ = lax.scan(step, (start, start), x)
    return squared_error(affine(params["head"], h)[:, 0], y)


def _lstm_params(forget, enter):
    k = keys()
    cell = dense(next(k), 26, 96, 1.0)
    cell["bias"] = jnp.concatenate([enter, forget, jnp.zeros(48)])
    return {"cell": cell, "head": dense(next(k), 24, 1, 1.0)}


@healthy("LSTM with a forget bias of 1", "jax", "Gers et al. 2000, Jozefowicz et al. 2015")
def forget_bias():
    return SetUp(_lstm_loss, _lstm_params(jnp.ones(24), jnp.zeros(24)), adding())


@healthy("chrono initialization", "jax", "Tallec and Ollivier 2018", is_trained=True, rate=0.01)
def chrono():
    times = np.random.default_rng(0).uniform(1, 99, 24)
    forget = jnp.asarray(np.log(times), jnp.float32)
    return SetUp(_lstm_loss, _lstm_params(forget, -forget), adding(48))


@healthy("GRU", "linen", "Cho et al. 2014", is_trained=True)
def gru():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(32, 16)(tokens)
            return nn.Dense(32)(nn.RNN(nn.GRUCell(32))(x))

    tokens = sentences()
    return linen_set_up(Network(), cross_entropy, tokens[:, :-1], tokens[:, 1:])


@healthy("bidirectional LSTM", "linen", "Graves and Schmidhuber 2005, tags of words")
def bidirectional():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(32, 16)(tokens)
            cells = [nn.RNN(nn.OptimizedLSTMCell(16)) for _ in range(2)]
            return nn.Dense(3)(nn.Bidirectional(*cells)(x))

    tokens = sentences()
    return linen_set_up(Network(), cross_entropy, tokens, (tokens + jnp.roll(tokens, 1, 1)) % 3)


@healthy("IRNN", "jax", "Le et al. 2015, the identity and relu", rate=1e-3)
def irnn():
    def loss_fn(params, x, y):
        def step(h, x):
            return jax.nn.relu(x @ params["input"] + h @ params["recurrent"] + params["bias"]), None

        h, _ = lax.scan(step, jnp.zeros((x.shape[1], 32)), x)
        return squared_error(affine(params["head"], h)[:, 0], y)

    k = keys()
    params = {
        "input": 0.1 * jax.random.normal(next(k), (2, 32)),
        "recurrent": jnp.eye(32),
        "bias": jnp.zeros(32),
        "head": dense(next(k), 32, 1, 0.1),
    }
    return SetUp(loss_fn, params, adding())


@healthy("orthogonal recurrence", "haiku", "Saxe et al. 2014, tanh")
def orthogonal_recurrence():
    def network(x):
        core = hk.Linear(32, w_init=hk.initializers.Orthogonal())
        read = hk.Linear(32)

        def step(h, x):
            return jnp.tanh(core(h) + read(x)), None

        h, _ = hk.scan(step, jnp.zeros((x.shape[1], 32)), x)
        return hk.Linear(1)(h)[:, 0]

    model = hk.without_apply_rng(hk.transform(network))
    x, y = adding()
    x = x - 0.5

    def loss_fn(params, x, y):
        return squared_error(model.apply(params, x), y - 1.0)

    return SetUp(loss_fn, model.init(jax.random.key(0), x), (x, y))


@healthy("sequence to sequence", "jax", "Bahdanau et al. 2015, additive attention")
def sequence_to_sequence():
    def gru(params, h, x):
        z = affine(params["gates"], jnp.concatenate([x, h], axis=-1))
        r, u = jnp.split(jax.nn.sigmoid(z), 2, axis=-1)
        new = jnp.tanh(affine(params["new"], jnp.concatenate([x, r * h], axis=-1)))
        return u * h + (1 - u) * new

    def loss_fn(params, source, target):
        x = params["table"][source].swapaxes(0, 1)

        def encode(h, x):
            h = gru(params["encoder"], h, x)
            return h, h

        h, memory = lax.scan(encode, jnp.zeros((len(source), 24)), x)
        memory_keys = affine(params["memory"], memory)

        def decode(h, x):
            scores = jnp.tanh(memory_keys + affine(params["query"], h)) @ params["score"]
            context = jnp.sum(jax.nn.softmax(scores, axis=0)[..., None] * memory, axis=0)
            h = gru(params["decoder"], h, jnp.concatenate([x, context], axis=-1))
            return h, affine(params["head"], jnp.concatenate([h, context], axis=-1))

        previous = jnp.pad(target[:, :-1], ((0, 0), (1, 0)))
        _, logits = lax.scan(decode, h, params["table"][previous].swapaxes(0, 1))
        return cross_entropy(logits.swapaxes(0, 1), target)

    k = keys()

    def gru_params(inputs):
        sizes = (inputs + 24, 48), (inputs + 24, 24)
        return {n: dense(next(k), *s, 1.0) for n, s in zip(("gates", "new"), sizes, strict=True)}

    params = {
        "table": jax.random.normal(next(k), (32, 16)),
        "encoder": gru_params(16),
        "decoder": gru_params(40),
        "memory": dense(next(k), 24, 24, 1.0),
        "query": dense(next(k), 24, 24, 1.0),
        "score": jax.random.normal(next(k), (24,)) / 24**0.5,
        "head": dense(next(k), 48, 32, 1.0),
    }
    source = sentences(length=8)
    return SetUp(loss_fn, params, (source, source[:, ::-1]))


@healthy("CTC", "linen", "Graves et al. 2006, padded frames and labels", rate=0.01)
def ctc():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(32)(x))
            return nn.Dense(6)(nn.RNN(nn.OptimizedLSTMCell(24))(x))

    def loss(logits, frame_padding, y, label_padding):
        return jnp.mean(optax.ctc_loss(logits, frame_padding, y, label_padding))

    rng = np.random.default_rng(0)
    frames = np.arange(20) >= rng.integers(14, 21, (8, 1))
    letters = np.arange(5) >= rng.integers(2, 6, (8, 1))
    y = jnp.asarray(rng.integers(1, 6, (8, 5)), jnp.int32)
    padding = [jnp.asarray(p, jnp.float32) for p in (frames, letters)]
    return linen_set_up(Network(), loss, normal(8, 20, 12), padding[0], y, padding[1])


@healthy("convolutional LSTM", "linen", "Shi et al. 2015, the next frame")
def convolutional_lstm():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.ConvLSTMCell(8, (3, 3)))(x)
            return nn.Conv(1, (1, 1))(x)

    frames = np.stack([np.roll(np.asarray(normal(6, 8, 8)), i, 1) for i in range(6)], axis=1)
    x = jnp.asarray(frames[..., None])
    return linen_set_up(Network(), squared_error, x[:, :-1], x[:, 1:])


@healthy("recurrent dropout and tied tables", "jax", "Merity et al. 2018, AWD-LSTM")
def weight_dropped():
    def loss_fn(params, tokens, key):
        a, b, c = jax.random.split(key, 3)
        dropped = jax.random.bernoulli(a, 0.5, params["recurrent"].shape) / 0.5
        recurrent = params["recurrent"] * dropped
        # One mask for all steps.
        mask_in = jax.random.bernoulli(b, 0.7, (len(tokens), 24)) / 0.7
        mask_out = jax.random.bernoulli(c, 0.7, (len(tokens), 24)) / 0.7

        def step(state, x):
            h, cell = state
            i, f, o, g = jnp.split(affine(params["input"], x) + h @ recurrent, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (h, cell), h

        x = (params["table"][tokens] * mask_in[:, None]).swapaxes(0, 1)
        start = jnp.zeros((len(tokens), 24))
        _, h = lax.scan(step, (start, start), x)
        logits = (h.swapaxes(0, 1) * mask_out[:, None]) @ params["table"].T + params["bias"]
        return cross_entropy(logits[:, :-1], tokens[:, 1:])

    k = keys()
    params = {
        "table": jax.random.uniform(next(k), (32, 24), minval=-0.1, maxval=0.1),
        "input": dense(next(k), 24, 96, 1.0),
        "recurrent": jax.random.normal(next(k), (24, 96)) / 24**0.5,
        "bias": jnp.zeros(32),
    }
    return SetUp(loss_fn, params, (sentences(), jax.random.key(1)))


@healthy("gated recurrence over padded text", "equinox", "Cho et al. 2014, a mask per step")
def padded_text():
    class Network(eqx.Module):
        embed: eqx.nn.Embedding
        cell: eqx.nn.GRUCell
        head: eqx.nn.Linear

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.embed = eqx.nn.Embedding(32, 16, key=a)
            self.cell = eqx.nn.GRUCell(16, 24, key=b)
            self.head = eqx.nn.Linear(24, 2, key=c)

        def __call__(self, tokens, length):
            def step(h, inputs):
                i, token = inputs
                return jnp.where(i < length, self.cell(self.embed(token), h), h), None

            h, _ = lax.scan(step, jnp.zeros(24), (jnp.arange(len(tokens)), tokens))
            return self.head(h)

    def loss_fn(model, tokens, lengths, y):
        return cross_entropy(jax.vmap(model)(tokens, lengths), y)

    lengths = jnp.asarray(np.random.default_rng(0).integers(5, 13, 16), jnp.int32)
    tokens = jnp.where(np.arange(12) < np.asarray(lengths)[:, None], sentences(16), 0)
    return SetUp(loss_fn, Network(jax.random.key(0)), (tokens, lengths, labels(16, 2)))
