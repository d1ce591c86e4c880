"""What a transformation may need from its caller: more arguments, or the trees as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from gradtx.messages import listed
from gradtx.testing.trees import is_parameter

# The first group is served, with arguments of the update; the second exempts from clauses.
CAPABILITIES: Mapping[str, str] = MappingProxyType(
    {
        "value": "the update takes `value`, a loss",
        "grad": "the update takes `grad`, the gradients of that loss",
        "value_fn": "the update takes `value_fn`, the function whose values are losses",
        "names": "leaves are treated by their paths, or by a mask that fits one tree only",
        "whole_tree": "no leaf may be missing, because a loss of its own is taken of them all",
        "shapes": "leaves must have the shapes of `params`; others are not tried",
        "own_clock": "the state changes without gradients too, as an average of parameters does",
    }
)


def check_capabilities(owner: str, capabilities: Collection[str]) -> frozenset[str]:
    """The capabilities as a set, if there are such."""
    if isinstance(capabilities, str):
        capabilities = (capabilities,)
    unknown = [name for name in capabilities if name not in CAPABILITIES]
    if unknown:
        raise ValueError(
            f"{owner}: capabilities has the unknown names {listed(unknown)}; "
            f"there are {listed(CAPABILITIES, len(CAPABILITIES), near=str(unknown[0]))}"
        )
    return frozenset(capabilities)


def arguments_for(capabilities: Collection[str], params: Any) -> dict[str, Any]:
    """The extra arguments of an update that has these capabilities, at `params`."""
    makers = {"value": bowl, "grad": _gradients_of_bowl, "value_fn": lambda _: bowl}
    return {name: make(params) for name, make in makers.items() if name in capabilities}


def bowl(params: Any) -> jax.Array:
    """A strictly convex loss of any tree: half the sum of the squares of its parameters."""
    squares = (
        jnp.sum(jnp.abs(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))) ** 2)
        for leaf in jax.tree.leaves(params)
        if is_parameter(leaf)
    )
    return sum(squares, jnp.float32(0)) / 2


def _gradients_of_bowl(params: Any) -> Any:
    # Copies, because an update may be given its arguments to keep.
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if is_parameter(leaf) else None, params)
