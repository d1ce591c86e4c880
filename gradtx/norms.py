"""Norms and sums over trees, right wherever the result itself can be represented.

Everything is calculated in at least float32. The squares neither overflow nor underflow, and
gradients at zero are zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from gradtx.explicit import sum_over
from gradtx.lengths import Length, direction, in_its_unit
from gradtx.messages import shown
from gradtx.trees import compute_dtype, is_parameter, real_dtype

AxisName: TypeAlias = Hashable | Sequence[Hashable]
Axes: TypeAlias = int | tuple[int, ...] | None


def widest(leaves: Sequence[Any]) -> np.dtype:
    """The real dtype to calculate in with all of these arrays: at least float32."""
    dtypes = [real_dtype(compute_dtype(dtype)) for dtype in {leaf.dtype for leaf in leaves}]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def abs_squared(x: jax.Array) -> jax.Array:
    """|x|^2, element by element; real also where x is complex."""
    return lax.real(lax.mul(x, lax.conj(x))) if jnp.iscomplexobj(x) else lax.square(x)


def norm(x: jax.Array, axis: Axes = None) -> jax.Array:
    """The Euclidean norm of one array along `axis`, its axes kept with length 1.

    Its squares neither overflow nor underflow, and its gradient at zero is zero.

    Args:
        x: an array of at least 32 bits.
        axis: the axes to sum over; None: all.
    """
    return length(x, axis).norm


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def length(x: jax.Array, axis: Axes = None) -> Length:
    """`norm`, also where its own dtype cannot hold it."""
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = tuple(axis % x.ndim for axis in axes)
    if sums_in_float64(real_dtype(x.dtype)):
        with jax.enable_x64(True):
            root = lax.sqrt(sum_over(abs_squared(_doubled(x)), axes))
            return _of_float32(lax.expand_dims(root, axes))
    # One pass says by which power of two to scale, the second one does: for single leaves that
    # costs less than the loop of `_root_of_sum`.
    first = lax.expand_dims(sum_over(abs_squared(x), axes), axes)
    factor = _factor_for(lax.sqrt(first))
    # If it knows x, XLA would multiply its squares by the square of the factor, which overflows.
    hidden = lax.optimization_barrier(x)
    squares = lax.expand_dims(_squares(hidden, factor, axes), axes)
    return in_its_unit(lax.sqrt(squares), factor)


def _of_float32(size: jax.Array) -> Length:
    """The length of a norm of float32 numbers that is given in float64."""
    measured = in_its_unit(size, exponent=jnp.finfo(np.float32).maxexp)
    return jax.tree.map(lambda x: lax.convert_element_type(x, np.float32), measured)


def mean(x: jax.Array, axis: Axes, number: Any) -> jax.Array:
    """The sum along axes, kept with length 1, divided by a number; finite wherever x is."""
    if sums_in_float64(real_dtype(x.dtype)):
        with jax.enable_x64(True):
            total = jnp.sum(_doubled(x), axis, keepdims=True)
            share = total / lax.convert_element_type(number, np.float64)
            return lax.convert_element_type(share, x.dtype)
    return jnp.sum(x / number, axis, keepdims=True)


def mean_square(x: jax.Array, axis: int) -> jax.Array:
    """The mean of |x|^2 along an axis, kept with length 1; finite wherever the squares are.

    Where it is not summed in float64 and the sum of all squares overflows, which in float32 takes
    elements above 1e19 / sqrt(size), those below 1e-14 count as zero.
    """
    number = max(x.shape[axis], 1)
    if sums_in_float64(real_dtype(x.dtype)):
        with jax.enable_x64(True):
            mean = jnp.sum(abs_squared(_doubled(x)), axis, keepdims=True) / number
            return lax.convert_element_type(mean, np.float32)
    # A power of two rounds nothing, and leaves room for sums of 2^32 squares.
    is_large = jnp.sum(abs_squared(x)) > jnp.finfo(x.dtype).max / 4
    factor = jnp.where(is_large, 2.0**-16, 1.0)
    return jnp.sum(abs_squared(x * factor), axis, keepdims=True) / number / factor**2


def root_mean_square(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The root of the mean of |x|^2 over axes, which are dropped; finite wherever x is."""
    axes = tuple(axis % x.ndim for axis in axes)
    number = max(math.prod(x.shape[axis] for axis in axes), 1)
    if sums_in_float64(real_dtype(x.dtype)):
        # Only the sum is divided: an array of quotients would need the memory of x once more.
        with jax.enable_x64(True):
            mean = sum_over(abs_squared(_doubled(x)), axes) / number
            return lax.convert_element_type(lax.sqrt(mean), np.float32)
    return jnp.squeeze(norm(x / math.sqrt(number), axes), axes)


