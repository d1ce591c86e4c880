"""Gradients accumulated over micro-batches are those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradtx.training import accumulate_grads

from ..trajectory import COUNT, check_refused, wrong_arguments

pytestmark = pytest.mark.usefixtures("usual_compilation")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 5)), RNG.normal(size=24)
WEIGHTS = RNG.normal(size=5)


def squared_errors(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


@pytest.mark.parametrize("number", [1, 2, 3, 24])
def test_mean_of_the_whole_batch(number):
    with jax.enable_x64(True):
        value_and_grad = jax.jit(accumulate_grads(squared_errors, number))
        params, batch = jax.tree.map(jnp.asarray, ({"w": WEIGHTS}, {"x": X, "y": Y}))
        loss, gradient = value_and_grad(params, batch)
    errors = X @ WEIGHTS - Y
    np.testing.assert_allclose(loss, np.mean(errors**2), rtol=1e-13)
    np.testing.assert_allclose(gradient["w"], 2 * X.T @ errors / 24, rtol=1e-12)


def test_micro_batches_take_turns_with_the_samples():
    def loss_fn(params, batch):
        return params * jnp.mean(batch), {"seen": batch}

    value_and_grad = accumulate_grads(loss_fn, 2, has_aux=True)
    (loss, aux), gradient = value_and_grad(jnp.float32(2.0), np.arange(6, dtype=np.float32))
    assert (loss, gradient) == (5.0, 2.5)
    np.testing.assert_array_equal(aux["seen"], [[0, 2, 4], [1, 3, 5]])


def test_half_precision_is_added_up_in_float32():
    # In bfloat16 256 + 1 is 256: the sum of all but the first few ones would be lost.
    value_and_grad = accumulate_grads(lambda p, batch: p * jnp.mean(batch), 1024)
    loss, gradient = value_and_grad(jnp.bfloat16(1.0), jnp.ones(1024, jnp.bfloat16))
    assert loss.dtype == gradient.dtype == jnp.bfloat16
    assert (loss, gradient) == (1.0, 1.0)


def test_leaves_that_are_not_parameters_have_no_gradient():
    params = {"w": jnp.ones(2), "steps": jnp.int32(3), "none": None}
    value_and_grad = accumulate_grads(lambda p, batch: jnp.sum(p["w"]) * jnp.mean(batch), 2)
    _, gradient = value_and_grad(params, jnp.full(4, 3.0))
    np.testing.assert_array_equal(gradient["w"], [3.0, 3.0])
    assert gradient["steps"] is gradient["none"] is None


def test_each_sample_may_have_a_key():
    keys = jax.random.split(jax.random.key(0), 6)

    def loss_fn(params, batch):
        return params * jnp.mean(jax.vmap(jax.random.normal)(batch["key"]))

    loss, _ = accumulate_grads(loss_fn, 3)(jnp.float32(1.0), {"key": keys})
    expected = np.mean([float(jax.random.normal(key)) for key in keys])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def wide_loss(params, batch):
    return jnp.mean(jnp.tanh(jnp.tanh(batch @ params) @ params.T) ** 2)


def test_memory_is_that_of_one_micro_batch():
    def temporary_bytes(function):
        compiled = jax.jit(function).lower(jnp.ones((8, 64)), jnp.ones((1024, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(jax.value_and_grad(wide_loss))
    assert temporary_bytes(accumulate_grads(wide_loss, 16)) < whole / 8


def test_a_batch_stays_where_it_lies(mesh):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    params = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)
    batch = jnp.asarray(RNG.normal(size=(32, 8)), jnp.float32)
    value_and_grad = jax.jit(accumulate_grads(wide_loss, 2))
    here = value_and_grad(params, batch)
    spread = jax.device_put(batch, rows)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    there = value_and_grad(params, spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), here, there)
    program = value_and_grad.lower(params, spread).compile().as_text()
    assert "all-reduce" in program
    assert not any(move in program for move in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.ones((4, 2)), "y": np.ones(6)}, r"\(6,\) at 'y'"),
        ({"x": np.ones((4, 2)), "y": np.float32(1)}, r"\(\) at 'y'"),
        ({}, "at least one array"),
        (np.ones(5), "number of samples, 5, got 2"),
    ],
    ids=["lengths", "scalar", "nothing", "remainder"],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        accumulate_grads(lambda p, b: p, 2)(jnp.float32(1.0), batch)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        accumulate_grads,
        {"loss_fn": squared_errors, "micro_batches": 2},
        micro_batches=COUNT,
        loss_fn=(None, 0.5),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_what_the_loss_returns_must_be_what_has_aux_says():
    def pair(params, batch):
        return squared_errors(params, batch), {"seen": 1}

    params, batch = {"w": jnp.ones(5)}, {"x": jnp.ones((4, 5)), "y": jnp.ones(4)}
    message = r"^accumulate_grads: .* got tuple of length 2; .* \(loss, aux\), pass has_aux=True"
    with pytest.raises(ValueError, match=message):
        accumulate_grads(pair, 2)(params, batch)
    message = (
        r"^accumulate_grads: with has_aux=True .* pair, \(loss, aux\), got float\d+ of shape \(\)"
    )
    with pytest.raises(ValueError, match=message):
        accumulate_grads(squared_errors, 2, has_aux=True)(params, batch)
