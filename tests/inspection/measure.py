"""What an optimizer does to a small tree, to be compared with what explain says about it.

An update is minus the learning rate times a direction, and the directions are written in NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

PARAMS = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([2.0, -1.0])}
GRADIENTS = {"w": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "b": jnp.array([-4.0, 1.5])}


def gradient(g, p):
    return g


def sign(g, p):
    return {name: np.sign(x) for name, x in g.items()}


def unit(g, p):
    norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
    return {name: x / norm for name, x in g.items()}


def of_the_weights_length(g, p):
    return {name: x * np.linalg.norm(p[name]) / np.linalg.norm(x) for name, x in g.items()}


def weights_added(g, p):
    return {name: x + 0.1 * p[name] for name, x in g.items()}


def last_update(tx, calls=1, factor=1.0):
    """The result of the last of several equal calls."""
    gradients = jax.tree.map(lambda g: factor * g, GRADIENTS)
    state, updates = tx.init(PARAMS), None
    extra = {"value": jnp.float32(3.0), "grad_fn": lambda params, i: gradients}
    with jax.numpy_dtype_promotion("standard"):  # for optax
        for _ in range(calls):
            updates, state = tx.update(gradients, state, PARAMS, **extra)
    return {name: np.asarray(u, np.float64) for name, u in updates.items()}


def measured(tx, direction, calls=1, factor=1.0):
    """The learning rate of each leaf in the last of some calls."""
    gradients, params = (
        {name: np.asarray(x, np.float64) for name, x in tree.items()}
        for tree in (GRADIENTS, PARAMS)
    )
    directions = direction({name: factor * g for name, g in gradients.items()}, params)
    rates = {}
    for name, u in last_update(tx, calls, factor).items():
        d = directions[name]
        rates[name] = -np.sum(u * d) / np.sum(d * d)
        # Along any other direction there would be no learning rate at all.
        np.testing.assert_allclose(u, -rates[name] * d, rtol=2e-5, atol=1e-12)
    return rates


def rates_of(tx, step=0):
    rows = gradtx.explain(tx, PARAMS, step=step).rows
    return {row.path: row.learning_rate and row.learning_rate.number for row in rows}


def halved(count):
    return 0.5 / (1 + count)


def on_w(tree):
    return {"w": True, "b": False}


def doubled_downhill(updates, params):
    return jax.tree.map(lambda u: -2.0 * u, updates)
