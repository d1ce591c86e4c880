"""What the library knows about trees: which leaves are parameters, where they are, how they agree.

`None` is a leaf here, because a missing gradient stands for a parameter that is left alone.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from gradtx.messages import shown

AxisName: TypeAlias = Hashable | Sequence[Hashable]


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf is an inexact number or array; everything else is left alone."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float | complex)
    return is_subdtype(dtype, jnp.inexact)


# Asked for each leaf at each call; the answer takes a hundred times as long as looking it up.
is_subdtype = functools.lru_cache(maxsize=256)(jnp.issubdtype)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is a number or an array of numbers; the float0 of an integer is not."""
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.number)


def compute_dtype(dtype: Any) -> np.dtype:
    """The dtype to calculate in: the array's own, but never narrower than float32."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def real_dtype(dtype: Any) -> np.dtype:
    """The real dtype of the same precision: float32 for complex64."""
    return jnp.finfo(dtype).dtype


def widest(leaves: Sequence[Any]) -> np.dtype:
    """The real dtype to calculate in with all of these arrays: at least float32."""
    dtypes = [real_dtype(compute_dtype(dtype)) for dtype in {leaf.dtype for leaf in leaves}]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def abs_squared(x: jax.Array) -> jax.Array:
    """|x|^2, element by element; real also where x is complex."""
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else jnp.square(x)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as people write it: `encoder/layers/0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves, None among them, and the structure."""
    return jax.tree.flatten(tree, is_leaf=lambda x: x is None)


def paths(tree: Any) -> list[str]:
    """The path of each leaf of `flatten(tree)`, in the same order."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return [path_name(path) for path, _ in named]


def flatten_like(
    owner: str,
    what: str,
    tree: Any,
    reference_name: str,
    reference: Any,
    *,
    subtrees: bool = False,
) -> list:
    """The parts of `tree` that lie where `reference` has its leaves.

    Args:
        owner: name of the caller, which opens the message.
        what: what `tree` is called in the message.
        tree: a tree of the structure of `reference`; where that has None, anything may lie.
        reference_name: what `reference` is called in the message.
        reference: the tree that gives the structure.
        subtrees: whether a part may be a tree of its own.

    Returns:
        One part for each leaf of `reference`, in its order.

    Raises:
        ValueError: if the structures differ, naming the first path that only one of them has.
    """
    leaves, treedef = flatten(reference)
    return parts_at(owner, what, tree, reference_name, treedef, leaves, subtrees=subtrees)


def parts_at(
    owner: str,
    what: str,
    tree: Any,
    reference_name: str,
    treedef: Any,
    leaves: Sequence[Any],
    *,
    subtrees: bool = False,
) -> list:
    """`flatten_like` for a reference that was flattened before."""

    def difference() -> str:
        reference = treedef.unflatten(leaves)
        return describe_difference(what, tree, reference_name, reference, subtrees=subtrees)

    try:
        parts = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as mismatch:
        raise ValueError(f"{owner}: {difference()}") from mismatch
    if not subtrees:
        opposite = zip(leaves, parts, strict=True)
        present = [part for leaf, part in opposite if leaf is not None and part is not None]
        if not jax.tree_util.all_leaves(present):
            raise ValueError(f"{owner}: {difference()}")
    return parts


def _is_container(part: Any) -> bool:
    """Whether a part of a state is a list of arrays in the guise that flax.nnx gives it."""
    if part is None or isinstance(part, list) or jax.tree_util.all_leaves([part]):
        return False
    named, _ = jax.tree_util.tree_flatten_with_path(part)
    return [path_name(path) for path, _ in named] == [str(i) for i in range(len(named))]


def as_list(part: Any) -> Any:
    """A list of arrays out of the guise that flax.nnx gives it; anything else as it is."""
    return jax.tree.leaves(part) if _is_container(part) else part


def in_container_of(old: Any, new: Any) -> Any:
    """The list `new` in the guise of `old`, which `as_list` took it out of."""
    if not _is_container(old):
        return new
    return jax.tree.unflatten(jax.tree.structure(old), jax.tree.leaves(new))


def refuse_shape(
    owner: str, reference_name: str, reference: Any, index: int, what: str, other: Any
) -> NoReturn:
    """Refuse an array of another shape than the leaf of `reference` of this index.

    Raises:
        ValueError: naming the path and both shapes.
    """
    leaf = flatten(reference)[0][index]
    raise ValueError(
        f"{owner}: shapes differ at '{paths(reference)[index]}': {reference_name} has shape "
        f"{np.shape(leaf)}, {what} has shape {shown(jax.tree.map(np.shape, other))}"
    )


def describe_difference(
    what: str, tree: Any, reference_name: str, reference: Any, *, subtrees: bool = False
) -> str:
    """Where two trees part: the first path that only one of them has."""
    ours, theirs = _leaves_by_path(tree), _leaves_by_path(reference)
    if subtrees:  # a part stands for all that lies below it
        ours = {
            next((above for above in theirs if path.startswith(f"{above}/")), path): leaf
            for path, leaf in ours.items()
        }
    free = tuple(path for path, leaf in theirs.items() if leaf is None)
    for path in [*theirs, *ours]:
        if path in free or path.startswith(tuple(f"{above}/" for above in free)):
            continue
        is_in_both = path in ours and path in theirs
        # For a leaf there may be an empty list; for an empty container there may not be an array.
        is_alike = is_in_both and (
            _is_empty_container(ours[path]) == _is_empty_container(theirs[path])
            or (subtrees and _is_empty_container(ours[path]))
        )
        if not is_alike:
            return (
                f"{reference_name} and {what} differ at '{path}': "
                f"{reference_name} has {_describe(theirs, path)}, "
                f"{what} has {_describe(ours, path)}"
            )
    place, theirs_there, ours_there = different_containers(reference, tree)
    return (
        f"{reference_name} and {what} have the same paths in different containers at "
        f"'{place}': {theirs_there} in {reference_name}, {ours_there} in {what}"
    )


def different_containers(tree: Any, other: Any) -> tuple[str, str, str]:
    """The first path at which trees of the same paths have other containers, and these."""
    whole = ((), [type(tree).__name__, type(other).__name__])
    path, (name, other_name) = next(_different_containers((), tree, other), whole)
    return path_name(path), name, other_name


def _different_containers(
    path: tuple[Any, ...], *nodes: Any
) -> Iterator[tuple[tuple[Any, ...], list[str]]]:
    levels = [
        jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x, top=node: x is not top)
        for node in nodes
    ]
    names = [type(node).__name__ for node in nodes]
    (parts, structure), (other_parts, other_structure) = levels
    if structure != other_structure and not any(node is None for node in nodes):
        is_same_type = type(nodes[0]) is type(nodes[1])
        yield path, [f"{name} with other static parts" if is_same_type else name for name in names]
    elif parts and parts[0][0]:
        for (key, part), (_, other) in zip(parts, other_parts, strict=False):
            yield from _different_containers((*path, *key), part, other)


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves and, because they hold a place too, the empty containers."""
    named, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is None or _is_empty_container(x)
    )
    return {path_name(path): leaf for path, leaf in named}


def _is_empty_container(x: Any) -> bool:
    return isinstance(x, tuple | list | dict) and not x


def _describe(leaves: dict[str, Any], path: str) -> str:
    if path not in leaves:
        return "no leaf there"
    leaf = leaves[path]
    return f"shape {np.shape(leaf)}" if hasattr(leaf, "shape") else shown(leaf)


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

    start = (one, one, jnp.any(one > 0))
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
