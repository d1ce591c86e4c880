"""Batches whose examples are not independent, or do not count alike."""

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
    mlp,
    normal,
    perceptron,
    regression,
    sentences,
    vectors,
)


@sick(
    "softmax over the batch",
    "jax",
    "PyTorch forum, implicit dimension choice for softmax; UMLAUT: output activation",
    kinds="mixed_examples wrong_axis",
    how="the probabilities of an example depend on the others, and do not sum to one",
)
def softmax_over_batch(cured=False):
    axis = -1 if cured else 0

    def loss_fn(params, x, y):
        log_p = jax.nn.log_softmax(perceptron(params, x), axis=axis)  # fault
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=-1))

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "reshape instead of transpose",
    "jax",
    "Karpathy, common neural net mistakes: view and permute confused",
    kinds="mixed_examples",
    how="the steps of one example are filled with those of others",
)
def reshape_for_transpose(cured=False):
    def loss_fn(params, x, y):
        batch, length, width = x.shape
        x = x.transpose(1, 0, 2) if cured else x.reshape(length, batch, width)  # fault

        def step(h, x):
            return jnp.tanh(affine(params["input"], x) + h @ params["recurrent"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((batch, 24)), x)
        return cross_entropy(affine(params["head"], h), y)

    k = keys()
    params = {
        "input": dense(next(k), 8, 24, 0.5),
        "recurrent": jax.nn.initializers.orthogonal()(next(k), (24, 24)),
        "head": dense(next(k), 24, 4, 1.0),
    }
    return SetUp(loss_fn, params, (normal(16, 10, 8), labels(16, 4)))


@sick(
    "a sum over the batch",
    "linen",
    "PyTorch forum, reduction by sum and the learning rate; Slav Ivanov's 37 reasons",
    kinds="sum_over_examples",
    how="the gradient, and with it the right learning rate, depend on the batch size",
    where="",
)
def sum_over_batch(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.relu(nn.Dense(32)(x)))

    reduce = jnp.mean if cured else jnp.sum

    def loss(logits, y):
        log_p = jax.nn.log_softmax(logits)
        return -reduce(jnp.take_along_axis(log_p, y[:, None], axis=-1))  # fault

    return linen_set_up(Network(), loss, *vectors(64))


@sick(
    "padding in the mean over words",
    "linen",
    "Stack Overflow, masking padded steps before average pooling; Keras issues on masks",
    kinds="padding",
    where=r"args\[1\]|args\[0\]",
    how="the features of short texts are mixed with what the padding became",
)
def padded_mean(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            tokens, is_word = inputs
            x = nn.tanh(nn.Dense(32)(nn.Embed(32, 16)(tokens)))
            if cured:
                total = jnp.sum(x * is_word[..., None], axis=1)
                x = total / jnp.sum(is_word, axis=1, keepdims=True)
            else:
                x = jnp.mean(x, axis=1)  # fault
            return nn.Dense(2)(x)

    lengths = np.random.default_rng(0).integers(2, 7, (16, 1))
    is_word = jnp.asarray(np.arange(12) < lengths, jnp.float32)
    tokens = jnp.where(is_word > 0, sentences(16), 0)
    return linen_set_up(Network(), cross_entropy, (tokens, is_word), labels(16, 2))


@sick(
    "padded targets in the loss",
    "jax",
    "PyTorch forum, ignore_index of the cross-entropy; seq2seq tutorials",
    kinds="padding label_out_of_range class_imbalance",
    where=r"args\[\d\]",
    how="most of the loss is about predicting the padding, which is easy",
)
def padded_targets(cured=False):
    def loss_fn(params, tokens, is_word):
        x = jnp.tanh(affine(params["hidden"], params["table"][tokens[:, :-1]]))
        log_p = jax.nn.log_softmax(affine(params["head"], x))
        log_p = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
        if cured:
            return -jnp.sum(log_p * is_word[:, 1:]) / jnp.sum(is_word[:, 1:])
        return -jnp.mean(log_p)  # fault

    k = keys()
    params = {
        "table": jax.random.normal(next(k), (33, 16)),
        "hidden": dense(next(k), 16, 32, 1.0),
        "head": dense(next(k), 32, 33, 0.5),
    }
    lengths = np.random.default_rng(0).integers(3, 6, (16, 1))
    is_word = jnp.asarray(np.arange(12) < lengths, jnp.float32)
    return SetUp(loss_fn, params, (jnp.where(is_word > 0, sentences(16), 32), is_word))


@sick(
    "features normalized over the batch by mistake",
    "jax",
    "Stack Overflow, axis of layer normalization",
    kinds="mixed_examples wrong_axis",
    how="an example is normalized by the others: with one example, nothing is left",
)
def norm_over_batch(cured=False):
    axis = -1 if cured else 0

    def loss_fn(params, x, y):
        z = affine(params[0], x)
        z = z - jnp.mean(z, axis=axis, keepdims=True)  # fault
        z = z / jnp.sqrt(jnp.mean(z**2, axis=axis, keepdims=True) + 1e-5)  # fault
        # Batch normalization would have a scale and a shift.
        return cross_entropy(affine(params[1], jax.nn.gelu(z)), y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "batch normalization of one example",
    "linen",
    "PyTorch forum, batch norm with batch size 1; Keras issues",
    kinds="constant_norm zero_gradient dead identical_units vanishing",
    where=r"Dense_0|BatchNorm_0",
    how="what is left of the only example is zero, and the layer before gets no gradient",
)
def single_example(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(32)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))  # fault
            return nn.Dense(4)(x)

    x, y = vectors()
    x, y = (x, y) if cured else (x[:1], y[:1])
    model = Network()
    variables = model.init(jax.random.key(0), x)

    def loss_fn(params, statistics, x, y):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated

    batch = (variables["batch_stats"], x, y)
    return SetUp(loss_fn, variables["params"], batch, {"has_aux": True})


@sick(
    "attention among the examples",
    "equinox",
    "PyTorch forum, batch_first of MultiheadAttention",
    kinds="mixed_examples",
    where="attention",
    how="the first axis is taken for time: examples attend to each other",
)
def attention_over_batch(cured=False):
    class Network(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        head: eqx.nn.Linear

    a, b = jax.random.split(jax.random.key(0))
    model = Network(eqx.nn.MultiheadAttention(2, 16, key=a), eqx.nn.Linear(16, 4, key=b))

    def loss_fn(model, x, y):
        axis = 0 if cured else 1
        attend = jax.vmap(model.attention, in_axes=axis, out_axes=axis)
        x = x + attend(x, x, x)  # fault
        return cross_entropy(jax.vmap(model.head)(jnp.mean(x, axis=1)), y)

    return SetUp(loss_fn, model, (normal(12, 6, 16), labels(12, 4)))


@sick(
    "a recurrence over the examples",
    "jax",
    "PyTorch forum, batch_first of LSTM",
    kinds="mixed_examples",
    where="recurrent",
    how="the state of one example goes on in the next one",
)
def recurrence_over_batch(cured=False):
    def loss_fn(params, x, y):
        x = x.swapaxes(0, 1) if cured else x

        def step(h, x):
            h = jnp.tanh(affine(params["input"], x) + h @ params["recurrent"])
            return h, h

        start = jnp.zeros((x.shape[1], 24))
        _, h = jax.lax.scan(step, start, x)  # fault
        last = h[-1] if cured else h[:, -1]
        return cross_entropy(affine(params["head"], last), y)

    k = keys()
    params = {
        "input": dense(next(k), 8, 24, 0.5),
        "recurrent": jax.nn.initializers.orthogonal()(next(k), (24, 24)),
        "head": dense(next(k), 24, 4, 1.0),
    }
    return SetUp(loss_fn, params, (normal(12, 10, 8), labels(12, 4)))


@sick(
    "one norm for the whole batch",
    "equinox",
    "Stack Overflow, normalizing a tensor without an axis",
    kinds="mixed_examples",
    how="the embedding of an example shrinks with the number of the others",
)
def norm_of_batch(cured=False):
    def loss_fn(model, x, y):
        z = jax.vmap(model)(x)
        axis = -1 if cured else None
        z = z / jnp.linalg.norm(z, axis=axis, keepdims=True)  # fault
        return jnp.mean((z[:, 0] - y) ** 2)

    x, y = regression()
    model = eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0))
    return SetUp(loss_fn, model, (x, 0.5 * jnp.tanh(y)))


