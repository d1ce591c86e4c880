"""A dense network for the digits, with any initializers, nonlinearity and normalization."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gradtx.initializers import he_normal
from gradtx.normalization import standardize

Activation = Callable[[jax.Array], jax.Array]
Initializer = Callable[..., jax.Array]


def init_dense(
    key: jax.Array,
    widths: Sequence[int],
    kernel_init: Initializer | None = None,
    bias_init: Initializer = jax.nn.initializers.zeros,
) -> list[dict[str, jax.Array]]:
    """Parameters of dense layers: a list of {"kernel": (inputs, outputs), "bias": (outputs,)}.

    Args:
        key: the PRNG key.
        widths: the number of units of each layer, from the inputs to the outputs.
        kernel_init: the initializer of the kernels; None: He's.
        bias_init: the initializer of the biases.
    """
    kernel_init = he_normal() if kernel_init is None else kernel_init
    layers = []
    for layer_key, inputs, outputs in zip(
        jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True
    ):
        kernel_key, bias_key = jax.random.split(layer_key)
        layers.append(
            {
                "kernel": kernel_init(kernel_key, (inputs, outputs)),
                "bias": bias_init(bias_key, (outputs,)),
            }
        )
    return layers


def apply_dense(
    layers: Sequence[dict[str, jax.Array]],
    x: jax.Array,
    activation: Activation = jax.nn.relu,
    *,
    batch_normalization: bool = False,
) -> jax.Array:
    """The outputs of the last layer, which has no nonlinearity, for a batch of shape (n, inputs).

    Args:
        layers: the parameters.
        x: the inputs.
        activation: the nonlinearity of all layers but the last.
        batch_normalization: whether the inputs of each nonlinearity are standardized with the
            statistics of the batch.
    """
    prepare = batch_standardize if batch_normalization else unchanged
    return trace_dense(layers, x, activation, prepare)[0]


def trace_dense(
    layers: Sequence[dict[str, jax.Array]],
    x: jax.Array,
    activation: Activation,
    prepare: Callable[[int, jax.Array], jax.Array],
) -> tuple[jax.Array, list[jax.Array]]:
    """The outputs of `apply_dense`, and the inputs of each hidden layer's nonlinearity.

    Args:
        layers: the parameters.
        x: the inputs, of shape (n, inputs).
        activation: the nonlinearity of all layers but the last.
        prepare: `prepare(i, z)` returns the inputs of hidden layer i's nonlinearity, given its sums
            z, of shape (n, units).
    """
    *hidden, last = layers
    given = []
    for i, layer in enumerate(hidden):
        given.append(prepare(i, x @ layer["kernel"] + layer["bias"][None]))
        x = activation(given[-1])
    return x @ last["kernel"] + last["bias"][None], given


def batch_standardize(layer: int, z: jax.Array) -> jax.Array:
    """Each unit's sums, standardized to mean 0 and variance 1 over the batch."""
    del layer
    return standardize(z, axis=0)


def unchanged(layer: int, z: jax.Array) -> jax.Array:
    """The sums, unchanged."""
    del layer
    return z


def shuffled_batches(key: jax.Array, samples: int, batch_size: int, steps: int) -> jax.Array:
    """The samples of each step, as indices of shape (steps, batch_size), for a `jax.lax.scan`.

    Each epoch has a random order of its own; samples that do not fill a batch are dropped.
    """
    per_epoch = samples // batch_size
    epochs = -(-steps // per_epoch)

    def order(epoch_key: jax.Array) -> jax.Array:
        return jax.random.permutation(epoch_key, samples)[: per_epoch * batch_size]

    orders = jax.vmap(order)(jax.random.split(key, epochs))
    return orders.reshape(-1, batch_size)[:steps]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy (nats) of logits of shape (n, classes) and labels of shape (n,)."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of samples whose largest logit is that of the label."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
