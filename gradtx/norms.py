"""Norms and sums over trees, right wherever the result itself can be represented.

Everything is calculated in at least float32. The squares neither overflow nor underflow, and
gradients at zero are zero.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from gradtx.messages import shown
from gradtx.trees import compute_dtype, is_parameter, real_dtype

AxisName: TypeAlias = Hashable | Sequence[Hashable]


def widest(leaves: Sequence[Any]) -> np.dtype:
    """The real dtype to calculate in with all of these arrays: at least float32."""
    dtypes = [real_dtype(compute_dtype(dtype)) for dtype in {leaf.dtype for leaf in leaves}]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def abs_squared(x: jax.Array) -> jax.Array:
    """|x|^2, element by element; real also where x is complex."""
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else jnp.square(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The Euclidean norm of one array along `axis`, its axes kept with length 1.

    Its squares neither overflow nor underflow, and its gradient at zero is zero.

    Args:
        x: an array of at least 32 bits.
        axis: the axes to sum over; None: all.
    """

    def total(factor: jax.Array) -> jax.Array:
        scaled = lax.optimization_barrier(x) * factor.astype(x.dtype)
        return jnp.sum(abs_squared(scaled), axis=axis, keepdims=True)

    one = jnp.ones_like(jnp.sum(jnp.real(x), axis=axis, keepdims=True))
    return _root_of_sum(total, one)


@norm.defjvp
def _norm_jvp(axis: Any, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (change,) = primals, tangents
    length = norm(x, axis)
    parts = jnp.real(jnp.conj(direction(x, length.astype(x.dtype))) * change)
    return length, jnp.sum(parts, axis=axis, keepdims=True)


def direction(g: jax.Array, norm: jax.Array) -> jax.Array:
    """Divide g by its norm; g itself where that is 0."""
    # XLA may multiply by the inverse of the norm, which must not be subnormal.
    unit = jnp.where(norm > 2.0 ** (jnp.finfo(norm.dtype).maxexp - 8), 2.0**-8, 1.0)
    return g * unit / jnp.where(norm == 0, 1.0, norm * unit)


def _root_of_sum(total: Callable[[jax.Array], jax.Array], one: jax.Array) -> jax.Array:
    """The root of a sum of squares which may lie outside the range of its dtype.

    Where the sum is an ordinary number, one pass is enough. Elsewhere a second pass scales by a
    power of two, which is exact and leaves room for 2^32 elements. Both passes are one loop, so
    that the code of the sum stands once in the program.

    Args:
        total: from a factor to the sum of squares of all elements multiplied by it.
        one: the first factor, of the type of the sum.
    """
    exponent = jnp.finfo(one.dtype).maxexp * 5 // 8
    small, large = (jnp.full_like(one, 2.0**power) for power in (-exponent, exponent))

    def sum_up(carried: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, Any, Any]:
        factor, _, _ = carried
        squares = total(factor)
        is_done = (factor != one) | _is_ordinary(squares)
        scale = lax.select(squares > one, small, large)
        return lax.select(is_done, factor, scale), squares, ~jnp.all(is_done)

    # Made of `one`, so that in shard_map it varies over the same axes as what the loop carries on.
    is_unfinished = jnp.any(one > 0)
    start = (one, one, is_unfinished)
    factor, squares, _ = lax.while_loop(lambda carried: carried[2], sum_up, start)
    return jnp.sqrt(squares) / factor


def _is_ordinary(squares: jax.Array) -> jax.Array:
    """Whether a sum of squares neither overflowed nor lost what counts to underflow."""
    ordinary = 2.0 ** (jnp.finfo(squares.dtype).maxexp * 9 // 16)
    return (squares > 1 / ordinary) & (squares < ordinary)


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
    if not leaves:
        return jnp.zeros((), jnp.float32)
    summed_over = axis_name if axis_reduction == "sum" else None
    if isinstance(summed_over, list):
        summed_over = tuple(summed_over)
    if not axis_name and not any(isinstance(leaf, Tracer) for leaf in leaves):
        # Eagerly few compiled calls, of not too many leaves each: XLA takes long to compile one sum
        # of thousands, and layers of a network share the programs.
        while len(leaves) > _TOGETHER:
            starts = range(0, len(leaves), _TOGETHER)
            leaves = [_compiled_norm(leaves[i : i + _TOGETHER], None) for i in starts]
        return _compiled_norm(leaves, None)
    result = _norm_of_leaves(leaves, summed_over)
    return lax.pmean(result, axis_name) if axis_name and axis_reduction == "mean" else result


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm_of_leaves(leaves: Sequence[jax.Array], axis_name: AxisName | None) -> jax.Array:
    # Every leaf in the dtype of the widest: what underflows in its own may count in the whole.
    dtype = widest(leaves)

    def total(factor: jax.Array) -> jax.Array:
        # Of a leaf that it knows, such as the zero gradient of an unused parameter, XLA would
        # multiply the squares with the square of the factor, which overflows.
        parts = [
            jnp.sum(abs_squared(x * factor.astype(x.dtype))).reshape(1)
            for x in (_widened(leaf, dtype) for leaf in lax.optimization_barrier(list(leaves)))
        ]
        whole = jnp.sum(lax.concatenate(parts, 0))
        return lax.psum(whole, axis_name) if axis_name else whole

    one = jnp.ones((), dtype)
    if jax.sharding.get_abstract_mesh().manual_axes:
        # The loop starts with what varies over the same axes as the sum; its value is not used.
        one = jnp.ones_like(total(one))
    return _root_of_sum(total, one)


@_norm_of_leaves.defjvp
def _norm_of_leaves_jvp(axis_name: Any, primals: tuple[Any], tangents: tuple[Any]) -> Any:
    (leaves,), (changes,) = primals, tangents
    length = _norm_of_leaves(leaves, axis_name)

    def part(leaf: jax.Array, change: jax.Array) -> jax.Array:
        x = _widened(leaf, length.dtype)
        return inner_product(direction(x, length), _widened(change, length.dtype))

    total = sum(map(part, leaves, changes))
    return length, lax.psum(total, axis_name) if axis_name else total


_TOGETHER = 64
_compiled_norm = jax.jit(_norm_of_leaves, static_argnums=1)


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
