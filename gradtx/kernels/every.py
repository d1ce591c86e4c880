"""Updates that are accumulated and applied every few steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx.arguments import check
from gradtx.effect import declared
from gradtx.inputs import with_fields
from gradtx.kernel import COUNT, Kernel, Slot
from gradtx.lift import lift


def _apply_every(g, *, grad_acc, t, k):
    grad_acc = jnp.where(t == 1, g, grad_acc + g)
    return jnp.where(t == k, grad_acc, 0.0), grad_acc


APPLY_EVERY = Kernel(
    "apply_every",
    _apply_every,
    slots=(Slot("grad_acc"),),
    hyperparameters={"k": COUNT},
    state=optax.ApplyEvery,
    degree=1,
)


def apply_every(k: ArrayLike = 1) -> optax.GradientTransformationExtraArgs:
    """Accumulate updates and pass on their sum every `k` steps, with zeros in between.

        a <- g if t = 1 (mod k), else a + g
        u = a if t = 0 (mod k), else 0

    Transformations before it in a chain see every step. To average gradients and take one step of
    an optimizer every k steps, wrap the optimizer in `MultiSteps` instead.

    Args:
        k: how many updates to accumulate, a whole number >= 1.

    Returns:
        The transformation, with the state `ApplyEvery(count, grad_acc)`; `count` runs from 0 to
        k - 1.

    Raises:
        ValueError: if `k` is not a whole number >= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.apply_every(2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (1.0, 2.0, 3.0, 4.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        ...     print(updates)
        [0.]
        [3.]
        [0.]
        [7.]
    """
    k = check("apply_every", "k", k, COUNT)
    accumulate = lift(APPLY_EVERY, k=k)

    @declared(APPLY_EVERY)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates, state = accumulate.update(updates, state, params, **extra)
        # Counted modulo k, so that t stays exact in a run of any length.
        count = state.count % jnp.asarray(k).astype(jnp.int32)
        new = {"count": count, "grad_acc": state.grad_acc}
        return updates, with_fields(optax.ApplyEvery, state, new)

    return optax.GradientTransformationExtraArgs(accumulate.init, update)
