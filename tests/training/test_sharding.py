"""The step on eight devices: the same numbers, arrays stay in place, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradtx
from gradtx.training import TrainState, make_train_step, minibatches

pytestmark = pytest.mark.usefixtures("usual_compilation")

RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.normal(size=(32, 8)).astype(np.float32),
    "y": RNG.normal(size=(32, 2)).astype(np.float32),
}
PARAMS = {"w": jnp.asarray(RNG.normal(size=(8, 2)), jnp.float32), "b": jnp.zeros((1, 2))}
TX = gradtx.average_params(
    gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1)), decay=0.9
)


def loss_fn(params, seen, batch):
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(jnp.square(residual)), seen + batch["x"].shape[0]


def run(state, batches):
    train_step = make_train_step(loss_fn, TX, has_model_state=True)
    history = []
    for batch in batches:
        state, metrics = train_step(state, batch)
        history.append(metrics)
    return state, history


@pytest.mark.parametrize("weights", [PartitionSpec(), PartitionSpec("data")], ids=str)
def test_a_sharded_run_has_the_numbers_of_one_device(mesh, weights, compilations):
    batches = list(minibatches(jax.random.key(0), DATA, 16, epochs=2))
    single, single_history = run(TrainState.create(PARAMS, TX, jnp.int32(0)), batches)

    on_mesh = {
        "w": jax.device_put(PARAMS["w"], NamedSharding(mesh, weights)),
        "b": jax.device_put(PARAMS["b"], NamedSharding(mesh, PartitionSpec())),
    }
    state = TrainState.create(on_mesh, TX, model_state=jnp.int32(0))
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec("data")))
    compilations.clear()
    sharded, sharded_history = run(state, batches)
    assert len(compilations) == 1

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    jax.tree.map(close, sharded, single)
    jax.tree.map(close, sharded_history, single_history)
    for leaf, sharding in zip(jax.tree.leaves(sharded), before, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize("shardings", ["as given", None])
def test_replicated_parameters_beside_a_sharded_state_stay_so(mesh, shardings, compilations):
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    tx = gradtx.adam(0.1)
    state = jax.device_put(TrainState.create(PARAMS, tx), whole)
    mu = {"w": split, "b": whole}
    moments = [gradtx.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    mu, nu = (jax.device_put(moment, mu) for moment in moments)
    state = state._replace(opt_state=gradtx.tree.set(state.opt_state, mu=mu, nu=nu))
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]

    def loss_fn(params, batch):
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)

    train_step = make_train_step(loss_fn, tx, shardings=shardings)
    batch = jax.device_put(DATA, split)
    compilations.clear()
    for _ in range(2):
        state, _ = train_step(state, batch)
    now = [leaf.sharding for leaf in jax.tree.leaves(state)]
    leaves = zip(jax.tree.leaves(state), now, before, strict=True)
    stays = all(own.is_equivalent_to(was, leaf.ndim) for leaf, own, was in leaves)
    # Left alone, the compiler shards the parameters like the state, and compiles again for that.
    assert stays == (shardings is not None)
    assert len(compilations) == (1 if stays else 2)


def test_the_step_is_lowered_for_the_layouts_of_its_state(mesh):
    tx = gradtx.sgd(0.1)
    state = jax.device_put(TrainState.create(PARAMS, tx), NamedSharding(mesh, PartitionSpec()))

    def loss_fn(params, batch):
        return jnp.sum(params["w"] ** 2) * batch

    train_step = make_train_step(loss_fn, tx)
    lowered = train_step.lower(state, jnp.float32(1.0))
    assert lowered.compile().output_shardings[0].params["w"].is_fully_replicated
    assert train_step.trace(state, jnp.float32(1.0)).jaxpr.eqns


def test_refuses_other_shardings():
    with pytest.raises(ValueError, match="shardings must be \"as given\" or None, got 'sharded'"):
        make_train_step(lambda params, batch: 0.0, TX, shardings="sharded")
