"""Batches that carry too little, or in units that no initialization is made for."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .case import SetUp, sick
from .materials import (
    cross_entropy,
    equinox_set_up,
    images,
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


def _classifier(x, y):
    def loss_fn(params, x, y):
        return cross_entropy(perceptron(params, x), y)

    return SetUp(loss_fn, mlp(keys(), x.shape[1], 32, 4), (x, y))


@sick(
    "one example repeated",
    "jax",
    "Slav Ivanov's 37 reasons: the same batch over and over; a bug in an indexing loop",
    kinds="identical_examples",
    where=r"args\[0\]",
    how="all examples are the same, so that no label can be told from another",
)
def repeated_example(cured=False):
    x, y = vectors()
    return _classifier(x if cured else jnp.broadcast_to(x[:1], x.shape), y)


@sick(
    "a constant feature",
    "equinox",
    "scikit-learn and Stack Overflow, features of zero variance",
    kinds="constant_feature",
    where=r"args\[0\]",
    how="a column says nothing: often a failed join or parse",
)
def constant_feature(cured=False):
    x, y = vectors()
    x = x if cured else x.at[:, 5].set(3.7)
    model = eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0))
    return equinox_set_up(model, cross_entropy, x, y)


@sick(
    "a time stamp among the features",
    "jax",
    "Stack Overflow, network predicts a constant because of one unscaled column; UMLAUT",
    kinds="huge_feature unstandardized",
    where=r"args\[0\]",
    how="one column in seconds drowns the others",
)
def time_stamp(cured=False):
    x, y = vectors()
    stamps = 1.7e9 + 1e6 * x[:, 3]
    return _classifier(x if cured else x.at[:, 3].set(stamps), y)


@sick(
    "an identifier as a number",
    "linen",
    "Stack Overflow, user ids as numeric inputs",
    kinds="huge_feature unstandardized",
    where=r"args\[0\]",
    how="the number of a customer is taken for a quantity of ten thousands",
)
def identifiers(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.relu(nn.Dense(32)(x)))

    x, y = vectors()
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 60000, 32), jnp.float32)
    return linen_set_up(Network(), cross_entropy, x if cured else x.at[:, 0].set(ids), y)


@sick(
    "pixels from 0 to 255",
    "nnx",
    "UMLAUT: input data exceeds typical limits; DeepFD; Stack Overflow",
    kinds="unstandardized",
    where=r"args\[0\]",
    how="the first activations are a hundred times too large",
)
def pixels(cured=False):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
            self.last = nnx.Linear(16, 10, rngs=rngs)

        def __call__(self, x):
            return self.last(jnp.mean(nnx.relu(self.conv(x)), axis=(1, 2)))

    x, y = images(size=8)
    x = x if cured else jnp.clip(jnp.round(127 + 60 * x), 0, 255)
    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, x, y)


@sick(
    "inputs of a ten-thousandth",
    "jax",
    "Stack Overflow, inputs in farads or metres do not train; DeepFD: data scale",
    kinds="unstandardized vanishing",
    where=r"args\[0\]|0/kernel",
    how="the outputs hardly depend on the inputs, and only the biases learn",
)
def tiny_inputs(cured=False):
    x, y = vectors()
    return _classifier(x if cured else 1e-4 * x, y)


@sick(
    "an augmentation that blackens images",
    "linen",
    "GitHub issues on augmentations applied to bytes; Slav Ivanov's 37 reasons",
    kinds="identical_examples constant_feature",
    where=r"args\[0\]",
    how="normalized pixels are divided and cast again: all inputs are zero",
)
def blackened(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    x, y = images(size=8)
    return linen_set_up(Network(), cross_entropy, x if cured else x * 0.0, y)


@sick(
    "a missing value",
    "jax",
    "Stack Overflow, loss is NaN because the data contains NaN; UMLAUT: NaN in the loss",
    kinds="nan_data",
    where=r"args\[0\]",
    how="one NaN among the inputs makes every parameter NaN",
)
def missing_value(cured=False):
    x, y = vectors()
    return _classifier(x if cured else x.at[7, 3].set(jnp.nan), y)


@sick(
    "an infinite target",
    "equinox",
    "Stack Overflow, log of zero sales as the target",
    kinds="nan_data",
    where=r"args\[1\]",
    how="the logarithm of a zero in the table makes the loss infinite",
)
def infinite_target(cured=False):
    x, y = regression()
    y = y if cured else y.at[4].set(-jnp.inf)
    model = eqx.nn.MLP(16, 1, 32, 1, key=jax.random.key(0))
    return equinox_set_up(model, lambda p, y: squared_error(p[:, 0], y), x, y)


@sick(
    "years as inputs",
    "jax",
    "Stack Overflow, time series with the calendar year; UMLAUT",
    kinds="unstandardized huge_feature",
    where=r"args\[0\]",
    how="numbers near 2000 that differ by a few: the first layer sees a constant",
)
def years(cured=False):
    x = normal(32, 1)
    y = jnp.sin(2 * x[:, 0])
    year = x if cured else 2000 + 10 * x

    def loss_fn(params, year, y):
        return squared_error(perceptron(params, year, jnp.tanh)[:, 0], y)

    return SetUp(loss_fn, mlp(keys(), 1, 32, 1, gain=1.0), (year, y))


@sick(
    "images with channels first in flax",
    "linen",
    "Stack Overflow, flax convolutions expect channels last; PyTorch data loaders",
    kinds="wrong_layout",
    where=r"args\[0\]",
    how="rows are taken for channels: the kernel has as many inputs as the image has columns",
)
def channels_first(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))  # fault
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    x, y = images()
    x = x if cured else jnp.moveaxis(x, -1, 1)
    return linen_set_up(Network(), cross_entropy, x, y)


@sick(
    "images with channels last in equinox",
    "equinox",
    "equinox issues, Conv2d expects channels first",
    kinds="wrong_layout",
    where=r"args\[0\]",
    how="the kernel goes along the columns and the colours",
)
def channels_last(cured=False):
    class Network(eqx.Module):
        first: eqx.nn.Conv2d
        last: eqx.nn.Linear

        def __init__(self, channels):
            self.first = eqx.nn.Conv2d(channels, 8, 3, padding=1, key=jax.random.key(0))
            self.last = eqx.nn.Linear(8, 10, key=jax.random.key(1))

        def __call__(self, x):
            x = jax.nn.relu(self.first(x))  # fault
            return self.last(jnp.mean(x, axis=(1, 2)))

    x, y = images()
    x = jnp.moveaxis(x, -1, 1) if cured else x
    return equinox_set_up(Network(x.shape[1]), cross_entropy, x, y)


@sick(
    "the target among the features",
    "jax",
    "Kaufman et al. 2011, leakage in data mining; a table whose last column was not dropped",
    kinds="target_leak",
    where=r"args\[0\]",
    how="the loss falls to zero, and the network knows nothing but the answer",
)
def leaked_target(cured=False):
    def loss_fn(params, x, y):
        return squared_error(perceptron(params, x)[:, 0], y)

    x, y = regression()
    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x if cured else x.at[:, -1].set(2 * y + 1), y))
