"""Averages of parameters, target networks, ascent, projections, norms for a log."""

import functools

import jax
import jax.numpy as jnp
import optax

from .both import PARAMS, both, gradients, train

THETA = jnp.array([0.5, -1.0, 2.0])


@both
def test_a_discriminator_with_a_negative_rate(lib, more):
    return train(lib.rmsprop(-1e-1), steps=2)[0], train(lib.adam(learning_rate=-0.1), steps=2)[0]


@both
def test_ascent_by_a_positive_scale(lib, more):
    return train(lib.chain(lib.scale_by_adam(), lib.scale(0.1)), THETA)


@both
def test_ascent_by_negated_gradients(lib, more):
    tx = lib.sgd(0.1)
    updates, state = tx.update(jax.tree.map(jnp.negative, gradients(PARAMS)), tx.init(PARAMS))
    return lib.apply_updates(PARAMS, updates), state


@both
def test_ascent_by_a_scale_before_the_optimizer(lib, more):
    return train(lib.chain(lib.scale(-1.0), lib.adam(0.1)), THETA)


@both
def test_ascent_by_subtracted_updates(lib, more):
    tx = lib.sgd(0.1)
    updates, _ = tx.update(THETA, tx.init(THETA))
    return lib.apply_updates(THETA, jax.tree.map(lambda u: -u, updates))


@both
def test_reversed_gradients_for_one_part(lib, more):
    tx = lib.multi_transform(
        {"descend": lib.sgd(0.1), "ascend": lib.sgd(-0.1)}, {"dense": "descend", "head": "ascend"}
    )
    return train(tx)


@both
def test_averages_of_parameters(lib, more):
    params, _ = train(lib.sgd(0.1))
    average = lib.incremental_update(params, PARAMS, step_size=0.01)
    return lib.incremental_update(new_tensors=params, old_tensors=average, step_size=0.5)


@both
def test_a_target_network_by_small_steps(lib, more):
    online, target = PARAMS, PARAMS
    tx = lib.adam(0.1)
    state = tx.init(online)
    for number in range(2):
        updates, state = tx.update(gradients(online, number), state)
        online = lib.apply_updates(online, updates)
        target = lib.incremental_update(online, target, 0.05)
    return online, target


@both
def test_a_target_network_by_period(lib, more):
    new = jax.tree.map(lambda p: p + 1, PARAMS)
    return [lib.periodic_update(new, PARAMS, jnp.array(step), 3) for step in (2, 3)]


@both
def test_a_target_network_by_period_in_jit(lib, more):
    new = jax.tree.map(lambda p: p + 1, PARAMS)
    update = jax.jit(functools.partial(lib.periodic_update, update_period=2))
    return update(new, PARAMS, 4), update(new, PARAMS, 5)


@both
def test_averages_by_ema_of_parameters(lib, more):
    ema = lib.ema(0.9, debias=True)
    state = ema.init(PARAMS)
    params = PARAMS
    for _ in range(2):
        params = jax.tree.map(lambda p: p + 1, params)
        average, state = ema.update(params, state)
    return average, state


@both
def test_averages_by_ema_without_correction(lib, more):
    ema = lib.ema(decay=0.99, debias=False, accumulator_dtype=jnp.float32)
    return ema.update(PARAMS, ema.init(PARAMS))


@both
def test_norms_for_a_log(lib, more):
    grads = gradients(PARAMS)
    tx = lib.adam(0.1)
    updates, _ = tx.update(grads, tx.init(PARAMS))
    return {
        "grad": lib.global_norm(grads),
        "update": lib.global_norm(updates),
        "param": lib.global_norm(PARAMS),
        "layers": {name: lib.global_norm(part) for name, part in grads.items()},
    }


@both
def test_projection_after_each_step(lib, more):
    params, state = train(lib.sgd(0.5), THETA, steps=1)
    return jnp.maximum(params, 0.0), optax.projections.projection_simplex(params), state


@both
def test_parameters_that_stay_nonnegative(lib, more):
    tx = lib.chain(lib.sgd(0.5), lib.keep_params_nonnegative())
    params = jnp.array([0.1, 1.0, 0.2])
    updates, state = tx.update(jnp.array([1.0, 1.0, -1.0]), tx.init(params), params)
    return lib.apply_updates(params, updates), state
