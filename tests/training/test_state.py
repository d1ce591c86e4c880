"""The state of a run: copied, strongly typed, on one mesh, and saved in checkpoints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradtx
from gradtx.training import TrainState, make_train_step


def loss_fn(params, model_state, batch, key):
    noisy = params["w"] + 0.01 * jax.random.normal(key, (3,))
    loss = jnp.mean(jnp.square(batch @ noisy - 1.0))
    return loss, {"seen": model_state["seen"] + batch.shape[0]}


def make(tx):
    params, model_state = {"w": jnp.ones(3)}, {"seen": jnp.int32(0)}
    return TrainState.create(params, tx, model_state, jax.random.key(7))


def test_a_new_state_holds_what_it_was_given():
    tx = gradtx.adam(0.1)
    params, model_state, key = {"w": jnp.arange(3.0)}, {"mean": jnp.ones(2)}, jax.random.key(3)
    state = TrainState.create(params, tx, model_state, key)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, state.model_state, model_state)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(key).tolist()
    assert state.step.dtype == jnp.int32
    assert state.step == 0


def test_no_two_arrays_share_memory():
    # An init that keeps the parameters themselves, as lookahead and other averages do.
    tx = optax.GradientTransformation(lambda params: (params, params), optax.sgd(0.1).update)
    params = {"w": jnp.ones(3)}
    state = TrainState.create(params, tx, model_state=params["w"])
    arrays = [*jax.tree.leaves(state), params["w"]]
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays) == 6


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, jnp.float32),
        (np.float16(0.5), jnp.float16),
        (jnp.asarray(0.5), jnp.float32),
        (jnp.ones(2, jnp.bfloat16), jnp.bfloat16),
        (7, jnp.int32),
    ],
    ids=["number", "numpy", "weakly typed", "half", "integer"],
)
def test_every_leaf_becomes_an_array_of_a_definite_type(value, dtype):
    leaf = TrainState.create(value, gradtx.sgd(0.1)).params
    assert isinstance(leaf, jax.Array)
    assert leaf.dtype == dtype
    assert not leaf.weak_type


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")], ids=str)
def test_the_state_lies_on_the_mesh_of_its_parameters(mesh, spec):
    params = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, spec))
    state = TrainState.create(params, gradtx.adam(0.1), model_state=jnp.zeros(2))
    replicated = NamedSharding(mesh, PartitionSpec())
    assert state.params.sharding == params.sharding
    assert state.opt_state[0].mu.sharding == params.sharding
    for leaf in (state.opt_state[0].count, state.step, state.model_state):
        assert leaf.sharding == replicated


def test_a_state_can_be_made_inside_jit_and_as_shapes_only():
    tx = gradtx.adam(0.1)
    concrete = make(tx)
    compiled = jax.jit(lambda: make(tx))()
    shapes = jax.eval_shape(lambda: make(tx))
    assert jax.tree.structure(concrete) == jax.tree.structure(compiled)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), concrete
    )


def test_a_run_resumed_from_an_orbax_checkpoint_goes_on_as_if_never_stopped(tmp_path):
    tx = gradtx.average_params(gradtx.adamw(optax.linear_schedule(0.1, 0.0, 10)), 0.9)
    step = make_train_step(loss_fn, tx, has_model_state=True, has_key=True, donate=False)
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    state, _ = step(make(tx), batch)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run", jax.eval_shape(lambda: make(tx)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    expected, _ = step(state, batch)
    resumed, _ = step(restored, batch)

    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, resumed, expected)
    assert resumed.model_state["seen"] == 8


def test_what_is_not_a_transformation_is_refused():
    message = "TrainState.create: tx must be a gradient transformation"
    with pytest.raises(ValueError, match=message):
        TrainState.create({"w": jnp.ones(2)}, gradtx.adam)


def test_functions_among_the_parameters_are_named_with_the_remedy():
    model = eqx.nn.MLP(2, "scalar", 4, 1, key=jax.random.key(0))
    tx = gradtx.sgd(0.1)
    message = (
        r"^TrainState.create: params must be a tree of arrays, got .* at 'activation', and 1 other "
        r"leaf .*; take it out with equinox\.partition\(model, equinox\.is_array\)"
    )
    with pytest.raises(ValueError, match=message):
        TrainState.create(model, tx)
    with pytest.raises(ValueError, match=r"model_state must be .*, got 'train' at 'mode'; "):
        TrainState.create({"w": 1.0}, tx, {"mode": "train"})
    # As the message says.
    arrays, rest = eqx.partition(model, eqx.is_array)
    state = TrainState.create(arrays, tx)
    x = jnp.ones(2)
    np.testing.assert_array_equal(eqx.combine(state.params, rest)(x), model(x))
