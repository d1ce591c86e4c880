"""Pruning: choosing weights to remove, removing them, and training the others.

A mask is a tree of the structure of the parameters: for each inexact array a boolean array of its
shape, true where a weight is kept, and true for any other leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gradtx import trees
from gradtx.arguments import SHARE, check
from gradtx.compose.sequence import as_transformation
from gradtx.explicit import laid_out_as
from gradtx.leaves import Aligned
from gradtx.messages import listed, shown
from gradtx.select import Specification, is_function_of_tree
from gradtx.select import select as selection

_SCOPES = ("global", "leaf")


def prune_by_magnitude(
    params: Any,
    fraction: float,
    select: Specification | None = None,
    scope: str = "global",
    *,
    mask: Any = None,
) -> Any:
    """Choose the smallest weights for removal.

        pruned: the round(fraction * n) weights of smallest |w|, of the n weights that are left

    Exactly that many are pruned: ties are broken by the order of the leaves and, within a leaf, by
    row-major order. NaN counts as the largest modulus.

    Args:
        params: the parameters, a tree of arrays.
        fraction: the fraction of the weights to prune, in [0, 1].
        select: which leaves to prune, a `gradtx.select(...)` or any argument of it; None: those
            with at least two axes, so that biases and scales are kept.
        scope: "global" compares the weights of all these leaves with each other; "leaf" prunes the
            same fraction of each leaf.
        mask: an earlier mask of these parameters. Its pruned weights stay pruned, and `fraction`
            refers to the weights that are left. None: nothing has been pruned yet.

    Returns:
        The mask, a tree of the structure of `params`: for each inexact array a boolean array of
        its shape, true where a weight is kept, and true for any other leaf.

    Raises:
        ValueError: if `fraction` is not in [0, 1], `scope` is neither "global" nor "leaf",
            `select` chooses no parameter, or `mask` does not match the parameters.

    Source:
        Frankle & Carbin 2019, "The lottery ticket hypothesis: finding sparse, trainable neural
        networks", section 1; Han et al. 2015, "Learning both weights and connections for efficient
        neural networks", section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import prune_by_magnitude
        >>> params = {"kernel": jnp.array([[3.0, -0.5], [-2.0, 1.0]]), "bias": jnp.zeros(2)}
        >>> mask = prune_by_magnitude(params, 0.5)
        >>> print(mask["kernel"], mask["bias"])
        [[ True False]
         [ True False]] [ True  True]
        >>> print(prune_by_magnitude(params, 0.5, mask=mask)["kernel"])
        [[ True False]
         [False False]]
    """
    owner = "prune_by_magnitude"
    fraction = check(owner, "fraction", fraction, SHARE)
    if scope not in _SCOPES:
        raise ValueError(f"{owner}: scope must be one of {_SCOPES}, got {shown(scope)}")
    chosen = _chosen(owner, params, select)
    leaves, treedef = trees.flatten(params)
    flags = [_keep_all(leaf) for leaf in leaves]
    if mask is not None:
        flags = _flags(owner, "params", params, mask)
    for group in [chosen] if scope == "global" else [[i] for i in chosen]:
        before = jnp.concatenate([jnp.ravel(flags[i]) for i in group])
        left = before.size if mask is None else jnp.sum(before)
        number = before.size - left + _share(fraction, left)
        after = _without_smallest([leaves[i] for i in group], before, number)
        sizes = np.cumsum([np.size(leaves[i]) for i in group])
        for i, part in zip(group, jnp.split(after, sizes[:-1]), strict=True):
            flags[i] = part.reshape(np.shape(leaves[i]))
    return treedef.unflatten(flags)


def _chosen(owner: str, params: Any, select: Specification | None) -> list[int]:
    """The indices of the leaves to prune."""
    choose = selection((lambda path, leaf: np.ndim(leaf) >= 2) if select is None else select)
    chosen = Aligned(
        owner,
        {"params": params, "the selection": choose(params)},
        takes_part=lambda leaf, flag: flag and trees.is_trained(leaf),
        same_shapes=False,
    ).active
    if not chosen:
        raise ValueError(f"{owner}: {choose} chooses no parameter of {listed(trees.paths(params))}")
    return chosen


def _share(fraction: Any, number: Any) -> Any:
    """round(fraction * number), in floating-point arithmetic if traced."""
    if isinstance(fraction, Tracer) or isinstance(number, Tracer):
        share = jnp.asarray(fraction, float) * jnp.asarray(number, float)
        return jnp.rint(share).astype(int)
    return round(float(fraction) * int(number))


def _without_smallest(leaves: Sequence[Any], flags: jax.Array, number: Any) -> jax.Array:
    """False for the `number` smallest weights; weights already pruned count as the smallest."""
    dtypes = [trees.real_dtype(trees.compute_dtype(jnp.result_type(leaf))) for leaf in leaves]
    dtype = max(dtypes, key=lambda d: d.itemsize)
    moduli = jnp.concatenate([jnp.ravel(jnp.abs(leaf)).astype(dtype) for leaf in leaves])
    order = jnp.argsort(jnp.where(flags, moduli, -1.0), stable=True)
    return flags.at[order].set(jnp.arange(flags.size) >= number)


def apply_mask(params: Any, mask: Any) -> Any:
    """Set the pruned weights to zero.

        w <- w where the mask is true, else 0

    Args:
        params: the parameters, a tree of arrays.
        mask: a tree of the structure of `params`, of boolean arrays of the same shapes or single
            booleans; true: kept. It is ignored where `params` has no inexact array.

    Returns:
        The pruned parameters, in their dtypes. A pruned NaN or infinity becomes zero too.

    Raises:
        ValueError: if `mask` does not match the parameters, naming the path.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import apply_mask
        >>> print(apply_mask({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])}))
        {'w': Array([1., 0.], dtype=float32)}
    """
    return _apply("apply_mask", "params", params, mask)


def freeze_pruned(
    tx: optax.GradientTransformation, mask: Any | Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Train with any transformation, and keep the pruned weights where they are.

        u = m * tx(m * g),    m = 1 where the mask is true, else 0

    The gradient is masked so that pruned weights contribute to no norm and no moment. The update is
    masked so that nothing else moves them: weight decay, momentum, noise, or moments from before
    the pruning. Set the pruned weights to zero first, with `apply_mask`; they then stay exactly
    zero.

    Args:
        tx: the transformation; wrap the whole optimizer, so that u is what is added to the
            parameters.
        mask: see `apply_mask`, or a function of the parameters that returns such a tree.

    Returns:
        A transformation with the state of `tx`.

    Raises:
        ValueError: if `tx` is not a transformation; in `update`, if `mask` does not match the
            updates, naming the path, or if it is a function and `params` is missing.

    Source:
        Frankle & Carbin 2019, "The lottery ticket hypothesis: finding sparse, trainable neural
        networks", section 1: training f(x; m * theta).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.diagnostics import apply_mask, freeze_pruned
        >>> mask = jnp.array([True, False])
        >>> params = apply_mask(jnp.array([1.0, 2.0]), mask)
        >>> tx = freeze_pruned(gradtx.adamw(0.5, weight_decay=0.1), mask)
        >>> updates, _ = tx.update(jnp.array([4.0, 4.0]), tx.init(params), params)
        >>> print(gradtx.apply_updates(params, updates))
        [0.45 0.  ]
    """
    owner = "freeze_pruned"
    inner = as_transformation(owner, "tx", tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        flags = mask
        if is_function_of_tree(mask):
            if params is None:
                raise ValueError(
                    f"{owner}: a mask that is a function needs the parameters; call "
                    "update(updates, state, params)"
                )
            flags = mask(params)
        updates = _apply(owner, "updates", updates, flags)
        updates, state = inner.update(updates, state, params, **extra)
        return _apply(owner, "updates", updates, flags), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _apply(owner: str, what: str, tree: Any, mask: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_missing)
    flags = _flags(owner, what, tree, mask)
    return treedef.unflatten(
        _kept(flag, leaf) if trees.is_trained(leaf) else leaf
        for leaf, flag in zip(leaves, flags, strict=True)
    )


def _kept(flag: Any, leaf: Any) -> jax.Array:
    """The leaf where its flag is set, else zero."""
    return jnp.where(laid_out_as(flag, leaf), leaf, jnp.zeros_like(leaf))


def _flags(owner: str, what: str, tree: Any, mask: Any) -> list[Any]:
    """The mask of each leaf of `tree`, with the shape of the leaf."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_missing)
    present = treedef.unflatten(None if _is_missing(leaf) else leaf for leaf in leaves)
    aligned = Aligned(owner, {what: present, "the mask": mask}, same_shapes=False)
    flags = list(aligned.columns["the mask"])
    for i, (leaf, flag) in enumerate(zip(leaves, flags, strict=True)):
        if not trees.is_trained(leaf):
            flags[i] = _keep_all(leaf)
            continue
        dtype = getattr(flag, "dtype", type(flag))
        if dtype not in (np.bool_, bool):
            raise ValueError(
                f"{owner}: the leaves of a mask must be booleans, got {dtype} at "
                f"'{aligned.path(i)}'"
            )
        if np.shape(flag) not in ((), np.shape(leaf)):
            aligned.refuse(i, "the mask")
        flags[i] = jnp.broadcast_to(flag, np.shape(leaf))
    return flags


def _keep_all(leaf: Any) -> Any:
    if trees.is_trained(leaf):
        return jnp.ones(np.shape(leaf), bool)
    return None if _is_missing(leaf) else True


def _is_missing(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.MaskedNode)
