"""How to make what is exported, and what the tables of exports share."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.testing import clauses


class Export(NamedTuple):
    """How to make a transformation, and what its update needs.

    Attributes:
        make: makes the transformation.
        extra_args: the extra arguments of its update as a function of the parameters.
        params: the parameters, None for those of the kit.
        capabilities: what it needs, by the names in `gradtx.testing.CAPABILITIES`.
        skip: the clauses that it does not keep, each with the reason.
        begins_with_values: whether its state begins with copies of the parameters, or with a number
            that is calculated from them, so that `init` needs more than their shapes.
    """

    make: Callable[[], Any]
    extra_args: Callable[[Any], Mapping[str, Any]] | None = None
    params: Any = None
    capabilities: Collection[str] = ()
    skip: Mapping[str, str] = {}
    begins_with_values: bool = False


def bowl(params) -> jax.Array:
    """A strictly convex loss of any tree."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_number(leaf)]
    return sum((jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves), jnp.float32(0)) / 2


def is_number(leaf) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.inexact)


def with_loss(params) -> dict[str, Any]:
    return {"value_fn": bowl}


def with_value(params) -> dict[str, Any]:
    return {"value_fn": bowl, "value": bowl(params), "grad": jax.tree.map(jnp.copy, params)}


def halved(count) -> jax.Array:
    return 0.1 / (1 + count)


matrices = gradtx.select(lambda path, leaf: np.ndim(leaf) > 1)
groups = gradtx.select.groups({"matrices": matrices}, rest="others")

# A Hessian of few elements, because it takes long to compile.
SMALL = {"weight": jnp.linspace(1, 2, 8, dtype=jnp.float32), "scale": jnp.bfloat16(1.5)}
FLOAT32 = {**SMALL, "scale": jnp.float32(1.5)}

HANDS_ON = {"non_parameters": "hands on what it does not look at"}
OWNED_BY_OPTAX = dict.fromkeys(
    set(clauses()) - {"purity", "updates", "masked_leaves", "eval_shape"},
    "optax's own code, exported as it is",
)
