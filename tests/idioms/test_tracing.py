"""Optimizers under jax's transformations: compiled, looped, batched."""

import functools

import jax
import jax.numpy as jnp

from .both import FLAT, PARAMS, both, gradients, stepper


@both
def test_methods_are_compiled_by_themselves(lib, more):
    tx = lib.adamw(0.1)
    state = jax.jit(tx.init)(PARAMS)
    return jax.jit(tx.update)(gradients(PARAMS), state, PARAMS)


@both
def test_the_pair_is_unpacked(lib, more):
    init, update = lib.adam(0.1)
    update = jax.jit(update)
    return update(gradients(PARAMS), init(PARAMS))


@both
def test_the_transformation_is_a_static_argument(lib, more):
    @functools.partial(jax.jit, static_argnums=(0,))
    def step(tx, params, state):
        updates, state = tx.update(gradients(params), state, params)
        return lib.apply_updates(params, updates), state

    tx = lib.chain(lib.clip(1.0), lib.adam(0.1))
    params, state = step(tx, PARAMS, tx.init(PARAMS))
    return step(tx, params, state)


@both
def test_the_transformation_is_a_static_argument_by_name(lib, more):
    @functools.partial(jax.jit, static_argnames=("tx",))
    def step(params, state, *, tx):
        return stepper(lib, tx)(params, state)

    tx = lib.sgd(0.1, momentum=0.9)
    return step(PARAMS, tx.init(PARAMS), tx=tx)


@both
def test_update_is_a_static_argument(lib, more):
    @functools.partial(jax.jit, static_argnums=0)
    def step(update, params, state):
        return update(gradients(params), state, params)

    tx = lib.adam(0.1)
    return step(tx.update, PARAMS, tx.init(PARAMS))


@both
def test_update_is_a_partial(lib, more):
    tx = lib.adamw(0.1)
    update = functools.partial(tx.update, params=PARAMS)
    return update(gradients(PARAMS), tx.init(PARAMS))


@both
def test_the_program_is_compiled_ahead_of_time(lib, more):
    tx = lib.adam(0.1)
    state = tx.init(PARAMS)
    compiled = jax.jit(stepper(lib, tx)).lower(PARAMS, state).compile()
    params, state = compiled(PARAMS, state)
    return compiled(params, state)


@both
def test_the_program_is_compiled_for_abstract_arguments(lib, more):
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.lion(0.1))
    shapes = jax.eval_shape(lambda: PARAMS)
    compiled = jax.jit(stepper(lib, tx)).lower(shapes, jax.eval_shape(tx.init, shapes)).compile()
    return compiled(PARAMS, tx.init(PARAMS))


@both
def test_abstract_states(lib, more):
    shapes = jax.eval_shape(lib.adamw(lib.constant_schedule(0.1)).init, PARAMS)
    return [(leaf.size, str(leaf.dtype)) for leaf in jax.tree.leaves(shapes)]


@both
def test_states_made_from_abstract_parameters(lib, more):
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    return lib.adam(0.1).init(abstract), lib.sgd(0.1, momentum=0.9).init(abstract)


@both
def test_donated_buffers(lib, more):
    tx = lib.adam(0.1)
    step = jax.jit(stepper(lib, tx), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state)
    return params, state


@both
def test_scan(lib, more):
    tx = lib.adam(0.1)

    @jax.jit
    def run(params, batches):
        def body(carry, number):
            params, state = carry
            updates, state = tx.update(gradients(params, number), state, params)
            return (lib.apply_updates(params, updates), state), optax_norm(updates)

        def optax_norm(tree):
            return lib.tree.norm(tree)

        return jax.lax.scan(body, (params, tx.init(params)), batches)

    return run(PARAMS, jnp.arange(3.0))


@both
def test_fori_loop(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.sgd(lib.linear_schedule(0.1, 0.0, 5), momentum=0.9))
    body = stepper(lib, tx)
    return jax.lax.fori_loop(0, 3, lambda i, carry: body(*carry), (PARAMS, tx.init(PARAMS)))


@both
def test_while_loop_until_the_gradient_is_small(lib, more):
    tx = lib.sgd(0.2)

    def unfinished(carry):
        params, _, number = carry
        return (jnp.linalg.norm(params) > 0.1) & (number < 50)

    def body(carry):
        params, state, number = carry
        updates, state = tx.update(params, state, params)
        return lib.apply_updates(params, updates), state, number + 1

    return jax.lax.while_loop(unfinished, body, (FLAT, tx.init(FLAT), 0))


@both
def test_an_update_under_a_condition(lib, more):
    tx = lib.adam(0.1)
    step = jax.jit(
        lambda go, params, state: jax.lax.cond(go, stepper(lib, tx), lambda *a: a, params, state)
    )
    params, state = step(True, PARAMS, tx.init(PARAMS))
    return step(False, params, state)


@both
def test_a_switch_between_optimizers_of_one_state(lib, more):
    optimizers = [lib.sgd(0.1, momentum=0.9), lib.sgd(0.5, momentum=0.9)]
    branches = [stepper(lib, tx) for tx in optimizers]
    return jax.lax.switch(1, branches, PARAMS, optimizers[0].init(PARAMS))


@both
def test_an_ensemble_in_vmap(lib, more):
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1))
    stacked = jax.tree.map(lambda p: jnp.stack([p, -p, 2 * p]), PARAMS)
    states = jax.vmap(tx.init)(stacked)
    return jax.jit(jax.vmap(stepper(lib, tx)))(stacked, states)


@both
def test_one_state_for_many_gradients(lib, more):
    tx = lib.adam(0.1)
    state = tx.init(FLAT)
    grads = jnp.stack([FLAT, -2 * FLAT])
    return jax.vmap(tx.update, in_axes=(0, None, None))(grads, state, FLAT)


@both
def test_vmap_over_the_last_axis(lib, more):
    tx = lib.trace(0.9)
    grads = jnp.stack([FLAT, -2 * FLAT], axis=1)
    state = jax.vmap(tx.init, in_axes=1, out_axes=1)(grads)
    return jax.vmap(tx.update, in_axes=1, out_axes=1)(grads, state)


@both
def test_rematerialized_losses_and_named_scopes(lib, more):
    tx = lib.adam(0.1)

    @jax.checkpoint
    def loss(params):
        return jnp.sum(jnp.tanh(params) ** 2)

    @jax.jit
    def step(params, state):
        with jax.named_scope("optimizer"):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
        return lib.apply_updates(params, updates), state

    return step(FLAT, tx.init(FLAT))


@both
def test_callbacks_within_a_step(lib, more):
    seen = []
    tx = lib.adam(0.1)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradients(params), state, params)
        jax.debug.callback(lambda count: seen.append(int(count)), state[0].count)
        return lib.apply_updates(params, updates), state

    result = step(PARAMS, tx.init(PARAMS))
    jax.effects_barrier()
    return result, seen
