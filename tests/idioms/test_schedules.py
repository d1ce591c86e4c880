"""Schedules: composed, wrapped, read for a log, passed in place of numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .both import both, train


def values(schedule, steps=8):
    return jnp.stack([jnp.asarray(schedule(step), jnp.float32) for step in range(steps)])


@both
def test_warm_up_joined_with_cosine_decay(lib, more):
    warm = lib.linear_schedule(0.0, 0.1, transition_steps=2)
    cosine = lib.cosine_decay_schedule(0.1, decay_steps=6, alpha=0.1)
    schedule = lib.join_schedules([warm, cosine], boundaries=[2])
    return values(schedule), train(lib.adamw(schedule))


@both
def test_schedules_of_the_schedules_module(lib, more):
    schedule = lib.schedules.warmup_cosine_decay_schedule(0, 0.1, 2, 6)
    return values(schedule), train(lib.sgd(schedule))


@both
def test_warm_up_cosine_by_keyword(lib, more):
    schedule = lib.warmup_cosine_decay_schedule(
        init_value=0.01,
        peak_value=0.1,
        warmup_steps=2,
        decay_steps=6,
        end_value=0.001,
        exponent=1.5,
    )
    return values(schedule), values(lib.warmup_constant_schedule(0.0, 0.1, 3))


@both
def test_exponential_decay_with_stairs(lib, more):
    stairs = lib.exponential_decay(
        init_value=0.1,
        transition_steps=2,
        decay_rate=0.5,
        transition_begin=1,
        staircase=True,
        end_value=0.01,
    )
    return values(stairs), values(lib.exponential_decay(0.1, 3, 0.9))


@both
def test_piecewise_constant_rates(lib, more):
    schedule = lib.piecewise_constant_schedule(0.1, {2: 0.1, 4: 0.5})
    return values(schedule), train(lib.sgd(schedule, momentum=0.9))


@both
def test_polynomial_and_interpolated_rates(lib, more):
    return (
        values(lib.polynomial_schedule(0.1, 0.01, power=2, transition_steps=4, transition_begin=1)),
        values(lib.piecewise_interpolate_schedule("cosine", 0.1, {2: 2.0, 6: 0.1})),
    )


@both
def test_one_cycle(lib, more):
    return (
        values(lib.cosine_onecycle_schedule(8, 0.1, pct_start=0.3)),
        values(lib.linear_onecycle_schedule(8, 0.1, pct_start=0.3, pct_final=0.8)),
    )


@both
def test_restarts(lib, more):
    cycle = {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 1, "decay_steps": 4}
    return values(lib.sgdr_schedule([{**cycle, "end_value": 0.01}, {**cycle, "peak_value": 0.05}]))


@both
def test_warm_up_stable_decay(lib, more):
    schedule = lib.join_schedules(
        schedules=[
            lib.linear_schedule(0.0, 0.1, 2),
            lib.constant_schedule(0.1),
            lib.linear_schedule(0.1, 0.0, 2),
        ],
        boundaries=[2, 5],
    )
    return values(schedule), train(lib.lion(schedule))


@both
def test_a_schedule_by_scale_and_sign(lib, more):
    schedule = lib.cosine_decay_schedule(0.1, 6)
    tx = lib.chain(lib.scale_by_adam(), lib.scale_by_schedule(schedule), lib.scale(-1.0))
    return train(tx)


@both
def test_a_negative_schedule(lib, more):
    schedule = lib.cosine_decay_schedule(-0.1, 6)
    return train(lib.chain(lib.scale_by_adam(), lib.scale_by_schedule(schedule)))


@both
def test_a_negated_schedule_by_lambda(lib, more):
    schedule = lib.linear_schedule(0.1, 0.0, 4)
    return train(lib.chain(lib.scale_by_adam(), lib.scale_by_schedule(lambda s: -schedule(s))))


@both
def test_a_schedule_by_scale_by_learning_rate(lib, more):
    tx = lib.chain(
        lib.scale_by_adam(), lib.scale_by_learning_rate(lib.linear_schedule(0.1, 0.0, 4))
    )
    return train(tx)


@both
def test_scale_by_learning_rate_without_a_flip(lib, more):
    return train(lib.chain(lib.scale_by_adam(), lib.scale_by_learning_rate(0.1, flip_sign=False)))


@both
def test_a_constant_schedule_and_a_constant(lib, more):
    return train(lib.adam(lib.constant_schedule(0.1)))[0], train(lib.adam(0.1))[0]


@both
def test_annealing_a_fixed_rate_by_a_second_schedule(lib, more):
    tx = lib.chain(
        lib.clip_by_global_norm(0.5),
        lib.adam(0.1),
        lib.scale_by_schedule(lib.linear_schedule(1.0, 0.0, 4)),
    )
    return train(tx)


@both
def test_a_schedule_of_python_numbers(lib, more):
    return train(lib.sgd(lambda count: 0.1))[0]


@both
def test_a_schedule_of_numpy(lib, more):
    table = np.array([0.1, 0.05, 0.01], np.float32)
    return train(lib.sgd(lambda count: jnp.asarray(table)[count]))[0]


@both
def test_a_schedule_that_is_a_partial_and_one_that_is_an_object(lib, more):
    def inverse_root(count, peak, warm):
        return peak * jnp.minimum((count + 1) / warm, jnp.sqrt(warm / (count + 1)))

    class Noam:
        def __call__(self, count):
            return inverse_root(count, 0.1, 2.0)

    partial = functools.partial(inverse_root, peak=0.1, warm=2.0)
    return train(lib.adam(partial))[0], train(lib.adam(Noam()))[0]


@both
def test_a_schedule_with_an_array_of_one_element(lib, more):
    return train(lib.sgd(lambda count: jnp.array([0.1])))[0]


@both
def test_a_schedule_traced_and_vectorized(lib, more):
    schedule = lib.warmup_exponential_decay_schedule(0.0, 0.1, 2, 3, 0.5)
    return jax.jit(schedule)(3), jax.vmap(schedule)(jnp.arange(6))


@both
def test_the_rate_for_a_log_from_the_counter(lib, more):
    schedule = lib.cosine_decay_schedule(0.1, 6)
    _, state = train(lib.chain(lib.clip(1.0), lib.adam(schedule)))
    return schedule(state[1][0].count), schedule(state[1][-1].count)


@both
def test_the_rate_for_a_log_by_name(lib, more):
    schedule = lib.cosine_decay_schedule(0.1, 6)
    _, state = train(lib.sgd(schedule, momentum=0.9))
    return schedule(lib.tree.get(state, "count"))


@both
def test_a_schedule_resumes_at_a_step(lib, more):
    schedule = lib.linear_schedule(0.1, 0.0, 10)
    return train(lib.sgd(lambda count: schedule(count + 4)))


@both
def test_momentum_and_decay_by_schedule(lib, more):
    tx = lib.chain(
        lib.add_decayed_weights(lib.linear_schedule(0.1, 0.0, 4)),
        lib.sgd(lib.linear_schedule(0.1, 0.0, 4), momentum=0.9, nesterov=True),
    )
    return train(tx)


@both
def test_decay_by_schedule_in_adamw(lib, more):
    return train(lib.adamw(0.1, weight_decay=lib.linear_schedule(0.5, 0.0, 4)))


@both
def test_a_schedule_of_a_schedule(lib, more):
    def cycles(count, base):
        return base(count % 2) * 0.5 ** (count // 2)

    schedule = functools.partial(cycles, base=lib.linear_schedule(0.1, 0.05, 2))
    return values(schedule), train(lib.sgd(schedule))[0]


@both
def test_counters_saturate(lib, more):
    largest = jnp.array(jnp.iinfo(jnp.int32).max)
    return (
        lib.safe_increment(largest),
        lib.safe_increment(jnp.int32(3)),
        lib.safe_int32_increment(jnp.int32(4)),
    )


@both
def test_a_wrapped_schedule(lib, more):
    wrapped = lib.schedules.WrappedSchedule(lib.linear_schedule(0.1, 0.0, 4))
    state = wrapped.init()
    state = wrapped.update(state)
    return wrapped(state), state
