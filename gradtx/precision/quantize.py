"""Optimizer states in 8 bits per number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import trees
from gradtx.arguments import COUNT, COUNT_OR_ZERO, check
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.joined import Finish, Leaves, join
from gradtx.messages import shown
from gradtx.precision.laws import check_select, map_by_law, refuse_groups
from gradtx.precision.quantized import NON_NEGATIVE, SIGNED, Quantized, Seeded, quantized
from gradtx.select import Specification

_OWNER = "quantize_state"


class QuantizedState(NamedTuple):
    """The state of `quantize_state`.

    Attributes:
        calls: the number of calls, int32, which the rounding of each depends on.
        inner_state: the state of the wrapped transformation, with a `Quantized` in place of each
            array that is kept in 8 bits.
    """

    calls: jax.Array
    inner_state: Any


def quantize_state(
    tx: optax.GradientTransformation,
    *,
    bits: int = 8,
    block_size: int = 256,
    select: Specification | Mapping[str, Specification] | None = None,
    min_size: int = 4096,
) -> optax.GradientTransformationExtraArgs:
    """Keep the state of an optimizer in 8 bits per number.

        signed         x = s * sign(c) * (|c| / 127)^4,    c = -127 ... 127
        non-negative   x = s * (c / 255)^8,                c = 0 ... 255

    where s is the largest absolute value of a block of neighbouring elements. Adam then needs 2.03
    bytes per parameter instead of 8. A step decodes the state, is taken as ever, and encodes the
    new state; the codes are rounded up or down at random, so that they are right on average. To
    nearest, a second moment with b2 = 0.999, whose changes are a small part of the distance of two
    levels, would stand still: after 3,000 steps its root was 18% too large on average, in place of
    0.3% too small. The random bits are the same on every layout of devices; in `shard_map` each
    shard counts its own elements.

    By default these arrays are kept in 8 bits: moments and all others in the shape of their
    parameter, but not copies of parameters. Always left as they are: arrays of fewer than
    `min_size` elements, integers, booleans and complex numbers.

    Which arrays are never negative is declared by the methods of this library, and known of others
    by their names, such as "nu". Their small elements stay above zero, so that nothing is divided
    by zero. An infinity or a NaN makes its whole block NaN, and no other; `apply_if_finite` around
    the optimizer keeps gradients with such numbers out.

    Of transformations of this library, one leaf after another is decoded. Put wrappers that are no
    chain, group or mask around it: inside, they see the whole state in full.

    Args:
        tx: the transformation.
        bits: the number of bits per element, in [8, 8]; others may follow.
        block_size: how many elements share a scale, at most; a whole number >= 1. Blocks lie within
            the last axes of an array. Each has 4 more bytes in float32.
        select: which arrays of the state, instead of those above: what `gradtx.select` takes, on
            their paths in the state of `tx`, such as "nu/"; or a dictionary from "signed" and
            "non_negative" to such choices, which says the law too; under "non_negative", negative
            numbers become 0. Other kinds of arrays are left out all the same.
        min_size: the smallest number of elements of an array that is kept in 8 bits, >= 0.

    Returns:
        A transformation with the state `QuantizedState(calls, inner_state)`, in which an array in 8
        bits is a `Quantized(codes, scales)`. The codes have the shape of the array.

    Raises:
        ValueError: if `tx` is not a transformation or contains `grouped`, whose stacks are not kept
            in 8 bits yet, or another argument lies outside its range; in `init`, if `select`
            matches nothing, or an array is in both choices of a dictionary.

    Source:
        Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", for blocks; the laws
        and the rounding are our own.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.ones((64, 256)), "bias": jnp.ones(256)}
        >>> tx = gradtx.quantize_state(gradtx.adam(1e-3))
        >>> print(gradtx.explain(tx, params).total)
        16,640 parameters, 35,336 bytes of state (8 shared), 2.12 bytes per parameter
        >>> params, state = gradtx.update_and_apply(tx, params, tx.init(params), params)
        >>> print(state.inner_state[0].nu["kernel"].codes.dtype)
        uint8
    """
    inner = as_transformation(_OWNER, "tx", tx)
    refuse_groups(_OWNER, inner)
    if not isinstance(bits, int | np.integer) or bits != 8:
        raise ValueError(f"{_OWNER}: bits must be 8, got {shown(bits)}")
    block_size = int(check(_OWNER, "block_size", block_size, COUNT))
    min_size = int(check(_OWNER, "min_size", min_size, COUNT_OR_ZERO))
    if isinstance(select, Mapping) and not set(select) <= {SIGNED, NON_NEGATIVE}:
        raise ValueError(
            f"{_OWNER}: select must have the keys 'signed' and 'non_negative', got {shown(select)}"
        )
    check_select(_OWNER, select)

    def init(params: Any) -> QuantizedState:
        state = inner.init(params)

        def stored(leaf: Any, law: str) -> Any:
            is_kept = not law or not _is_real(leaf) or np.size(leaf) < max(min_size, 1)
            return leaf if is_kept else quantized(leaf, law, block_size)

        inner_state = map_by_law(stored, inner, state, params, select)
        return QuantizedState(jnp.zeros([], jnp.int32), inner_state)

    def joined(leaves: Leaves, state: Any) -> Finish:
        finish = join(inner.update, leaves, _seeded(state.inner_state, state.calls))
        calls = jnp.asarray(optax.safe_increment(state.calls))
        return lambda: QuantizedState(calls, _unseeded(finish()))

    return composed(
        _OWNER,
        (Part("", inner),),
        init,
        joined,
        locality="leaf",
        state=QuantizedState,
        joins=True,
        effect=Effect(degree=1),
    )


def _is_real(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and trees.is_subdtype(dtype, jnp.floating)


def _seeded(state: Any, calls: jax.Array) -> Any:
    """The state with what the rounding of each array depends on beside its codes."""
    nodes, treedef = jax.tree.flatten(state, is_leaf=trees.is_stored)
    step = jnp.asarray(calls).astype(jnp.uint32)

    def seeded(node: Any, number: int) -> Any:
        if not isinstance(node, Quantized):
            return node
        return Seeded(node.codes, node.scales, jnp.stack([step, jnp.uint32(number), jnp.uint32(0)]))

    return treedef.unflatten(map(seeded, nodes, range(len(nodes))))


def _unseeded(state: Any) -> Any:
    """The state without what the rounding of arrays that took no step would have depended on."""
    return jax.tree.map(
        lambda node: node.unchanged if isinstance(node, Seeded) else node,
        state,
        is_leaf=trees.is_stored,
    )
