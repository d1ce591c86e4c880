"""Handwritten digits, and a small network with batch normalization that classifies them.

The data are included in scikit-learn: 1,797 grayscale images of 8 x 8 pixels by 43 writers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples import extras
from gradtx.initializers import he_normal, lecun_normal
from gradtx.normalization import batch_norm, init_batch_stats

Dataset = dict[str, np.ndarray]

WIDTHS = (64, 256, 256)
CLASSES = 10


class Digits(NamedTuple):
    """Images of shape (n, 64) with values in [0, 1], and their labels of shape (n,)."""

    train: Dataset
    test: Dataset


def load_digits() -> Digits:
    """The 1,437 training and 360 test samples.

    The split is always the same: shuffled with seed 0, with one fifth of each digit for testing.
    """
    data = extras.load("sklearn.datasets").load_digits()
    images = (data.data / 16).astype(np.float32)
    labels = data.target.astype(np.int32)
    split = extras.load("sklearn.model_selection").train_test_split
    train_images, test_images, train_labels, test_labels = split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return Digits(
        train={"image": train_images, "label": train_labels},
        test={"image": test_images, "label": test_labels},
    )


def init_network(key: jax.Array) -> tuple[Any, Any]:
    """Random parameters, and the running statistics of the batch normalizations."""
    *layer_keys, head_key = jax.random.split(key, len(WIDTHS))
    layers, stats = [], []
    for layer_key, inputs, outputs in zip(layer_keys, WIDTHS[:-1], WIDTHS[1:], strict=True):
        kernel = he_normal()(layer_key, (inputs, outputs))
        layers.append({"kernel": kernel, "scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)})
        stats.append(init_batch_stats(outputs))
    kernel = lecun_normal()(head_key, (WIDTHS[-1], CLASSES))
    return {"layers": layers, "head": {"kernel": kernel, "bias": jnp.zeros(CLASSES)}}, stats


def apply_network(
    params: Any, stats: Any, images: jax.Array, *, training: bool, momentum: float = 0.9
) -> tuple[jax.Array, Any]:
    """The logits of a batch of images, shape (n, 10), and the new running statistics."""
    x, new_stats = images, []
    for layer, running in zip(params["layers"], stats, strict=True):
        x, tracked = batch_norm(
            x @ layer["kernel"],
            running,
            layer["scale"],
            layer["bias"],
            training=training,
            momentum=momentum,
        )
        x = jax.nn.relu(x)
        new_stats.append(tracked)
    return x @ params["head"]["kernel"] + params["head"]["bias"][None], new_stats


def loss_fn(
    params: Any, stats: Any, batch: Any, *, momentum: float = 0.9
) -> tuple[jax.Array, tuple[Any, Any]]:
    """The mean cross-entropy of a batch, the new running statistics and the accuracy."""
    logits, stats = apply_network(params, stats, batch["image"], training=True, momentum=momentum)
    targets = jax.nn.one_hot(batch["label"], CLASSES)
    loss = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))
    return loss, (stats, {"accuracy": _accuracy(logits, batch["label"])})


@jax.jit
def accuracy_of(params: Any, stats: Any, data: Any) -> jax.Array:
    """The share of samples that the network classifies correctly, in evaluation mode."""
    logits, _ = apply_network(params, stats, data["image"], training=False)
    return _accuracy(logits, data["label"])


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
