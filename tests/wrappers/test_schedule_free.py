"""The average of the iterates in place of a schedule."""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

import gradtx
from gradtx.testing import references

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5]])}
SETTINGS = {
    "sgd": ("schedule_free_sgd", {"learning_rate": 0.3, "b1": 0.8, "weight_decay": 0.1}),
    "sgd-warmup": (
        "schedule_free_sgd",
        {"learning_rate": 0.3, "warmup_steps": 4, "weight_lr_power": 1.0},
    ),
    "sgd-warmup-schedule": (
        "schedule_free_sgd",
        {
            "learning_rate": lambda count: 0.3 / (1 + count / 8),
            "warmup_steps": 4,
            "weight_lr_power": 1.0,
        },
    ),
    "adamw": (
        "schedule_free_adamw",
        {"learning_rate": 0.05, "b1": 0.95, "b2": 0.9, "weight_decay": 0.1},
    ),
}


def made_by(library, kind):
    name, arguments = SETTINGS[kind]
    return getattr(library, name)(**arguments)


PEERS = {
    "sgd": lambda: optax.contrib.schedule_free_sgd(0.3, b1=0.8, weight_decay=0.1),
    "adamw": lambda: optax.contrib.schedule_free_adamw(0.05, None, 0.95, 0.9, weight_decay=0.1),
}


def gradient(y):
    return jax.tree.map(lambda p: jnp.sin(p) + 0.3 * p, y)


def trajectory(tx, state, params, steps):
    update = jax.jit(tx.update)
    for _ in range(steps):
        # optax mixes dtypes.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = update(gradient(params), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def path(reference, steps):
    """The points y and x at the end, where each gradient is that at the last y."""
    y, slots = np.array([1.0, -2.0, 3.0, 0.5]), {}
    values = reference.hyperparameters
    for count in range(steps):
        now = {name: value(count) if callable(value) else value for name, value in values.items()}
        old = defaultdict(float, slots)
        u, slots = reference.step(count + 1, np.sin(y) + 0.3 * y, y, old, **now)
        y = y + u
    return y, slots["x"]


def flat(tree):
    return np.concatenate([tree["w"], tree["b"].ravel()])


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_equation(kind):
    with jax.enable_x64(True):
        tx = made_by(gradtx, kind)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        params, state = trajectory(tx, tx.init(params), params, 12)
        y, x = path(made_by(references, kind), 12)
        # optax's schedule of the warmup is one in single precision.
        rtol = 1e-6 if "warmup" in kind else 1e-12
        np.testing.assert_allclose(flat(params), y, rtol=rtol, atol=rtol / 10)
        x_read = flat(gradtx.eval_params(state, params))
        np.testing.assert_allclose(x_read, x, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("kind", list(PEERS))
def test_runs_change_hands_with_optax(kind):
    ours, theirs = made_by(gradtx, kind), PEERS[kind]()
    expected, final = trajectory(theirs, theirs.init(PARAMS), PARAMS, 8)
    for first, second in ((ours, theirs), (theirs, ours)):
        state = first.init(PARAMS)
        params, state = trajectory(first, state, PARAMS, 4)
        params, state = trajectory(second, state, params, 4)
        assert jax.tree.structure(state) == jax.tree.structure(final)
        np.testing.assert_allclose(flat(params), flat(expected), rtol=1e-5)
        np.testing.assert_allclose(
            flat(gradtx.schedule_free_eval_params(state, params)),
            flat(optax.contrib.schedule_free_eval_params(final, expected)),
            rtol=1e-5,
        )


def test_constant_rate_averages_all_iterates():
    # With b1 = 1 the gradient is taken at the mean of all z: c = 1 / t.
    tx = gradtx.schedule_free(gradtx.sgd(0.5), 0.5, b1=1.0)
    params, state, z, mean = jnp.array([1.0]), tx.init(jnp.array([1.0])), 1.0, 1.0
    for t in range(1, 6):
        updates, state = tx.update(params, state, params)
        z = z - 0.5 * mean
        mean = mean + (z - mean) / t
        params = gradtx.apply_updates(params, updates)
        np.testing.assert_allclose(params, [mean], rtol=1e-6)
        np.testing.assert_allclose(gradtx.eval_params(state, params), [mean], rtol=1e-6)


def test_nonsmooth_convex_loss_falls_at_the_optimal_rate():
    # |x| with D = 1, G = 1: with learning_rate = D / (G sqrt(T)) Theorem 1 gives D G / sqrt(T).
    steps = 400
    rate = 1 / np.sqrt(steps)
    tx = gradtx.schedule_free(gradtx.sgd(rate), rate)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.sign(params), state, params)
        return (gradtx.apply_updates(params, updates), state), None

    start = jnp.array(1.0)
    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    assert abs(gradtx.eval_params(state, params)) <= 1 / np.sqrt(steps)


def test_z_of_half_precision_parameters_is_kept_in_float32_unless_asked_otherwise():
    params = jnp.ones(2, jnp.bfloat16)
    assert gradtx.schedule_free_sgd().init(params).z.dtype == jnp.float32
    state = gradtx.schedule_free_sgd(state_dtype=jnp.bfloat16).init(params)
    assert state.z.dtype == jnp.bfloat16
    assert gradtx.schedule_free_sgd().init(params).b1.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b1": 0.0}, "b1 must be in"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_lr_power": -1.0}, "weight_lr_power"),
        ({"r": float("nan")}, r"\br must be a number"),
        ({"state_dtype": jnp.int8}, "state_dtype"),
    ],
    ids=["b1", "learning_rate", "weight_lr_power", "r", "state_dtype"],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        gradtx.schedule_free(gradtx.identity(), **({"learning_rate": 0.1} | arguments))


def test_wrong_recipe_arguments():
    with pytest.raises(ValueError, match="warmup_steps"):
        gradtx.schedule_free_sgd(0.1, warmup_steps=0)
    with pytest.raises(ValueError, match=r"schedule_free_adamw: b2 .* got 1\.0"):
        gradtx.schedule_free_adamw(b2=1.0)
    tx = gradtx.schedule_free_sgd()
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS))
