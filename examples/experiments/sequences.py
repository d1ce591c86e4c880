"""Applies a transformation to a sequence of gradients: a given signal, or those of a descent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradtx


def filtered(tx: gradtx.GradientTransformation, signal: jax.Array) -> jax.Array:
    """The updates that a transformation returns for each step's gradients.

    Args:
        tx: a transformation that needs no parameters, such as an average.
        signal: the gradients, of shape (steps, ...).

    Returns:
        The updates, of the same shape.
    """

    def step(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        update, state = tx.update(gradient, state)
        return state, jnp.asarray(update)

    return jax.lax.scan(step, tx.init(signal[0]), signal)[1]


def descend(
    tx: gradtx.GradientTransformation,
    gradient: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    steps: int,
) -> jax.Array:
    """The path that an optimizer takes.

    Args:
        tx: the optimizer.
        gradient: a function from parameters to the gradient of the loss.
        start: the initial parameters, of shape (...).
        steps: the number of updates.

    Returns:
        The parameters before the first and after each update, of shape (steps + 1, ...).
    """

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return (gradtx.apply_updates(params, updates), state), params

    (end, _), path = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return jnp.concatenate([path, end[None]])
