"""Newton's method: the gradient multiplied by the inverse of the Hessian."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from optax import ScalarOrSchedule

from gradtx import trees
from gradtx.arguments import COUNT, NON_NEGATIVE, check, check_hyperparameter, evaluate
from gradtx.effect import Effect, declared
from gradtx.explicit import each_laid_out_as, gathered
from gradtx.inputs import as_gradients, check_state, with_fields
from gradtx.kernels.objective import Loss, loss_of_moving
from gradtx.messages import shown
from gradtx.stored import to_store


def scale_by_newton(
    *,
    solver: Literal["dense", "cg"] = "dense",
    damping: ScalarOrSchedule = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Solve for Newton's direction.

        (H + damping * I) u = g,    H = the Hessian of value_fn at the parameters

    Args:
        solver: "dense" forms H, of n^2 numbers for n real parameters, and takes the minimum-norm
            solution if it is singular; "cg" runs conjugate gradients on Hessian-vector products,
            never forms H, and needs H + damping * I to be positive definite.
        damping: added to the diagonal, >= 0; a number, a scalar array or a schedule.
        tolerance: "cg" stops once the norm of the residual is below this fraction of that of the
            gradient, >= 0.
        max_iterations: "cg" stops after this many steps, >= 1; None: ten times the number of
            parameters.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule. Its update needs
        `params` and the loss as an extra argument: `update(grads, state, params, value_fn=loss)`.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `params` or `value_fn`
            is missing, or the loss is not a real scalar.

    Source:
        Nocedal & Wright 2006, "Numerical optimization", equation (3.30) and Algorithm 5.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> loss = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2)
        >>> tx = gradtx.scale_by_newton()
        >>> x = jnp.array([3.0, 4.0])
        >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
        >>> print(updates)
        [3. 4.]
    """
    owner = "scale_by_newton"
    if solver not in ("dense", "cg"):
        raise ValueError(f"{owner}: solver must be 'dense' or 'cg', got {shown(solver)}")
    damping = check_hyperparameter(owner, "damping", damping, NON_NEGATIVE)
    tolerance = check(owner, "tolerance", tolerance, NON_NEGATIVE)
    if max_iterations is not None:
        max_iterations = check(owner, "max_iterations", max_iterations, COUNT)

    @declared(Effect(degree=1, alters=True))
    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value_fn: Loss | None = None,
        **extra: Any,
    ) -> Any:
        del extra
        updates = as_gradients(updates, params)
        moving, parameters, value = loss_of_moving(owner, "value_fn", value_fn, updates, params)
        gradients = moving.arrays()
        if callable(damping):
            check_state(owner, state, optax.ScaleByScheduleState._fields)
        shift, state = _damping_now(damping, state)
        if not gradients:
            return updates, state
        # Each device solves the whole system.
        at, right = (list(map(gathered, _in_one_dtype(own))) for own in (parameters, gradients))
        if solver == "dense":
            directions = _solve_dense(value, at, right, shift)
        else:
            directions = _solve_cg(value, at, right, shift, tolerance, max_iterations)
        new = [to_store(d, g.dtype) for d, g in zip(directions, gradients, strict=True)]
        return moving.tree_of(each_laid_out_as(new, gradients)), state

    def init(params: Any) -> Any:
        del params
        if callable(damping):
            return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    return optax.GradientTransformationExtraArgs(init, update)


def _damping_now(damping: ScalarOrSchedule, state: Any) -> tuple[Any, Any]:
    if not callable(damping):
        return damping, state
    return evaluate(damping, state.count), with_fields(
        optax.ScaleByScheduleState, state, {"count": optax.safe_increment(state.count)}
    )


def _in_one_dtype(leaves: list[Any]) -> list[jax.Array]:
    """The leaves in the widest of the dtypes to compute in."""
    dtypes = [trees.compute_dtype(jnp.result_type(leaf)) for leaf in leaves]
    widest = functools.reduce(np.promote_types, dtypes)
    return [jnp.asarray(leaf).astype(widest) for leaf in leaves]


def _solve_dense(value, at, gradient, damping):
    flat, unravel = ravel_pytree(at)
    right, _ = ravel_pytree(gradient)
    hessian = jax.hessian(lambda x: value(unravel(x)))(flat)
    matrix = hessian + jnp.asarray(damping, flat.dtype) * jnp.eye(flat.size, dtype=flat.dtype)
    # By eigenvalues, so that a flat direction, where the gradient is zero too, stays finite.
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    cutoff = flat.size * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(eigenvalues), initial=0.0)
    is_flat = jnp.abs(eigenvalues) <= cutoff
    inverse = jnp.where(is_flat, 0.0, 1 / jnp.where(is_flat, 1.0, eigenvalues))
    return unravel(vectors @ (inverse * (vectors.T @ right)))


def _solve_cg(value, at, gradient, damping, tolerance, max_iterations):
    def product(vector):
        _, curved = jax.jvp(jax.grad(value), (at,), (vector,))
        return [h + jnp.asarray(damping, h.dtype) * v for h, v in zip(curved, vector, strict=True)]

    solution, _ = jax.scipy.sparse.linalg.cg(
        product, gradient, tol=tolerance, maxiter=max_iterations
    )
    return solution
