"""Mini-batches: every sample once per epoch, in a random order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gradtx import trees
from gradtx.arguments import COUNT, COUNT_OR_ZERO, check
from gradtx.messages import shown


def minibatches(
    key: jax.Array,
    data: Any,
    batch_size: int,
    *,
    epochs: int | None = 1,
    drop_remainder: bool = False,
    start: int = 0,
) -> Iterator[Any]:
    """Split data into shuffled batches, each sample once per epoch.

        batch i of epoch e = data[order_e[i * batch_size : (i + 1) * batch_size]]
        order_e = a random permutation of 0 .. n-1, drawn with fold_in(key, e)

    Args:
        key: the PRNG key of the order. The same key gives the same batches; each epoch has an
            order of its own, which does not depend on the number of epochs.
        data: an array of shape (n, ...), or a tree of arrays with the same n. NumPy arrays give
            NumPy batches, JAX arrays give JAX batches.
        batch_size: the number of samples in a batch, >= 1.
        epochs: the number of passes over the data, >= 1; None: forever.
        drop_remainder: whether to leave out the last n mod batch_size samples of each epoch's
            order. False: they form a smaller last batch, for which a step is compiled again.
        start: the number of batches to leave out, >= 0, counted through all epochs: those of the
            steps that a run has already taken. What follows is the same, and comes at once.

    Returns:
        An iterator over batches: trees of the structure of `data`, of arrays of shape
        (batch_size, ...).

    Raises:
        ValueError: if `batch_size` or `epochs` is not a whole number >= 1, or `start` not one
            >= 0, `data` has no arrays, an array without a first axis, or arrays with different n,
            or `drop_remainder` would drop everything.

    Source:
        Goodfellow, Bengio & Courville 2016, "Deep learning", section 8.1.3.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from gradtx.training import minibatches
        >>> data = {"image": np.zeros((5, 8, 8)), "label": np.arange(5)}
        >>> for batch in minibatches(jax.random.key(0), data, batch_size=2):
        ...     print(batch["image"].shape, len(batch["label"]))
        (2, 8, 8) 2
        (2, 8, 8) 2
        (1, 8, 8) 1
    """
    owner = "minibatches"
    batch_size = check(owner, "batch_size", batch_size, COUNT)
    if epochs is not None:
        epochs = check(owner, "epochs", epochs, COUNT)
    start = int(check(owner, "start", start, COUNT_OR_ZERO))
    number = _number_of_samples(owner, data)
    if drop_remainder and batch_size > number:
        raise ValueError(
            f"{owner}: batch_size must be at most the number of samples, {number}, with "
            f"drop_remainder, got {batch_size}"
        )
    # A separate function, because a generator checks nothing before its first batch.
    return _batches(key, data, number, int(batch_size), epochs, drop_remainder, start)


def _batches(
    key: jax.Array,
    data: Any,
    number: int,
    batch_size: int,
    epochs: int | None,
    drop_remainder: bool,
    start: int,
) -> Iterator[Any]:
    end = number - number % batch_size if drop_remainder else number
    places = range(0, end, batch_size)
    epoch, first = divmod(start, len(places))
    while epochs is None or epoch < epochs:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), number))
        for place in places[first:]:
            chosen = order[place : min(place + batch_size, end)]
            yield jax.tree.map(lambda array, chosen=chosen: array[chosen], data)
        epoch, first = epoch + 1, 0


def _number_of_samples(owner: str, data: Any) -> int:
    """The length of the first axis, which all arrays must share."""
    named, _ = jax.tree_util.tree_flatten_with_path(data)
    if not named:
        raise ValueError(f"{owner}: data must have at least one array, got {shown(data)}")
    for path, leaf in named:
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"{owner}: the arrays of data need a first axis of samples, got {shown(leaf)} at "
                f"'{trees.path_name(path)}'"
            )
    first_path, first = named[0]
    for path, leaf in named:
        if len(leaf) != len(first):
            raise ValueError(
                f"{owner}: the arrays of data must have the same length, got {len(first)} at "
                f"'{trees.path_name(first_path)}' and {len(leaf)} at '{trees.path_name(path)}'"
            )
    if len(first) == 0:
        raise ValueError(f"{owner}: data must have at least one sample, got length 0")
    return len(first)
