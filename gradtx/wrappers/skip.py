"""Skipping steps whose gradient is not finite or too large."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx import norms
from gradtx.arguments import COUNT_OR_ZERO, check
from gradtx.compose.parts import Part, composed, widens
from gradtx.compose.sequence import as_transformation
from gradtx.effect import LINEAR
from gradtx.leaves import parameters_of
from gradtx.wrappers.branches import either, zeros_like


def apply_if_finite(
    inner: optax.GradientTransformation, max_consecutive_errors: int
) -> optax.GradientTransformationExtraArgs:
    """Skip steps whose gradient has an infinity or a NaN, unless there are too many in a row.

        n_t = 0 if g_t is finite, else n_{t-1} + 1
        u_t = inner(g_t) if n_t = 0 or n_t > max_consecutive_errors, else 0

    In a skipped step the inner transformation does not run, and its state does not change. Once
    more than `max_consecutive_errors` gradients in a row were not finite, each gradient is passed
    on, so that the run fails visibly, until a finite one ends the row.

    Args:
        inner: the transformation.
        max_consecutive_errors: the largest number of steps in a row that are skipped, >= 0.

    Returns:
        A transformation with the state
        `ApplyIfFiniteState(notfinite_count, last_finite, total_notfinite, inner_state)`:
        `notfinite_count` is n_t, which also counts gradients that are passed on; `last_finite` is
        whether the last gradient was finite; `total_notfinite` is the number of all gradients that
        were not.

    Raises:
        ValueError: if `max_consecutive_errors` is not a whole number >= 0, or `inner` is not a
            transformation.

    Source:
        Micikevicius et al. 2018, "Mixed precision training", section 3.2, where steps are skipped
        whose gradients overflow.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.apply_if_finite(gradtx.sgd(0.5), max_consecutive_errors=1)
        >>> state = tx.init(jnp.zeros(1))
        >>> for gradient in [1.0, jnp.nan, jnp.nan, 1.0]:
        ...     updates, state = tx.update(jnp.array([gradient]), state)
        ...     print(updates, state.notfinite_count)
        [-0.5] 0
        [0.] 1
        [nan] 2
        [-0.5] 0
    """
    owner = "apply_if_finite"
    inner = as_transformation(owner, "inner", inner)
    max_consecutive_errors = check(
        owner, "max_consecutive_errors", max_consecutive_errors, COUNT_OR_ZERO
    )

    def init(params: Any) -> optax.ApplyIfFiniteState:
        return optax.ApplyIfFiniteState(
            notfinite_count=jnp.zeros([], jnp.int32),
            last_finite=jnp.ones([], bool),
            total_notfinite=jnp.zeros([], jnp.int32),
            inner_state=inner.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        is_finite = _number_not_finite(updates) == 0
        count = jnp.where(is_finite, 0, optax.safe_increment(state.notfinite_count))
        updates, inner_state = either(
            owner,
            is_finite | (count > max_consecutive_errors),
            lambda: inner.update(updates, state.inner_state, params, **extra),
            lambda: (zeros_like(updates), state.inner_state),
            updates,
            state.inner_state,
            wide=widens(inner),
        )
        total = state.total_notfinite
        total = jnp.where(is_finite, total, optax.safe_increment(total))
        return updates, optax.ApplyIfFiniteState(count, is_finite, total, inner_state)

    return composed(
        owner,
        (Part("", inner),),
        init,
        update,
        locality="tree",
        state=optax.ApplyIfFiniteState,
        effect=LINEAR,
    )


def skip_not_finite(
    updates: Any, gradient_step: Any = None, params: Any = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether a gradient has an infinity or a NaN; for `MultiSteps(should_skip_update_fn=...)`.

    Args:
        updates: the gradient, a tree of arrays.
        gradient_step: not used.
        params: not used.

    Returns:
        A boolean scalar, and a report: `{"should_skip": that scalar, "num_not_finite": the number
        of elements that are not finite}`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> should_skip, report = gradtx.skip_not_finite({"w": jnp.array([1.0, jnp.nan])})
        >>> print(should_skip, report["num_not_finite"])
        True 1
    """
    del gradient_step, params
    number = _number_not_finite(updates)
    should_skip = number > 0
    return should_skip, {"should_skip": should_skip, "num_not_finite": number}


def skip_large_updates(
    updates: Any, gradient_step: Any, params: Any, max_squared_norm: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether a gradient is too large; for `MultiSteps(should_skip_update_fn=...)`.

        not (sum_i sum_j |g_ij|^2 < max_squared_norm)

    which is also true of a gradient with a NaN, and of one whose squares overflow. The sum is
    calculated in at least float32.

    Args:
        updates: the gradient, a tree of arrays.
        gradient_step: not used.
        params: not used.
        max_squared_norm: the limit of the squared norm; bind it with `functools.partial`.

    Returns:
        A boolean scalar, and a report: `{"should_skip": that scalar, "norm_squared": the sum}`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> gradient = {"w": jnp.array([3.0, 4.0])}
        >>> should_skip, report = gradtx.skip_large_updates(gradient, 0, None, 9.0)
        >>> print(should_skip, report["norm_squared"])
        True 25.0
    """
    del gradient_step, params
    norm_squared = norms.sum_of(_sum_of_squares, parameters_of(updates))
    should_skip = ~(norm_squared < jnp.asarray(max_squared_norm, norm_squared.dtype))
    return should_skip, {"should_skip": should_skip, "norm_squared": norm_squared}


def _number_not_finite(updates: Any) -> jax.Array:
    counts = [jnp.sum(~jnp.isfinite(leaf)) for leaf in parameters_of(updates)]
    return sum(counts, jnp.zeros([], int))


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.sum(norms.abs_squared(x))
