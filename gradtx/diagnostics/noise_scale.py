"""How noisy a gradient is: the batch size beyond which more samples are of little use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import norms, trees
from gradtx.arguments import COUNT, check
from gradtx.inputs import real_scalar
from gradtx.messages import one_of_each, shown

_OWNER = "gradient_noise_scale"


class NoiseScale(NamedTuple):
    """How noisy the gradient of a loss is, see `gradient_noise_scale`.

    Attributes:
        noise_scale: tr(S) / |G|^2, in samples; infinite if the gradient is lost in the noise.
        gradient_squared_norm: an unbiased estimate of |G|^2, which may be negative.
        noise_trace: an unbiased estimate of tr(S).
    """

    noise_scale: jax.Array
    gradient_squared_norm: jax.Array
    noise_trace: jax.Array


def gradient_noise_scale(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    *,
    small_batch_size: int = 1,
) -> NoiseScale:
    """The simple noise scale of a loss: the batch size where noise and gradient are equal.

        B_simple = tr(S) / |G|^2

    G is the gradient of the loss over all data and S the covariance of the gradients of single
    samples. With batches much smaller than B_simple the gradient is mostly noise, and doubling the
    batch size almost halves the number of steps; much larger batches waste samples.

    The batch of B samples is split into n = B / b pieces with gradients g_i and the mean
    g = mean_i g_i. Both estimates are unbiased:

        tr(S) ~ b / (n - 1) * sum_i |g_i - g|^2
        |G|^2 ~ |g|^2 - tr(S) / B

    These are the paper's estimates from the mean squares of the gradients of B and of b samples,
    rearranged so that no large numbers are subtracted. Their ratio is not unbiased: to average over
    several batches, average each of the two, then divide.

    Args:
        loss_fn: a function `loss_fn(params, batch)` that returns the mean loss over a batch of any
            size, a real scalar.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays do not count.
        batch: a tree of arrays with a first axis of B samples.
        small_batch_size: b, the number of samples in a piece; B must be a multiple of it and at
            least twice as large. 1 gives the most accurate estimate; larger pieces need fewer
            passes. The gradients of the pieces are computed one at a time.

    Returns:
        `NoiseScale(noise_scale, gradient_squared_norm, noise_trace)` of scalars, float64 if a
        parameter is, else float32. `noise_scale` is infinite if the estimate of |G|^2 is not
        positive: B samples are then too few to detect the gradient. It is NaN if all gradients are
        zero or one is not finite, and correct even if the other two overflow or underflow.

    Raises:
        ValueError: if `loss_fn` is not a function or does not return a real scalar, `batch` has no
            arrays or arrays of different lengths, or `small_batch_size` is not a whole number >= 1
            that divides this length into at least two pieces.

    Source:
        McCandlish, Kaplan, Amodei et al. 2018, "An empirical model of large-batch training",
        equation (2.9) and appendix A.1, equations (A.2) and (A.3).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import gradient_noise_scale
        >>> def loss_fn(mean, samples):
        ...     return jnp.mean((mean - samples) ** 2) / 2
        >>> samples = jnp.array([1.0, 2.0, 3.0, 6.0])
        >>> scale = gradient_noise_scale(loss_fn, jnp.array(0.0), samples)
        >>> print(f"{scale.noise_trace:.3f} / {scale.gradient_squared_norm:.3f}")
        4.667 / 7.833
    """
    if not callable(loss_fn):
        raise ValueError(f"{_OWNER}: loss_fn must be a function, got {shown(loss_fn)}")
    small_batch_size = check(_OWNER, "small_batch_size", small_batch_size, COUNT)
    size = first_axis_size(_OWNER, "batch", batch)
    number = _number_of_pieces(size, small_batch_size)
    small = int(small_batch_size)
    means, deviations, unit = _mean_and_deviations(loss_fn, params, _pieces(batch, number))
    wider = _unit(means, unit)
    trace = deviations * jnp.square(unit / wider) * (small / (number - 1))
    squared = _squared_norm(means, wider) - trace / size
    # If gradient and noise are both zero, or one is not finite, there is no such ratio.
    beyond_sight = jnp.where((squared <= 0) & (trace > 0), jnp.inf, jnp.nan)
    is_seen = squared > 0
    return NoiseScale(
        jnp.where(is_seen, trace / jnp.where(is_seen, squared, 1), beyond_sight),
        squared * wider * wider,
        trace * wider * wider,
    )


def _number_of_pieces(size: int, small_batch_size: Any) -> int:
    small = int(small_batch_size)
    if size % small or size < 2 * small:
        raise ValueError(
            f"{_OWNER}: small_batch_size must divide the number of samples, {size}, into at least "
            f"two pieces, got {small_batch_size}"
        )
    return size // small


def _pieces(batch: Any, number: int) -> Any:
    """The batch with a first axis for its pieces."""

    def cut(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf.reshape(number, leaf.shape[0] // number, *leaf.shape[1:])

    return jax.tree.map(cut, batch)


def _mean_and_deviations(
    loss_fn: Callable[[Any, Any], jax.Array], params: Any, pieces: Any
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The mean of the pieces' gradients, and the sum of the squared distances from it.

    Returns:
        The leaves of the mean; the sum, in squared units; the unit.
    """
    leaves, treedef = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if trees.is_trained(leaf)]
    parameters = [jnp.asarray(leaves[i]) for i in places]
    dtypes = [trees.compute_dtype(leaf.dtype) for leaf in parameters]
    widest = max(
        map(trees.real_dtype, [jnp.float32, *dtypes]), key=lambda dtype: jnp.dtype(dtype).itemsize
    )

    def loss(parameters: list[jax.Array], piece: Any) -> jax.Array:
        filled = list(leaves)
        for i, parameter in zip(places, parameters, strict=True):
            filled[i] = parameter
        return real_scalar(_OWNER, loss_fn(treedef.unflatten(filled), piece))

    def gradient(piece: Any) -> list[jax.Array]:
        parts = jax.grad(loss)(parameters, piece)
        return [part.astype(dtype) for part, dtype in zip(parts, dtypes, strict=True)]

    def add(so_far: Any, piece: Any) -> tuple[Any, None]:
        """Welford's update of the mean and of the sum of squared deviations from it."""
        count, means, deviations, unit = so_far
        count = count + 1
        differences = [g - m for g, m in zip(gradient(piece), means, strict=True)]
        means = [m + d / count.astype(d.dtype) for m, d in zip(means, differences, strict=True)]
        wider = _unit(differences, unit)
        gained = _squared_norm(differences, wider) * (count - 1) / count
        return (count, means, deviations * jnp.square(unit / wider) + gained, wider), None

    zero = jnp.zeros((), widest)
    zeros = [jnp.zeros(p.shape, dtype) for p, dtype in zip(parameters, dtypes, strict=True)]
    least = jnp.full((), 2.0 ** -(jnp.finfo(widest).maxexp * 3 // 4), widest)
    (_, *result), _ = lax.scan(add, (zero, zeros, zero, least), pieces)
    means, deviations, unit = result
    return means, deviations, unit


def _unit(leaves: list[jax.Array], least: jax.Array) -> jax.Array:
    """The largest absolute value of all or `least`, whichever is larger, as a power of two.

    In such units squares do not overflow, and no number is rounded.
    """
    sizes = [jnp.max(jnp.abs(leaf), initial=0).astype(least.dtype) for leaf in leaves]
    info = jnp.finfo(least.dtype)
    largest = jnp.minimum(functools.reduce(jnp.maximum, sizes, least), 2.0 ** (info.maxexp - 2))
    return lax.reduce_precision(largest, exponent_bits=info.nexp, mantissa_bits=0)


def _squared_norm(leaves: list[jax.Array], unit: jax.Array) -> jax.Array:
    """The sum of all squares, in squared units."""
    inverse = 1 / unit
    parts = [norms.abs_squared(leaf * inverse.astype(leaf.dtype)) for leaf in leaves]
    return sum((jnp.sum(part.astype(unit.dtype)) for part in parts), jnp.zeros((), unit.dtype))


def first_axis_size(owner: str, argument: str, tree: Any) -> int:
    """The length of the first axis of all arrays of a tree.

    Raises:
        ValueError: naming the argument, if there are no arrays, or they have no such axis or differ
            in it.
    """
    shapes = {
        trees.path_name(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"{owner}: {argument} must have arrays with a first axis of the same length, got the "
            f"shapes {shown(one_of_each(shapes, lambda shape: shape[:1]))}"
        )
    return lengths.pop()[0]
