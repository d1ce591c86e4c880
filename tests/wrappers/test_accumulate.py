"""One step for several mini-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.compose.parts import owner_of, parts_of
from gradtx.lift import kernel_of
from gradtx.testing import check_transformation

from ..trajectory import COUNT, check_refused, wrong_arguments
from .changing_hands import TIMES_VALUE, check_changes_hands

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(12, 5)), RNG.normal(size=12)


def updates_of(tx, gradients, params=None, jitted=True):
    """The updates of each step, and the last state."""
    params = jax.tree.map(jnp.zeros_like, gradients[0]) if params is None else params
    state, update, path = tx.init(params), jax.jit(tx.update) if jitted else tx.update, []
    for g in gradients:
        updates, state = update(g, state, params)
        path.append(updates)
    return path, state


def scalars(tx, gradients, **options):
    path, state = updates_of(tx, [jnp.float32(g) for g in gradients], **options)
    return [float(u) for u in path], state


@pytest.mark.parametrize("number", [1, 3, 4])
def test_mini_batches_make_the_step_of_the_whole_batch(number):
    # Gradients of the mean of squared errors, in double precision and by hand.
    with jax.enable_x64(True):
        tx = gradtx.MultiSteps(gradtx.adam(0.1), number)
        weights = jnp.asarray(RNG.normal(size=5))
        whole = gradtx.adam(0.1)
        whole_state, state = whole.init(weights), tx.init(weights)
        whole_weights, update = weights, jax.jit(tx.update)
        for _ in range(3):
            errors = INPUTS @ np.asarray(whole_weights) - TARGETS
            gradient = jnp.asarray(2 * INPUTS.T @ errors / len(TARGETS))
            updates, whole_state = whole.update(gradient, whole_state, whole_weights)
            whole_weights = whole_weights + updates
            for x, y in zip(np.split(INPUTS, number), np.split(TARGETS, number), strict=True):
                errors = x @ np.asarray(weights) - y
                updates, state = update(jnp.asarray(2 * x.T @ errors / len(y)), state, weights)
                weights = weights + updates
            np.testing.assert_allclose(weights, whole_weights, rtol=1e-12)


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
def test_updates_are_zero_but_in_every_kth_step(jitted):
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 3)
    updates, state = scalars(tx, [1, 2, 6, 3, 3, 9], jitted=jitted)
    np.testing.assert_allclose(updates, [0, 0, -3, 0, 0, -5], rtol=1e-6)
    assert (state.mini_step, state.gradient_step) == (0, 2)


def test_sum():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 3, use_grad_mean=False)
    assert scalars(tx, [1, 2, 6, 3, 3, 9])[0] == [0, 0, -9, 0, 0, -15]


def test_a_schedule_of_the_steps_sets_their_number():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), lambda step: 1 + step)
    updates, _ = scalars(tx, [5, 1, 3, 2, 2, 5, 1])
    np.testing.assert_allclose(updates, [-5, 0, -2, 0, 0, -3, 0], rtol=1e-6)


def test_schedules_inside_count_steps():
    tx = gradtx.MultiSteps(gradtx.sgd(lambda count: 1.0 + count), 2)
    assert scalars(tx, [1, 1, 1, 1, 1, 1])[0] == [0, -1, 0, -2, 0, -3]


def test_has_updated():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 2)
    state, seen = tx.init(jnp.zeros(1)), []
    for _ in range(4):
        _, state = tx.update(jnp.ones(1), state)
        seen.append(bool(tx.has_updated(state)))
    assert seen == [False, True, False, True]
    assert not tx.has_updated(tx.init(jnp.zeros(1)))


def counting(counter):
    def count(updates, params):
        jax.debug.callback(lambda: counter.append(1))
        return updates

    return gradtx.stateless(count)


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
def test_inner_update_is_carried_out_in_its_steps_only(jitted):
    counter = []
    scalars(gradtx.MultiSteps(counting(counter), 4), [1.0] * 12, jitted=jitted)
    jax.effects_barrier()
    assert len(counter) == 3


def test_inner_update_lies_inside_a_conditional():
    tx = gradtx.MultiSteps(gradtx.adam(0.1), 2)
    traced = jax.jit(tx.update).trace(jnp.ones(3), tx.init(jnp.ones(3)))
    outside = {equation.primitive.name for equation in traced.jaxpr.eqns}
    assert "cond" in outside
    assert not outside & {"sqrt", "div", "mul", "exp"}


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_skipped_mini_batch_was_never_there(bad):
    tx = gradtx.MultiSteps(
        gradtx.sgd(1.0, momentum=0.5), 2, should_skip_update_fn=gradtx.skip_not_finite
    )
    with_bad, state = scalars(tx, [1, bad, 3, bad, bad, 2, 4])
    without, clean = scalars(tx, [1, 3, 2, 4])
    assert [with_bad[i] for i in (0, 2, 5, 6)] == without == [0, -2, 0, -4]
    assert [with_bad[i] for i in (1, 3, 4)] == [0, 0, 0]
    jax.tree.map(np.testing.assert_array_equal, state, clean)


def test_what_the_skipping_function_reports_is_kept():
    skip = functools.partial(gradtx.skip_large_updates, max_squared_norm=10.0)
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 1, should_skip_update_fn=skip)
    updates, state = scalars(tx, [3, 4])
    assert updates == [-3, 0]
    assert state.skip_state["should_skip"]
    assert state.skip_state["norm_squared"] == 16.0


def test_a_mini_batch_that_is_left_out_has_not_updated():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 2, should_skip_update_fn=gradtx.skip_not_finite)
    state, updated = tx.init(jnp.zeros(1)), []
    for g in (np.nan, 1.0, 3.0, np.nan, 0.0, np.nan, 0.0, 1.0):
        _, state = tx.update(jnp.array([g]), state)
        updated.append(bool(tx.has_updated(state)))
    assert updated == [False, False, True, False, False, False, True, False]


def test_an_infinity_does_not_stay():
    (_, infinite, *after), _ = scalars(gradtx.MultiSteps(gradtx.sgd(1.0), 2), [np.inf, 1, 2, 4])
    assert not np.isfinite(infinite)
    assert after == [0, -3]


def test_a_run_of_optax_that_an_infinity_spoiled_recovers():
    theirs = optax.MultiSteps(optax.sgd(1.0), 2)
    with jax.numpy_dtype_promotion("standard"):
        _, state = updates_of(theirs, [jnp.float32(np.inf), jnp.float32(1.0)])
    assert np.isnan(state.acc_grads)  # optax empties it by a product with zero
    ours = gradtx.MultiSteps(gradtx.sgd(1.0), 2)
    _, state = ours.update(jnp.float32(2.0), state)
    updates, _ = ours.update(jnp.float32(4.0), state)
    assert updates == -3.0


def test_half_precision_is_accumulated_in_float32():
    # 1 + 2^-8 lies between two neighbours in bfloat16, and so do most running means.
    gradients = [1.0, 1.0078125] * 32 + [3.0] * 64
    tx = gradtx.MultiSteps(gradtx.identity(), 128)
    path, state = updates_of(tx, [jnp.bfloat16(g) for g in gradients])
    assert state.acc_grads.dtype == jnp.float32
    assert path[-1].dtype == jnp.bfloat16
    assert path[-1] == jnp.bfloat16(np.mean(gradients))


def test_accumulator_dtype():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 2, accumulator_dtype=jnp.bfloat16)
    _, state = updates_of(tx, [jnp.ones(2)] * 2)
    assert state.acc_grads.dtype == jnp.bfloat16


def test_complex_gradients():
    path, _ = updates_of(gradtx.MultiSteps(gradtx.sgd(1.0), 2), [jnp.array(1 + 2j), jnp.array(3j)])
    np.testing.assert_allclose(path[-1], -0.5 - 2.5j, rtol=1e-6)


def test_complex_gradients_need_a_complex_accumulator():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 2, accumulator_dtype=jnp.float32)
    with pytest.raises(ValueError, match="complex"):
        tx.init(jnp.array(1j))


def test_leaves_without_a_gradient():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 2)
    params = {"w": jnp.zeros(1), "steps": jnp.int32(3), "frozen": jnp.ones(1)}
    gradients = {"w": jnp.ones(1), "steps": jnp.int32(5), "frozen": None}
    path, state = updates_of(tx, [gradients] * 2, params)
    assert (path[-1]["w"], path[-1]["steps"], path[-1]["frozen"]) == (-1.0, 0, None)
    assert state.acc_grads["steps"] is None


def test_extra_arguments_reach_the_inner_transformation():
    tx = gradtx.MultiSteps(TIMES_VALUE, 1)
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=3.0)
    assert updates == 3.0


def test_extra_arguments_reach_it_in_a_chain():
    tx = gradtx.chain(gradtx.MultiSteps(TIMES_VALUE, 1), gradtx.scale(2.0))
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=3.0)
    assert updates == 6.0


@pytest.mark.parametrize("use_grad_mean", [True, False], ids=["mean", "sum"])
def test_a_run_changes_hands_between_two_mini_steps(use_grad_mean):
    check_changes_hands(
        gradtx.MultiSteps(gradtx.adam(0.1), 3, use_grad_mean),
        optax.MultiSteps(optax.adam(0.1), 3, use_grad_mean),
        at=4,
        steps=9,
    )


def test_a_run_that_skips_changes_hands():
    check_changes_hands(
        gradtx.MultiSteps(gradtx.sgd(0.1), 2, should_skip_update_fn=gradtx.skip_not_finite),
        optax.MultiSteps(optax.sgd(0.1), 2, should_skip_update_fn=optax.skip_not_finite),
        at=3,
        steps=6,
        gradient=lambda params, step: jax.tree.map(
            lambda p: jnp.where(step == 2, jnp.nan, p), params
        ),
    )


def test_contract():
    # Of a momentum, which has fewer operations than Adam.
    tx = gradtx.MultiSteps(gradtx.trace(0.9), 2, should_skip_update_fn=gradtx.skip_not_finite)
    check_transformation(tx.gradient_transformation())


def test_the_pair_says_what_it_is_made_of():
    multi_steps = gradtx.MultiSteps(gradtx.trace(0.9), 2)
    tx = multi_steps.gradient_transformation()
    (part,) = parts_of(tx)
    assert owner_of(tx) == "MultiSteps"
    kernel = kernel_of(part.transformation)
    assert kernel is not None
    assert kernel.name == "trace"
    assert part.transformation is multi_steps.inner_opt


@pytest.mark.parametrize("returned", [1.0, jnp.array([True])], ids=["number", "vector"])
def test_a_skipping_function_returns_a_boolean_scalar(returned):
    tx = gradtx.MultiSteps(
        gradtx.sgd(1.0), 2, should_skip_update_fn=lambda updates, step, params: (returned, ())
    )
    with pytest.raises(ValueError, match="boolean scalar"):
        tx.init(jnp.ones(2))


def test_another_tree_is_refused():
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), 2)
    state = tx.init({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"'w'.*\(3,\).*\(2, 3\)"):
        tx.update({"w": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="'b'"):
        tx.update({"b": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="none at 'w'"):
        tx.update({"w": jnp.ones(3)}, tx.init({"w": None}))


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.MultiSteps,
        {"opt": gradtx.sgd(0.1), "every_k_schedule": 2},
        every_k_schedule=COUNT,
        opt=(None, "sgd"),
        should_skip_update_fn=(0.5, True),
        accumulator_dtype=("float31",),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize(
    "every_k",
    [np.int8(2), lambda step: 2, lambda step: jnp.float32(2), lambda step: jnp.int8(2)],
    ids=["int8", "int-schedule", "float-schedule", "int8-schedule"],
)
def test_the_number_of_mini_steps_may_have_another_dtype(every_k):
    tx = gradtx.MultiSteps(gradtx.sgd(1.0), every_k)
    g = jnp.array([1.0, -2.0])
    state, found = tx.init(g), []
    for _ in range(4):
        updates, state = tx.update(g, state)
        found.append(float(updates[0]))
    assert found == [0, -1, 0, -1]
