"""Networks that are wired wrongly: examples that see each other, states that stand still."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    dense,
    keys,
    labels,
    linen_set_up,
    mlp,
    nnx_set_up,
    normal,
    perceptron,
    regression,
    sentences,
    squared_error,
    vectors,
)

# What the examples have in common gets into each of them.


@sick(
    "a mean over the wrong axis as context",
    "linen",
    "PyTorch forum, mean over dim=0 instead of dim=1 in deep sets",
    kinds="mixed_examples wrong_axis",
    how="each example is compared with the others instead of with its own parts",
)
def context_of_batch(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(24)(x))
            context = jnp.mean(x, axis=1 if cured else 0, keepdims=True)  # fault
            x = jnp.concatenate([x, jnp.broadcast_to(context, x.shape)], axis=-1)  # fault
            return nn.Dense(4)(jnp.mean(nn.relu(nn.Dense(24)(x)), axis=1))

    return linen_set_up(Network(), cross_entropy, normal(16, 6, 8), labels(16, 4))


@sick(
    "the largest feature of the batch beside each example",
    "jax",
    "Stack Overflow, global maximum pooling over axis 0",
    kinds="mixed_examples wrong_axis",
    how="the prediction of an example changes with its neighbours in the batch",
)
def maximum_of_batch(cured=False):
    def loss_fn(params, x, y):
        z = jnp.tanh(affine(params[0], x))
        largest = jnp.max(z, axis=-1 if cured else 0, keepdims=True)  # fault
        z = z + largest  # fault
        return cross_entropy(affine(params[1], z), y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


# Padding without a mask.


@sick(
    "zeros behind short series take part in the mean",
    "equinox",
    "PyTorch forum, pad_sequence and pooling; Keras issues on masking zeros",
    kinds="padding",
    where=r"args\[0\]",
    how="the mean of a short series is diluted with what the zeros became",
)
def padded_series(cured=False):
    lengths = np.random.default_rng(0).integers(2, 12, (24, 1))
    is_there = (np.arange(12) < lengths)[..., None]
    x = jnp.where(is_there, normal(24, 12, 6), 0.0)
    a, b = jax.random.split(jax.random.key(0))
    model = (eqx.nn.Linear(6, 24, key=a), eqx.nn.Linear(24, 4, key=b))

    def loss_fn(model, x, y):
        z = jnp.tanh(jax.vmap(jax.vmap(model[0]))(x))
        if cured:
            there = jnp.any(x != 0, axis=-1, keepdims=True)
            z = jnp.sum(z * there, axis=1) / jnp.sum(there, axis=1)
        else:
            z = jnp.mean(z, axis=1)  # fault
        return cross_entropy(jax.vmap(model[1])(z), y)

    return SetUp(loss_fn, model, (x, labels(24, 4)))


@sick(
    "zeros behind short sentences take part in the mean",
    "nnx",
    "Stack Overflow, mean of embeddings with padding tokens",
    kinds="padding",
    where=r"args\[0\]",
    how="the embedding of a short sentence is mostly that of the padding",
)
def padded_sentences(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(33, 16, rngs=rngs)
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, tokens):
            z = self.table(tokens)
            if cured:
                there = (tokens != 0)[..., None]
                return self.head(jnp.sum(z * there, axis=1) / jnp.sum(there, axis=1))
            return self.head(jnp.mean(z, axis=1))  # fault

    lengths = np.random.default_rng(0).integers(3, 12, (24, 1))
    tokens = jnp.where(np.arange(12) < lengths, 1 + sentences(24), 0)
    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, tokens, labels(24, 4))


# Choices and derivatives through which nothing passes.


@sick(
    "codes without a straight-through gradient",
    "jax",
    "van den Oord et al. 2017; GitHub issues of VQ-VAE, the encoder does not train",
    kinds="blocked",
    where="encoder",
    how="the encoder only follows the codes, and does not learn what the decoder needs",
)
def hard_codes(cured=False):
    def loss_fn(params, x):
        z = perceptron(params["encoder"], x)
        distances = jnp.sum((z[:, None] - params["codes"]) ** 2, axis=-1)
        codes = params["codes"][jnp.argmin(distances, axis=-1)]  # fault
        pull = jnp.mean((jax.lax.stop_gradient(z) - codes) ** 2)
        if cured:
            pull += 0.25 * jnp.mean((z - jax.lax.stop_gradient(codes)) ** 2)
            codes = z + jax.lax.stop_gradient(codes - z)
        return squared_error(perceptron(params["decoder"], codes), x) + pull

    k = keys()
    params = {
        "encoder": mlp(k, 16, 32, 8),
        "codes": jax.random.normal(next(k), (12, 8)),
        "decoder": mlp(k, 8, 32, 16),
    }
    return SetUp(loss_fn, params, vectors()[:1])


@sick(
    "a physics-informed network of rectifiers",
    "equinox",
    "Stack Overflow, PINN with relu: the second derivative vanishes",
    kinds="blocked",
    how="the residual of the equation does not depend on the network",
)
def rectified_physics(cured=False):
    bend = jnp.tanh if cured else jax.nn.relu

    def loss_fn(model, x, edges):
        def u(x):
            z = model[0](x[None])
            z = model[1](bend(z))  # fault
            return model[2](bend(z))[0]  # fault

        residual = jax.vmap(jax.grad(jax.grad(u)))(x) + jnp.sin(x)
        return jnp.mean(residual**2) + jnp.mean(jax.vmap(u)(edges) ** 2)

    a, b, c = jax.random.split(jax.random.key(0), 3)
    layers = ((1, 24, a), (24, 24, b), (24, 1, c))
    model = tuple(eqx.nn.Linear(n, m, key=k) for n, m, k in layers)
    return SetUp(loss_fn, model, (jnp.linspace(0.1, 3.0, 32), jnp.array([0.0, jnp.pi])))


# States and statistics that stand still.


@sick(
    "a recurrence that returns its old state",
    "jax",
    "Stack Overflow, jax.lax.scan returns the carry unchanged",
    kinds="constant_state",
    how="the state stays at its first value, and the network sees nothing of the series",
)
def standing_state(cured=False):
    def loss_fn(params, x, y):
        def step(h, x):
            new = jnp.tanh(affine(params["input"], x) + h @ params["recurrent"])  # fault
            return (new if cured else h), new

        _, h = jax.lax.scan(step, jnp.zeros((16, 24)), x.swapaxes(0, 1))  # fault
        return cross_entropy(affine(params["head"], h[-1]), y)

    k = keys()
    params = {
        "input": dense(next(k), 8, 24, 0.5),
        "recurrent": jax.nn.initializers.orthogonal()(next(k), (24, 24)),
        "head": dense(next(k), 24, 4, 1.0),
    }
    return SetUp(loss_fn, params, (normal(16, 10, 8), labels(16, 4)))


@sick(
    "layer normalization of a single feature",
    "linen",
    "PyTorch forum, LayerNorm over a dimension of size 1 gives zeros",
    kinds="constant_norm",
    how="what is normalized by itself is zero: the network is constant",
)
def norm_of_one(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(32)(x)
            norm = nn.LayerNorm()
            x = norm(x) if cured else norm(x[..., None])[..., 0]  # fault
            return nn.Dense(4)(nn.relu(x))

    return linen_set_up(Network(), cross_entropy, *vectors())


@sick(
    "batch normalization by running averages from the beginning",
    "linen",
    "Flax discussions, use_running_average=True while training",
    kinds="running_average",
    where=r"args\[0\].*mean",
    how="nothing is normalized, and the averages are never updated",
)
def fresh_averages(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.Dense(32)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not cured)(x))  # fault
            return nn.Dense(4)(x)

    model, (x, y) = Network(), vectors()
    variables = model.init(jax.random.key(0), x)

    def loss_fn(params, statistics, x, y):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated

    batch = (variables["batch_stats"], x, y)
    return SetUp(loss_fn, variables["params"], batch, {"has_aux": True})


# Dropout.


@sick(
    "dropout with one key for all examples",
    "equinox",
    "Equinox issues, vmap over dropout with the same key",
    kinds="same_mask",
    how="all examples lose the same units, which makes the gradient far noisier",
)
def shared_mask(cured=False):
    a, b = jax.random.split(jax.random.key(0))
    model = (eqx.nn.Linear(16, 64, key=a), eqx.nn.Linear(64, 4, key=b))
    drop = eqx.nn.Dropout(0.5)

    def loss_fn(model, x, y, key):
        def one(x, key):
            z = jax.nn.relu(model[0](x))
            return model[1](drop(z, key=key))  # fault

        if cured:
            logits = jax.vmap(one)(x, jax.random.split(key, len(x)))
        else:
            logits = jax.vmap(one, in_axes=(0, None))(x, key)
        return cross_entropy(logits, y)

    return SetUp(loss_fn, model, (*vectors(), jax.random.key(1)))


@sick(
    "dropout with one key for all layers",
    "jax",
    "JAX documentation, a key must not be used twice",
    kinds="same_mask",
    how="each layer loses the same units as the one before",
)
def repeated_mask(cured=False):
    def loss_fn(params, x, y, key):
        for layer in params[:-1]:
            x = jax.nn.relu(affine(layer, x))
            if cured:
                key, mine = jax.random.split(key)
            else:
                mine = key
            x = jnp.where(jax.random.bernoulli(mine, 0.5, x.shape), x / 0.5, 0.0)  # fault
        return cross_entropy(affine(params[-1], x), y)

    return SetUp(loss_fn, mlp(keys(), 16, 48, 48, 4), (*vectors(), jax.random.key(1)))


@sick(
    "dropout of nearly everything",
    "linen",
    "Stack Overflow, the rate of dropout is what is dropped and not what is kept",
    kinds="dropout_rate",
    how="one unit in twenty is left, multiplied by twenty",
)
def high_dropout(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(64)(x))
            x = nn.Dropout(0.05 if cured else 0.95, deterministic=False)(x)  # fault
            return nn.Dense(4)(x)

    model, (x, y) = Network(), vectors()
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def loss_fn(params, x, y, key):
        return cross_entropy(model.apply(params, x, rngs={"dropout": key}), y)

    return SetUp(loss_fn, params, (x, y, jax.random.key(2)))


# Indices and norms.


@sick(
    "tokens beyond the table, clipped",
    "jax",
    "JAX documentation of jnp.take, mode clip; Stack Overflow",
    kinds="index_out_of_range",
    where=r"args\[0\]|table",
    how="all rare words share the last row of the table",
)
def clipped_tokens(cured=False):
    def loss_fn(params, tokens, y):
        z = jnp.take(params["table"], tokens, axis=0, mode="clip")  # fault
        return cross_entropy(affine(params["head"], jnp.mean(jnp.tanh(z), axis=1)), y)

    k = keys()
    rows = 32 if cured else 24
    params = {"table": jax.random.normal(next(k), (rows, 16)), "head": dense(next(k), 16, 4, 1.0)}
    return SetUp(loss_fn, params, (sentences(16), labels(16, 4)))


@sick(
    "the length of a vector of zeros",
    "jax",
    "JAX FAQ, gradients with where; jax issue 3058, norm at zero",
    kinds="nan",
    how="the derivative of a root at zero is infinite, and times zero NaN",
)
def norm_at_zero(cured=False):
    def loss_fn(params, x, y):
        z = jnp.tanh(affine(params[0], x))
        square = jnp.sum(z**2, axis=-1, keepdims=True)
        length = jnp.sqrt(square + (1e-12 if cured else 0.0))  # fault
        return squared_error(affine(params[1], z / (length + 1e-6))[:, 0], y)

    x, y = regression()
    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x.at[3].set(0.0), y))


# Contrast.


@sick(
    "an image is its own negative",
    "jax",
    "GitHub issues of SimCLR, the diagonal of the similarities has to be masked",
    kinds="self_similarity",
    how="the largest similarity is that with itself, which nothing can change",
)
def own_negative(cured=False):
    def loss_fn(params, a, b):
        z = perceptron(params, jnp.concatenate([a, b]))
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        similarity = z @ z.T / 0.1  # fault
        number = len(a)
        if cured:
            similarity = jnp.where(jnp.eye(2 * number, dtype=bool), -1e9, similarity)
        partners = (jnp.arange(2 * number) + number) % (2 * number)
        return cross_entropy(similarity, partners)

    x = normal(16, 12)
    views = (x + 0.3 * normal(16, 12, seed=1), x + 0.3 * normal(16, 12, seed=2))
    return SetUp(loss_fn, mlp(keys(), 12, 32, 8), views)
