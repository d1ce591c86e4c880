"""Scaling, weight decay and centering against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)


def warmup(count):
    return (1 + count) / 16


CASES = [
    *cases(gradtx.scale, {"step_size": 0.0}, {"step_size": -0.3}),
    *cases(gradtx.scale_by_schedule, {"step_size_fn": warmup}),
    *cases(
        gradtx.scale_by_learning_rate,
        {"learning_rate": 0.1},
        {"learning_rate": warmup},
        {"learning_rate": 3.0, "flip_sign": False},
    ),
    *cases(gradtx.add_decayed_weights, {}, {"weight_decay": 0.3}),
    *cases(gradtx.centralize, {"layout": "torch"}, {}),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.centralize]))
def test_equation(check, case):
    check(case)


def test_no_learning_rate_leaves_the_updates_alone():
    tx = gradtx.scale_by_learning_rate(None)
    g = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], g)


@pytest.mark.parametrize(
    "mask",
    [
        {"kernel": True, "bias": False},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        gradtx.select("kernel"),
    ],
    ids=["tree", "function", "select"],
)
@pytest.mark.parametrize("weight_decay", [0.5, lambda count: 0.5], ids=["number", "schedule"])
def test_weights_outside_the_mask_do_not_decay(mask, weight_decay):
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full(2, 4.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = gradtx.add_decayed_weights(weight_decay, mask)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], np.full((2, 2), 2.0))
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def centralized(g, **arguments):
    tx = gradtx.centralize(**arguments)
    return np.asarray(tx.update(jnp.asarray(g), tx.init(g))[0])


@pytest.mark.parametrize("layout", ["jax", "torch"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 3), (4, 3, 2), (3, 2, 2, 5), (2, 1, 3, 2, 2, 3)])
def test_each_unit_of_a_centralized_kernel_has_mean_zero(shape, layout):
    g = np.float32(np.random.default_rng(0).normal(size=shape) + 1)
    outputs = -1 if layout == "jax" else 0
    by_unit = zip(
        np.moveaxis(centralized(g, layout=layout), outputs, 0),
        np.moveaxis(np.float64(g), outputs, 0),
        strict=True,
    )
    for unit, original in by_unit:
        np.testing.assert_allclose(unit, original - original.mean(), rtol=1e-5, atol=1e-6)


def test_centralized_steps_keep_the_sum_of_the_weights_into_each_output():
    # The paper's projection, on a dense layer: the outputs for a constant input do not move.
    def loss(kernel):
        return jnp.sum(jnp.tanh(jnp.array([[0.3, -1.0, 2.0]]) @ kernel))

    kernel = jnp.float32(np.random.default_rng(1).normal(size=(3, 4)))
    moved = kernel - 0.1 * centralized(jax.grad(loss)(kernel))
    np.testing.assert_allclose(jnp.ones(3) @ moved, jnp.ones(3) @ kernel, atol=1e-6)
    assert np.max(np.abs(moved - kernel)) > 0.01


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (-2, 0), [1]], ids=str)
def test_centralized_along_given_axes(axis):
    g = np.float32(np.random.default_rng(2).normal(size=(4, 3, 2)) + 1)
    axes = tuple(axis) if isinstance(axis, list) else axis
    expected = g - np.mean(np.float64(g), axis=axes, keepdims=True)
    np.testing.assert_allclose(centralized(g, axis=axis), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(centralized(g[:, 0, 0], axis=axis), g[:, 0, 0])


def test_the_layout_of_torch_is_that_of_optax():
    rng = np.random.default_rng(3)
    shapes = {"dense": (4, 3), "convolution": (5, 2, 3, 3), "bias": (4,), "scalar": ()}
    g = {name: jnp.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
    found = {name: centralized(leaf, layout="torch") for name, leaf in g.items()}
    tx = optax.centralize()
    for name, expected in tx.update(g, tx.init(g))[0].items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_mean_whose_sum_is_too_large_for_float32_is_subtracted():
    g = np.float32([[3e38, -2e38], [1e38, -3e38], [3e38, -1e38]])
    expected = np.float64(g) - np.float64(g).mean(axis=0)
    np.testing.assert_allclose(centralized(g), expected, atol=1e-6 * 3e38)


@pytest.mark.parametrize(("shape", "arguments"), [((3,), {"axis": 0}), ((), {}), ((0, 2), {})])
def test_centralize_leaves_vectors_and_scalars_alone(shape, arguments):
    g = np.float32(np.random.default_rng(4).normal(size=shape))
    np.testing.assert_array_equal(centralized(g, **arguments), g)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 3)])
def test_the_mean_of_a_single_weight_is_that_weight(shape):
    np.testing.assert_array_equal(centralized(np.ones(shape, np.float32)), np.zeros(shape))
    g, tx = jnp.arange(3.0)[:, None], optax.centralize()
    expected, _ = tx.update(g, tx.init(g))
    np.testing.assert_array_equal(centralized(g, layout="torch"), expected)


def test_centralize_refuses_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match=r"^centralize: axis \(2,\) .*\(4, 3\)"):
        centralized(np.ones((4, 3), np.float32), axis=2)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.scale, {}, step_size=ANY_NUMBER),
        *wrong_arguments(gradtx.scale_by_schedule, {}, step_size_fn=(0.1, "high", None)),
        *wrong_arguments(gradtx.scale_by_learning_rate, {}, learning_rate=ANY_NUMBER),
        *wrong_arguments(
            gradtx.centralize, {}, axis=(0.5, "in", (0, None)), layout=("numpy", None)
        ),
        *wrong_arguments(gradtx.add_decayed_weights, {}, weight_decay=ANY_NUMBER),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
