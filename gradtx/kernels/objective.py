"""The loss as a function of the parameters that have a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradtx.inputs import real_scalar
from gradtx.leaves import Aligned

Loss = Callable[[Any], jax.Array]


def loss_of_moving(
    owner: str, argument: str, loss: Loss | None, updates: Any, params: Any
) -> tuple[Aligned, list[Any], Callable[[list[jax.Array]], jax.Array]]:
    """Fix the parameters that have no gradient.

    Args:
        owner: name of the caller, which opens error messages.
        argument: the name of the loss among the arguments of `update`.
        loss: a function of the parameters that returns a real scalar.
        updates: the gradients.
        params: the parameters.

    Returns:
        The leaves that have a gradient, their parameters, and the loss as a function of these
        as a list, whose arrays may be wider than the parameters.

    Raises:
        ValueError: if `loss` or `params` is missing, or `updates` does not fit `params`; when the
            function is called, if the loss is not a real scalar.
    """
    if params is None or loss is None:
        raise ValueError(
            f"{owner}: needs the parameters and the loss; call update(grads, state, params, "
            f"{argument}=loss)"
        )
    aligned = Aligned(owner, {"updates": updates, "params": params})
    parameters = aligned.parts("params")

    def value(variables: list[jax.Array]) -> jax.Array:
        narrow = [
            variable.astype(jnp.result_type(p))
            for variable, p in zip(variables, parameters, strict=True)
        ]
        return real_scalar(owner, loss(aligned.tree_of(narrow, "params")))

    return aligned, parameters, value
