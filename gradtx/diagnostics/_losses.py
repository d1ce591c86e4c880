"""What all diagnostics of a loss ask of it."""

from typing import Any

import jax
import jax.numpy as jnp


def real_scalar(owner: str, loss: Any) -> jax.Array:
    """The loss, if it is a real number.

    Args:
        owner: name of the caller, which opens the message.
        loss: what the loss function returned.

    Raises:
        ValueError: if it is anything else, such as a pair of the loss and other things.
    """
    dtype = getattr(loss, "dtype", None)
    if dtype is None or loss.shape or not jnp.issubdtype(dtype, jnp.floating):
        got = type(loss).__name__ if dtype is None else f"{dtype} of shape {loss.shape}"
        raise ValueError(f"{owner}: the loss must be a real scalar, got {got}")
    return loss
