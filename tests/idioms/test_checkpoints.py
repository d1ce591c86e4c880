"""States that are saved, restored, copied and passed from one library to the other."""

import copy
import io
import json
import pickle
import tempfile
from pathlib import Path

import cloudpickle
import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

import gradtx

from .both import PARAMS, both, gradients, train


def usual(lib):
    return lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(lib.linear_schedule(0.1, 0.0, 9)))


def resumed(tx, restore):
    """A run whose state passes through storage after some steps."""
    params, state = train(tx, steps=2)
    return train(tx, params, restore(state, tx.init(PARAMS)), steps=2, first=2)


@both
def test_state_dict_of_flax(lib, more):
    def restore(state, fresh):
        return serialization.from_state_dict(fresh, serialization.to_state_dict(state))

    return resumed(usual(lib), restore)


@both
def test_the_layout_of_a_state_dict(lib, more):
    _, state = train(usual(lib), steps=1)
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state), sep="/")
    return {name: value for name, value in flat.items() if hasattr(value, "shape")}


@both
def test_bytes_of_flax(lib, more):
    def restore(state, fresh):
        return serialization.from_bytes(fresh, serialization.to_bytes(state))

    return resumed(usual(lib), restore)


@both
def test_bytes_of_flax_into_the_old_state(lib, more):
    def restore(state, fresh):
        return serialization.from_bytes(
            state, serialization.msgpack_serialize(serialization.to_state_dict(state))
        )

    return resumed(
        lib.multi_transform(
            {"a": lib.adam(0.1), "b": lib.sgd(0.1, 0.9)}, {"dense": "a", "head": "b"}
        ),
        restore,
    )


@both
def test_bytes_of_flax_of_many_steps_and_injected_rates(lib, more):
    def restore(state, fresh):
        return serialization.from_bytes(fresh, serialization.to_bytes(state))

    return resumed(lib.MultiSteps(lib.inject_hyperparams(lib.adam)(0.1), 2), restore)


@both
def test_bytes_of_the_pieces_of_a_named_chain(lib, more):
    def restore(state, fresh):
        return {
            name: serialization.from_bytes(fresh[name], serialization.to_bytes(piece))
            for name, piece in state.items()
        }

    tx = lib.named_chain(("trace", lib.trace(0.9)), ("rate", lib.scale(-0.1)))
    params, state = resumed(tx, restore)
    return params, dict(state)


@both
def test_pickle(lib, more):
    return resumed(usual(lib), lambda state, _: pickle.loads(pickle.dumps(state)))


@both
def test_pickle_of_numpy_arrays(lib, more):
    def restore(state, _):
        return pickle.loads(pickle.dumps(jax.device_get(state)))

    return resumed(usual(lib), restore)


@both
def test_cloudpickle_of_states_and_transformations(lib, more):
    tx, state = cloudpickle.loads(cloudpickle.dumps((usual(lib), usual(lib).init(PARAMS))))
    return train(tx, state=state)


@both
def test_cloudpickle_of_wrapped_transformations(lib, more):
    tx = lib.MultiSteps(
        lib.multi_transform(
            {"a": lib.inject_hyperparams(lib.adam)(0.1), "b": lib.set_to_zero()},
            lambda params: {"dense": "a", "head": "b"},
        ),
        2,
    )
    return train(cloudpickle.loads(cloudpickle.dumps(tx)), steps=2)


@both
def test_deep_copies(lib, more):
    tx = copy.deepcopy(usual(lib))
    params, state = train(tx)
    return train(tx, params, copy.deepcopy(state))


@both
def test_an_object_that_owns_an_optimizer_is_copied(lib, more):
    class Agent:
        def __init__(self):
            self.tx = usual(lib)
            self.state = self.tx.init(PARAMS)

    agent = copy.deepcopy(Agent())
    return train(agent.tx, state=agent.state)


@both
def test_leaves_to_a_file_of_numpy(lib, more):
    def restore(state, fresh):
        file = io.BytesIO()
        np.savez(file, *jax.tree.leaves(state))
        file.seek(0)
        stored = np.load(file)
        leaves = [stored[name] for name in stored.files]
        return jax.tree.unflatten(jax.tree.structure(fresh), leaves)

    return resumed(usual(lib), restore)


