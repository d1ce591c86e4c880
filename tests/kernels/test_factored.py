"""Adafactor's second moment: its paper, optax, what rank one makes exact, and extreme numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.kernels.factored import power_decay
from gradtx.testing import references

from ..trajectory import (
    COUNT,
    NON_NEGATIVE,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)
from ..wrappers.changing_hands import check_changes_hands

CASES = cases(
    gradtx.scale_by_factored_rms,
    {"decay_rate": 0.5, "epsilon": 1e-2},
    {"factored": False, "min_dim_size_to_factor": 1, "step_offset": 9},
    {"min_dim_size_to_factor": 2, "epsilon": 0.0, "step_offset": 5},
    {"min_dim_size_to_factor": 2, "decay_rate": 0.9, "epsilon": 1e-2},
)


# In double precision optax's decay is still one of single precision.
@pytest.mark.parametrize(
    ("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.scale_by_factored_rms])
)
def test_equation(check, case):
    check(case)


def test_complex_gradients_count_by_their_modulus():
    complex_gradients(CASES[-1])


# Which two axes, with and without equal lengths.
SHAPES = [(), (5,), (2, 3), (3, 2), (3, 3), (4, 2, 3), (3, 4, 4), (4, 3, 4), (2, 2, 3, 4), (1, 4)]


def gradients(shapes, seed=3):
    rng = np.random.default_rng(seed)
    return {str(shape): jnp.asarray(rng.normal(size=shape)) for shape in shapes}


def test_states_and_updates_of_any_shape_are_those_of_optax():
    arguments = {"min_dim_size_to_factor": 2, "decay_rate_fn": power_decay}
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        params = gradients(SHAPES)
        ours = gradtx.scale_by_factored_rms(**arguments)
        theirs = optax.scale_by_factored_rms(**arguments)
        state, peer_state = ours.init(params), theirs.init(params)
        update, peer_update = jax.jit(ours.update), jax.jit(theirs.update)
        for seed in range(3):
            g = gradients(SHAPES, seed)
            updates, state = update(g, state)
            expected, peer_state = peer_update(g, peer_state, params)
            assert jax.tree.structure(state) == jax.tree.structure(peer_state)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, strict=True),
                (updates, state),
                (expected, peer_state),
            )


def test_runs_change_hands():
    check_changes_hands(
        gradtx.scale_by_factored_rms(min_dim_size_to_factor=2),
        optax.scale_by_factored_rms(min_dim_size_to_factor=2),
        at=3,
        steps=6,
    )


def test_longer_arrays_are_stacks_of_their_two_longest_axes():
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2)

    def direction(g):
        return tx.update(g, tx.init(g))[0]

    g = gradients([(2, 3, 4)])["(2, 3, 4)"]
    moved = jax.jit(direction)(jnp.transpose(g, (2, 0, 1)))
    np.testing.assert_allclose(jnp.transpose(moved, (1, 2, 0)), jax.vmap(direction)(g), rtol=1e-6)


def test_memory_grows_with_the_sides_of_a_matrix():
    params = {"matrix": jax.ShapeDtypeStruct((300, 500), jnp.float32)}
    state = jax.eval_shape(gradtx.scale_by_factored_rms().init, params)
    elements = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert elements == 300 + 500 + 1 + 1


def test_squares_of_rank_one_lose_nothing():
    # In every step |g| is the same outer product but for a factor, and so is the average.
    rng = np.random.default_rng(1)
    size = np.outer(np.exp(rng.normal(size=4)), np.exp(rng.normal(size=6)))
    with jax.enable_x64(True):
        factored = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
        whole = gradtx.scale_by_factored_rms(factored=False, epsilon=0.0)
        states = [tx.init(jnp.asarray(size)) for tx in (factored, whole)]
        mean = 0.0
        for t in range(1, 6):
            factor = rng.normal()
            signs = np.sign(rng.normal(size=size.shape))
            g = jnp.asarray(factor * size * signs)
            one, states[0] = factored.update(g, states[0])
            other, states[1] = whole.update(g, states[1])
            mean += t**-0.8 * (factor**2 - mean)
            np.testing.assert_allclose(one, other, rtol=1e-13)
            np.testing.assert_allclose(one, factor * signs / np.sqrt(mean), rtol=1e-13)


STEPS = [0, 1, 2, 5, 100, 2**24 + 1, 2**31 - 2, 2**31 - 1]


@pytest.mark.parametrize(("precision", "rtol"), [(32, 2e-7), (64, 1e-15)])
def test_decay_is_exact_at_every_counter(precision, rtol):
    # Without a gradient and an epsilon what is left of v = 1 is the decay.
    with jax.enable_x64(precision == 64):
        tx = gradtx.scale_by_factored_rms(epsilon=0.0)
        update = jax.jit(tx.update)
        zero = jnp.zeros(1)
        for count in STEPS:
            state = tx.init(zero)._replace(count=jnp.int32(count), v=jnp.ones(1))
            updates, new = update(zero, state)
            np.testing.assert_array_equal(updates, 0)
            expected = -np.expm1(-0.8 * np.log1p(np.float64(count)))
            np.testing.assert_allclose(new.v, expected, rtol=rtol)
            assert new.count == min(count + 1, 2**31 - 1)


def test_offset_starts_the_decay_again_however_late():
    start = 2**24 + 1
    tx = gradtx.scale_by_factored_rms(epsilon=0.0, step_offset=start)
    state = tx.init(jnp.zeros(1))._replace(v=jnp.array([100.0]))
    # Up to the offset t = 1: nothing is kept.
    for count, t in ((0, 1), (start, 1), (start + 1, 2), (start + 3, 4)):
        updates, new = tx.update(jnp.ones(1), state._replace(count=jnp.int32(count)))
        v = 100 + t**-0.8 * (1 - 100)
        np.testing.assert_allclose(new.v, v, rtol=1e-6)
        np.testing.assert_allclose(updates, v**-0.5, rtol=1e-6)


def test_decay_may_have_a_bound_of_its_own():
    tx = gradtx.scale_by_factored_rms(
        decay_rate_fn=lambda step, rate: jnp.minimum(power_decay(step, rate), 0.5), epsilon=0.0
    )
    state = tx.init(jnp.zeros(1))
    for g, v in ((3.0, 9.0), (1.0, 9 + 2**-0.8 * (1 - 9)), (2.0, None), (0.0, None)):
        old = state.v
        _, state = tx.update(jnp.array([g]), state)
        expected = (old + g**2) / 2 if v is None else v
        np.testing.assert_allclose(state.v, expected, rtol=1e-6)


def test_decay_rate_may_be_a_schedule_of_whole_numbers():
    tx = gradtx.scale_by_factored_rms(decay_rate=lambda count: count, epsilon=0.0)
    state = tx.init(jnp.zeros(1))
    _, state = tx.update(jnp.array([2.0]), state)
    _, state = tx.update(jnp.array([4.0]), state)
    np.testing.assert_allclose(state.v, (4 + 16) / 2, rtol=1e-6)


WIDE = np.array([2e-9, 1.0, -3.0, 2e9])


@pytest.mark.parametrize("size", [2e-19, 1.0, 1.5e19])
@pytest.mark.parametrize("factored", [True, False])
def test_no_intermediate_leaves_the_range_of_single_precision(size, factored):
    # The squares are numbers from 3e-38 to 2e38, but not their sums nor products.
    tx = gradtx.scale_by_factored_rms(factored, min_dim_size_to_factor=2, epsilon=0.0)
    g = jnp.asarray(size * np.outer([1.0, -0.9, 1.0], [0.9, 1.0, -1.0, 1.0]), jnp.float32)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, np.sign(g), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-18, 3.5e17, 1.5e19])
def test_moments_of_long_rows_are_means_at_the_ends_of_single_precision(size):
    # The sum of all squares of 3.5e17 overflows, but that of no row; those of 1.5e19 do in each.
    g = jnp.asarray(size * (1 + np.arange(2 * 4096).reshape(2, 4096) % 3), jnp.float32) / 3
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2, decay_rate=0.0, epsilon=0.0)
    _, state = tx.update(g, tx.init(g))
    squares = np.square(np.float64(g))
    np.testing.assert_allclose(state.v_row, squares.mean(1), rtol=1e-5)
    np.testing.assert_allclose(state.v_col, squares.mean(0), rtol=1e-5)


def test_rows_and_columns_of_very_different_size_have_unit_steps_all():
    g = jnp.asarray(np.outer(WIDE, WIDE), jnp.float32)
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, np.sign(g), rtol=1e-6)


def test_rows_and_columns_far_below_the_mean_keep_their_own_scale():
    # One entry of 1e18; its row and column are its own, and all else is 1e-18.
    g = jnp.full((3, 3), 1e-18).at[0, 0].set(1e18)
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
    updates, _ = tx.update(g, tx.init(g))
    exact, _ = references.scale_by_factored_rms.step(
        1, np.float64(g), None, {"v_row": 0, "v_col": 0}, min_dim_size_to_factor=2, epsilon=0.0
    )
    np.testing.assert_allclose(updates, exact, rtol=1e-5)


@pytest.mark.parametrize("factored", [True, False])
def test_squares_beyond_the_range_leave_a_finite_state_that_recovers(factored):
    tx = gradtx.scale_by_factored_rms(factored, min_dim_size_to_factor=2)
    params = jnp.ones((2, 3))
    updates, state = tx.update(jnp.full((2, 3), 1e20), tx.init(params))
    # The gradient counts as the largest whose square is finite, of which the first step is 1.
    np.testing.assert_allclose(updates, 1, rtol=1e-6)
    # A constant gradient takes over as the steps go on.
    restarted = gradtx.scale_by_factored_rms(factored, 0.8, 1, 2)
    updates, state = restarted.update(params, state)
    np.testing.assert_allclose(updates, params, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (0, 0)])
def test_matrices_without_elements_have_steps_without_elements(shape):
    params = jnp.zeros(shape)
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=0)
    updates, _ = tx.update(params, tx.init(params))
    assert updates.shape == shape


def test_gradients_below_epsilon_take_small_steps():
    g = jnp.full((2, 3), 1e-20)
    for factored in (True, False):
        tx = gradtx.scale_by_factored_rms(factored, min_dim_size_to_factor=2)
        updates, _ = tx.update(g, tx.init(g))
        np.testing.assert_allclose(updates, 1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_calculated_in_single(dtype):
    # The squares of float16 would end at 65504 and at 6e-8.
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2)
    g = jnp.array([[512.0, -2.0], [-0.5, 2.0**-9]], dtype)
    updates, state = tx.update(g, tx.init(g))
    assert updates.dtype == jnp.dtype(dtype)
    assert state.v_row.dtype == jnp.float32
    np.testing.assert_array_equal(updates, np.sign(np.float32(g)))


def test_a_row_without_gradients_and_epsilon_stays():
    tx = gradtx.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
    g = jnp.array([[0.0, 0.0], [2.0, 2.0]])
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, [[0, 0], [1, 1]], rtol=1e-6)


def test_nan_in_the_moment_is_not_taken_for_no_estimate():
    tx = gradtx.scale_by_factored_rms()
    _, state = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(jnp.zeros(2)))
    updates, _ = tx.update(jnp.ones(2), state)
    np.testing.assert_allclose(updates, [jnp.nan, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_factored_rms,
        {},
        decay_rate=NON_NEGATIVE,
        step_offset=(-1, 1.5, 2**31, *NON_NEGATIVE),
        min_dim_size_to_factor=COUNT[1:],
        epsilon=NON_NEGATIVE,
        decay_rate_fn=(0.9,),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
