"""Putting transformations together: in sequence, by group of leaves, under a condition.

The states are optax's, and optax's own transformations may stand anywhere among ours.
"""

from __future__ import annotations

from gradtx.compose.conditions import conditionally_mask, conditionally_transform
from gradtx.compose.groups import freeze, masked, partition, selective_transform
from gradtx.compose.groups import partition as multi_transform
from gradtx.compose.sequence import (
    chain,
    identity,
    named_chain,
    set_to_zero,
    stateless,
    stateless_with_tree_map,
    with_extra_args_support,
)

__all__ = [
    "chain",
    "conditionally_mask",
    "conditionally_transform",
    "freeze",
    "identity",
    "masked",
    "multi_transform",
    "named_chain",
    "partition",
    "selective_transform",
    "set_to_zero",
    "stateless",
    "stateless_with_tree_map",
    "with_extra_args_support",
]
