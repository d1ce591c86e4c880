"""Between the links of a chain nothing is rounded to half precision, nor does it overflow there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.updates import UPDATES_TOO, advance

NARROW = [jnp.bfloat16, jnp.float16]
DTYPES = pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)


def steps(tx, gradients, params, way=jax.jit):
    """The updates of several steps, in float64."""
    state, update, found = tx.init(params), way(tx.update), []
    for g in gradients:
        updates, state = update(g, state, params)
        assert updates.dtype == params.dtype
        found.append(np.asarray(updates).astype(np.float64))
    return np.stack(found)


def close(found, expected, dtype):
    """Equal but for the last rounding."""
    np.testing.assert_allclose(found, expected, rtol=float(jnp.finfo(dtype).eps) / 2 + 1e-5)


def adamw(gradients, p, rate=0.1, decay=0.01, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        direction = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield -rate * (direction + decay * p)


@DTYPES
@pytest.mark.parametrize("way", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_the_decay_that_almost_cancels_the_direction_of_adamw_is_exact(dtype, way):
    # Rounded before the decay is added, the third update is a third too large in bfloat16.
    gradients, p = np.array([1.0, 0.25, 0.5]), -86.0
    given = jnp.asarray(gradients[:, None], dtype)
    found = steps(gradtx.adamw(0.1, weight_decay=0.01), given, jnp.full(1, p, dtype), way)
    expected = np.stack(list(adamw(gradients[:, None], p)))
    np.testing.assert_allclose(
        found, expected, rtol=float(jnp.finfo(dtype).eps) / 2, atol=1e-6 * np.abs(expected).max()
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("way", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_a_momentum_above_the_largest_float16_reaches_the_learning_rate(nesterov, way):
    g, trace, expected = 4e4, 0.0, []
    for _ in range(3):
        trace = g + 0.9 * trace
        expected.append([-1e-3 * (g + 0.9 * trace if nesterov else trace)])
    assert trace > float(np.finfo(np.float16).max)
    tx = gradtx.sgd(1e-3, momentum=0.9, nesterov=nesterov)
    half = jnp.ones(1, jnp.float16)
    close(steps(tx, jnp.full((3, 1), g, jnp.float16), half, way), expected, jnp.float16)


CHAINS = {
    # The gradient, the chain, and what it makes of two equal gradients in the first step.
    "a norm in between": (
        4e4,
        lambda: gradtx.chain(gradtx.scale(100.0), gradtx.clip_by_global_norm(1.0)),
        0.5**0.5,
    ),
    "a norm that does not clip": (
        6e4,
        lambda: gradtx.chain(
            gradtx.scale(100.0), gradtx.clip_by_global_norm(1e9), gradtx.scale(1e-3)
        ),
        6e3,
    ),
    "a norm at the end": (
        6e4,
        lambda: gradtx.chain(gradtx.scale(100.0), gradtx.scale_by_trust_ratio(), gradtx.scale(0.5)),
        # The length of the parameter, which is 1 in each element.
        0.5,
    ),
    "a scaled loss": (
        2.0**-10,
        lambda: gradtx.chain(gradtx.scale(2.0**-24), gradtx.adam(0.1, eps=1e-15)),
        -0.1,
    ),
    "in a mask": (
        6e4,
        lambda: gradtx.chain(
            gradtx.masked(gradtx.scale(100.0), lambda tree: True), gradtx.scale(1e-3)
        ),
        6e3,
    ),
    "with a schedule": (
        6e4,
        lambda: gradtx.chain(
            gradtx.scale_by_schedule(lambda count: 100.0 + count), gradtx.scale(1e-3)
        ),
        6e3,
    ),
    "a matrix's direction": (
        6e4,
        lambda: gradtx.chain(
            gradtx.scale(100.0), gradtx.normalize_by_update_norm(), gradtx.scale(1.0)
        ),
        0.5**0.5,
    ),
}


@DTYPES
@pytest.mark.parametrize("way", [jax.jit, lambda function: function], ids=["jit", "eager"])
@pytest.mark.parametrize("case", CHAINS)
def test_what_overflows_or_vanishes_in_between_comes_back(case, way, dtype):
    g, make, expected = CHAINS[case]
    found = steps(make(), jnp.full((1, 2), g, dtype), jnp.ones(2, dtype), way)
    close(found, np.full((1, 2), expected), dtype)


def test_a_foreign_link_sees_the_dtype_of_the_gradient():
    seen = []
    probe = optax.stateless(lambda updates, params: seen.append(updates.dtype) or updates)
    tx = gradtx.chain(gradtx.scale(2.0), probe, gradtx.scale(2.0))
    steps(tx, jnp.ones((1, 2), jnp.bfloat16), jnp.ones(2, jnp.bfloat16))
    assert seen == [jnp.bfloat16]


GROUPED = {
    "in a group": lambda tx: gradtx.grouped(tx),
    "by itself": lambda tx: tx,
}


@DTYPES
@pytest.mark.parametrize("wrap", GROUPED.values(), ids=GROUPED)
def test_the_parameters_of_one_pass_are_those_of_two(wrap, dtype):
    inner = gradtx.chain(
        gradtx.adam(0.1), gradtx.clip_by_global_norm(0.3), gradtx.add_decayed_weights(0.3)
    )
    tx = wrap(inner)
    params = {"a": jnp.linspace(1, 2, 6, dtype=dtype), "b": jnp.linspace(-1, 3, 6, dtype=dtype)}
    gradient = jax.tree.map(jnp.sin, params)

    @jax.jit
    def two(params, state):
        updates, state = tx.update(gradient, state, params)
        return gradtx.apply_updates(params, updates), state

    @jax.jit
    def one(params, state):
        return gradtx.update_and_apply(tx, gradient, state, params)

    alone = jax.jit(inner.update)(gradient, inner.init(params), params)[0]
    together = jax.jit(tx.update)(gradient, tx.init(params), params)[0]
    jax.tree.map(np.testing.assert_array_equal, alone, together)
    for _ in range(2):
        pair = one(params, tx.init(params)), two(params, tx.init(params))
        jax.tree.map(np.testing.assert_array_equal, *pair)
        params = pair[0][0]


@DTYPES
@pytest.mark.parametrize("own", [jnp.float32, None], ids=["wide parameters", "narrow parameters"])
def test_an_update_is_rounded_before_it_is_added(own, dtype):
    tx = gradtx.chain(gradtx.scale(1 / 3), gradtx.clip_by_global_norm(9.0), gradtx.scale(1.7))
    params = jnp.linspace(1, 2, 5, dtype=own or dtype)
    gradient = jnp.linspace(1, 3, 5, dtype=dtype)
    given = gradient, tx.init(params), params
    updates, _ = tx.update(*given)
    expected = gradtx.apply_updates(params, updates)
    new, _ = jax.jit(lambda *trees: gradtx.update_and_apply(tx, *trees))(*given)
    # What a training step takes, which hands the updates on to those who measure them.
    also, same, _ = jax.jit(lambda *trees: advance(tx, *trees, {}, UPDATES_TOO))(*given)
    for found, right in ((new, expected), (also, expected), (same, updates)):
        np.testing.assert_array_equal(found, right)
        assert found.dtype == right.dtype


@DTYPES
def test_stored_states_in_a_chain_with_a_norm_are_those_of_each_step(dtype):
    # The first link's state is stored in 8 bits, and its updates are measured before they go on.
    gradient = jnp.linspace(-1, 3, 512, dtype=dtype)
    params = jnp.ones(512, dtype)
    first = gradtx.quantize_state(gradtx.scale_by_adam(), min_size=0)
    tx = gradtx.chain(first, gradtx.clip_by_global_norm(1.0))
    found = steps(tx, [gradient, gradient], params)
    wide = steps(tx, [gradient.astype(jnp.float32)] * 2, params.astype(jnp.float32))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found, wide, rtol=eps / 2, atol=1e-7)


@pytest.mark.parametrize("way", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_a_sum_of_gradients_above_the_largest_float16_reaches_the_optimizer(way):
    tx = gradtx.MultiSteps(gradtx.sgd(1e-3), 2, use_grad_mean=False).gradient_transformation()
    found = steps(tx, jnp.full((4, 1), 4e4, jnp.float16), jnp.ones(1, jnp.float16), way)
    close(found, [[0], [-80], [0], [-80]], jnp.float16)


def test_a_mean_of_large_gradients_of_both_signs_is_finite():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 3).gradient_transformation()
    gradients = jnp.array([[3e38], [-3e38], [1.5e38]])
    found = steps(tx, gradients, jnp.ones(1))
    np.testing.assert_allclose(found, [[0], [0], [-0.5e38]], rtol=1e-5)


@DTYPES
def test_a_mean_of_gradients_is_rounded_once(dtype):
    # Half of the distance between two numbers is lost if the mean is rounded first.
    eps = float(jnp.finfo(dtype).eps)
    tx = gradtx.MultiSteps(gradtx.chain(gradtx.scale(1.0), gradtx.add_decayed_weights(1.0)), 2)
    gradients = jnp.array([[1.0], [1.0 + eps]], dtype)
    found = steps(tx.gradient_transformation(), gradients, -jnp.ones(1, dtype))
    np.testing.assert_array_equal(found, [[0], [eps / 2]])


@pytest.mark.parametrize("accumulator", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_sums_in_other_dtypes_give_updates_in_the_dtypes_of_the_gradients(accumulator):
    tx = gradtx.MultiSteps(gradtx.sgd(0.5), 2, accumulator_dtype=accumulator)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        gradients = jnp.array([[1.0], [3.0]], dtype)
        found = steps(tx.gradient_transformation(), gradients, jnp.ones(1, dtype))
        np.testing.assert_array_equal(found, [[0], [-1]])
