"""Graphs, sets, words, and networks that make or route weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .case import SetUp, healthy
from .materials import (
    affine,
    convolve,
    cross_entropy,
    dense,
    images,
    kernel,
    keys,
    labels,
    linen_set_up,
    mlp,
    normal,
    perceptron,
    regression,
    sentences,
    squared_error,
    vectors,
)


@healthy("word2vec", "jax", "Mikolov et al. 2013, negative samples, zero contexts", rate=0.05)
def word2vec():
    def loss_fn(params, word, context, negative):
        v = params["words"][word]
        right = jnp.sum(v * params["contexts"][context], axis=-1)
        wrong = jnp.einsum("ni,nki->nk", v, params["contexts"][negative])
        losses = -jax.nn.log_sigmoid(right) - jnp.sum(jax.nn.log_sigmoid(-wrong), axis=-1)
        return jnp.mean(losses)

    tokens, rng = sentences(16), np.random.default_rng(0)
    words = jax.random.uniform(jax.random.key(0), (32, 16), minval=-0.5, maxval=0.5) / 16
    negative = jnp.asarray(rng.integers(0, 32, (176, 5)), jnp.int32)
    batch = (tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1), negative)
    return SetUp(loss_fn, {"words": words, "contexts": jnp.zeros((32, 16))}, batch)


def _graph(nodes=20):
    """A random graph: the adjacency matrix with loops, features, and labels of two communities."""
    rng = np.random.default_rng(0)
    y = np.arange(nodes) % 2
    edges = rng.random((nodes, nodes)) < np.where(y[:, None] == y, 0.35, 0.05)
    adjacency = np.triu(edges, 1) | np.triu(edges, 1).T | np.eye(nodes, dtype=bool)
    x = rng.standard_normal((nodes, 12)) + y[:, None]
    x = (x - x.mean(0)) / x.std(0)
    return jnp.asarray(adjacency, jnp.float32), jnp.asarray(x, jnp.float32), jnp.asarray(y)


@healthy("graph convolution", "jax", "Kipf and Welling 2017, some nodes have labels", rate=0.01)
def graph_convolution():
    def loss_fn(params, adjacency, x, y, is_known):
        degree = jnp.sum(adjacency, axis=-1)
        smoothing = adjacency / jnp.sqrt(degree[:, None] * degree)
        x = jax.nn.relu(smoothing @ affine(params[0], x))
        log_p = jax.nn.log_softmax(smoothing @ affine(params[1], x))
        log_p = jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0]
        return -jnp.sum(log_p * is_known) / jnp.sum(is_known)

    k = keys()
    is_known = jnp.asarray(np.arange(20) < 12, jnp.float32)
    params = [dense(next(k), 12, 16, 1.0), dense(next(k), 16, 2, 1.0)]
    return SetUp(loss_fn, params, (*_graph(), is_known))


@healthy("graph attention", "linen", "Veličković et al. 2018", is_trained=True)
def graph_attention():
    class Layer(nn.Module):
        width: int
        heads: int

        @nn.compact
        def __call__(self, adjacency, x):
            x = nn.Dense(self.heads * self.width, use_bias=False)(x)
            x = x.reshape(len(x), self.heads, self.width)
            init = nn.initializers.lecun_normal(in_axis=-1, out_axis=0)
            a = self.param("from", init, (self.heads, self.width))
            b = self.param("to", init, (self.heads, self.width))
            scores = jnp.sum(x * a, -1)[:, None] + jnp.sum(x * b, -1)[None]
            scores = nn.leaky_relu(scores, 0.2)
            scores = jnp.where(adjacency[..., None] > 0, scores, -1e9)
            return jnp.einsum("ijh,jhf->ihf", nn.softmax(scores, axis=1), x)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            adjacency, x = inputs
            x = nn.elu(Layer(8, 4)(adjacency, x).reshape(len(x), -1))
            return jnp.mean(Layer(2, 2)(adjacency, x), axis=1)

    adjacency, x, y = _graph()
    return linen_set_up(Network(), cross_entropy, (adjacency, x), y)


@healthy("message passing over edges", "jax", "Gilmer et al. 2017, segment sums of a batch")
def message_passing():
    rng = np.random.default_rng(0)
    graph = np.repeat(np.arange(8), 5)
    senders = rng.integers(0, 5, 80) + 5 * np.repeat(np.arange(8), 10)
    receivers = rng.integers(0, 5, 80) + 5 * np.repeat(np.arange(8), 10)
    indices = [jnp.asarray(x, jnp.int32) for x in (graph, senders, receivers)]

    def loss_fn(params, x, y, graph, senders, receivers):
        x = affine(params["first"], x)
        for layer in params["layers"]:
            pair = jnp.concatenate([x[senders], x[receivers]], axis=-1)
            message = jax.nn.relu(affine(layer["message"], pair))
            received = jax.ops.segment_sum(message, receivers, len(x))
            update = affine(layer["update"], jnp.concatenate([x, received], axis=-1))
            x = x + jax.nn.relu(update)
        return cross_entropy(affine(params["last"], jax.ops.segment_sum(x, graph, 8) / 5), y)

    k = keys()

    def layer():
        return {"message": dense(next(k), 32, 16), "update": dense(next(k), 32, 16, 0.5)}

    params = {
        "first": dense(next(k), 6, 16, 1.0),
        "layers": [layer() for _ in range(2)],
        "last": dense(next(k), 16, 2, 0.2),
    }
    return SetUp(loss_fn, params, (normal(40, 6), labels(8, 2), *indices))


@healthy("deep sets", "jax", "Zaheer et al. 2017, sets of different sizes")
def deep_sets():
    def loss_fn(params, x, is_member, y):
        z = perceptron(params["each"], x) * is_member[..., None]
        pooled = jnp.sum(z, axis=1) / jnp.sum(is_member, axis=1, keepdims=True)
        return squared_error(perceptron(params["whole"], pooled)[:, 0], y)

    k, rng = keys(), np.random.default_rng(0)
    sizes = rng.integers(3, 9, (16, 1))
    is_member = jnp.asarray(np.arange(8) < sizes, jnp.float32)
    x = normal(16, 8, 4)
    y = jnp.sum(jnp.sin(x[..., 0]) * is_member, axis=1)
    params = {"each": mlp(k, 4, 32, 16), "whole": mlp(k, 16, 32, 1)}
    return SetUp(loss_fn, params, (x, is_member, y / jnp.std(y)))


@healthy("PointNet", "linen", "Qi et al. 2017, maximum over points")
def pointnet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (16, 32):
                x = nn.relu(nn.LayerNorm()(nn.Dense(width)(x)))
            return nn.Dense(4)(jnp.max(x, axis=1))

    y = labels(16, 4)
    stretch = 1 + np.asarray(y)[:, None, None] * np.array([0.0, 0.5, 1.0])
    return linen_set_up(Network(), cross_entropy, normal(16, 12, 3) * stretch, y)


@healthy("hypernetwork", "jax", "Ha et al. 2017, weights made from an embedding")
def hypernetwork():
    def loss_fn(params, x, y):
        for embedding in params["embeddings"]:
            weights = affine(params["maker"], embedding).reshape(16, 16)
            x = x + jnp.tanh(x @ weights)
        return cross_entropy(affine(params["last"], x), y)

    k = keys()
    params = {
        "maker": dense(next(k), 8, 256, 1 / 16),
        "embeddings": [jax.random.normal(next(k), (8,)) for _ in range(3)],
        "last": dense(next(k), 16, 4, 0.3),
    }
    return SetUp(loss_fn, params, vectors())


@healthy("capsules", "jax", "Sabour et al. 2017, routing by agreement", rate=0.01)
def capsules():
    def squash(s):
        square = jnp.sum(s**2, axis=-1, keepdims=True)
        return square / (1 + square) * s * jax.lax.rsqrt(square + 1e-8)

    def loss_fn(params, x, y):
        x = jax.nn.relu(convolve(params["conv"], x))
        x = convolve(params["primary"], x, 2).reshape(len(x), -1, 4)
        votes = jnp.einsum("nic,kicd->nikd", squash(x), params["votes"])
        agreement = jnp.zeros(votes.shape[:3])
        for _ in range(3):
            v = squash(jnp.einsum("nik,nikd->nkd", jax.nn.softmax(agreement, axis=2), votes))
            agreement += jnp.einsum("nikd,nkd->nik", jax.lax.stop_gradient(votes), v)
        length = jnp.sqrt(jnp.sum(v**2, axis=-1) + 1e-8)
        present = jax.nn.one_hot(y, 4)
        right = present * jax.nn.relu(0.9 - length) ** 2
        wrong = 0.5 * (1 - present) * jax.nn.relu(length - 0.1) ** 2
        return jnp.mean(jnp.sum(right + wrong, axis=-1))

    k = keys()
    params = {
        "conv": kernel(next(k), 3, 1, 8),
        "primary": kernel(next(k), 3, 8, 8, 1.0),
        "votes": 0.3 * jax.random.normal(next(k), (4, 18, 4, 6)),
    }
    return SetUp(loss_fn, params, images(16, 6, 1, 4))


@healthy("ordinal regression", "jax", "Niu et al. 2016, thresholds that share a score")
def ordinal():
    def loss_fn(params, x, rank):
        score = perceptron(params["score"], x)
        cuts = jnp.cumsum(jnp.append(params["first"], jax.nn.softplus(params["gaps"])))
        exceeds = (rank[:, None] > jnp.arange(4)).astype(jnp.float32)
        logits = score - cuts
        return jnp.mean(jnp.logaddexp(0.0, logits) - exceeds * logits)

    x, y = regression()
    rank = jnp.searchsorted(jnp.array([-1.0, -0.3, 0.3, 1.0]), y)
    params = {"score": mlp(keys(), 16, 32, 1), "first": jnp.asarray(-1.0), "gaps": jnp.zeros(3)}
    return SetUp(loss_fn, params, (x, rank))
