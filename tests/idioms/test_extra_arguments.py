"""Methods that need more than gradients: values, functions, keys; wrappers with parameters."""

import jax
import jax.numpy as jnp
import optax

from .both import PARAMS, both, gradients, train

X0 = jnp.array([1.2, -0.5])


def bowl(x):
    return jnp.sum(jnp.array([1.0, 4.0]) * (x - 0.3) ** 2)


def minimize(lib, tx, steps=2, **extra):
    """Steps of a method that needs the value, the gradient and the function."""
    x, state = X0, tx.init(X0)
    for _ in range(steps):
        value, grad = jax.value_and_grad(bowl)(x)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=bowl, **extra)
        x = lib.apply_updates(x, updates)
    return x, state


@both
def test_lbfgs(lib, more):
    return minimize(lib, lib.lbfgs())[0]


@both
def test_lbfgs_with_a_rate_and_without_a_search(lib, more):
    return minimize(lib, lib.lbfgs(0.1, memory_size=3, linesearch=None))


@both
def test_lbfgs_in_a_while_loop_with_values_of_the_state(lib, more):
    tx = lib.lbfgs(linesearch=lib.scale_by_zoom_linesearch(max_linesearch_steps=5))
    value_and_grad = lib.value_and_grad_from_state(bowl)

    def body(carry):
        x, state = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=bowl)
        return lib.apply_updates(x, updates), state

    def unfinished(carry):
        count = lib.tree.get(carry[1], "count")
        grad = lib.tree.get(carry[1], "grad")
        return (count == 0) | ((count < 4) & (lib.tree.norm(grad) > 1e-4))

    return jax.lax.while_loop(unfinished, body, (X0, tx.init(X0)))[0]


@both
def test_a_backtracking_search_after_gradient_descent(lib, more):
    search = lib.scale_by_backtracking_linesearch(max_backtracking_steps=5, store_grad=True)
    return minimize(lib, lib.chain(lib.sgd(1.0), search))


@both
def test_a_search_whose_rate_is_read(lib, more):
    tx = lib.chain(lib.scale(-1.0), lib.scale_by_backtracking_linesearch(max_backtracking_steps=5))
    _, state = minimize(lib, tx)
    return state[-1].learning_rate, lib.tree.get(state, "learning_rate"), state[-1].value


@both
def test_clipped_gradients_before_lbfgs(lib, more):
    tx = lib.lbfgs(0.1, linesearch=None)
    x, state = X0, tx.init(X0)
    grad, _ = lib.clip_by_global_norm(0.5).update(jax.grad(bowl)(x), None)
    return tx.update(grad, state, x, value=bowl(x), grad=grad, value_fn=bowl)[0]


@both
def test_a_plateau_after_adam(lib, more):
    tx = lib.chain(lib.adam(0.1), more.reduce_on_plateau(factor=0.5, patience=1))
    params, state = PARAMS, tx.init(PARAMS)
    for value in (1.0, 1.0, 1.0, 0.2):
        updates, state = tx.update(gradients(params), state, params, value=value)
        params = lib.apply_updates(params, updates)
    return params, state[1].scale, lib.tree.get(state, "scale"), state[1].best_value


@both
def test_a_plateau_alone_with_a_state_of_its_own(lib, more):
    adam = lib.adam(0.1)
    plateau = more.reduce_on_plateau(
        factor=0.5, patience=1, rtol=1e-4, atol=0.0, cooldown=1, accumulation_size=2
    )
    state, plateau_state = adam.init(PARAMS), plateau.init(PARAMS)
    seen = []
    for number in range(6):
        updates, state = adam.update(gradients(PARAMS, number), state, PARAMS)
        _, plateau_state = plateau.update(
            updates=updates, state=plateau_state, value=jnp.float32(3.0)
        )
        updates = lib.tree.scale(plateau_state.scale, updates)
        seen.append(plateau_state.scale)
    return seen, updates, plateau_state


@both
def test_a_plateau_in_jit(lib, more):
    tx = lib.chain(lib.sgd(0.1), more.reduce_on_plateau(patience=1))

    @jax.jit
    def step(params, state, value):
        updates, state = tx.update(gradients(params), state, params, value=value)
        return lib.apply_updates(params, updates), state

    params, state = step(PARAMS, tx.init(PARAMS), jnp.float32(1.0))
    return step(params, state, jnp.float32(2.0))


@both
def test_polyaks_step(lib, more):
    tx = lib.polyak_sgd(max_learning_rate=0.5)
    return tx.update(jax.grad(bowl)(X0), tx.init(X0), X0, value=bowl(X0))


@both
def test_momo(lib, more):
    tx = more.momo(0.5)
    value, grads = jax.value_and_grad(bowl)(X0)
    updates, _ = tx.update(grads, tx.init(X0), X0, value=value)
    return updates


