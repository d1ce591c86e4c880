"""Ways in which public code uses optax: each gives the same result with gradtx in its place."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import gradtx

# Of numbers that optax takes as 1 - b2**t in float32, four digits are right at t = 1.
RELATIVE, ABSOLUTE = 1e-4, 1e-6

PARAMS = {
    "dense": {"kernel": jnp.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]]), "bias": jnp.zeros(3)},
    "head": {
        "kernel": jnp.array([[1.0, 0.85, -2.0], [0.55, 0.75, 1.1]]),
        "bias": jnp.full(3, 0.65, jnp.float32),
    },
}

FLAT = jnp.array([0.5, -1.0, 2.0, 1.5])


def gradients(params, number=0):
    """Gradients that depend on the parameters and on the number of the step."""

    def gradient(p):
        g = jnp.cos(jnp.arange(p.size)).reshape(p.shape) * (1.0 + 0.5 * number) + 0.1 * p
        return g.astype(p.dtype)

    return jax.tree.map(gradient, params)


def train(tx, params=PARAMS, state=None, steps=3, first=0, compiled=False):
    """The parameters and the state after some steps of an ordinary loop.

    Outside of compiled functions a conditional is compiled at each call, so that a loop of several
    steps with one is faster if the whole update is `compiled`.
    """
    state = tx.init(params) if state is None else state
    update = jax.jit(tx.update) if compiled else tx.update
    for number in range(first, first + steps):
        updates, state = update(gradients(params, number), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def stepper(lib, tx):
    """One step of an ordinary loop."""

    def step(params, state):
        updates, state = tx.update(gradients(params), state, params)
        return lib.apply_updates(params, updates), state

    return step


def check_same(result, expected):
    """Assert that two trees agree in structure, dtypes and, up to rounding, values."""
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    leaves = jax.tree_util.tree_leaves_with_path(result)
    for (path, ours), theirs in zip(leaves, jax.tree.leaves(expected), strict=True):
        where = jax.tree_util.keystr(path)
        if isinstance(theirs, (str, type)):
            assert ours == theirs, where
            continue
        assert jnp.result_type(ours) == jnp.result_type(theirs), where
        kind = jnp.complex128 if jnp.iscomplexobj(theirs) else np.float64
        # optax rounds to half precision after each operation, gradtx once.
        units = 2 * jnp.finfo(theirs.dtype).eps if jnp.result_type(theirs).itemsize == 2 else 0.0
        np.testing.assert_allclose(
            np.asarray(ours).astype(kind),
            np.asarray(theirs).astype(kind),
            rtol=max(RELATIVE, units),
            atol=ABSOLUTE,
            err_msg=where,
        )


def both(idiom):
    """Make a test of an idiom, a function of the library and of the module of its contrib names.

    Its results are compared. It runs with jax's default settings, like the code it represents.
    """

    def test():
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                expected = idiom(optax, optax.contrib)
            assert jax.tree.leaves(expected), "nothing to compare"
            check_same(idiom(gradtx, gradtx), expected)

    functools.update_wrapper(test, idiom)
    del test.__wrapped__  # pytest would take its arguments for fixtures
    return test