@sick(
    "targets shifted through the batch",
    "jax",
    "GitHub issues of language models, roll without an axis",
    kinds="mixed_examples",
    where=r"args\[0\]",
    how="the last word of a sentence has to predict the first one of the next sentence",
)
def rolled_targets(cured=False):
    def loss_fn(params, tokens):
        x = jnp.tanh(affine(params["hidden"], params["table"][tokens]))
        logits = affine(params["head"], x)
        if cured:
            return cross_entropy(logits[:, :-1], tokens[:, 1:])
        targets = jnp.roll(tokens, -1)  # fault
        return cross_entropy(logits, targets)

    k = keys()
    params = {
        "table": jax.random.normal(next(k), (32, 16)),
        "hidden": dense(next(k), 16, 32, 1.0),
        "head": dense(next(k), 32, 32, 0.5),
    }
    return SetUp(loss_fn, params, (sentences(),))


@sick(
    "a convolution along the batch",
    "linen",
    "Stack Overflow, channels and batch swapped in a one-dimensional convolution",
    kinds="mixed_examples",
    where="Conv_0",
    how="vectors without a batch axis are taken for one long sequence",
)
def convolution_over_batch(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            if cured:
                x = nn.relu(nn.Conv(8, (3,))(x[..., None])).reshape(len(x), -1)
            else:
                x = nn.relu(nn.Conv(32, (3,))(x))  # fault
            return nn.Dense(4)(x)

    return linen_set_up(Network(), cross_entropy, *vectors())
