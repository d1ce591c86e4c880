"""Gradients that are accumulated, updates that are skipped: MultiSteps in all its forms."""

import functools

import jax
import jax.numpy as jnp
import optax

from . import both as idioms
from .both import PARAMS, both, gradients

train = functools.partial(idioms.train, compiled=True)


@both
def test_an_object_in_a_loop(lib, more):
    return train(lib.MultiSteps(lib.adam(0.1), every_k_schedule=2), steps=5)


@both
def test_a_transformation_made_of_it(lib, more):
    tx = lib.MultiSteps(lib.adam(0.1), 2).gradient_transformation()
    assert isinstance(tx, optax.GradientTransformation)
    return train(tx, steps=5)


@both
def test_its_methods_as_a_plain_transformation(lib, more):
    steps = lib.MultiSteps(lib.sgd(0.1), every_k_schedule=2)
    tx = lib.GradientTransformation(init=steps.init, update=steps.update)
    return train(lib.chain(lib.clip(1.0), tx), steps=4)


@both
def test_it_stands_in_a_chain(lib, more):
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.MultiSteps(lib.adam(0.1), 2))
    return train(tx, steps=4)


@both
def test_it_goes_around_a_chain(lib, more):
    inner = lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1, weight_decay=0.1))
    return train(lib.MultiSteps(inner, 2, use_grad_mean=True), steps=4)


@both
def test_sums_in_place_of_means(lib, more):
    return train(lib.MultiSteps(lib.sgd(0.1), 2, use_grad_mean=False), steps=4)


@both
def test_a_number_of_steps_by_schedule(lib, more):
    def every(step):
        return jnp.where(step < 1, 1, 2)

    return train(lib.MultiSteps(lib.adam(0.1), every_k_schedule=every), steps=5)


@both
def test_a_number_of_steps_by_a_piecewise_schedule(lib, more):
    schedule = lib.piecewise_constant_schedule(1, {2: 2})

    def every(step):
        return schedule(step).astype(jnp.int32)

    return train(lib.MultiSteps(lib.sgd(0.1), every), steps=5)[0]


@both
def test_whether_it_has_updated(lib, more):
    tx = lib.MultiSteps(lib.sgd(0.1), 2)
    params, state = PARAMS, tx.init(PARAMS)
    answers = [tx.has_updated(state)]
    for number in range(4):
        updates, state = tx.update(gradients(params, number), state, params)
        params = lib.apply_updates(params, updates)
        answers += [tx.has_updated(state), state.mini_step, state.gradient_step]
    return answers


@both
def test_its_state_by_attribute(lib, more):
    _, state = train(lib.MultiSteps(lib.adam(0.1), 2), steps=3)
    assert isinstance(state, lib.MultiStepsState)
    return state.acc_grads, state.inner_opt_state[0].count, state.skip_state


@both
def test_the_inner_rate_is_set_by_hand(lib, more):
    tx = lib.MultiSteps(lib.inject_hyperparams(lib.sgd)(learning_rate=0.1), 2)
    params, state = train(tx, steps=2)
    state.inner_opt_state.hyperparams["learning_rate"] = jnp.asarray(0.5)
    return train(tx, params, state, steps=2)


@both
def test_schedules_count_whole_steps(lib, more):
    tx = lib.MultiSteps(lib.sgd(lib.linear_schedule(0.1, 0.0, 4)), 2)
    return train(tx, steps=5)


@both
def test_gradients_that_are_not_finite_are_skipped(lib, more):
    tx = lib.MultiSteps(lib.sgd(0.1), 2, should_skip_update_fn=lib.skip_not_finite)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    params, state = train(tx, steps=1)
    updates, state = tx.update(bad, state, params)
    return train(tx, lib.apply_updates(params, updates), state, steps=2)


@both
def test_large_gradients_are_skipped(lib, more):
    skip = functools.partial(lib.skip_large_updates, max_squared_norm=100.0)
    tx = lib.MultiSteps(lib.adam(0.1), 1, should_skip_update_fn=skip)
    params, state = train(tx, steps=2)
    big = jax.tree.map(lambda p: 100.0 + p, PARAMS)
    updates, state = tx.update(big, state, params)
    return updates, state


