"""Optimizers used by flax, haiku, equinox and chex."""

import chex
import equinox as eqx
import flax
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import dynamic_scale, train_state

from .both import PARAMS, both, gradients, train
from .networks import X, dense, linen_gradients


@both
def test_a_train_state_of_flax(lib, more):
    state = dense(lib.adamw(lib.linear_schedule(0.1, 0.0, 5)))
    for _ in range(2):
        grads = linen_gradients(state)
        state = state.apply_gradients(grads=grads)
    return state.params, state.opt_state, state.step


@both
def test_a_train_state_in_jit(lib, more):
    @jax.jit
    def step(state):
        grads = linen_gradients(state)
        return state.apply_gradients(grads=grads)

    state = step(step(dense(lib.chain(lib.clip_by_global_norm(0.1), lib.lion(0.1)))))
    return state.params, state.opt_state


@both
def test_a_train_state_with_many_steps(lib, more):
    state = dense(lib.MultiSteps(lib.adam(0.1), 2))
    for _ in range(2):
        state = state.apply_gradients(grads=gradients(state.params))
    return state.params, state.opt_state.mini_step


@both
def test_a_train_state_whose_rate_is_read_and_set(lib, more):
    state = dense(lib.inject_hyperparams(lib.sgd)(learning_rate=0.1))
    state.opt_state.hyperparams["learning_rate"] = 0.02
    state = state.apply_gradients(grads=gradients(state.params))
    return state.params, state.opt_state.hyperparams["learning_rate"]


@both
def test_a_train_state_with_its_own_fields(lib, more):
    class WithAverage(train_state.TrainState):
        average: dict

    params = {"w": jnp.ones(3)}
    state = WithAverage.create(apply_fn=None, params=params, tx=lib.adam(0.1), average=params)
    state = state.apply_gradients(grads=gradients(params))
    average = lib.incremental_update(state.params, state.average, 0.1)
    return state.replace(average=average).average


@both
def test_train_states_in_vmap(lib, more):
    tx = lib.adam(0.1)

    def create(seed):
        params = {"w": jax.random.normal(jax.random.key(seed), (3,))}
        return train_state.TrainState.create(apply_fn=jnp.sum, params=params, tx=tx)

    states = jax.vmap(create)(jnp.arange(2))
    states = jax.vmap(lambda s: s.apply_gradients(grads=gradients(s.params)))(states)
    return states.params, states.opt_state


@both
def test_a_train_state_of_your_own(lib, more):
    @flax.struct.dataclass
    class State:
        params: dict
        opt_state: optax.OptState
        tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)

        @jax.jit
        def step(self):
            updates, opt_state = self.tx.update(gradients(self.params), self.opt_state, self.params)
            return self.replace(params=lib.apply_updates(self.params, updates), opt_state=opt_state)

    tx = lib.adam(0.1)
    state = State(PARAMS, tx.init(PARAMS), tx).step().step()
    return state.params, state.opt_state


@both
def test_a_dataclass_of_chex(lib, more):
    @chex.dataclass(frozen=True)
    class State:
        params: dict
        opt_state: optax.OptState
        step: int

    tx = lib.adam(0.1)
    state = State(params=PARAMS, opt_state=tx.init(PARAMS), step=0)
    params, opt_state = train(tx, state.params, state.opt_state)
    state = state.replace(params=params, opt_state=opt_state, step=3)
    return jax.tree.leaves(jax.jit(lambda s: s)(state))


@both
def test_a_dynamic_loss_scale(lib, more):
    scale = dynamic_scale.DynamicScale(scale=4.0)
    tx = lib.sgd(0.1)
    state = tx.init(PARAMS)
    scale, finite, _, grads = scale.value_and_grad(lambda p: jnp.sum(p["dense"]["kernel"] ** 2))(
        PARAMS
    )
    updates, new = tx.update(grads, state, PARAMS)
    moved = lib.apply_updates(PARAMS, updates)
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), moved, PARAMS), new


@both
def test_batch_statistics_beside_parameters(lib, more):
    model = nn.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), X)
    tx = lib.adam(0.1)
    params, state = train(tx, variables["params"])
    return {**variables, "params": params}["params"], state


@both
def test_an_equinox_module_with_filters(lib, more):
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(X) ** 2))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    model, state = step(model, state)
    return jax.vmap(model)(X), state[1][0].count


@both
def test_a_partitioned_equinox_module_in_scan(lib, more):
    params, static = eqx.partition(eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), eqx.is_array)
    tx = lib.sgd(0.1, momentum=0.9)

    def body(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: jnp.sum(jax.vmap(eqx.combine(p, static))(X) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return (lib.apply_updates(params, updates), state), lib.global_norm(grads)

    (params, _), norms = jax.lax.scan(body, (params, tx.init(params)), length=2)
    return norms, jax.vmap(eqx.combine(params, static))(X)


@both
def test_an_equinox_module_that_owns_an_optimizer(lib, more):
    class Trainer(eqx.Module):
        params: jax.Array
        state: optax.OptState
        tx: optax.GradientTransformation = eqx.field(static=True)

        def step(self):
            updates, state = self.tx.update(self.params, self.state, self.params)
            return Trainer(lib.apply_updates(self.params, updates), state, self.tx)

    tx = lib.adam(0.1)
    trainer = Trainer(jnp.ones(3), tx.init(jnp.ones(3)), tx)
    trainer = eqx.filter_jit(lambda t: t.step())(trainer)
    return trainer.params, trainer.state


@both
def test_an_ensemble_of_equinox_modules(lib, more):
    models = eqx.filter_vmap(lambda key: eqx.nn.Linear(2, 1, key=key))(
        jax.random.split(jax.random.key(0), 2)
    )
    tx = lib.adam(0.1)
    states = eqx.filter_vmap(tx.init)(models)
    updates, states = eqx.filter_vmap(tx.update)(gradients(models), states, models)
    return eqx.apply_updates(models, updates).weight, states[0].count


@both
def test_a_haiku_transform(lib, more):
    forward = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([3, 1])(x)))
    params = forward.init(jax.random.PRNGKey(0), X)
    tx = lib.chain(lib.clip_by_global_norm(1.0), lib.adam(0.1))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean(forward.apply(p, X) ** 2))(params)
        updates, state = tx.update(grads, state)
        return lib.apply_updates(params, updates), state

    return step(params, tx.init(params))


@both
def test_a_haiku_loop_of_named_tuples(lib, more):
    from typing import NamedTuple

    class TrainingState(NamedTuple):
        params: hk.Params
        average: hk.Params
        opt_state: optax.OptState

    tx = lib.adam(0.1)
    state = TrainingState(PARAMS, PARAMS, tx.init(PARAMS))
    for _ in range(2):
        updates, opt_state = tx.update(gradients(state.params), state.opt_state)
        params = lib.apply_updates(state.params, updates)
        average = lib.incremental_update(params, state.average, step_size=0.001)
        state = TrainingState(params, average, opt_state)
    return tuple(state)
