"""Where a traced function has products, each of which has a slot for its measurement.

The gradient of a loop's or a branch's slots is measured in the backward pass, so that they have to
be arguments before the function is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.diagnostics.tracing import primitives


def slots_of(jaxpr: Any) -> list[jax.ShapeDtypeStruct]:
    """The slot of each product, in the order of evaluation.

    It has a leading axis for each loop around the product, and each axis of a mesh. There is
    none inside a `while_loop`, which has no backward pass.
    """
    return list(_slots(jaxpr, ()))


def _slots(jaxpr: Any, axes: tuple[int, ...]) -> Iterator[jax.ShapeDtypeStruct]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in primitives.PRODUCTS:
            yield jax.ShapeDtypeStruct(axes, _dtype(equation.outvars[0].aval.dtype))
        elif name == "scan":
            yield from _slots(equation.params["jaxpr"].jaxpr, (*axes, equation.params["length"]))
        elif name == "cond":
            for branch in equation.params["branches"]:
                yield from _slots(branch.jaxpr, axes)
        elif name == "shard_map":
            sizes = primitives.mesh_of(equation).values()
            yield from _slots(equation.params["jaxpr"], (*axes, *sizes))
        else:
            body = primitives.body_of(equation)
            if body is not None:
                yield from _slots(body[0], axes)


def _dtype(dtype: Any) -> Any:
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.float32
    return trees.real_dtype(np.promote_types(dtype, np.float32))
