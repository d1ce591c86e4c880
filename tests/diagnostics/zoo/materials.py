"""Small data, losses and layers in plain JAX that the cases are built from."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from .case import SetUp


def keys(seed: int = 0) -> Iterator[jax.Array]:
    """As many random keys as a small network needs."""
    return iter(jax.random.split(jax.random.key(seed), 128))


# Data.


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def labels(number: int, classes: int, seed: int = 0) -> jax.Array:
    """Labels of classes that are equally frequent."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.permutation(np.arange(number) % classes), jnp.int32)


def _standardized(x: np.ndarray, axes: Any) -> jax.Array:
    return jnp.asarray((x - x.mean(axes)) / x.std(axes), jnp.float32)


def images(
    number: int = 16, size: int = 12, channels: int = 3, classes: int = 10
) -> tuple[jax.Array, jax.Array]:
    """Standardized images of a pattern per class with noise, channels last, and labels."""
    rng = np.random.default_rng(1)
    patterns = rng.standard_normal((classes, size, size, channels))
    y = labels(number, classes)
    x = patterns[np.asarray(y)] + 0.5 * rng.standard_normal((number, size, size, channels))
    return _standardized(x, (0, 1, 2)), y


def vectors(number: int = 32, width: int = 16, classes: int = 4) -> tuple[jax.Array, jax.Array]:
    """Standardized vectors around a centre per class, and labels."""
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((classes, width))
    y = labels(number, classes)
    return _standardized(centres[np.asarray(y)] + rng.standard_normal((number, width)), 0), y


def regression(number: int = 32, width: int = 16) -> tuple[jax.Array, jax.Array]:
    """Standardized vectors of shape (number, width), and a target of shape (number,)."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((number, width))
    y = np.tanh(x @ rng.standard_normal(width)) + x[:, 0] * x[:, 1]
    return _standardized(x, 0), _standardized(y, 0)


def sentences(number: int = 8, length: int = 12, vocabulary: int = 32) -> jax.Array:
    """Tokens where each nearly follows from the one before."""
    rng = np.random.default_rng(4)
    successor = rng.permutation(vocabulary)
    tokens = np.zeros((number, length), np.int32)
    tokens[:, 0] = rng.integers(0, vocabulary, number)
    for i in range(1, length):
        random = rng.integers(0, vocabulary, number)
        tokens[:, i] = np.where(rng.random(number) < 0.1, random, successor[tokens[:, i - 1]])
    return jnp.asarray(tokens)


def adding(length: int = 24) -> tuple[jax.Array, jax.Array]:
    """The adding problem: the sum of two marked numbers; time first."""
    rng = np.random.default_rng(0)
    values, marks = rng.random((length, 16)), np.zeros((length, 16))
    marks[rng.integers(0, length // 2, 16), np.arange(16)] = 1
    marks[rng.integers(length // 2, length, 16), np.arange(16)] = 1
    x = np.stack([values, marks], axis=-1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(np.sum(values * marks, 0), jnp.float32)


# Losses.


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of integer labels."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], axis=-1))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of labels between 0 and 1."""
    return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean squared error of arrays of the same shape."""
    return jnp.mean((prediction - target) ** 2)


# Layers in plain JAX.


def dense(key: jax.Array, inputs: int, outputs: int, gain: float = 2.0) -> dict[str, jax.Array]:
    """Weights of variance gain / inputs: 2 before a relu, 1 before tanh or nothing."""
    kernel = jax.random.normal(key, (inputs, outputs)) * (gain / inputs) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def affine(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Wx + b."""
    return x @ params["kernel"] + params["bias"]


def mlp(keys: Iterator[jax.Array], *widths: int, gain: float = 2.0) -> list[dict[str, jax.Array]]:
    """Weights of a multilayer perceptron; the last layer has no nonlinearity behind it."""
    sizes = list(itertools.pairwise(widths))
    hidden = [dense(next(keys), *size, gain) for size in sizes[:-1]]
    return [*hidden, dense(next(keys), *sizes[-1], 1.0)]


def perceptron(
    params: list[dict[str, jax.Array]],
    x: jax.Array,
    nonlinearity: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> jax.Array:
    """A multilayer perceptron."""
    for layer in params[:-1]:
        x = nonlinearity(affine(layer, x))
    return affine(params[-1], x)


def kernel(key: jax.Array, size: int, inputs: int, outputs: int, gain: float = 2.0) -> jax.Array:
    """Weights of a convolution of an image, of variance gain / fan-in."""
    scale = (gain / (size * size * inputs)) ** 0.5
    return scale * jax.random.normal(key, (size, size, inputs, outputs))


def convolve(kernel: jax.Array, x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """A convolution, channels last."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def layer_norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Layer normalization."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


def norm(width: int) -> dict[str, jax.Array]:
    """The parameters of `layer_norm`."""
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """From (batch, length, width) to (batch, heads, length, width / heads)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: jax.Array) -> jax.Array:
    """The inverse of `split_heads`."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any = None) -> jax.Array:
    """Scaled dot-product attention over the last but one axis."""
    scores = q @ jnp.swapaxes(k, -1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    return jax.nn.softmax(scores, axis=-1) @ v


# Frameworks.


def linen_set_up(model: linen.Module, loss: Callable[..., Any], x: Any, *rest: Any) -> SetUp:
    """Flax linen: `loss` is a function of the outputs and the rest of the batch."""
    params = model.init(jax.random.key(0), x)["params"]

    def loss_fn(params, x, *rest):
        return loss(model.apply({"params": params}, x), *rest)

    return SetUp(loss_fn, params, (x, *rest))


def nnx_set_up(model: nnx.Module, loss: Callable[..., Any], x: Any, *rest: Any) -> SetUp:
    """Flax nnx: the parameters are differentiated, other variables stay as they are."""
    graph, params, other = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, x, *rest):
        return loss(nnx.merge(graph, params, other, copy=True)(x), *rest)

    return SetUp(loss_fn, params, (x, *rest))


def equinox_set_up(model: Any, loss: Callable[..., Any], x: Any, *rest: Any) -> SetUp:
    """Equinox: the module is the tree of parameters, and acts on one example."""

    def loss_fn(model, x, *rest):
        return loss(jax.vmap(model)(x), *rest)

    return SetUp(loss_fn, model, (x, *rest))
