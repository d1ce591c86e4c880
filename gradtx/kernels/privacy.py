"""Differential privacy: per-example gradients that are clipped, summed and given noise.

The incoming gradients have one more axis than the updates: the first, which counts the examples. So
these are not kernels, whose updates have the shape of their gradients.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import DifferentiallyPrivateAggregateState

from gradtx import norms, trees
from gradtx.arguments import (
    NON_NEGATIVE,
    POSITIVE_FINITE,
    Range,
    check,
    check_hyperparameter,
    evaluate,
)
from gradtx.effect import Effect, declared
from gradtx.inputs import as_gradients, check_state
from gradtx.kernels.noise import noise_key
from gradtx.leaves import Aligned
from gradtx.lengths import clip_factor, clip_room
from gradtx.lift import ScheduledState
from gradtx.messages import one_of_each, shown
from gradtx.stored import to_store

_CLIPPING = Effect(degree="between", decay="limits", moves=True, alters=True)
_FINITE = Range("finite and >= 0", lambda value: 0 <= value < math.inf)


def per_example_global_norm_clip(grads: Any, l2_norm_clip: ArrayLike) -> tuple[Any, jax.Array]:
    """Clip each example's gradient to a norm of at most `l2_norm_clip`, and sum them.

        u = sum_i min(1, l2_norm_clip / ||g_i||) * g_i,    ||g_i|| over all leaves

    Norms and sums are computed in at least float32. Infinities and NaNs propagate to the result.

    Args:
        grads: a tree of arrays whose first axis counts the examples, as `jax.vmap(jax.grad(...))`
            makes it. None and leaves that are not arrays of numbers stay as they are.
        l2_norm_clip: the largest norm of one example's gradient, >= 0.

    Returns:
        The tree of sums, without the first axis, and the number of examples that were clipped.

    Raises:
        ValueError: if `l2_norm_clip` is negative, NaN or not a scalar, or the leaves disagree on
            the number of examples.

    Source:
        Abadi et al. 2016, "Deep learning with differential privacy", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> grads = {"w": jnp.array([[3.0, 4.0], [1.0, 0.0]])}
        >>> total, number = gradtx.per_example_global_norm_clip(grads, 2.5)
        >>> print(total["w"], number)
        [2.5 2. ] 1
    """
    owner = "per_example_global_norm_clip"
    l2_norm_clip = check(owner, "l2_norm_clip", l2_norm_clip, NON_NEGATIVE)
    aligned = Aligned(owner, {"grads": grads}, takes_part=trees.is_number)
    _number_of_examples(aligned)
    examples = [_inexact(leaf) for leaf in aligned.parts()]
    sums, number_clipped = _clipped_sums(examples, l2_norm_clip)
    new = [to_store(total, own.dtype) for own, total in zip(examples, sums, strict=True)]
    return aligned.tree_of(new), number_clipped


def per_example_layer_norm_clip(
    grads: Any, global_l2_norm_clip: ArrayLike, uniform: bool = True
) -> tuple[Any, Any]:
    """Clip each example's gradient leaf by leaf, and sum them.

        u_k = sum_i min(1, C_k / ||g_ik||) * g_ik
        C_k = C / sqrt(K)          if uniform, for K leaves
        C_k = C * sqrt(D_k / D)    otherwise, for a leaf with D_k of the D parameters

    So the norm of all leaves together is at most C.

    Args:
        grads: a tree of arrays whose first axis counts the examples. None and leaves that are not
            arrays of numbers stay as they are.
        global_l2_norm_clip: C, >= 0.
        uniform: whether each leaf has the same share.

    Returns:
        The tree of sums, without the first axis, and the tree of the numbers of examples that
        were clipped.

    Raises:
        ValueError: if `global_l2_norm_clip` is negative, NaN or not a scalar, or the leaves
            disagree on the number of examples.

    Source:
        McMahan et al. 2018, "Learning differentially private recurrent language models",
        section 2.2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> grads = [jnp.array([[3.0, 4.0]]), jnp.array([[0.6]])]
        >>> total, numbers = gradtx.per_example_layer_norm_clip(grads, 5.0, uniform=False)
        >>> print([round(float(jnp.linalg.norm(leaf)), 4) for leaf in total])
        [4.0825, 0.6]
    """
    owner = "per_example_layer_norm_clip"
    global_l2_norm_clip = check(owner, "global_l2_norm_clip", global_l2_norm_clip, NON_NEGATIVE)
    aligned = Aligned(owner, {"grads": grads}, takes_part=trees.is_number)
    _number_of_examples(aligned)
    sizes = [math.prod(np.shape(leaf)[1:]) for leaf in aligned.parts()]
    new, counts = [], []
    for leaf, size in zip(aligned.parts(), sizes, strict=True):
        share = 1 / len(sizes) if uniform else size / max(sum(sizes), 1)
        example = _inexact(leaf)
        [total], count = _clipped_sums([example], global_l2_norm_clip * math.sqrt(share))
        new.append(to_store(total, example.dtype))
        counts.append(count)
    return aligned.tree_of(new), aligned.tree_of(counts)


def differentially_private_aggregate(
    l2_norm_clip: ScalarOrSchedule,
    noise_multiplier: ScalarOrSchedule,
    key: jax.Array | int | None = None,
    *,
    seed: int | None = None,
    lot_size: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Aggregate per-example gradients into one gradient that keeps each example private.

        u = (sum_i min(1, C / ||g_i||) * g_i + N(0, (noise_multiplier * C)^2)) / lot_size

    Here C is `l2_norm_clip` and ||g_i|| the norm over all leaves. The noise is independent in each
    step, leaf and element, and in the real and the imaginary part. This must be the first
    transformation of a chain: the incoming updates have one more axis, the first, which counts the
    examples. Averaging over micro-batches, as in `MultiSteps`, would add the noise too often.

    Args:
        l2_norm_clip: the largest norm of one example's gradient, finite and >= 0; a number, a
            scalar array or a schedule.
        noise_multiplier: the noise's standard deviation in units of `l2_norm_clip`, finite and
            >= 0; a number, a scalar array or a schedule.
        key: a PRNG key, or an integer seed; None: 0, with a warning. Noise that anyone can
            reproduce protects nobody.
        seed: the former name of `key`, deprecated.
        lot_size: what the sum is divided by, > 0; None: the number of examples in the updates. Give
            the expected number where examples are drawn independently, as the privacy accounting
            assumes, and the batch is padded with gradients of zero.

    Returns:
        The transformation, with the state `DifferentiallyPrivateAggregateState(rng_key)`, in a
        `ScheduledState` if there is a schedule.

    Raises:
        ValueError: if an argument lies outside its range, `key` is neither a key nor a seed, or
            `seed` is given too; in `update`, if the leaves disagree on the number of examples,
            there are none, or `params` are given and the other axes differ from theirs.

    Source:
        Abadi et al. 2016, "Deep learning with differential privacy", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.differentially_private_aggregate(1.0, noise_multiplier=0.0, key=0)
        >>> examples = jnp.array([[3.0, 4.0], [0.0, 0.5]])
        >>> print(tx.update(examples, tx.init(jnp.zeros(2)))[0])
        [0.3  0.65]
    """
    owner = "differentially_private_aggregate"
    l2_norm_clip = check_hyperparameter(owner, "l2_norm_clip", l2_norm_clip, _FINITE)
    noise_multiplier = check_hyperparameter(owner, "noise_multiplier", noise_multiplier, _FINITE)
    if lot_size is not None:
        lot_size = check(owner, "lot_size", lot_size, POSITIVE_FINITE)
    own_key = noise_key(owner, key, seed)
    counts = callable(l2_norm_clip) or callable(noise_multiplier)

    def init(params: Any) -> Any:
        del params
        # A copy, because the caller may donate the state.
        state = DifferentiallyPrivateAggregateState(jnp.copy(own_key))
        return ScheduledState(jnp.zeros([], jnp.int32), state) if counts else state

    @declared(_CLIPPING)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        check_state(owner, state, ScheduledState._fields if counts else ("rng_key",))
        inner = state.inner_state if counts else state

        def now(value: Any) -> Any:
            return evaluate(value, state.count) if callable(value) else value

        updates = as_gradients(updates, params)
        aligned = Aligned(owner, {"updates": updates})
        number = _number_of_examples(aligned)
        if params is not None:
            _check_parameters(owner, updates, params)
        clip, multiplier = now(l2_norm_clip), now(noise_multiplier)
        examples = aligned.arrays()
        sums, _ = _clipped_sums(examples, clip)
        new_key, *keys = jax.random.split(inner.rng_key, len(examples) + 1)
        size = number if lot_size is None else lot_size
        means = [
            to_store(_noisy_mean(total, leaf_key, clip, multiplier, size), leaf.dtype)
            for leaf, total, leaf_key in zip(examples, sums, keys, strict=True)
        ]
        new = DifferentiallyPrivateAggregateState(new_key)
        if counts:
            new = ScheduledState(jnp.asarray(optax.safe_increment(state.count)), new)
        return aligned.tree_of(means), new

    return optax.GradientTransformationExtraArgs(init, update)


