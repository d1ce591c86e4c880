"""The lift: what it does with trees, dtypes, schedules and wrong input, for every kernel alike."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.leaf import leaf_step_of
from gradtx.lift import ScheduledState, kernel_of, lift


class WeightedState(NamedTuple):
    """The state of the transformation that these tests lift."""

    count: jax.Array
    total: optax.Updates


def weighted(g, *, total, t, p, weight):
    total = total + weight * g * p
    return total / t, total


def weighted_kernel(**changes):
    fields = {
        "name": "weighted",
        "step": weighted,
        "slots": (Slot("total"),),
        "hyperparameters": {"weight": NON_NEGATIVE},
        "state": WeightedState,
    }
    return Kernel(**(fields | changes))


def run(tx, gradients, params, steps=3):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
    return updates, state


def test_lift_gives_optax_its_own_type():
    tx = lift(weighted_kernel(), weight=1.0)
    assert type(tx) is optax.GradientTransformationExtraArgs
    assert kernel_of(tx).name == "weighted"
    assert kernel_of(optax.sgd(0.1)) is None


def test_lifted_kernel_follows_its_equation():
    params = {"a": jnp.array([1.0, 2.0]), "b": [jnp.array(3.0)]}
    gradients = {"a": jnp.array([0.5, -1.0]), "b": [jnp.array(2.0)]}
    updates, state = run(lift(weighted_kernel(), weight=0.5), gradients, params)
    # Three equal steps: the total is 3 * weight * g * p, divided by t = 3.
    np.testing.assert_allclose(updates["a"], [0.25, -1.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"][0], 3.0, rtol=1e-6)
    np.testing.assert_allclose(state.total["a"], [0.75, -3.0], rtol=1e-6)
    assert state.count == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": lambda g, *, total, weight, missing: (g, total)}, "missing"),
        ({"step": lambda g, *, total: (g, total)}, "weight"),
        ({"step": lambda grad, *, total, t, p, weight: (grad, total)}, "grad"),
        ({"slots": (Slot("other"),)}, "other"),
        ({"slots": (Slot("total", fill="start"),)}, "start|declares"),
        ({"state": optax.TraceState}, "TraceState"),
        ({"state": optax.ScaleByRssState, "slots": (Slot("sum_of_squares"),)}, "sum_of_squares"),
    ],
    ids=["unknown", "unused", "gradient", "slot", "fill", "state", "renamed"],
)
def test_kernel_whose_declarations_disagree_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        weighted_kernel(**changes)


def test_kernel_that_counts_needs_a_counter():
    with pytest.raises(ValueError, match="count"):
        Kernel("k", lambda g, *, t: g / t)
    with pytest.raises(ValueError, match="rng_key"):
        Kernel("k", lambda g, *, key: g)


def test_kernel_that_changes_the_shape_is_refused():
    tx = lift(Kernel("squash", lambda g: jnp.sum(g)))
    with pytest.raises(ValueError, match=r"squash.*\(\).*\(3,\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda g, *, trace: g, "returned 1 array, expected 2: the update, the slot 'trace'"),
        (
            lambda g, *, trace: (g, trace, g),
            "returned 3 arrays, expected 2: the update, the slot 'trace'",
        ),
        (
            lambda g, *, trace: (g, jnp.sum(g)),
            r"the slot 'trace' with shape \(\).*expected shape \(3,\)",
        ),
    ],
    ids=["too-few", "too-many", "shape"],
)
def test_kernel_that_returns_other_slots_is_refused(step, message):
    tx = lift(Kernel("custom", step, slots=(Slot("trace"),), state=optax.TraceState))
    with pytest.raises(ValueError, match=f"custom: .*{message}"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "-1.0"),
        (float("nan"), "nan"),
        (jnp.array(-2.0), "-2.0"),
        (jnp.array([1.0, 2.0]), r"\(2,\)"),
        ("fast", "fast"),
        (None, "None"),
        (True, "True"),
        (1j, "1j"),
    ],
    ids=["negative", "nan", "array", "vector", "string", "none", "bool", "complex"],
)
def test_wrong_hyperparameter_is_named_with_its_value(value, message):
    with pytest.raises(ValueError, match=f"weighted: weight .*{message}"):
        lift(weighted_kernel(), weight=value)


def test_unknown_and_missing_arguments_are_refused():
    with pytest.raises(ValueError, match="weight"):
        lift(weighted_kernel())
    with pytest.raises(ValueError, match="speed"):
        lift(weighted_kernel(), weight=1.0, speed=2.0)


def test_none_leaves_stay_none_and_their_slots_untouched():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = lift(weighted_kernel(), weight=1.0)
    _, state = tx.update(params, tx.init(params), params)
    updates, state = tx.update({"a": None, "b": jnp.ones(3)}, state, params)
    assert updates["a"] is None
    np.testing.assert_array_equal(state.total["a"], [1.0, 1.0])
    np.testing.assert_array_equal(state.total["b"], [2.0, 2.0, 2.0])


def test_none_stands_for_a_whole_subtree():
    params = {"frozen": {"w": jnp.ones(2), "n": jnp.int32(1)}, "head": jnp.ones(1)}
    tx = gradtx.adam(0.1)
    updates, _ = tx.update({"frozen": None, "head": jnp.ones(1)}, tx.init(params), params)
    assert updates["frozen"] is None
    assert gradtx.apply_updates(params["head"], updates["head"]).shape == (1,)


def test_leaves_that_are_not_parameters_are_left_alone():
    params = {"w": jnp.ones(2), "steps": jnp.int32(7), "fn": jax.nn.relu, "on": jnp.array(True)}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))
    state = tx.init(params)
    assert state[1][0].mu["steps"] is None
    assert state[1][0].mu["fn"] is None
    float0 = np.zeros((), jax.dtypes.float0)
    gradients = {"w": jnp.ones(2), "steps": float0, "fn": None, "on": float0}
    updates, state = tx.update(gradients, state, params)
    assert updates["steps"].dtype == jax.dtypes.float0
    new = gradtx.apply_updates(params, updates)
    assert new["steps"] == 7
    assert new["fn"] is jax.nn.relu
    assert state[1][0].mu["w"].shape == (2,)


def test_python_floats_are_parameters():
    tx = gradtx.adam(0.5, eps=0.0)
    updates, _ = tx.update(2.0, tx.init(1.0), 1.0)
    np.testing.assert_allclose(updates, -0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_half_precision_is_calculated_and_stored_in_float32(dtype):
    params = jnp.full(4, 1.0, dtype)
    tx = lift(weighted_kernel(), weight=1e-4)
    updates, state = run(tx, jnp.full(4, 1.0, dtype), params, steps=100)
    assert state.total.dtype == jnp.float32
    assert updates.dtype == dtype
    # In half precision a hundred additions of 1e-4 would not have come this far.
    np.testing.assert_allclose(state.total, 1e-2, rtol=1e-5)


def test_average_of_a_constant_in_bfloat16_converges():
    tx = gradtx.ema(0.999, debias=False)
    ones = jnp.ones(3, jnp.bfloat16)

    def step(state, _):
        updates, state = tx.update(ones, state)
        return state, updates

    state, updates = jax.lax.scan(step, tx.init(ones), None, length=5000)
    # Each step rounds by 6e-8, and the average remembers a thousand steps.
    np.testing.assert_allclose(state.ema, 1 - 0.999**5000, rtol=6e-5)
    assert updates.dtype == jnp.bfloat16


def test_slot_dtype_can_be_chosen_and_is_kept():
    tx = gradtx.scale_by_adam(mu_dtype="bfloat16")
    params = jnp.ones(3)
    state = tx.init(params)
    assert (state.mu.dtype, state.nu.dtype) == (jnp.bfloat16, jnp.float32)
    _, state = tx.update(params, state)
    assert (state.mu.dtype, state.nu.dtype) == (jnp.bfloat16, jnp.float32)
    with pytest.raises(ValueError, match=r"scale_by_adam: mu_dtype.*bfloat17"):
        gradtx.adamw(0.1, mu_dtype="bfloat17")
    with pytest.raises(ValueError, match=r"trace: accumulator_dtype.*int32"):
        gradtx.sgd(0.1, 0.9, accumulator_dtype="int32")
    with pytest.raises(ValueError, match=r"sgd: dampening.*0\.5"):
        gradtx.sgd(0.1, dampening=0.5)


def test_state_that_comes_in_with_other_dtypes_keeps_them():
    params = jnp.ones(3, jnp.bfloat16)
    state = optax.scale_by_adam().init(params)
    _, new = gradtx.scale_by_adam().update(params, state)
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = jnp.ones(3, jnp.float64)
        updates, state = run(gradtx.scale_by_adam(), params / 3, params)
        assert updates.dtype == state.nu.dtype == jnp.float64
        np.testing.assert_allclose(state.nu, (1 - 0.999**3) / 9, rtol=1e-13)
        np.testing.assert_allclose(updates, 1 / (1 + 3e-8), rtol=1e-13)


SCHEDULES = [
    ("empty", gradtx.scale, optax.ScaleByScheduleState),
    ("counted", lambda s: gradtx.scale_by_adam(b1=s), optax.ScaleByAdamState),
    ("wrapped", gradtx.trace, ScheduledState),
]


@pytest.mark.parametrize(
    ("factory", "state_type"), [row[1:] for row in SCHEDULES], ids=[row[0] for row in SCHEDULES]
)
def test_any_hyperparameter_takes_a_schedule_counted_from_zero(factory, state_type):
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.1 * (count + 1.0)

    params = jnp.ones(2)
    tx = factory(schedule)
    state = tx.init(params)
    assert isinstance(state, state_type)
    for step in range(3):
        # The same step with that step's value as a plain number.
        inner = state.inner_state if state_type is ScheduledState else state
        constant = factory(0.1 * (step + 1))
        if state_type is optax.ScaleByScheduleState:
            inner = optax.EmptyState()
        expected, _ = constant.update(params, inner)
        updates, state = tx.update(params, state)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert seen == [0, 1, 2]
    assert state.count == 3


def test_weight_decay_schedule_has_the_state_of_optax():
    schedule = optax.constant_schedule(0.1)
    ours = gradtx.add_decayed_weights(schedule).init(jnp.ones(1))
    theirs = optax.add_decayed_weights(schedule).init(jnp.ones(1))
    assert type(ours) is type(theirs)


def test_schedule_that_returns_a_vector_is_refused():
    tx = gradtx.scale(lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match=r"schedule.*\(2,\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_one_compiled_step_serves_a_population_of_values():
    params = jnp.array([1.0, -2.0])
    traces = []

    def train(learning_rate, b2):
        traces.append(1)
        updates, _ = run(gradtx.adam(learning_rate, b2=b2), params, params, steps=3)
        return updates

    rates, decays = jnp.array([0.1, 0.2, 0.3]), jnp.array([0.9, 0.99, 0.999])
    population = jax.jit(jax.vmap(train))(rates, decays)
    assert len(traces) == 1
    for updates, rate, b2 in zip(population, rates, decays, strict=True):
        alone, _ = run(gradtx.adam(float(rate), b2=float(b2)), params, params, steps=3)
        np.testing.assert_allclose(updates, alone, rtol=1e-4)


def test_array_hyperparameter_does_not_take_part_in_the_dtype():
    with jax.enable_x64(True):
        for rate in (np.float32(0.5), jnp.array(0.5, jnp.float16), jnp.array(1), np.array(0.5)):
            updates, _ = run(gradtx.sgd(rate), jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float32))
            assert updates.dtype == jnp.float32


MISMATCHES = {
    "missing": ({"a": {"w": jnp.ones(2)}}, r"'a/b'.*shape \(3,\)"),
    "extra": ({"a": {"w": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)}}, r"'a/c'.*\(1,\)"),
    "shape": ({"a": {"w": jnp.ones(2), "b": jnp.ones(1)}}, r"'a/b'.*\(1,\).*\(3,\)"),
    "rank": ({"a": {"w": jnp.ones((1, 2)), "b": jnp.ones(3)}}, r"'a/w'.*\(1, 2\).*\(2,\)"),
    "container": ({"a": [jnp.ones(3), jnp.ones(2)]}, r"'a/"),
}


@pytest.mark.parametrize(("wrong", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_mismatch_names_the_path_and_both_shapes(wrong, message):
    right = {"a": {"w": jnp.ones(2), "b": jnp.ones(3)}}
    with_state = gradtx.trace(0.9)
    with pytest.raises(ValueError, match=f"trace: .*{message}"):
        with_state.update(wrong, with_state.init(right))
    with_params = gradtx.add_decayed_weights(0.1)
    with pytest.raises(ValueError, match=f"add_decayed_weights: .*{message}"):
        with_params.update(wrong, with_params.init(right), right)


def test_mismatch_is_found_after_a_missing_gradient():
    params = {"a": {"w": jnp.ones(2)}, "b": jnp.ones(3)}
    tx = gradtx.trace(0.9)
    with pytest.raises(ValueError, match=r"'c'.*\(1,\)"):
        tx.update({"a": None, "b": jnp.ones(3), "c": jnp.ones(1)}, tx.init(params))


def test_parameters_are_checked_only_where_an_equation_reads_them():
    per_example, params = jnp.array([[3.0, -4.0], [0.5, 2.0]]), jnp.ones(2)
    for tx, expected in [
        (gradtx.scale(2.0), 2 * per_example),
        (gradtx.clip(1.0), [[1, -1], [0.5, 1]]),
    ]:
        updates, _ = tx.update(per_example, tx.init(params), params)
        np.testing.assert_array_equal(updates, expected)
    decay = gradtx.add_decayed_weights(0.1)
    with pytest.raises(ValueError, match=r"add_decayed_weights: .*\(2, 2\).*\(2,\)"):
        decay.update(per_example, decay.init(params), params)


def test_missing_parameters_are_asked_for():
    tx = gradtx.add_decayed_weights(0.1)
    with pytest.raises(ValueError, match="add_decayed_weights: needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_parameter_that_is_missing_where_it_is_needed_is_named():
    tx = gradtx.add_decayed_weights(0.1)
    gradients = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"needs the parameter at 'b'.*\(3,\).*None"):
        tx.update(gradients, tx.init(gradients), {"a": jnp.ones(2), "b": None})


def test_complex_slot_does_not_lose_its_imaginary_part():
    tx = gradtx.scale_by_adam(mu_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"mu of a complex parameter.*bfloat16"):
        tx.init(jnp.ones(2, jnp.complex64))


def test_state_of_another_transformation_is_refused():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"scale_by_adam.*TraceState"):
        gradtx.scale_by_adam().update(params, gradtx.trace(0.9).init(params))
    # A tuple has a method of the name count.
    with pytest.raises(ValueError, match="scale_by_adam"):
        gradtx.scale_by_adam().update(params, ())


def test_gradient_without_a_slot_is_refused():
    tx = gradtx.trace(0.9)
    state = tx.init({"a": None})
    with pytest.raises(ValueError, match=r"no trace at 'a'.*\(2,\)"):
        tx.update({"a": jnp.ones(2)}, state)


def test_kernel_is_traced_once_for_each_type_of_leaf():
    traces = []

    def counted(g):
        traces.append(g.shape)
        return g

    tx = lift(Kernel("counted", counted))
    params = {str(i): jnp.ones(2 + i % 2) for i in range(20)}
    jax.jit(tx.update).lower(params, tx.init(params))
    assert sorted(traces) == [(2,), (3,)]


def test_equal_transformations_share_their_compiled_step():
    def compiled_by(tx):
        before = leaf_step_of.cache_info().misses
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        return leaf_step_of.cache_info().misses - before

    assert [compiled_by(gradtx.scale_by_adam(b1)) for b1 in (0.81, 0.81, 0.71)] == [1, 0, 1]


def test_init_takes_shapes_and_keeps_shardings():
    shape = jax.ShapeDtypeStruct((8, 2), jnp.bfloat16)
    state = gradtx.scale_by_adam().init({"w": shape})
    assert state.mu["w"].shape == (8, 2)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, P("data"))
    sharded = jax.device_put(jnp.ones((8, 2)), sharding)
    state = gradtx.scale_by_adam().init({"w": sharded})
    assert state.mu["w"].sharding.is_equivalent_to(sharding, 2)
    assert state.nu["w"].sharding.is_equivalent_to(sharding, 2)


def test_donated_key_does_not_spoil_the_next_init():
    tx = gradtx.add_noise(0.1, 0.5, key=jax.random.key(3))
    params = jnp.ones(2)
    step = jax.jit(tx.update, donate_argnums=1)
    first, _ = step(params, tx.init(params))
    second, _ = step(params, tx.init(params))
    np.testing.assert_array_equal(first, second)


def test_counter_stops_at_the_largest_integer():
    tx = gradtx.scale_by_adam()
    params = jnp.ones(2)
    state = tx.init(params)._replace(count=jnp.array(jnp.iinfo(jnp.int32).max))
    updates, state = tx.update(params, state)
    assert state.count == jnp.iinfo(jnp.int32).max
    assert bool(jnp.all(jnp.isfinite(updates)))


def test_complex_second_moment_of_optax_is_taken_up():
    params = jnp.array([1.0 + 2.0j, -1.0j])
    theirs, ours = optax.scale_by_adam(), gradtx.scale_by_adam()
    with jax.numpy_dtype_promotion("standard"):
        _, state = theirs.update(params, theirs.init(params))
        expected, _ = theirs.update(params, state)
    updates, new = ours.update(params, state)
    np.testing.assert_allclose(updates, expected, rtol=1e-4)
    assert new.nu.dtype == state.nu.dtype
    assert ours.init(params).nu.dtype == jnp.float32


def test_decay_range_is_half_open():
    kernel = weighted_kernel(hyperparameters={"weight": DECAY})
    lift(kernel, weight=0.0)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        lift(kernel, weight=1.0)


def test_count_is_not_a_hyperparameter_and_takes_no_schedule():
    with pytest.raises(ValueError, match="simple_moving_average: window must be a number"):
        gradtx.simple_moving_average(lambda count: 3)


def test_slots_stay_in_the_containers_that_they_came_in():
    # Checkpoints may give back tuples for lists.
    tx, g = gradtx.scale_by_sm3(), jnp.ones((2, 3))
    state = tx.init(g)
    for container in (list, tuple):
        _, new = tx.update(g, state._replace(mu=container(state.mu)))
        assert type(new.mu) is container
