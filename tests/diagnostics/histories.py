"""Gradients that are easily recognized, for tests of histories."""

import jax
import jax.numpy as jnp


def run(tx, gradients, params=None, **extra):
    """The state after these gradients, one per step."""
    params = jnp.zeros_like(gradients[0]) if params is None else params
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        _, state = update(g, state, params, **extra)
    return state


def numbers(count):
    """Gradients of one element: 1, 2, 3, ..."""
    return [jnp.array([float(i + 1)]) for i in range(count)]
