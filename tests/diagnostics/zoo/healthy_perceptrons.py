"""Linear models, multilayer perceptrons, and networks for tables."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .case import SetUp, healthy
from .materials import (
    affine,
    binary_cross_entropy,
    cross_entropy,
    dense,
    equinox_set_up,
    keys,
    linen_set_up,
    mlp,
    nnx_set_up,
    normal,
    perceptron,
    regression,
    squared_error,
    vectors,
)


@healthy("linear regression", "jax", "Gauss 1809, from zeros", rate=0.05)
def linear_regression():
    def loss_fn(params, x, y):
        return squared_error(x @ params["w"] + params["b"], y)

    return SetUp(loss_fn, {"w": jnp.zeros(16), "b": jnp.zeros(())}, regression())


@healthy("logistic regression", "jax", "Cox 1958, from zeros", rate=0.05, is_trained=True)
def logistic_regression():
    x, y = vectors(classes=2)

    def loss_fn(params, x, y):
        return binary_cross_entropy(x @ params["w"] + params["b"], y)

    return SetUp(loss_fn, {"w": jnp.zeros(16), "b": jnp.zeros(())}, (x, y.astype(jnp.float32)))


@healthy("softmax regression, unequal classes", "jax", "Theil 1969, from zeros", rate=0.05)
def softmax_regression():
    x, _ = vectors()
    y = jnp.asarray(np.repeat([0, 1, 2, 3], [16, 8, 5, 3]), jnp.int32)

    def loss_fn(params, x, y):
        return cross_entropy(affine(params, x), y)

    return SetUp(loss_fn, {"kernel": jnp.zeros((16, 4)), "bias": jnp.zeros(4)}, (x, y))


@healthy("Poisson regression", "jax", "Nelder and Wedderburn 1972", rate=0.03)
def poisson_regression():
    x, _ = regression()
    counts = np.random.default_rng(0).poisson(np.exp(0.3 * np.asarray(x[:, 0]) + 0.5))

    def loss_fn(params, x, counts):
        log_rate = x @ params["w"] + params["b"]
        return jnp.mean(jnp.exp(log_rate) - counts * log_rate)

    params = {"w": jnp.zeros(16), "b": jnp.zeros(())}
    return SetUp(loss_fn, params, (x, jnp.asarray(counts, jnp.float32)))


@healthy("quantile regression", "equinox", "Koenker and Bassett 1978", rate=0.01)
def quantile_regression():
    x, y = regression()
    model = eqx.nn.MLP(16, 3, 32, 2, key=jax.random.key(0))
    levels = jnp.array([0.1, 0.5, 0.9])

    def loss(prediction, y):
        error = y[:, None] - prediction
        return jnp.mean(jnp.maximum(levels * error, (levels - 1) * error))

    return equinox_set_up(model, loss, x, y)


@healthy("rectifier network", "linen", "Glorot et al. 2011, He et al. 2015", is_trained=True)
def rectifier_network():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(4):
                x = nn.relu(nn.Dense(32, kernel_init=nn.initializers.he_normal())(x))
            return nn.Dense(4)(x)

    return linen_set_up(Network(), cross_entropy, *vectors())


@healthy("tanh network", "jax", "Glorot and Bengio 2010", is_trained=True)
def tanh_network():
    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x, jnp.tanh), y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 32, 4, gain=1.0), vectors())


@healthy("self-normalizing network", "equinox", "Klambauer et al. 2017", is_trained=True)
def self_normalizing():
    # A list, so that each layer has its own shape.
    class Network(eqx.Module):
        layers: list

        def __init__(self):
            params = mlp(keys(), 16, *[32] * 8, 4, gain=1.0)
            self.layers = [_equinox_linear(layer) for layer in params]

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = jax.nn.selu(layer(x))
            return self.layers[-1](x)

    return equinox_set_up(Network(), cross_entropy, *vectors())


def _equinox_linear(params):
    inputs, outputs = params["kernel"].shape
    layer = eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))
    values = (params["kernel"].T, params["bias"])
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, values)


@healthy("maxout", "jax", "Goodfellow et al. 2013")
def maxout():
    def loss_fn(params, x, y):
        for layer in params["hidden"]:
            x = jnp.max(jnp.einsum("ni,kio->nko", x, layer["kernel"]) + layer["bias"], axis=1)
        return cross_entropy(affine(params["last"], x), y)

    k = keys()
    hidden = [
        {"kernel": normal(2, n, 32, seed=n) / n**0.5, "bias": jnp.zeros((2, 32))} for n in (16, 32)
    ]
    return SetUp(loss_fn, {"hidden": hidden, "last": dense(next(k), 32, 4, 1.0)}, vectors())


@healthy("highway network", "jax", "Srivastava et al. 2015, gates biased to carry")
def highway():
    def loss_fn(params, x, y):
        x = affine(params["first"], x)
        for layer in params["layers"]:
            gate = jax.nn.sigmoid(affine(layer["gate"], x))
            x = gate * jax.nn.relu(affine(layer["transform"], x)) + (1 - gate) * x
        return cross_entropy(affine(params["last"], x), y)

    k = keys()

    def layer():
        gate = dense(next(k), 24, 24, 1.0)
        return {"gate": gate | {"bias": jnp.full(24, -3.0)}, "transform": dense(next(k), 24, 24)}

    params = {
        "first": dense(next(k), 16, 24, 1.0),
        "layers": [layer() for _ in range(8)],
        "last": dense(next(k), 24, 4, 1.0),
    }
    return SetUp(loss_fn, params, vectors())


@healthy("mixture density network", "equinox", "Bishop 1994")
def mixture_density():
    x, y = regression(width=4)
    model = eqx.nn.MLP(4, 9, 32, 2, activation=jnp.tanh, key=jax.random.key(0))

    def loss(outputs, y):
        logits, mean, log_scale = jnp.split(outputs, 3, axis=-1)
        z = (y[:, None] - mean) * jnp.exp(-log_scale)
        log_normal = -0.5 * z**2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)
        mixed = jax.nn.log_softmax(logits) + log_normal
        return -jnp.mean(jax.nn.logsumexp(mixed, axis=-1))

    return equinox_set_up(model, loss, x, y)


@healthy("deep ensemble", "jax", "Lakshminarayanan et al. 2017, stacked networks")
def deep_ensemble():
    members = [mlp(keys(seed), 16, 32, 32, 2) for seed in range(4)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    def member_loss(params, x, y):
        mean, raw = perceptron(params, x).T
        variance = jax.nn.softplus(raw) + 1e-6
        return jnp.mean(0.5 * jnp.log(variance) + 0.5 * (y - mean) ** 2 / variance)

    def loss_fn(params, x, y):
        return jnp.mean(jax.vmap(member_loss, (0, None, None))(params, x, y))

    return SetUp(loss_fn, params, regression())


@healthy("dropout", "equinox", "Srivastava et al. 2014, a key for each example", is_trained=True)
def dropout():
    class Network(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear
        last: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        temperature: float

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.first = eqx.nn.Linear(16, 64, key=a)
            self.second = eqx.nn.Linear(64, 64, key=b)
            self.last = eqx.nn.Linear(64, 4, key=c)
            self.dropout = eqx.nn.Dropout(0.5)
            self.temperature = 1.0

        def __call__(self, x, key):
            a, b = jax.random.split(key)
            x = self.dropout(jax.nn.relu(self.first(x)), key=a)
            x = self.dropout(jax.nn.relu(self.second(x)), key=b)
            return self.last(x) / self.temperature

    x, y = vectors()

    def loss_fn(model, x, y, key):
        return cross_entropy(jax.vmap(model)(x, jax.random.split(key, len(x))), y)

    return SetUp(loss_fn, Network(jax.random.key(0)), (x, y, jax.random.key(1)))


@healthy("batch normalization in a perceptron", "nnx", "Ioffe and Szegedy 2015", is_trained=True)
def batch_normalization():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(16, 32, rngs=rngs)
            self.norm = nnx.BatchNorm(32, rngs=rngs)
            self.second = nnx.Linear(32, 32, rngs=rngs)
            self.norm2 = nnx.BatchNorm(32, rngs=rngs)
            self.last = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.first(x)))
            return self.last(nnx.relu(self.norm2(self.second(x))))

    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, *vectors())


@healthy("wide and deep", "linen", "Cheng et al. 2016", rate=0.01)
def wide_and_deep():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, ids):
            wide = jnp.sum(nn.Embed(40, 1, embedding_init=nn.initializers.zeros)(ids), axis=(1, 2))
            deep = nn.Embed(40, 8)(ids).reshape(len(ids), -1)
            deep = nn.relu(nn.Dense(32)(deep))
            deep = nn.relu(nn.Dense(16)(deep))
            return wide + nn.Dense(1)(deep)[:, 0]

    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 10, (32, 4)) + 10 * np.arange(4), jnp.int32)
    clicks = jnp.asarray(rng.random(32) < 0.3, jnp.float32)
    return linen_set_up(Network(), binary_cross_entropy, ids, clicks)


@healthy("DLRM", "jax", "Naumov et al. 2019, tables and pairwise products")
def recommendation():
    def loss_fn(params, numbers, ids, clicks):
        vectors = [perceptron(params["bottom"], numbers)]
        vectors += [table[ids[:, i]] for i, table in enumerate(params["tables"])]
        stacked = jnp.stack(vectors, axis=1)
        products = jnp.einsum("nik,njk->nij", stacked, stacked)
        rows, columns = np.tril_indices(4, -1)
        x = jnp.concatenate([vectors[0], products[:, rows, columns]], axis=-1)
        return binary_cross_entropy(perceptron(params["top"], x)[:, 0], clicks)

    k, rng = keys(), np.random.default_rng(0)
    params = {
        "bottom": mlp(k, 8, 16, 8),
        "tables": [
            jax.random.uniform(next(k), (20, 8), minval=-0.22, maxval=0.22) for _ in range(3)
        ],
        "top": mlp(k, 14, 32, 1),
    }
    ids = jnp.asarray(rng.integers(0, 20, (32, 3)), jnp.int32)
    clicks = jnp.asarray(rng.random(32) < 0.4, jnp.float32)
    return SetUp(loss_fn, params, (normal(32, 8), ids, clicks))


@healthy("matrix factorization", "jax", "Koren et al. 2009", rate=0.03, is_trained=True)
def matrix_factorization():
    def loss_fn(params, users, items, ratings):
        score = jnp.sum(params["users"][users] * params["items"][items], axis=-1)
        score += params["user_bias"][users] + params["item_bias"][items] + params["mean"]
        penalty = jnp.sum(params["users"] ** 2) + jnp.sum(params["items"] ** 2)
        return squared_error(score, ratings) + 1e-3 * penalty

    rng = np.random.default_rng(0)
    params = {
        "users": 0.1 * normal(12, 6),
        "items": 0.1 * normal(15, 6, seed=1),
        "user_bias": jnp.zeros(12),
        "item_bias": jnp.zeros(15),
        "mean": jnp.asarray(3.0),
    }
    users = jnp.asarray(rng.permutation(np.arange(60) % 12), jnp.int32)
    items = jnp.asarray(rng.permutation(np.arange(60) % 15), jnp.int32)
    ratings = jnp.asarray(rng.integers(1, 6, 60), jnp.float32)
    return SetUp(loss_fn, params, (users, items, ratings))


@healthy("neural collaborative filtering", "nnx", "He et al. 2017", rate=0.01)
def collaborative_filtering():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.users = nnx.Embed(12, 8, rngs=rngs)
            self.items = nnx.Embed(15, 8, rngs=rngs)
            self.first = nnx.Linear(16, 16, rngs=rngs)
            self.last = nnx.Linear(24, 1, rngs=rngs)

        def __call__(self, pairs):
            user, item = self.users(pairs[:, 0]), self.items(pairs[:, 1])
            x = nnx.relu(self.first(jnp.concatenate([user, item], axis=-1)))
            return self.last(jnp.concatenate([user * item, x], axis=-1))[:, 0]

    rng = np.random.default_rng(0)
    pairs = np.stack([np.arange(60) % 12, np.arange(60) % 15], axis=1)
    clicks = jnp.asarray(rng.random(60) < 0.5, jnp.float32)
    model = Network(nnx.Rngs(0))
    return nnx_set_up(model, binary_cross_entropy, jnp.asarray(pairs, jnp.int32), clicks)


@healthy("multi-task with learned uncertainty", "jax", "Kendall et al. 2018")
def multi_task():
    def loss_fn(params, x, target, label):
        features = jax.nn.relu(affine(params["trunk"], x))
        regression_loss = squared_error(affine(params["value"], features)[:, 0], target)
        label_loss = cross_entropy(affine(params["class"], features), label)
        losses = jnp.stack([regression_loss, label_loss])
        log_variance = params["log_variance"]
        return jnp.sum(jnp.exp(-log_variance) * losses + 0.5 * log_variance)

    k = keys()
    params = {
        "trunk": dense(next(k), 16, 32),
        "value": dense(next(k), 32, 1, 1.0),
        "class": dense(next(k), 32, 4, 1.0),
        "log_variance": jnp.zeros(2),
    }
    (x, target), (_, label) = regression(), vectors()
    return SetUp(loss_fn, params, (x, target, label))


@healthy("distillation", "jax", "Hinton et al. 2015, softened outputs of a fixed teacher")
def distillation():
    teacher = mlp(keys(7), 16, 64, 64, 4)

    def loss_fn(params, x, y):
        logits = perceptron(params, x)
        soft = jax.nn.softmax(jax.lax.stop_gradient(perceptron(teacher, x)) / 2.0)
        distance = -jnp.mean(jnp.sum(soft * jax.nn.log_softmax(logits / 2.0), axis=-1))
        return 0.5 * cross_entropy(logits, y) + 0.5 * 4.0 * distance

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())
