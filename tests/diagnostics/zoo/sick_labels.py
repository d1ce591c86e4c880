"""Labels and indices that are not what the loss takes them for."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from .case import SetUp, sick
from .materials import (
    affine,
    binary_cross_entropy,
    cross_entropy,
    dense,
    equinox_set_up,
    images,
    keys,
    labels,
    linen_set_up,
    mlp,
    nnx_set_up,
    perceptron,
    sentences,
    vectors,
)


@sick(
    "labels counted from 1",
    "linen",
    "Stack Overflow, label value outside of the valid range; DeepFD: labels",
    kinds="label_out_of_range index_out_of_range",
    where=r"args\[1\]",
    how="the last class has no logit, and its examples no gradient or a NaN",
)
def labels_from_one(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.relu(nn.Dense(32)(x)))

    x, y = vectors()
    y = y if cured else y + 1

    def loss(logits, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))  # fault

    return linen_set_up(Network(), loss, x, y)


@sick(
    "one_hot with too few classes",
    "jax",
    "JAX documentation of one_hot; Stack Overflow, rows of zeros after one-hot encoding",
    kinds="label_out_of_range",
    where=r"args\[1\]",
    how="labels beyond the last class become rows of zeros, which cost nothing",
)
def short_one_hot(cured=False):
    x, y = vectors(classes=6)
    classes = 6 if cured else 4

    def loss_fn(params, x, y):
        target = jax.nn.one_hot(y, classes)  # fault
        return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(perceptron(params, x)), axis=-1))

    return SetUp(loss_fn, mlp(keys(), 16, 32, classes), (x, y))


@sick(
    "tokens beyond the table",
    "jax",
    "JAX, the sharp bits: out-of-bounds indexing; Stack Overflow, vocabulary size plus one",
    kinds="index_out_of_range",
    where=r"args\[0\]|table",
    how="all unknown tokens silently share the last row of the table",
)
def tokens_beyond_table(cured=False):
    def loss_fn(params, tokens, y):
        x = jnp.mean(params["table"][tokens], axis=1)  # fault
        return cross_entropy(perceptron(params["mlp"], x), y)

    k = keys()
    table = jax.random.normal(next(k), (32 if cured else 20, 16))
    params = {"table": table, "mlp": mlp(k, 16, 32, 4)}
    return SetUp(loss_fn, params, (sentences(16), labels(16, 4)))


@sick(
    "NaN from an embedding layer",
    "nnx",
    "jax issue 26328, NaN gradient with indices outside of the embedding's range",
    kinds="index_out_of_range",
    where=r"args\[0\]|embed",
    how="take fills rows beyond the table with NaN",
)
def embedding_of_unknown(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(33 if cured else 30, 16, rngs=rngs)
            self.last = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, tokens):
            return self.last(jnp.mean(self.embed(tokens), axis=1))  # fault

    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, sentences(16), labels(16, 4))


@sick(
    "a sentence longer than the positions",
    "equinox",
    "Hugging Face forum, index out of range beyond the maximum length",
    kinds="index_out_of_range",
    where=r"positions",
    how="in JAX, all later words silently get the last position",
)
def long_sentence(cured=False):
    class Network(eqx.Module):
        table: jax.Array
        positions: jax.Array
        last: eqx.nn.Linear

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.table = jax.random.normal(a, (32, 16))
            self.positions = jax.random.normal(b, (12 if cured else 8, 16))
            self.last = eqx.nn.Linear(16, 32, key=c)

        def __call__(self, tokens):
            x = self.table[tokens] + self.positions[jnp.arange(len(tokens))]  # fault
            return jax.vmap(self.last)(jnp.tanh(x))

    def loss(logits, tokens):
        return cross_entropy(logits[:, :-1], tokens[:, 1:])

    tokens = sentences()
    return equinox_set_up(Network(jax.random.key(0)), loss, tokens, tokens)


@sick(
    "-100 as a label",
    "jax",
    "Hugging Face convention of ignored labels; optax issues",
    kinds="label_out_of_range index_out_of_range",
    where=r"args\[1\]",
    how="negative indices count from the end or are clamped: padding teaches a class",
)
def ignored_labels(cured=False):
    def loss_fn(params, tokens, y):
        x = jnp.tanh(affine(params["hidden"], params["table"][tokens]))
        log_p = jax.nn.log_softmax(affine(params["head"], x))
        if cured:
            is_label = y >= 0
            log_p = jnp.take_along_axis(log_p, jnp.where(is_label, y, 0)[..., None], axis=-1)
            return -jnp.sum(log_p[..., 0] * is_label) / jnp.sum(is_label)
        return -jnp.mean(jnp.take_along_axis(log_p, y[..., None], axis=-1, mode="clip"))  # fault

    k = keys()
    params = {
        "table": jax.random.normal(next(k), (32, 16)),
        "hidden": dense(next(k), 16, 32, 1.0),
        "head": dense(next(k), 32, 5, 1.0),
    }
    tokens = sentences(16)
    y = jnp.where(np.arange(12) < 7, tokens % 5, -100)
    return SetUp(loss_fn, params, (tokens, y))


@sick(
    "all labels the same",
    "jax",
    "Slav Ivanov's 37 reasons: check the labels; a batch from sorted files",
    kinds="single_class",
    where=r"args\[1\]",
    how="the loss goes to zero with the bias alone",
)
def single_class(cured=False):
    x, y = vectors()

    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x), y)  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), (x, y if cured else jnp.full_like(y, 2)))


@sick(
    "rare positives",
    "linen",
    "Karpathy, a recipe: initialize the bias for imbalanced data; Stack Overflow",
    kinds="class_imbalance",
    where=r"args\[1\]|bias",
    how="the first steps only learn how rare the positives are",
)
def rare_positives(cured=False):
    bias = -np.log(63.0) if cured else 0.0

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(32)(x))
            start = nn.initializers.constant(bias)
            return nn.Dense(1, bias_init=start)(x)[:, 0]

    x, _ = vectors(128)
    y = jnp.zeros(128).at[jnp.array([5, 77])].set(1.0)
    return linen_set_up(Network(), binary_cross_entropy, x, y)


@sick(
    "labels of -1 and 1 in a cross-entropy",
    "equinox",
    "Stack Overflow, negative loss with binary cross-entropy",
    kinds="label_out_of_range target_out_of_range",
    where=r"args\[1\]",
    how="the loss is unbounded below: the logits of the negatives go to infinity",
)
def signed_labels(cured=False):
    x, y = vectors(classes=2)
    y = y.astype(jnp.float32) if cured else 2.0 * y - 1.0

    def loss(logits, y):
        logits = logits[:, 0]
        return jnp.mean(jnp.logaddexp(0.0, logits) - y * logits)  # fault

    model = eqx.nn.MLP(16, 1, 32, 2, key=jax.random.key(0))
    return equinox_set_up(model, loss, x, y)


@sick(
    "masks of 0 and 255",
    "linen",
    "Stack Overflow, U-Net with a negative loss",
    kinds="label_out_of_range target_out_of_range",
    where=r"args\[1\]",
    how="a target of 255 instead of 1 makes the loss negative and the logits explode",
)
def masks_in_bytes(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            return nn.Conv(1, (1, 1))(x)

    def loss(logits, y):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y))  # fault

    x, _ = images(8, 8, 1)
    mask = (x > 0).astype(jnp.float32)
    return linen_set_up(Network(), loss, x, mask if cured else 255 * mask)


@sick(
    "class numbers as probabilities",
    "jax",
    "Stack Overflow, categorical and sparse cross-entropy confused; DeepFD: loss",
    kinds="label_out_of_range target_out_of_range",
    where=r"args\[1\]",
    how="classes 0 to 3 stand where a probability should be: the loss goes to minus infinity",
)
def classes_as_probabilities(cured=False):
    x, y = vectors()
    outputs = 4 if cured else 1

    def loss_fn(params, x, y):
        logits = perceptron(params, x)
        if cured:
            return cross_entropy(logits, y.astype(jnp.int32))
        p = jnp.clip(jax.nn.sigmoid(logits[:, 0]), 1e-7, 1 - 1e-7)
        return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, outputs), (x, y.astype(jnp.float32)))
