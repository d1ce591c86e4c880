"""Adam-mini against its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    DECAY,
    NON_NEGATIVE,
    STEPS,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    inputs,
    run,
    wrong_arguments,
)

CASES = cases(
    gradtx.scale_by_adamini,
    {"blocks": ()},
    {"b1": 0.5, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-2},
)


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


def test_complex_gradients():
    complex_gradients(CASES[1])


def every_axis(path, leaf):
    return range(leaf.ndim)


def test_with_a_block_for_each_element_it_is_adam():
    trajectories = [
        run(tx, *inputs(STEPS))
        for tx in (gradtx.scale_by_adamini(blocks=every_axis), gradtx.scale_by_adam())
    ]
    for (ours, _), (adam, _) in zip(*trajectories, strict=True):
        for leaf, update in adam.items():
            np.testing.assert_allclose(ours[leaf], update, rtol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "shape", "expected"),
    [
        (-1, (3, 4), (1, 4)),
        (-1, (3, 3, 5, 4), (1, 1, 1, 4)),
        (-1, (4,), (1,)),
        (-1, (), ()),
        (0, (3, 4), (3, 1)),
        (1, (6, 2, 3), (1, 2, 1)),
        ((0, -1), (5, 3, 4), (5, 1, 4)),
        ((), (3, 4), (1, 1)),
        (every_axis, (4,), (4,)),
        (-1, (0, 3), (1, 3)),
        (-1, (3, 0), (1, 0)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_shape_of_the_second_moment(blocks, shape, expected):
    tx = gradtx.scale_by_adamini(blocks=blocks)
    g = jnp.ones(shape)
    updates, state = tx.update(g, tx.init(g))
    assert state.nu.shape == expected
    # All elements are equal, so that each is as large as its block.
    np.testing.assert_allclose(updates, g, rtol=1e-6)


def test_its_second_moment_takes_almost_no_memory():
    params = {"kernel": jnp.zeros((64, 32)), "bias": jnp.zeros(32)}
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(params).nu))
        for tx in (gradtx.scale_by_adamini(), gradtx.scale_by_adam())
    ]
    assert sizes == [4 * (32 + 1), 4 * (64 * 32 + 32)]


def test_leaves_of_one_shape_may_have_different_blocks():
    # Attention weights by head, an embedding by Adam itself, all else by output neuron.
    def blocks(path, leaf):
        if path.startswith("attention/"):
            return 1
        return every_axis(path, leaf) if path == "embedding" else -1

    weights = jnp.zeros((6, 2, 3))
    params = {"attention": {"query": weights}, "embedding": weights, "output": weights}
    state = gradtx.scale_by_adamini(blocks=blocks).init(params)
    shapes = {"attention": {"query": (1, 2, 1)}, "embedding": (6, 2, 3), "output": (1, 1, 3)}
    assert jax.tree.map(jnp.shape, state.nu) == shapes


def test_a_block_goes_straight_to_the_minimum_of_a_round_bowl():
    # Without memory u = g / rms(g): each step shortens the way by learning_rate * sqrt(size).
    with jax.enable_x64(True):
        start = jnp.array([3.0, -4.0, 0.0, 12.0])
        tx = gradtx.chain(
            gradtx.scale_by_adamini(b1=0.0, b2=0.0), gradtx.scale_by_learning_rate(0.05)
        )

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(x, state)
            return (x + updates, state), x

        _, path = jax.lax.scan(step, (start, tx.init(start)), None, 100)
    expected = np.outer(1 - 0.05 * 2 * np.arange(100) / 13, start)
    np.testing.assert_allclose(path, expected, atol=1e-6)


def test_a_leaf_without_the_axis_is_refused():
    tx = gradtx.scale_by_adamini(blocks=(0, 3))
    with pytest.raises(ValueError, match=r"axes \(0, 3\).*'layer/kernel'.*shape \(2, 3\)"):
        tx.init({"layer": {"kernel": jnp.zeros((2, 3))}})


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_adamini,
        {},
        b1=DECAY,
        b2=DECAY,
        eps=NON_NEGATIVE,
        eps_root=NON_NEGATIVE,
        mu_dtype=("int32",),
        blocks=(1.5, True, "last", None, (0, 1.0)),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
