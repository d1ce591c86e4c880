"""Optimizer states in half precision."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from gradtx import trees
from gradtx.arguments import check_dtype, check_flag, check_key
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import LINEAR
from gradtx.joined import Finish, Leaves, join
from gradtx.messages import shown
from gradtx.precision.laws import check_select, map_by_law, refuse_groups
from gradtx.precision.narrow import WIDE
from gradtx.precision.quantized import NON_NEGATIVE, explicit_sharding
from gradtx.precision.rounding import random_bits, round_stochastically
from gradtx.select import Specification
from gradtx.stored import to_store

_OWNER = "cast_state"
# The length of the rows that a step on a CPU may cut an array into.
_ROW = 256
# The smallest size of such an array.
_LARGE = 1 << 15


class CastState(NamedTuple):
    """The state of `cast_state`.

    Attributes:
        calls: the number of calls, int32, which the rounding of each depends on.
        rng_key: the PRNG key of the rounding; None if it is to nearest.
        inner_state: the state of the wrapped transformation, with a `Cast` in place of each array
            that is kept in half precision.
    """

    calls: jax.Array
    rng_key: jax.Array | None
    inner_state: Any


class _Values(NamedTuple):
    values: jax.Array


class _Narrow(trees.Stored):
    __slots__ = ()
    values: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array."""
        return WIDE

    @property
    def rows_shape(self) -> tuple[int, int] | None:
        """The number of rows and the length of each; None if it is small or they are not even."""
        size = math.prod(self.shape)
        return None if size % _ROW or size < _LARGE else (size // _ROW, _ROW)

    def decoded(self) -> jax.Array:
        """The array."""
        return self.values.astype(WIDE)

    def rows(self) -> tuple[jax.Array, ...]:
        """The numbers in rows."""
        return (self.values.reshape(-1, _ROW),)

    def with_rows(self, arrays: tuple[jax.Array, ...]) -> Cast:
        """An array of other numbers."""
        return Cast(arrays[0].reshape(self.shape))


class Cast(_Values, _Narrow):
    """An array of float32 that is kept in half precision.

    Attributes:
        values: the rounded numbers.
    """

    __slots__ = ()

    def encoded(self, array: jax.Array) -> Cast:
        """Another array in the same form, rounded to nearest."""
        return Cast(to_store(array, self.values.dtype))


class _SeededValues(NamedTuple):
    values: jax.Array
    seed: jax.Array | None


class Seeded(_SeededValues, _Narrow):
    """A `Cast` during a step, with what the rounding of its new numbers depends on.

    Attributes:
        values: those of `Cast`.
        seed: the numbers of the step and of the array, of the part of it, and the key; uint32.
            None: it is rounded to nearest.
    """

    __slots__ = ()
    is_open = True

    def encoded(self, array: jax.Array) -> Cast:
        """Another array in the same form."""
        if self.seed is None:
            return Cast(to_store(array, self.values.dtype))
        step, number, *key = self.seed
        sharding = explicit_sharding(array)
        bits = random_bits(jnp.stack(key), step, number, array.shape, out_sharding=sharding)
        return Cast(round_stochastically(array.astype(WIDE), self.values.dtype, bits))

    def part(self, arrays: tuple[jax.Array, ...], number: jax.Array) -> Seeded:
        """Some of its rows, whose rounding is their own."""
        if self.seed is None:
            return Seeded(arrays[0], None)
        return Seeded(arrays[0], self.seed.at[2].set(number.astype(jnp.uint32) + 1))

    @property
    def unchanged(self) -> Cast:
        """The array without the seed, if there was no step."""
        return Cast(self.values)


def cast_state(
    tx: optax.GradientTransformation,
    dtype: DTypeLike = jnp.bfloat16,
    *,
    stochastic: bool = True,
    key: jax.Array | int = 0,
    select: Specification | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keep the state of an optimizer in half precision.

        s' = up with probability (s - down) / (up - down), else down

    where down and up are the numbers of `dtype` around s. A step calculates in float32 as ever, and
    only the new state is rounded: at random, so that it is right on average. Rounded to nearest,
    an average with decay 0.999 stands still in bfloat16, which has steps of 0.4%. The random bits
    are the same on every layout of devices; in `shard_map` each shard counts its own elements.

    By default these arrays of float32 are kept in `dtype`: moments and all others in the shape of
    their parameter, but not copies of parameters; and in float16, which has no numbers below 6e-8,
    or another dtype of smaller range than float32, no second moments and others that are never
    negative.

    Args:
        tx: the transformation.
        dtype: the dtype of the state, a real one of fewer than 32 bits.
        stochastic: whether to round at random; else to nearest.
        key: a PRNG key, or an integer seed.
        select: which arrays of the state, instead of those above: what `gradtx.select` takes, on
            their paths in the state of `tx`, such as "nu/".

    Returns:
        A transformation with the state `CastState(calls, rng_key, inner_state)`, in which such an
        array is a `Cast(values)`.

    Raises:
        ValueError: if `tx` is not a transformation or contains `grouped`, or another argument is
            not of its kind; in `init`, if `select` matches nothing.

    Source:
        Gupta et al. 2015, "Deep learning with limited numerical precision", section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> average = gradtx.ema(0.99, debias=False)
        >>> for stochastic in (False, True):  # in full: 1 - 0.99^300 = 0.95
        ...     tx = gradtx.cast_state(average, stochastic=stochastic)
        ...     updates, state = jnp.ones(1000), tx.init(jnp.ones(1000))
        ...     for _ in range(300):
        ...         _, state = tx.update(updates, state)
        ...     print(f"{state.inner_state.ema.values.astype(jnp.float32).mean():.2f}")
        0.80
        0.95
    """
    stochastic = check_flag("cast_state", "stochastic", stochastic)
    inner = as_transformation(_OWNER, "tx", tx)
    refuse_groups(_OWNER, inner)
    narrow = check_dtype(_OWNER, "dtype", dtype)
    if narrow is None or not jnp.issubdtype(narrow, jnp.floating) or narrow.itemsize >= 4:
        raise ValueError(
            f"{_OWNER}: dtype must be a real dtype of fewer than 32 bits, got {shown(dtype)}"
        )
    rng_key = check_key(_OWNER, key)
    check_select(_OWNER, select)
    has_small_range = jnp.finfo(narrow).minexp > jnp.finfo(WIDE).minexp

    def init(params: Any) -> Any:
        state = inner.init(params)

        def stored(leaf: Any, law: str) -> Any:
            is_kept = not law or getattr(leaf, "dtype", None) != WIDE
            # The square of an ordinary gradient is 0 in float16.
            is_kept |= law == NON_NEGATIVE and select is None and has_small_range
            return leaf if is_kept else Cast(leaf.astype(narrow))

        inner_state = map_by_law(stored, inner, state, params, select)
        own_key = jnp.copy(rng_key) if stochastic else None
        return CastState(jnp.zeros([], jnp.int32), own_key, inner_state)

    def joined(leaves: Leaves, state: Any) -> Finish:
        finish = join(inner.update, leaves, _seeded(state))
        calls = jnp.asarray(optax.safe_increment(state.calls))
        return lambda: CastState(calls, state.rng_key, _unseeded(finish()))

    return composed(
        _OWNER,
        (Part("", inner),),
        init,
        joined,
        locality="leaf",
        state=CastState,
        joins=True,
        effect=LINEAR,
    )


def _seeded(state: Any) -> Any:
    """The inner state with what the rounding of each array depends on beside it."""
    nodes, treedef = jax.tree.flatten(state.inner_state, is_leaf=trees.is_stored)
    step, key = jnp.asarray(state.calls).astype(jnp.uint32), state.rng_key
    if key is not None and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)

    def seeded(node: Any, number: int) -> Any:
        if not isinstance(node, Cast):
            return node
        if key is None:
            return Seeded(node.values, None)
        words = jnp.stack([step, jnp.uint32(number), jnp.uint32(0)])
        return Seeded(node.values, jnp.concatenate([words, key]))

    return treedef.unflatten(map(seeded, nodes, range(len(nodes))))


def _unseeded(state: Any) -> Any:
    return jax.tree.map(
        lambda node: node.unchanged if isinstance(node, Seeded) else node,
        state,
        is_leaf=trees.is_stored,
    )
