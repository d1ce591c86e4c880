"""What the ways of several families share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SHAPES = {"matrix": (3, 2), "rest": {"vector": (4,), "scalar": (), "stack": (2, 2, 3)}}
NO_SCALAR = {"matrix": (3, 2), "rest": {"vector": (4,), "stack": (2, 2, 3)}}
MATRICES = {"matrix": (3, 2), "wide": (2, 5)}


class On(NamedTuple):
    """A way that needs different parameters, or gradients of different sizes.

    Attributes:
        shapes: those of the parameters.
        way: the arguments.
        scales: the factors of the gradients, one for each step.
        dtype: that of the parameters and the gradients.
    """

    shapes: dict[str, Any]
    way: Any
    scales: tuple[float, ...] = (1.0,) * 5
    dtype: Any = jnp.float32


class Stored(NamedTuple):
    """A way that stores something below 32 bits, in which optax calculates too.

    So only the layouts can be compared.
    """

    way: Any


def falling(count):
    return 0.1 / (1 + count)


def rising(count):
    return 0.5 * (1 + count) / (2 + count)


def matrices_of(tree):
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)


def labels_of(tree):
    return jax.tree.map(lambda leaf: "a" if jnp.ndim(leaf) > 1 else "b", tree)


def mean_size(updates):
    return sum(jnp.mean(jnp.abs(leaf)) for leaf in jax.tree.leaves(updates))


RATE = {"learning_rate": 0.1}
FALLING = {"learning_rate": falling}