def _inexact(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf if trees.is_parameter(leaf) else leaf.astype(jnp.float32)


def _number_of_examples(grads: Aligned) -> int:
    """The length of the first axis, on which all leaves must agree; 1 if there are none."""
    names = trees.paths(grads.tree)
    shapes = {names[i]: np.shape(leaf) for i, leaf in zip(grads.active, grads.parts(), strict=True)}
    numbers = {shape[:1] for shape in shapes.values()} or {(1,)}
    if len(numbers) > 1 or numbers <= {(), (0,)}:
        raise ValueError(
            f"{grads.owner}: needs per-example gradients, with the same number of examples along "
            "the first axis of each leaf; got the shapes "
            f"{shown(one_of_each(shapes, lambda shape: shape[:1]))}"
        )
    return numbers.pop()[0]


def _check_parameters(owner: str, updates: Any, params: Any) -> None:
    named = {"updates": updates, "params": params}
    aligned = Aligned(owner, named, same_shapes=False)
    for i, leaf, parameter in zip(aligned.active, *map(aligned.parts, named), strict=True):
        if parameter is not None and np.shape(parameter) != np.shape(leaf)[1:]:
            raise ValueError(
                f"{owner}: at '{aligned.path(i)}' updates has shape {np.shape(leaf)}, and params "
                f"{np.shape(parameter)}; the updates must have one more axis, the first, which "
                "counts the examples"
            )


@jax.jit
def _clipped_sums(
    examples: list[jax.Array], max_norm: ArrayLike
) -> tuple[list[jax.Array], jax.Array]:
    """The sum of the clipped gradients, in at least float32, and how many were clipped."""
    if not examples:
        return [], jnp.zeros([], jnp.int32)
    lengths = jax.vmap(norms.length_of_leaves)(examples)
    max_norm = jnp.asarray(max_norm, lengths.size.dtype)
    # The weights have so much room that none underflows: examples of every size are one product.
    room = clip_room(max_norm, above=64)
    factors = jax.vmap(clip_factor, (0, None, None))(lengths, max_norm, room)
    weights = jnp.where(lengths.is_at_most(max_norm), factors, factors * lengths.unit)
    sums = []
    for leaf in examples:
        wide = leaf.astype(trees.compute_dtype(leaf.dtype))
        # In full precision: a less precise product would let the norm exceed its limit.
        total = jnp.tensordot(
            weights.astype(wide.dtype), wide, axes=1, precision=lax.Precision.HIGHEST
        )
        sums.append(total / room.astype(wide.dtype))
    return sums, jnp.sum(lengths.is_more_than(max_norm))


@jax.jit
def _noisy_mean(
    total: jax.Array, key: jax.Array, clip: ArrayLike, multiplier: ArrayLike, size: ArrayLike
) -> jax.Array:
    """The sum plus noise of deviation clip * multiplier in each part, over the size of the lot."""
    clip, multiplier, size = (jnp.asarray(x).astype(total.dtype) for x in (clip, multiplier, size))
    # jax divides the variance of a complex number between its parts.
    parts = math.sqrt(2) if jnp.iscomplexobj(total) else 1.0
    noise = clip * multiplier * parts * jax.random.normal(key, total.shape, total.dtype)
    return (total + noise) / size
