"""Optimizers that are differentiated, or sharded over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .both import FLAT, both, stepper, train


@both
def test_pmap(lib, more):
    tx = lib.adam(0.1)
    count = 2

    @functools.partial(jax.pmap, axis_name="batch", devices=jax.devices()[:count])
    def step(params, state, scale):
        grads = jax.tree.map(lambda p: scale * p, params)
        grads = jax.lax.pmean(grads, "batch")
        updates, state = tx.update(grads, state, params)
        return lib.apply_updates(params, updates), state

    replicated = jax.tree.map(lambda x: jnp.stack([x] * count), (FLAT, tx.init(FLAT)))
    return step(*replicated, jnp.arange(1.0, count + 1))


@both
def test_shard_map(lib, more):
    tx = lib.adam(0.1)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False
    )
    def step(params, state, data):
        grads = jax.lax.pmean(jax.grad(lambda p: jnp.sum((p[None] - data) ** 2))(params), "data")
        updates, state = tx.update(grads, state, params)
        return lib.apply_updates(params, updates), state

    return step(FLAT, tx.init(FLAT), jnp.arange(16.0).reshape(4, 4))


@both
def test_a_sharded_state(lib, more):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), P("data"))
    params = jax.device_put(FLAT, sharding)
    tx = lib.adam(0.1)
    state = jax.jit(tx.init)(params)
    params, state = jax.jit(stepper(lib, tx))(params, state)
    assert params.sharding.is_equivalent_to(sharding, 1)
    return params, state


@both
def test_shardings_by_tree_map_params(lib, more):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    tx = lib.chain(lib.clip(1.0), lib.adam(0.1))
    abstract = jax.eval_shape(tx.init, FLAT)
    shardings = lib.tree_map_params(
        tx,
        lambda _, spec: NamedSharding(mesh, spec),
        abstract,
        P("data"),
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )
    state = jax.jit(tx.init, out_shardings=shardings)(FLAT)
    return state, [str(leaf.sharding.spec) for leaf in jax.tree.leaves(state)]


@both
def test_a_constraint_on_the_layout_within_a_step(lib, more):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    tx = lib.adamw(0.1)

    @jax.jit
    def step(params, state):
        params = jax.lax.with_sharding_constraint(params, NamedSharding(mesh, P("data")))
        updates, state = tx.update(params, state, params)
        return lib.apply_updates(params, updates), state

    return step(FLAT, tx.init(FLAT))


@both
def test_hypergradient_through_steps(lib, more):
    def final_loss(rate):
        params, _ = train(lib.sgd(rate, momentum=0.9), FLAT, steps=2)
        return jnp.sum(params**2)

    return jax.value_and_grad(final_loss)(0.1)


@both
def test_hypergradient_of_adam(lib, more):
    def final_loss(values):
        tx = lib.adamw(values["rate"], b1=values["b1"], weight_decay=values["decay"])
        params, _ = train(tx, FLAT, steps=2)
        return jnp.sum(params**2)

    return jax.grad(final_loss)({"rate": 0.1, "b1": 0.9, "decay": 0.1})


@both
def test_hypergradient_with_respect_to_initial_parameters(lib, more):
    def final_loss(initial):
        params, _ = train(lib.adam(0.1), initial, steps=2)
        return jnp.sum(params**2)

    return jax.grad(final_loss)(FLAT)


@both
def test_hypergradient_through_injected_rates(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=0.1)

    def final_loss(rate):
        state = tx.init(FLAT)
        state.hyperparams["learning_rate"] = rate
        params, _ = train(tx, FLAT, state, steps=2)
        return jnp.sum(params**2)

    return jax.grad(final_loss)(0.1)


@both
def test_forward_derivatives_of_an_update(lib, more):
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.scale_by_rms(), lib.scale(-0.1))
    state = tx.init(FLAT)
    return jax.jvp(lambda g: tx.update(g, state, FLAT)[0], (FLAT,), (jnp.ones(4),))