@both
def test_further_arguments_for_methods_that_read_none(lib, more):
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1))
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS, value=1.0, value_fn=bowl)


@both
def test_one_loop_for_every_method(lib, more):
    txs = [lib.adam(0.1), lib.sgd(0.1), lib.polyak_sgd(), lib.lbfgs(0.1, linesearch=None)]
    return [minimize(lib, lib.with_extra_args_support(tx))[0] for tx in txs]


@both
def test_further_arguments_through_masks_partitions_and_many_steps(lib, more):
    inner = lib.chain(lib.scale_by_polyak(max_learning_rate=0.1), lib.scale(-1.0))
    txs = [
        lib.masked(inner, True),
        lib.multi_transform({"all": inner}, lambda params: jax.tree.map(lambda _: "all", params)),
        lib.MultiSteps(inner, 1),
        lib.apply_if_finite(inner, 1),
    ]
    return [tx.update(X0, tx.init(X0), X0, value=jnp.float32(0.5))[0] for tx in txs]


@both
def test_sharpness_aware_steps_in_the_open(lib, more):
    adversary = lib.chain(more.normalize(), lib.sgd(0.05))
    tx = more.sam(lib.sgd(0.1), adversary, sync_period=2)
    x, state = X0, tx.init(X0)
    for _ in range(4):
        updates, state = tx.update(jax.grad(bowl)(x), state, x)
        x = lib.apply_updates(x, updates)
    return x, state


@both
def test_sharpness_aware_steps_in_one_call(lib, more):
    adversary = lib.chain(more.normalize(), lib.sgd(0.05))
    tx = more.sam(lib.sgd(0.1), adversary, sync_period=2, opaque_mode=True)
    grad_fn = jax.grad(lambda x, _: bowl(x))
    updates, _ = tx.update(jax.grad(bowl)(X0), tx.init(X0), X0, grad_fn=grad_fn)
    return updates


@both
def test_lookahead(lib, more):
    tx = lib.lookahead(lib.adam(0.1), sync_period=2, slow_step_size=0.5)
    params = lib.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for number in range(3):
        updates, state = tx.update(gradients(params.fast, number), state, params)
        params = lib.apply_updates(params, updates)
    assert isinstance(state, optax.LookaheadState)
    return tuple(params), state


@both
def test_lookahead_with_params_built_by_hand(lib, more):
    tx = lib.lookahead(lib.sgd(0.1, momentum=0.9), 2, 0.5, reset_state=True)
    params = lib.LookaheadParams(fast=PARAMS, slow=PARAMS)
    state = tx.init(params)
    for number in range(2):
        updates, state = tx.update(gradients(params.fast, number), state, params)
        params = lib.apply_updates(params, updates)
    return params.slow, state.steps_since_sync


@both
def test_schedule_free(lib, more):
    tx = more.schedule_free_adamw(learning_rate=0.1, weight_decay=0.1)
    params, state = train(tx)
    return more.schedule_free_eval_params(state, params)


@both
def test_schedule_free_around_a_chain(lib, more):
    inner = lib.chain(lib.clip_by_global_norm(1.0), lib.sgd(0.1))
    params, state = train(more.schedule_free(inner, 0.1, b1=0.9, weight_lr_power=0.0))
    assert isinstance(state, more.ScheduleFreeState)
    return more.schedule_free_eval_params(state, params), state.z


@both
def test_measurements_within_a_chain(lib, more):
    tx = lib.chain(
        lib.snapshot("before", lib.tree.norm), lib.clip_by_global_norm(0.5), lib.sgd(0.1)
    )
    _, state = train(tx)
    return lib.tree.get(state, "before"), state[0].measurement


@both
def test_several_measurements(lib, more):
    tx = lib.chain(
        lib.monitor(
            {"norm": lib.tree.norm, "average": lib.measure_with_ema(lib.tree.norm, decay=0.9)}
        ),
        lib.adam(0.1),
    )
    _, state = train(tx)
    return lib.tree.get(state, "norm"), lib.tree.get(state, "average")


@both
def test_microbatched_gradients(lib, more):
    def loss(params, batch):
        return jnp.sum(params * batch.sum(0))

    value = lib.microbatch(jax.grad(loss), argnums=1, microbatch_size=2)(X0, jnp.ones((4, 2)))
    tx = lib.sgd(0.1)
    return tx.update(value, tx.init(X0))


@both
def test_noise_with_a_key_that_is_a_number(lib, more):
    return train(lib.noisy_sgd(0.1, eta=0.0, key=0))[0], train(
        lib.noisy_sgd(0.1, eta=0.0, key=jax.random.key(1))
    )[0]


@both
def test_noise_is_gone_without_a_variance(lib, more):
    tx = lib.chain(lib.add_noise(eta=0.0, gamma=0.55, key=jax.random.key(0)), lib.sgd(0.1))
    return train(tx)[0]
