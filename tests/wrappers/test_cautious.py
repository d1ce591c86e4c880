"""Cautious optimizers against their paper's equation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.compose.parts import owner_of, parts_of
from gradtx.kernel import ANY_NUMBER, Kernel
from gradtx.lift import lift

from ..trajectory import NON_NEGATIVE, STEPS, check_refused, inputs, run, wrong_arguments


def descend(g, *, learning_rate):
    return -learning_rate * g


UNDECLARED = Kernel("descend", descend, hyperparameters={"learning_rate": ANY_NUMBER})


def masked(u, g, xi=1.0):
    """The paper's equation for an update that is added to the parameters."""
    phi = u * g < 0
    return u * phi * phi.size / (phi.sum() + xi)


def runs(*transformations):
    """The gradients, and the updates and states of each transformation, step by step."""
    gradients, params = inputs(STEPS)
    trajectories = [run(tx, gradients, params) for tx in transformations]
    yield from zip(gradients, *trajectories, strict=True)


@pytest.mark.parametrize("xi", [1.0, 0.0], ids=str)
def test_equation(xi):
    tx = gradtx.adam(0.1)
    with jax.enable_x64(True):
        for g, (u, state), (updates, cautious_state) in runs(tx, gradtx.cautious(tx, xi=xi)):
            if xi == 0 and not any(leaf.any() for leaf in g.values()):
                continue  # 0 / 0 in the paper; see the test below
            for leaf, update in updates.items():
                np.testing.assert_allclose(update, masked(u[leaf], g[leaf], xi), rtol=1e-12)
            # The optimizer does not see what the mask leaves out.
            jax.tree.map(np.testing.assert_array_equal, cautious_state, state)


def test_a_scaling_points_along_the_gradient():
    before = gradtx.chain(
        gradtx.cautious(gradtx.scale_by_adam()),
        gradtx.scale_by_learning_rate(0.5),
    )
    after = gradtx.cautious(gradtx.adam(0.5))
    for _, (ours, _), (expected, _) in runs(before, after):
        jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_weight_decay_outside_of_it_is_not_masked():
    decay = gradtx.add_decayed_weights(0.1)
    descend = gradtx.scale_by_learning_rate(0.5)
    cautious = gradtx.cautious(gradtx.scale_by_adam())
    params = jnp.array([2.0, -3.0])
    tx = gradtx.chain(cautious, decay, descend)
    updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
    np.testing.assert_allclose(updates, -0.05 * params, rtol=1e-6)


@pytest.mark.parametrize("xi", [0.0, 1.0], ids=str)
def test_nothing_moves_where_nothing_agrees(xi):
    tx = gradtx.cautious(optax.identity(), xi=xi)
    g = {"against": jnp.array([1.0, -2.0]), "still": jnp.zeros(2)}
    updates, _ = tx.update(g, tx.init(g))
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, np.zeros(2)), updates)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_agreement_does_not_underflow(dtype):
    # The product of the two is zero in single precision.
    tiny = jnp.array([1, -1, 1], dtype) * 2.0**-90
    direction = jnp.array([1, 1, -1], dtype) * 2.0**-80
    tx = gradtx.cautious(gradtx.stateless(lambda updates, params: direction), xi=0.0)
    updates, _ = tx.update(tiny, tx.init(tiny))
    np.testing.assert_allclose(updates, np.array([0, 1.5, 1.5]) * np.asarray(direction))


def test_extra_arguments_and_parts_go_through():
    inner = gradtx.polyak_sgd()
    tx = gradtx.cautious(inner)
    params = jnp.array([1.0, 2.0])
    proposed, _ = inner.update(params, inner.init(params), params, value=1.0)
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    np.testing.assert_allclose(updates, proposed * 2 / 3, rtol=1e-6)
    assert owner_of(tx) == "cautious"
    assert [part.transformation for part in parts_of(tx)] == [inner]


def test_a_cautious_ball_never_rolls_uphill():
    # Heavy balls in bowls of different curvature, each a leaf of its own. A step may end on the
    # other side of the minimum, but from there the momentum goes no further up.
    curvature = np.geomspace(0.1, 4.0, 5)
    start = tuple(jnp.ones(5))

    def path_of(tx):
        def step(carry, _):
            x, state = carry
            g = tuple(jnp.float32(h) * y for h, y in zip(curvature, x, strict=True))
            updates, state = tx.update(g, state)
            x = tuple(y + u for y, u in zip(x, updates, strict=True))
            return (x, state), jnp.stack(x)

        return np.asarray(jax.lax.scan(step, (start, tx.init(start)), None, 200)[1])

    def rises(path):
        stays = path[1:] * path[:-1] > 0
        return np.where(stays, np.diff(abs(path), axis=0), 0).max()

    ball = gradtx.sgd(0.01, momentum=0.9)
    assert rises(path_of(ball)) > 0.1
    cautious = path_of(gradtx.cautious(ball, xi=0.0))
    assert rises(cautious) <= 0
    # Where the plain ball would oscillate, this one is at rest near the minimum.
    assert np.all(abs(cautious[-1, 1:]) < 0.1)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.cautious,
        {"tx": gradtx.identity()},
        xi=(*NON_NEGATIVE, lambda count: 1.0),
        tx=(gradtx.adam, 1.0),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize(
    ("make", "downhill"),
    [
        (lambda: gradtx.adamw(0.1), True),
        (lambda: optax.adam(0.1), True),
        (gradtx.prodigy, True),
        (lambda: gradtx.chain(gradtx.trace(0.9), gradtx.scale(-0.1)), True),
        (lambda: gradtx.chain(gradtx.clip(1.0), gradtx.trace(0.9)), False),
        (lambda: gradtx.partition({"all": gradtx.scale_by_adam()}, "all"), False),
        (gradtx.scale_by_lion, False),
        (gradtx.scale_by_cocob, True),
        (lambda: lift(UNDECLARED, learning_rate=0.1), True),
        (lambda: gradtx.scale_by_rprop(0.1), False),
        (lambda: gradtx.scale_by_learning_rate(0.1, flip_sign=False), False),
        (lambda: gradtx.apply_every(1), False),
        (lambda: gradtx.graft(gradtx.scale_by_adam(), gradtx.sgd(0.1)), True),
        (lambda: gradtx.graft(gradtx.sgd(0.1), gradtx.scale_by_adam()), False),
    ],
    ids=[
        *("adamw", "optax", "prodigy", "scale", "chain", "partition", "lion", "cocob"),
        *("undeclared", "rprop", "ascent", "apply_every", "graft_down", "graft_up"),
    ],
)
def test_direction_is_that_of_the_pieces(make, downhill):
    g, params = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.5])
    for asked, expected in ((None, 2), (downhill, 2), (not downhill, 0)):
        tx = gradtx.cautious(make(), downhill=asked)
        # optax mixes dtypes.
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(g, tx.init(params), params)
        assert jnp.count_nonzero(updates) == expected