@both
def test_gradients_are_skipped_by_a_function_of_your_own(lib, more):
    def skip(updates, gradient_step, params=None):
        return lib.global_norm(updates) > 3.2, {"norm": lib.global_norm(updates)}

    return train(lib.MultiSteps(lib.sgd(0.1), 2, should_skip_update_fn=skip), steps=4)


@both
def test_accumulation_within_scan(lib, more):
    tx = lib.MultiSteps(lib.adam(0.1), 3)

    @jax.jit
    def run(params):
        def step(carry, number):
            params, state = carry
            updates, state = tx.update(gradients(params, number), state, params)
            return (lib.apply_updates(params, updates), state), tx.has_updated(state)

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(4.0))

    return run(PARAMS)


@both
def test_further_arguments_reach_the_inner_optimizer(lib, more):
    def scaled():
        def update(updates, state, params=None, *, factor, **extra):
            return jax.tree.map(lambda u: factor * u, updates), state

        return lib.GradientTransformationExtraArgs(lib.init_empty_state, update)

    tx = lib.MultiSteps(lib.chain(scaled(), lib.sgd(0.1)), 1)
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS, factor=2.0)[0]


@both
def test_apply_every(lib, more):
    return train(lib.chain(lib.sgd(0.1), lib.apply_every(2)), steps=4)


@both
def test_steps_that_are_not_finite_are_rejected(lib, more):
    tx = lib.apply_if_finite(lib.adam(0.1), max_consecutive_errors=5)
    params, state = train(tx, steps=1)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), PARAMS)
    updates, state = tx.update(bad, state, params)
    params, state = train(tx, lib.apply_updates(params, updates), state, steps=1)
    return params, state, state.total_notfinite, state.inner_state[0].count


@both
def test_too_many_steps_that_are_not_finite_go_through(lib, more):
    tx = lib.apply_if_finite(lib.sgd(0.1), 1)
    state = tx.init(PARAMS)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), PARAMS)
    seen = []
    for _ in range(3):
        updates, state = tx.update(bad, state, PARAMS)
        seen.append((updates, state.last_finite, state.notfinite_count))
    return seen


@both
def test_rejection_in_a_chain_with_the_largest_bound(lib, more):
    tx = lib.chain(
        lib.clip_by_global_norm(10.0),
        lib.apply_if_finite(lib.adamw(0.1), max_consecutive_errors=jnp.iinfo(jnp.int32).max),
    )
    return train(tx)


@both
def test_steps_under_a_condition(lib, more):
    tx = lib.conditionally_transform(lib.scale(0.1), lambda step, **extra: step % 2 == 0)
    return train(lib.chain(tx, lib.scale(-1.0)), steps=3)


@both
def test_steps_masked_by_a_condition(lib, more):
    tx = lib.conditionally_mask(lib.sgd(0.1, momentum=0.9), lambda step, **extra: step >= 1)
    return train(tx, steps=3)


@both
def test_a_condition_that_reads_a_further_argument(lib, more):
    tx = lib.conditionally_mask(
        lib.sgd(0.1), lambda step, loss: loss < 1.0, forward_extra_args=True
    )
    state = tx.init(PARAMS)
    grads = gradients(PARAMS)
    first, state = tx.update(grads, state, PARAMS, loss=jnp.float32(0.5))
    second, state = tx.update(grads, state, PARAMS, loss=jnp.float32(2.0))
    return first, second, state


@both
def test_gradients_of_microbatches_are_averaged(lib, more):
    tx = lib.sgd(0.1)
    batches = jnp.arange(6.0).reshape(3, 2)

    def loss(params, batch):
        return jnp.mean(batch) * jnp.sum(params["dense"]["kernel"] ** 2)

    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(PARAMS, batches)
    mean = jax.tree.map(lambda g: g.mean(axis=0), grads)
    return tx.update(mean, tx.init(PARAMS), PARAMS)
