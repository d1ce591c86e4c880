"""The loss as a function of those parameters that have a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.messages import shown

Loss = Callable[[Any], jax.Array]


def loss_of_moving(
    owner: str, argument: str, loss: Loss | None, updates: Any, params: Any
) -> tuple[list[int], list[Any], Callable[[list[jax.Array]], jax.Array]]:
    """Fix the parameters that have no gradient.

    Args:
        owner: name of the transformation, which opens the message.
        argument: the name of the loss among the arguments of `update`.
        loss: a function of the parameters that returns a real scalar.
        updates: the gradients.
        params: the parameters.

    Returns:
        Which of the leaves have a gradient, their parameters, and the loss as a function of these
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
    leaves, treedef = trees.flatten(updates)
    parameters = trees.flatten_like(owner, "params", params, "updates", updates)
    moving = [i for i, leaf in enumerate(leaves) if trees.is_parameter(leaf)]
    for i in moving:
        _check_parameter(owner, updates, i, parameters[i])

    def value(variables: list[jax.Array]) -> jax.Array:
        new = list(parameters)
        for i, variable in zip(moving, variables, strict=True):
            new[i] = variable.astype(jnp.result_type(parameters[i]))
        return _real_scalar(owner, loss(treedef.unflatten(new)))

    return moving, [parameters[i] for i in moving], value


def _check_parameter(owner: str, updates: Any, index: int, parameter: Any) -> None:
    leaf = trees.flatten(updates)[0][index]
    if not trees.is_parameter(parameter):
        raise ValueError(
            f"{owner}: needs the parameter at '{trees.paths(updates)[index]}', where updates has "
            f"shape {np.shape(leaf)}; params has {shown(parameter)}"
        )
    if np.shape(parameter) != np.shape(leaf):
        trees.refuse_shape(owner, "updates", updates, index, "params", parameter)


def _real_scalar(owner: str, loss: Any) -> jax.Array:
    dtype = getattr(loss, "dtype", None)
    if dtype is None or loss.shape or not jnp.issubdtype(dtype, jnp.floating):
        got = type(loss).__name__ if dtype is None else f"{dtype} of shape {loss.shape}"
        raise ValueError(f"{owner}: the loss must be a real scalar, got {got}")
    return loss