@both
def test_leaves_serialised_by_equinox(lib, more):
    def restore(state, fresh):
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, state)
        file.seek(0)
        return eqx.tree_deserialise_leaves(file, fresh)

    return resumed(usual(lib), restore)


@both
def test_orbax_with_a_target(lib, more):
    def restore(state, fresh):
        with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(folder) / "state", state)
            checkpointer.wait_until_finished()
            return checkpointer.restore(Path(folder) / "state", fresh)

    return resumed(usual(lib), restore)


@both
def test_orbax_with_abstract_shapes(lib, more):
    tx = lib.MultiSteps(lib.inject_hyperparams(lib.adam)(0.1), 2)

    def restore(state, _):
        abstract = jax.eval_shape(tx.init, PARAMS)
        with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(folder) / "state", state)
            checkpointer.wait_until_finished()
            return checkpointer.restore(Path(folder) / "state", abstract)

    return resumed(tx, restore)


@both
def test_orbax_with_parameters_in_one_tree(lib, more):
    tx = usual(lib)
    params, state = train(tx, steps=2)
    saved = {"params": params, "opt_state": state, "step": 2}
    with tempfile.TemporaryDirectory() as folder, ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "all", saved)
        arguments = ocp.checkpoint_utils.construct_restore_args(saved)
        restored = checkpointer.restore(Path(folder) / "all", item=saved, restore_args=arguments)
    return train(tx, restored["params"], restored["opt_state"], steps=2, first=2)


@both
def test_a_restored_dictionary_is_rebuilt_by_hand(lib, more):
    tx = lib.adam(0.1)
    params, state = train(tx, steps=2)
    raw = serialization.msgpack_restore(serialization.to_bytes(state))
    adam = lib.ScaleByAdamState(jnp.asarray(raw["0"]["count"]), raw["0"]["mu"], raw["0"]["nu"])
    return train(tx, params, (adam, lib.EmptyState()), steps=2, first=2)


@both
def test_a_state_of_optax_resumes_here_and_back(lib, more):
    params, state = train(usual(optax), steps=2)
    params, state = train(usual(lib), params, state, steps=2, first=2)
    return train(usual(optax), params, state, steps=2, first=4)


@both
def test_a_state_from_here_resumes_in_optax(lib, more):
    params, state = train(lib.lion(0.1), steps=2)
    return train(optax.lion(0.1), params, state, steps=2, first=2)


@both
def test_resumption_by_the_other_library_through_bytes(lib, more):
    other = gradtx if lib is optax else optax
    params, state = train(usual(lib), steps=2)
    state = serialization.from_bytes(usual(other).init(PARAMS), serialization.to_bytes(state))
    return train(usual(other), params, state, steps=2, first=2)


@both
def test_moments_kept_while_the_rate_changes(lib, more):
    params, state = train(lib.adam(0.1), steps=2)
    return train(lib.adam(0.01), params, state, steps=2)


@both
def test_a_hyperparameter_written_to_json(lib, more):
    _, state = train(lib.inject_hyperparams(lib.adam)(0.25), steps=1)
    return json.loads(json.dumps({k: float(v) for k, v in state.hyperparams.items()}))[
        "learning_rate"
    ]


@both
def test_a_frozen_state(lib, more):
    tx = lib.adam(0.1)
    params = flax.core.freeze(PARAMS)
    _, state = train(tx, params, steps=2)
    mu = state[0].mu.unfreeze()
    state = (state[0]._replace(mu=mu, nu=state[0].nu.unfreeze()), *state[1:])
    return tx.update(gradients(PARAMS), state, PARAMS)


@both
def test_states_flattened_and_put_back(lib, more):
    tx = usual(lib)
    flat, structure = jax.tree.flatten(train(tx)[1])
    return train(tx, state=jax.tree.unflatten(structure, flat))


@both
def test_states_raveled_into_one_vector(lib, more):
    from jax.flatten_util import ravel_pytree

    tx = lib.trace(0.9)
    vector, unravel = ravel_pytree(train(tx)[1])
    return train(tx, state=unravel(2.0 * vector))
