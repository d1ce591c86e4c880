"""Hyperparameters in the state: injected, read, set by hand, scheduled, in populations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .both import PARAMS, both, gradients, train


@both
def test_an_injected_rate_is_read(lib, more):
    tx = lib.inject_hyperparams(lib.adam)(learning_rate=0.1)
    params, state = train(tx)
    return params, state.hyperparams["learning_rate"], sorted(state.hyperparams)


@both
def test_an_injected_rate_is_set_by_hand(lib, more):
    tx = lib.inject_hyperparams(lib.adam)(learning_rate=0.1)
    params, state = train(tx)
    state.hyperparams["learning_rate"] = 0.5
    return train(tx, params, state)[0]


@both
def test_an_injected_rate_is_set_to_an_array_inside_of_jit(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=0.1)

    @jax.jit
    def step(params, state, rate):
        state.hyperparams["learning_rate"] = rate
        updates, state = tx.update(gradients(params), state, params)
        return lib.apply_updates(params, updates), state

    state = tx.init(PARAMS)
    params, state = step(PARAMS, state, 0.3)
    return step(params, state, jnp.float32(0.2))


@both
def test_an_injected_rate_is_set_to_a_numpy_scalar(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.inject_hyperparams(lib.adamw)(learning_rate=0.1))
    params, state = train(tx)
    state[-1].hyperparams["learning_rate"] = np.float32(0.05)
    return train(tx, params, state)[0]


@both
def test_an_injected_rate_is_replaced(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.inject_hyperparams(lib.adam)(learning_rate=0.1))
    params, (clip_state, inject_state) = train(tx)
    values = inject_state.hyperparams.copy()
    values["learning_rate"] = 0.02
    inject_state = inject_state._replace(hyperparams=values)
    return train(tx, params, (clip_state, inject_state))[0]


@both
def test_an_injected_rate_is_replaced_by_union(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(0.1, momentum=0.9)
    params, state = train(tx)
    state = state._replace(hyperparams={**state.hyperparams, "momentum": jnp.asarray(0.5)})
    return train(tx, params, state)


@both
def test_the_rate_is_multiplied_when_progress_stops(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=0.1)
    params, state = train(tx, steps=1)
    for _ in range(2):
        state.hyperparams["learning_rate"] *= 0.5
        params, state = train(tx, params, state, steps=1)
    return params, state.hyperparams["learning_rate"]


@both
def test_an_injected_schedule(lib, more):
    schedule = lib.warmup_cosine_decay_schedule(0.0, 0.1, 2, 8)
    tx = lib.inject_hyperparams(lib.adamw)(schedule, 0.9, 0.95, weight_decay=0.1)
    params, state = train(tx)
    return params, state.hyperparams["learning_rate"], state.count


@both
def test_an_injected_function_of_the_count(lib, more):
    tx = lib.inject_hyperparams(lib.adamw)(learning_rate=lambda count: 0.1 / (count + 1), eps=1e-5)
    return train(lib.chain(lib.clip_by_global_norm(0.5), tx))


@both
def test_several_schedules(lib, more):
    tx = lib.inject_hyperparams(lib.adam)(
        learning_rate=lib.linear_schedule(0.1, 0.0, 4), b1=lib.linear_schedule(0.8, 0.9, 4)
    )
    params, state = train(tx)
    return params, state.hyperparams


@both
def test_static_arguments_are_not_part_of_the_state(lib, more):
    tx = lib.inject_hyperparams(lib.adam, static_args=("b1", "b2", "eps", "eps_root"))(
        learning_rate=0.1, b1=0.8
    )
    params, state = train(tx)
    return params, sorted(state.hyperparams)


@both
def test_one_static_argument_by_name(lib, more):
    tx = lib.inject_hyperparams(lib.sgd, static_args="nesterov")(0.1, momentum=0.9, nesterov=True)
    params, state = train(tx)
    return params, sorted(state.hyperparams)


@both
def test_a_factory_of_your_own(lib, more):
    @lib.inject_hyperparams
    def optimizer(learning_rate, threshold=1.0):
        return lib.chain(
            lib.clip_by_global_norm(threshold),
            lib.scale_by_adam(b2=0.95),
            lib.add_decayed_weights(0.1),
            lib.scale(-learning_rate),
        )

    params, state = train(optimizer(learning_rate=lib.linear_schedule(0.1, 0.0, 5)))
    return params, state.hyperparams


@both
def test_a_factory_with_an_option_that_is_not_a_number(lib, more):
    @functools.partial(lib.inject_hyperparams, static_args=("kind",))
    def optimizer(learning_rate, kind):
        return {"adam": lib.adam, "sgd": lib.sgd}[kind](learning_rate)

    return train(optimizer(0.1, "sgd"))[0], train(optimizer(0.1, kind="adam"))[0]


@both
def test_a_partial_factory(lib, more):
    tx = lib.inject_hyperparams(functools.partial(lib.adamw, b1=0.8))(learning_rate=0.1)
    params, state = train(tx)
    return params, state.hyperparams["learning_rate"]


@both
def test_a_factory_as_a_lambda(lib, more):
    tx = lib.inject_hyperparams(lambda lr: lib.chain(lib.clip(1.0), lib.sgd(lr, momentum=0.9)))
    params, state = train(tx(lr=0.1))
    return params, state.hyperparams


@both
def test_a_piece_is_injected(lib, more):
    tx = lib.chain(
        lib.inject_hyperparams(lib.trace)(lib.linear_schedule(0.8, 0.9, 4)),
        lib.inject_hyperparams(lib.scale)(lambda count: 0.1 / (count + 1)),
        lib.scale(-1),
    )
    return train(tx)[0]


@both
def test_weight_decay_is_injected(lib, more):
    decay = lib.inject_hyperparams(lib.add_decayed_weights)(
        weight_decay=lib.linear_schedule(1, 0, 4)
    )
    return train(lib.chain(lib.scale_by_adam(), decay, lib.scale_by_learning_rate(0.1)))[0]


@both
def test_a_clipping_threshold_is_injected(lib, more):
    clip = lib.inject_hyperparams(lib.clip_by_global_norm)(max_norm=lambda count: 1.0 + count)
    return train(lib.chain(clip, lib.sgd(0.1)))[0]


@both
def test_the_dtype_of_hyperparameters_is_chosen(lib, more):
    tx = lib.inject_hyperparams(lib.adam, hyperparam_dtype=jnp.float32)(learning_rate=0.1)
    _, state = train(tx)
    return state.hyperparams


@both
def test_a_state_found_by_its_attribute(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.inject_hyperparams(lib.adam)(0.1), lib.identity())
    _, state = train(tx)
    return [float(s.hyperparams["learning_rate"]) for s in state if hasattr(s, "hyperparams")]


@both
def test_the_rate_by_name_wherever_it_is(lib, more):
    tx = lib.MultiSteps(lib.chain(lib.clip(1.0), lib.inject_hyperparams(lib.adam)(0.1)), 2)
    state = tx.init(PARAMS)
    state = lib.tree.set(state, learning_rate=jnp.float32(0.03))
    params, state = train(tx, state=state, steps=4)
    return params, lib.tree.get(state, "learning_rate")


@both
def test_the_inner_state_of_an_injected_optimizer(lib, more):
    _, state = train(lib.inject_hyperparams(lib.adam)(0.1))
    return state.inner_state[0].mu, state.inner_state[0].count


@both
def test_a_population_of_rates_in_vmap(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=0.1)

    def run(rate):
        state = tx.init(PARAMS)
        state.hyperparams["learning_rate"] = rate
        return train(tx, state=state, steps=2)[0]

    return jax.jit(jax.vmap(run))(jnp.array([0.1, 0.2, 0.3]))


@both
def test_a_population_of_optimizers_made_within_vmap(lib, more):
    def run(rate, b1):
        return train(lib.adam(rate, b1=b1), steps=2)[0]

    return jax.jit(jax.vmap(run))(jnp.array([0.1, 0.2]), jnp.array([0.9, 0.5]))


@both
def test_a_population_of_states_with_rates_set_afterwards(lib, more):
    tx = lib.inject_hyperparams(lib.adam)(learning_rate=0.1)
    population = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(tx.init)(population)
    states.hyperparams["learning_rate"] = jnp.array([0.1, 0.01])
    updates, states = jax.vmap(tx.update)(gradients(population), states, population)
    return updates, states


@both
def test_exploited_members_copy_states_and_rates(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=0.1, momentum=0.9)
    population = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(tx.init)(population)
    states = jax.tree.map(lambda leaf: leaf[jnp.array([1, 1])], states)
    return jax.vmap(tx.update)(gradients(population), states, population)


@both
def test_half_precision_parameters_with_a_rate_of_single_precision(lib, more):
    tx = lib.inject_hyperparams(lib.sgd, hyperparam_dtype=jnp.float32)(learning_rate=0.1)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    return train(tx, params)


@both
def test_rates_that_are_arrays_of_one_element(lib, more):
    params, _ = train(lib.sgd(jnp.array([0.1])), steps=1)
    return params


@both
def test_a_stateful_schedule(lib, more):
    class Halving:
        def init(self):
            return {"rate": jnp.float32(0.2)}

        def update(self, state, **extra_args):
            return {"rate": state["rate"] / 2}

        def __call__(self, state, **extra_args):
            return state["rate"]

    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=Halving())
    params, state = train(tx)
    return params, state.hyperparams, state.hyperparams_states
