"""Constraints on updates: a global norm of 1, parameters that stay non-negative."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from gradtx import norms
from gradtx.kernel import Kernel
from gradtx.kernels.clip import length_of_gradients, mapped_axes
from gradtx.lengths import direction
from gradtx.lift import lift


def _keep_nonnegative(g, *, p):
    if jnp.iscomplexobj(p) or jnp.iscomplexobj(g):
        raise ValueError(
            f"keep_params_nonnegative: complex numbers have no order; updates are {g.dtype}, "
            f"params are {p.dtype}"
        )
    return jnp.maximum(g, -p)


KEEP_PARAMS_NONNEGATIVE = Kernel(
    "keep_params_nonnegative",
    _keep_nonnegative,
    degree="between",
    decay="limits",
    moves=True,
    source="Bertsekas 1976",
)


def keep_params_nonnegative() -> optax.GradientTransformationExtraArgs:
    """Shorten the updates so that no parameter falls below zero: a projection.

        u = max(g, -p),    so that p + u = max(p + g, 0)

    It belongs at the end of a chain, and the updates should have the dtype of the parameters: in a
    narrower dtype the rounding of -p may leave a parameter below zero. Negative parameters move to
    0.

    Returns:
        The transformation; its update needs `params`, and its state is empty.

    Raises:
        ValueError: in `update`, if parameters or updates are complex.

    Source:
        Bertsekas 1976, "On the Goldstein-Levitin-Polyak gradient projection method", with the
        non-negative numbers as the convex set.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([1.0, 1.0])
        >>> tx = gradtx.chain(gradtx.sgd(1.0), gradtx.keep_params_nonnegative())
        >>> updates, _ = tx.update(jnp.array([0.25, 3.0]), tx.init(params), params)
        >>> print(params + updates)
        [0.75 0.  ]
    """
    return lift(KEEP_PARAMS_NONNEGATIVE)


def _normalize(g, *, length):
    return direction(g, length)


NORMALIZE = Kernel(
    "normalize",
    _normalize,
    measures={"length": length_of_gradients},
    options=("axis_name", "axis_reduction"),
    degree=0,
    decay="keeps",
    source="Hazan et al. 2015, Algorithm 1",
)


def normalize(
    *, axis_name: norms.AxisName | None = None, axis_reduction: str = "sum"
) -> optax.GradientTransformationExtraArgs:
    """Divide all updates by their global norm; zero updates stay zero.

        u = g / ||g||,    ||g|| = sqrt(sum_i sum_j g_ij^2)

    Args:
        axis_name: a mapped axis over which the gradient is spread, see `gradtx.global_norm`.
        axis_reduction: "sum" for the norm of the pieces together, "mean" for their mean norm.

    Returns:
        The transformation; its state is empty.

    Raises:
        ValueError: if `axis_reduction` is unknown.

    Source:
        Hazan, Levy & Shalev-Shwartz 2015, "Beyond convexity", Algorithm 1. optax divides zeros by
        zero.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.normalize()
        >>> updates, _ = tx.update({"a": jnp.array(3.0), "b": jnp.array([4.0])}, tx.init(None))
        >>> print(updates["a"], updates["b"])
        0.6 [0.8]
    """
    return lift(NORMALIZE, **mapped_axes("normalize", axis_name, axis_reduction))
