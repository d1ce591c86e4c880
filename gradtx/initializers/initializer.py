"""What every initializer shares: its signature, its arithmetic, its placement on devices.

An initializer is a *sampler* (the equation: key, shape, dtype -> array) lifted by `initializer`,
the one place that knows about default dtypes, half precision and sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp

from gradtx.initializers.arguments import check_dtype, check_key, checked_shape

# jax's own protocol, so that either annotation is accepted in place of the other.
Initializer: TypeAlias = jax.nn.initializers.Initializer

Shape: TypeAlias = tuple[int, ...]
Scalar: TypeAlias = float | jax.Array
DType: TypeAlias = jax.typing.DTypeLike | None
Sharding: TypeAlias = jax.sharding.NamedSharding | jax.sharding.PartitionSpec | None


class Bounded(NamedTuple):
    """Real samples between two bounds, which rounding must not make them reach.

    Attributes:
        samples: the numbers, of at least 32 bits.
        lower: the lower bound, in their dtype.
        upper: the upper bound, which is not reached, in their dtype.
        reaches_lower: whether a sample may be the lower bound.
    """

    samples: jax.Array
    lower: jax.Array
    upper: jax.Array
    reaches_lower: bool


Sampler: TypeAlias = Callable[[jax.Array, Shape, Any], jax.Array | Bounded]


def initializer(owner: str, sample: Sampler, dtype: DType, *, uses_key: bool = True) -> Initializer:
    """The initializer that draws with `sample`, in `dtype` unless a call asks for another.

    Args:
        owner: name of the function that the user called, which opens the messages.
        sample: the equation, `(key, shape, dtype) -> array`, or `-> Bounded`. It is called
            with real dtypes of at least 32 bits, complex dtypes and dtypes that are not floating.
        dtype: default dtype of the result; None is jax's default, float32 unless
            `jax_enable_x64` is set.
        uses_key: whether the equation reads the key; otherwise it may be anything.

    Returns:
        A function `init(key, shape, dtype=dtype, out_sharding=None)`. Dtypes below 32 bits are
        drawn and scaled in float32 and rounded once, at the end; a number that would be rounded to
        a bound or beyond becomes the nearest one inside. `shape` may be an integer. `out_sharding`
        (a NamedSharding, or a PartitionSpec under `jax.set_mesh`) decides where the numbers live,
        but does not change them.

    Raises:
        ValueError: if the dtype is not one of numbers or booleans; on call, if the shape, the key
            or the dtype is none.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx.initializers.initializer import initializer
        >>> sample = lambda key, shape, dtype: jnp.full(shape, 2, dtype)
        >>> init = initializer("twos", sample, None)
        >>> init(jax.random.key(0), (3,), jnp.bfloat16)
        Array([2, 2, 2], dtype=bfloat16)
    """
    check_dtype(owner, dtype)

    def init(
        key: jax.Array,
        shape: Sequence[int] | SupportsIndex,
        dtype: DType = dtype,
        out_sharding: Sharding = None,
    ) -> jax.Array:
        sizes = checked_shape(owner, shape, key)
        if uses_key:
            check_key(owner, key)
        check_dtype(owner, dtype)
        result_dtype = jnp.result_type(float) if dtype is None else dtype

        def build(key: jax.Array) -> jax.Array:
            drawn = sample(key, sizes, _arithmetic_dtype(result_dtype))
            if isinstance(drawn, Bounded):
                return _rounded_within(drawn, result_dtype)
            return drawn.astype(result_dtype)

        return _place(build, key, out_sharding)

    return init


def _rounded_within(drawn: Bounded, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The samples in another dtype, moved one step inside where rounding reached a bound."""
    samples, lower, upper, reaches_lower = drawn
    rounded = samples.astype(dtype)
    info = jnp.finfo(rounded.dtype)
    below = jax.lax.nextafter(rounded, jnp.full_like(rounded, info.min))
    above = jax.lax.nextafter(rounded, jnp.full_like(rounded, info.max))
    exact, is_interval = rounded.astype(samples.dtype), lower < upper
    is_low = exact < lower if reaches_lower else exact <= lower
    return jnp.where(
        is_interval & (exact >= upper), below, jnp.where(is_interval & is_low, above, rounded)
    )


def rescale(samples: jax.Array, factor: Scalar) -> jax.Array:
    """The product `factor * samples`, rounded once whether compiled or not.

    Args:
        samples: numbers from a random generator, of any shape.
        factor: a number, or an array that broadcasts with the samples.

    Returns:
        An array of the shape and dtype of `samples`.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.initializers.initializer import rescale
        >>> rescale(jnp.ones(2), 0.5)
        Array([0.5, 0.5], dtype=float32)
    """
    # Without the barrier the compiler merges `factor` with the generator's last constant, and a
    # compiled initializer differs in the last bit from the same initializer run eagerly.
    return jax.lax.optimization_barrier(samples) * jnp.asarray(factor, samples.dtype)


def _arithmetic_dtype(dtype: jax.typing.DTypeLike) -> Any:
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if jnp.issubdtype(canonical, jnp.floating) and jnp.finfo(canonical).bits < 32:
        return jnp.float32
    return canonical


def _place(
    build: Callable[[jax.Array], jax.Array], key: jax.Array, out_sharding: Sharding
) -> jax.Array:
    if out_sharding is None:
        return build(key)
    # A mesh with explicit axes needs shardings in the types, which inside a trace only `auto_axes`
    # puts there; everywhere else, compiling with the sharding builds the shards in place.
    if jax.sharding.get_abstract_mesh().explicit_axes:
        return jax.sharding.auto_axes(out_sharding=out_sharding)(build)(key)
    return jax.jit(build, out_shardings=out_sharding)(key)
