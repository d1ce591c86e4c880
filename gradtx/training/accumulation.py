"""The gradient of a batch that does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import trees
from gradtx.arguments import COUNT, check
from gradtx.inputs import loss_and_aux
from gradtx.messages import shown
from gradtx.stored import to_store

_OWNER = "accumulate_grads"


def accumulate_grads(
    loss_fn: Callable[..., Any], micro_batches: int, *, has_aux: bool = False
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """`jax.value_and_grad` of a mean over samples, one micro-batch at a time.

        L = 1/k * sum_i loss_fn(params, batch_i),    dL/dparams likewise

    If `loss_fn` is a mean over samples, this is the loss and the gradient of the whole batch, in
    the memory of one micro-batch. Sums are computed in at least float32. Micro-batch i has the
    samples i, i + k, i + 2k, ..., so that a batch sharded over devices stays sharded.

    Args:
        loss_fn: a function of (params, batch) that returns a real scalar, the mean over the
            samples of the batch.
        micro_batches: k, the number of micro-batches in a batch, >= 1.
        has_aux: whether `loss_fn` returns (loss, aux).

    Returns:
        A function of (params, batch), where batch is a tree of arrays of shape (n, ...) with n
        divisible by k, which may include an array of n PRNG keys. It returns (loss, gradient), or
        ((loss, aux), gradient) with each array of aux stacked to shape (k, ...). The gradient has
        the dtypes of the parameters, and None for leaves that are not inexact arrays.

    Raises:
        ValueError: if `micro_batches` is not a whole number >= 1, or `loss_fn` is not a
            function; on call, if the first axes of the arrays differ or are not divisible by k, or
            the loss is not a real scalar, with `has_aux` the first of a pair.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.training import accumulate_grads
        >>> def loss_fn(params, batch):
        ...     return jnp.mean((batch["x"] * params["slope"] - batch["y"]) ** 2)
        >>> value_and_grad = accumulate_grads(loss_fn, micro_batches=2)
        >>> batch = {"x": jnp.arange(4.0), "y": jnp.ones(4)}
        >>> loss, gradient = value_and_grad({"slope": jnp.array(2.0)}, batch)
        >>> print(loss, gradient["slope"])
        9.0 11.0
    """
    micro_batches = check(_OWNER, "micro_batches", micro_batches, COUNT)
    if not callable(loss_fn):
        raise ValueError(f"{_OWNER}: loss_fn must be a function, got {shown(loss_fn)}")
    number = int(micro_batches)

    def accumulated(params: Any, batch: Any) -> tuple[Any, Any]:
        split = _split(batch, number)
        leaves, treedef = trees.flatten(params)
        active = [i for i, leaf in enumerate(leaves) if trees.is_trained(leaf)]

        def loss_of(arrays: list[jax.Array], part: Any) -> Any:
            filled = list(leaves)
            for i, array in zip(active, arrays, strict=True):
                filled[i] = array
            result = loss_fn(treedef.unflatten(filled), part)
            loss, aux = loss_and_aux(_OWNER, result, has_aux=has_aux)
            return (loss, aux) if has_aux else loss

        value_and_grad = jax.value_and_grad(loss_of, has_aux=has_aux)
        arrays = [jnp.asarray(leaves[i]) for i in active]

        def one(totals: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array], Any]:
            part = jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False), split
            )
            value, parts = value_and_grad(arrays, part)
            added = [
                total + part.astype(total.dtype) for total, part in zip(totals, parts, strict=True)
            ]
            return added, value

        zeros = [jnp.zeros_like(leaves[i], dtype=_wide(leaves[i])) for i in active]
        totals, values = lax.scan(one, zeros, jnp.arange(number))
        gradients: list[Any] = [None] * len(leaves)
        for i, total in zip(active, totals, strict=True):
            gradients[i] = to_store(total / number, jnp.result_type(leaves[i]))
        losses, aux = values if has_aux else (values, None)
        loss = jnp.mean(losses, dtype=_wide(losses)).astype(losses.dtype)
        return ((loss, aux) if has_aux else loss), treedef.unflatten(gradients)

    return accumulated


def _wide(leaf: Any) -> np.dtype:
    return trees.compute_dtype(jnp.result_type(leaf))


def _split(batch: Any, number: int) -> Any:
    """The batch with a second axis for the micro-batches."""
    samples = None
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        samples = np.shape(leaf)[:1] if samples is None else samples
        if np.shape(leaf)[:1] != samples or not samples:
            raise ValueError(
                f"{_OWNER}: the arrays of a batch must have the same first axis, got the shape "
                f"{np.shape(leaf)} at '{trees.path_name(path)}'"
            )
    if samples is None:
        raise ValueError(f"{_OWNER}: batch must have at least one array, got {shown(batch)}")
    [size] = samples
    if size % number:
        raise ValueError(
            f"{_OWNER}: micro_batches must divide the number of samples, {size}, got {number}"
        )

    def split(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf.reshape(size // number, number, *leaf.shape[1:])

    return jax.tree.map(split, batch)
