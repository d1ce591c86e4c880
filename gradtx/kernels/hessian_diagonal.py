"""Hutchinson's estimate of the Hessian's diagonal, from one product with a random vector."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import HutchinsonState

from gradtx import trees
from gradtx.arguments import check_key
from gradtx.effect import Effect, declared
from gradtx.inputs import as_gradients, check_state
from gradtx.kernels.objective import Loss, loss_of_moving
from gradtx.messages import shown
from gradtx.placement import with_numbers_placed
from gradtx.stored import to_store

_REPLACING = Effect(hidden="replaces the gradient", decay="hides", alters=True)


def hutchinson_estimator_diag_hessian(
    random_seed: jax.Array | int | None = None,
    *,
    distribution: Literal["rademacher", "normal"] = "rademacher",
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by an unbiased estimate of the Hessian's diagonal.

        u = z * (H z),    z random with mean 0 and covariance I

    With random signs the estimate of element i has the variance sum_{j != i} H_ij^2: it is exact
    where the Hessian is diagonal. Normal numbers add 2 H_ii^2. Leaves without a gradient are left
    out.

    Args:
        random_seed: a PRNG key, or an integer seed; None: `jax.random.PRNGKey(0)`.
        distribution: "rademacher" for random signs, which optax draws too, or "normal" as in
            Sophia's paper.

    Returns:
        The transformation, with the state `HutchinsonState(key)`. Its update needs `params` and
        the loss as an extra argument: `update(grads, state, params, obj_fn=loss)`, or `value_fn`
        as for `scale_by_newton`.

    Raises:
        ValueError: if `distribution` is unknown or `random_seed` is neither a key nor a seed; in
            `update`, if `params` or the loss is missing, the loss is not a real scalar, or a
            parameter is complex.

    Source:
        Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for
        Laplacian smoothing splines"; Liu et al. 2023, "Sophia", Algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> loss = lambda x: jnp.sum(jnp.array([1.0, 50.0]) * x**2)
        >>> tx = gradtx.hutchinson_estimator_diag_hessian()
        >>> x = jnp.array([3.0, 4.0])
        >>> print(tx.update(jax.grad(loss)(x), tx.init(x), x, obj_fn=loss)[0])
        [  2. 100.]
    """
    owner = "hutchinson_estimator_diag_hessian"
    if distribution not in ("rademacher", "normal"):
        raise ValueError(
            f"{owner}: distribution must be 'rademacher' or 'normal', got {shown(distribution)}"
        )
    draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal
    key = _key(owner, random_seed)

    @with_numbers_placed
    def init(params: Any) -> HutchinsonState:
        del params
        # A copy, because the caller may donate the state.
        return HutchinsonState(jnp.copy(jax.random.PRNGKey(0) if key is None else key))

    @declared(_REPLACING)
    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        obj_fn: Loss | None = None,
        value_fn: Loss | None = None,
        **extra: Any,
    ) -> Any:
        del extra
        updates = as_gradients(updates, params)
        moving, parameters, value = loss_of_moving(
            owner, "obj_fn", obj_fn or value_fn, updates, params
        )
        refuse_complex(owner, updates)
        check_state(owner, state, HutchinsonState._fields)
        new_key, subkey = jax.random.split(state.key)
        at = [widened(parameter) for parameter in parameters]
        signs = [
            draw(leaf_key, leaf.shape, leaf.dtype)
            for leaf_key, leaf in zip(jax.random.split(subkey, len(at)), at, strict=True)
        ]
        products = jax.jvp(jax.grad(value), (at,), (signs,))[1] if at else []
        new = [
            to_store(sign * product, g.dtype)
            for sign, product, g in zip(signs, products, moving.arrays(), strict=True)
        ]
        return moving.tree_of(new), HutchinsonState(new_key)

    return optax.GradientTransformationExtraArgs(init, update)


def widened(leaf: Any) -> jax.Array:
    """An inexact number or array in the dtype to compute in."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(trees.compute_dtype(leaf.dtype))


def refuse_complex(owner: str, tree: Any) -> None:
    """Refuse a tree with complex leaves, for which this Hessian is not defined.

    Raises:
        ValueError: naming the path of the first.
    """
    for path, leaf in zip(trees.paths(tree), trees.flatten(tree)[0], strict=True):
        if trees.is_parameter(leaf) and jnp.iscomplexobj(leaf):
            raise ValueError(f"{owner}: complex parameters are not supported, see '{path}'")


def _key(owner: str, key: Any) -> Any:
    """The given key, typed or raw, or that of an integer seed."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_raw = dtype == np.uint32 and shape == jax.random.PRNGKey(0).shape
    return key if key is None or is_raw else check_key(owner, key, "random_seed")