# Where float64 has the range of IEEE 754. On a TPU it has that of float32.
_PLATFORMS_WITH_FLOAT64 = ("cpu", "gpu", "cuda", "rocm")


def sums_in_float64(dtype: np.dtype) -> bool:
    """Whether squares of this dtype are summed in float64, which has room for all of them.

    That is one pass, without a loop that takes long to compile and on a GPU waits for the host. A
    sum waits for its numbers from memory in either precision.
    """
    return dtype == np.float32 and jax.default_backend() in _PLATFORMS_WITH_FLOAT64


def _doubled(x: jax.Array) -> jax.Array:
    """An array in double precision."""
    return lax.convert_element_type(x, np.promote_types(x.dtype, np.float64))


@length.defjvp
def _length_jvp(axis: Any, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (change,) = primals, tangents
    whole = length(x, axis)
    parts = jnp.real(jnp.conj(direction(x, whole)) * change)
    return whole, _change_of(whole, jnp.sum(parts, axis=axis, keepdims=True))


def _change_of(whole: Length, change: jax.Array) -> Length:
    """The tangent of a length whose norm changes."""
    return Length(change * whole.unit, jnp.zeros_like(whole.unit))


def _squares(x: jax.Array, factor: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sum of the squares of x times a factor."""
    factor = jnp.broadcast_to(lax.convert_element_type(factor, x.dtype), x.shape)
    return sum_over(abs_squared(lax.mul(x, factor)), axes)


def _factor_for(size: jax.Array) -> jax.Array:
    """The power of two to multiply numbers of about this size with before they are squared.

    It is 1 where the squares are ordinary numbers, and leaves room for 2^32 of them.
    """
    exponent = jnp.finfo(size.dtype).maxexp * 5 // 8
    ordinary = jnp.finfo(size.dtype).maxexp * 9 // 32
    one, small, large, low, high = (
        lax.full_like(size, 2.0**power) for power in (0, -exponent, exponent, -ordinary, ordinary)
    )
    scaled_up = lax.select(lax.lt(size, low), large, one)
    return lax.select(lax.gt(size, high), small, scaled_up)


def _root_of_sum(total: Callable[[jax.Array], jax.Array], one: jax.Array) -> Length:
    """The root of a sum of squares, both of which may lie outside the range of their dtype.

    Where the sum is an ordinary number, one pass is enough. Elsewhere a second pass scales by a
    power of two, which is exact. Both passes are one loop, so that the code of the sum stands
    once in the program.

    Args:
        total: from a factor to the sum of squares of all elements multiplied by it.
        one: the first factor, of the type of the sum.
    """

    def sum_up(carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, squares = carried
        factor = _factor_for(lax.sqrt(squares))
        return factor, total(factor)

    def is_unfinished(carried: tuple[jax.Array, jax.Array]) -> jax.Array:
        factor, squares = carried
        is_extreme = lax.ne(_factor_for(lax.sqrt(squares)), one)
        return lax.bitwise_or(
            lax.eq(factor, lax.full_like(factor, 0.0)),
            lax.bitwise_and(lax.eq(factor, one), is_extreme),
        )

    # A sum of 1 asks for a factor of 1. Made of `one`, so that in shard_map what the loop carries
    # varies over the same axes from the start.
    start = (lax.full_like(one, 0.0), one)
    factor, squares = lax.while_loop(is_unfinished, sum_up, start)
    return in_its_unit(lax.sqrt(squares), factor)


def global_norm(
    updates: Any, *, axis_name: AxisName | None = None, axis_reduction: str = "sum"
) -> jax.Array:
    """The Euclidean norm of all leaves of a tree together.

        ||g|| = sqrt(sum_i sum_j |g_ij|^2)

    It is calculated in at least float32, and is right wherever the norm itself can be
    represented, also if its square cannot. The gradient at zero is zero.

    Args:
        updates: any tree of arrays.
        axis_name: a mapped axis (of `vmap` or `shard_map`), or several, over which the tree is
            spread.
        axis_reduction: "sum" adds the squares over that axis: the norm of the whole whose pieces
            lie on the devices. "mean" averages the devices' own norms.

    Returns:
        A scalar; float64 if a leaf is, else float32.

    Raises:
        ValueError: if `axis_reduction` is neither "sum" nor "mean".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> print(gradtx.global_norm({"w": jnp.array([3e30]), "b": jnp.array([4e30])}))
        5e+30
    """
    check_axis_reduction("global_norm", axis_reduction)
    leaves = [
        jnp.asarray(leaf) if is_parameter(leaf) else jnp.asarray(leaf).astype(jnp.float32)
        for leaf in jax.tree.leaves(updates)
        if is_parameter(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
    ]
    return norm_of_leaves(leaves, axis_name=axis_name, axis_reduction=axis_reduction)


def check_axis_reduction(owner: str, axis_reduction: str) -> None:
    """Refuse a reduction over a mapped axis that is neither "sum" nor "mean"."""
    if axis_reduction not in ("sum", "mean"):
        raise ValueError(
            f"{owner}: axis_reduction must be 'sum' or 'mean', got {shown(axis_reduction)}"
        )


def norm_of_leaves(
    leaves: Sequence[jax.Array],
    *,
    axis_name: AxisName | None = None,
    axis_reduction: str = "sum",
) -> jax.Array:
    """`global_norm` of a list of inexact arrays."""
    return length_of_leaves(leaves, axis_name=axis_name, axis_reduction=axis_reduction).norm


def length_of_leaves(
    leaves: Sequence[jax.Array],
    *,
    axis_name: AxisName | None = None,
    axis_reduction: str = "sum",
) -> Length:
    """`norm_of_leaves`, also where its own dtype cannot hold it."""
    if not leaves:
        return Length(jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32))
    summed_over = axis_name if axis_reduction == "sum" else None
    if isinstance(summed_over, list):
        summed_over = tuple(summed_over)
    if not axis_name and not any(isinstance(leaf, Tracer) for leaf in leaves):
        # Eagerly few compiled calls, of not too many leaves each: XLA takes long to compile one sum
        # of thousands, and layers of a network share the programs.
        unit = None
        while len(leaves) > _TOGETHER:
            starts = range(0, len(leaves), _TOGETHER)
            parts = [_compiled_length(leaves[i : i + _TOGETHER], None) for i in starts]
            leaves, unit = _in_one_unit(parts, unit)
        whole = _compiled_length(leaves, None)
        return whole if unit is None else Length(whole.size, whole.unit * unit)
    whole = _length_of_leaves(leaves, summed_over)
    if axis_name and axis_reduction == "mean":
        unit = lax.pmin(lax.stop_gradient(whole.unit), axis_name)
        return Length(lax.pmean(whole.size_in(unit), axis_name), unit)
    return whole


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _length_of_leaves(leaves: Sequence[jax.Array], axis_name: AxisName | None) -> Length:
    # Every leaf in the dtype of the widest: what underflows in its own may count in the whole.
    dtype = widest(leaves)
    if sums_in_float64(dtype):
        return _root_of_sum_in_float64(leaves, axis_name)

    def total(factor: jax.Array) -> jax.Array:
        # Of a leaf that it knows, such as the zero gradient of an unused parameter, XLA would
        # multiply the squares with the square of the factor, which overflows.
        rows = [_row(leaf, factor) for leaf in lax.optimization_barrier(list(leaves))]
        whole = lax.reduce_sum(lax.concatenate(rows, 0), (0,))
        return lax.psum(whole, axis_name) if axis_name else whole

    one = jnp.ones((), dtype)
    if jax.sharding.get_abstract_mesh().manual_axes:
        # The loop starts with what varies over the same axes as the sum; its value is not used.
        one = jnp.ones_like(total(one))
    return _root_of_sum(total, one)


def _root_of_sum_in_float64(leaves: Sequence[jax.Array], axis_name: AxisName | None) -> Length:
    with jax.enable_x64(True):
        squares = [abs_squared(_doubled(leaf)) for leaf in leaves]
        rows = [sum_over(x, tuple(range(x.ndim))) for x in squares]
        whole = lax.reduce_sum(
            lax.concatenate([lax.expand_dims(row, (0,)) for row in rows], 0), (0,)
        )
        whole = lax.psum(whole, axis_name) if axis_name else whole
        return _of_float32(lax.sqrt(whole))


@jax.jit
def _row(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """The sum of squares of a leaf times a factor, of shape (1,); traced once for each type."""
    x = _widened(leaf, factor.dtype)
    return lax.expand_dims(_squares(x, factor, tuple(range(x.ndim))), (0,))


@_length_of_leaves.defjvp
def _length_of_leaves_jvp(axis_name: Any, primals: tuple[Any], tangents: tuple[Any]) -> Any:
    (leaves,), (changes,) = primals, tangents
    whole = _length_of_leaves(leaves, axis_name)
    dtype = whole.size.dtype

    def part(leaf: jax.Array, change: jax.Array) -> jax.Array:
        return inner_product(direction(_widened(leaf, dtype), whole), _widened(change, dtype))

    total: Any = sum(map(part, leaves, changes))
    return whole, _change_of(whole, lax.psum(total, axis_name) if axis_name else total)


_TOGETHER = 64
_compiled_length = jax.jit(_length_of_leaves, static_argnums=1)


@jax.jit
def _in_one_unit(lengths: list[Length], unit: jax.Array | None) -> tuple[list[jax.Array], Any]:
    """The sizes of lengths in the smallest of their units, and that unit times another one."""
    dtype = widest([length.size for length in lengths])
    lengths = [length.astype(dtype) for length in lengths]
    common = functools.reduce(jnp.minimum, [length.unit for length in lengths])
    sizes = [length.size_in(common) for length in lengths]
    return sizes, common if unit is None else common * unit


def sum_of(function: Callable[..., jax.Array], *lists: Sequence[Any]) -> jax.Array:
    """The sum over all leaves of a number that is calculated from each: sum_i f(a_i, b_i, ...).

    Args:
        function: from one array of each list, in the widest dtype of the first list and at least
            float32, to a scalar. One function object is compiled once for each type of leaf.
        *lists: lists of inexact arrays, equally long.

    Returns:
        A scalar, zero for empty lists.
    """
    dtype = widest([jnp.asarray(leaf) for leaf in lists[0]])
    parts = [_on_widened(function, leaves, dtype=dtype) for leaves in zip(*lists, strict=True)]
    return jnp.sum(jnp.stack(parts)) if parts else jnp.zeros((), dtype)


@functools.partial(jax.jit, static_argnums=0, static_argnames="dtype")
def _on_widened(
    function: Callable[..., jax.Array], leaves: tuple[Any, ...], *, dtype: np.dtype
) -> jax.Array:
    return function(*(_widened(jnp.asarray(leaf), dtype) for leaf in leaves)).astype(dtype)


def inner_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The real inner product <x, y> of two arrays of one shape."""
    return jnp.sum(jnp.real(jnp.conj(x) * y))


def _widened(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """`x` in a real dtype, or in the complex dtype of that precision."""
    return x.astype(np.promote_types(compute_dtype(x.dtype), dtype))
