"""Steps that are skipped, because the gradient is bad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import NON_NEGATIVE, check_refused, wrong_arguments
from .changing_hands import PARAMS, TIMES_VALUE, check_changes_hands

NAN, INF = float("nan"), float("inf")


def run(tx, gradients, jitted=True):
    """The update and the state after each scalar gradient."""
    state, path = tx.init(jnp.zeros(())), []
    update = jax.jit(tx.update) if jitted else tx.update
    for g in gradients:
        updates, state = update(jnp.float32(g), state)
        path.append((float(updates), state))
    return path


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
def test_counters_and_updates(jitted):
    gradients = [1.0, NAN, INF, -INF, NAN, 2.0, NAN, 3.0]
    path = run(gradtx.apply_if_finite(gradtx.scale(-1.0), 2), gradients, jitted)
    # Two in a row are skipped; the third and the fourth are passed on, and still counted.
    np.testing.assert_array_equal([u for u, _ in path], [-1, 0, 0, INF, NAN, -2, 0, -3])
    states = [state for _, state in path]
    assert [int(s.notfinite_count) for s in states] == [0, 1, 2, 3, 4, 0, 1, 0]
    assert [int(s.total_notfinite) for s in states] == [0, 1, 2, 3, 4, 4, 5, 5]
    assert [bool(s.last_finite) for s in states] == [True, *[False] * 4, True, False, True]


def test_a_skipped_gradient_leaves_no_trace():
    tx = gradtx.apply_if_finite(gradtx.adam(0.1), 3)
    with_bad, without = run(tx, [1.0, NAN, INF, 2.0, NAN, -1.0]), run(tx, [1.0, 2.0, -1.0])
    assert [with_bad[i][0] for i in (0, 3, 5)] == [u for u, _ in without]
    states = (with_bad[-1][1].inner_state, without[-1][1].inner_state)
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_with_no_errors_allowed_everything_is_passed_on():
    path = run(gradtx.apply_if_finite(gradtx.scale(-1.0), 0), [NAN, 1.0])
    np.testing.assert_array_equal([u for u, _ in path], [NAN, -1.0])


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
def test_inner_update_is_not_carried_out_in_skipped_steps(jitted):
    counter = []

    def count(updates, params):
        jax.debug.callback(lambda: counter.append(1))
        return updates

    run(gradtx.apply_if_finite(gradtx.stateless(count), 9), [1, NAN, NAN, 1, INF, 1], jitted)
    jax.effects_barrier()
    assert len(counter) == 3


def test_one_element_of_one_leaf_is_enough():
    tx = gradtx.apply_if_finite(gradtx.sgd(1.0), 3)
    gradients = {"matrix": jnp.ones((2, 2)), "vector": jnp.array([1.0, INF, 1.0]), "none": None}
    updates, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_array_equal(updates["matrix"], np.zeros((2, 2)))
    np.testing.assert_array_equal(updates["vector"], np.zeros(3))
    assert updates["none"] is None
    assert not state.last_finite


def test_half_precision_keeps_the_dtypes_of_any_inner_transformation():
    # optax's state takes the dtype of the gradient, a conditional needs that of the state.
    with jax.numpy_dtype_promotion("standard"):
        tx = gradtx.apply_if_finite(optax.adam(0.1, mu_dtype=jnp.float32), 3)
        params = {"w": jnp.ones(2, jnp.bfloat16)}
        state = tx.init(params)
        update = jax.jit(tx.update)
        for _ in range(2):
            updates, state = update(params, state, params)
            assert updates["w"].dtype == jnp.bfloat16


def test_a_run_changes_hands():
    def gradient(params, step):
        bad = (step >= 2) & (step <= 4)
        return jax.tree.map(lambda p: jnp.where(bad, jnp.nan, p * jnp.sin(step + 1)), params)

    check_changes_hands(
        gradtx.apply_if_finite(gradtx.adam(0.1), 5),
        optax.apply_if_finite(optax.adam(0.1), 5),
        at=4,
        steps=8,
        gradient=gradient,
    )


def test_extra_arguments_reach_the_inner_transformation():
    tx = gradtx.apply_if_finite(TIMES_VALUE, 3)
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=3.0)
    assert updates == 3.0


def test_number_not_finite():
    gradients = {
        "a": jnp.array([1.0, NAN, INF]),
        "b": jnp.array([-INF], jnp.float16),
        "c": jnp.array([complex(1, NAN), 1j]),
        "steps": jnp.int32(3),
        "none": None,
    }
    should_skip, report = gradtx.skip_not_finite(gradients, jnp.int32(0), None)
    assert should_skip
    assert report["should_skip"]
    assert report["num_not_finite"] == 4
    assert not gradtx.skip_not_finite(PARAMS, 0, None)[0]


def test_without_leaves_nothing_is_skipped():
    should_skip, report = gradtx.skip_not_finite({})
    assert not should_skip
    assert report["num_not_finite"].dtype == jnp.int32
    assert not gradtx.skip_large_updates({}, 0, None, 1.0)[0]


def test_squared_norm():
    norm = sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(PARAMS))
    for limit, expected in ((1.001 * norm, False), (0.999 * norm, True)):
        should_skip, report = gradtx.skip_large_updates(PARAMS, 0, None, limit)
        assert bool(should_skip) == bool(report["should_skip"]) == expected
        np.testing.assert_allclose(report["norm_squared"], norm, rtol=1e-6)


@pytest.mark.parametrize("value", [NAN, INF, 3e38], ids=["nan", "infinity", "overflow"])
def test_what_has_no_finite_squared_norm_is_large(value):
    assert gradtx.skip_large_updates(jnp.full(2, value), 0, None, 1e30)[0]


def test_squared_norm_of_half_precision_does_not_overflow():
    gradient = jnp.full(4, 300.0, jnp.float16)
    should_skip, report = gradtx.skip_large_updates(gradient, 0, None, 1e6)
    assert report["norm_squared"] == 360000.0
    assert not should_skip


def test_squared_norm_of_complex_numbers_is_real():
    _, report = gradtx.skip_large_updates(jnp.array([3 + 4j]), 0, None, 1.0)
    np.testing.assert_allclose(report["norm_squared"], 25.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.apply_if_finite,
        {"inner": gradtx.sgd(0.1), "max_consecutive_errors": 3},
        max_consecutive_errors=(1.5, *NON_NEGATIVE),
        inner=(None, "sgd", gradtx.sgd),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_the_limit_of_large_updates_may_have_another_dtype():
    updates = jnp.array([1.0, -2.0])
    for limit, is_large in ((4.5, True), (5.5, False)):
        for number in (limit, jnp.float16(limit), np.float64(limit)):
            skips, info = gradtx.skip_large_updates(updates, jnp.int32(0), updates, number)
            assert bool(skips) == is_large
            assert info["norm_squared"] == 5
