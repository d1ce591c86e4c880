"""Parameters of every kind: containers, dtypes, missing leaves, nothing at all."""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .both import PARAMS, both, gradients, train


def adam(lib):
    return lib.chain(lib.clip_by_global_norm(1.0), lib.adam(0.1))


@both
def test_one_array(lib, more):
    return train(adam(lib), jnp.arange(3.0))


@both
def test_a_scalar_array(lib, more):
    return train(adam(lib), jnp.float32(2.0))


@both
def test_a_python_float(lib, more):
    tx = lib.adam(0.1)
    updates, _ = tx.update(0.5, tx.init(2.0), 2.0)
    return updates, lib.apply_updates(2.0, updates)


@both
def test_python_floats_in_a_dictionary(lib, more):
    tx = lib.sgd(0.1)
    params = {"a": 1.0, "b": -2.0}
    updates, _ = tx.update(params, tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_numpy_arrays(lib, more):
    params = {"a": np.array([1.0, 2.0], np.float32), "b": np.float32(3.0)}
    tx = lib.adam(0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_numpy_parameters_and_jax_gradients(lib, more):
    params = np.array([1.0, 2.0], np.float32)
    tx = lib.rmsprop(0.1)
    updates, _ = tx.update(jnp.array([0.5, 1.0]), tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_double_precision_of_numpy_without_x64(lib, more):
    params = np.array([1.0, 2.0])
    tx = lib.adam(0.1)
    updates, _ = tx.update(np.array([0.5, 1.0]), tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_a_tuple(lib, more):
    return train(adam(lib), (jnp.ones(2), jnp.zeros(3)))


@both
def test_a_list_of_layers(lib, more):
    return train(
        adam(lib), [(jnp.ones((2, 2)), jnp.zeros(2)), (), (jnp.ones((2, 1)), jnp.zeros(1))]
    )


@both
def test_a_named_tuple(lib, more):
    class Variational(NamedTuple):
        mean: jax.Array
        log_std: jax.Array

    params, state = train(adam(lib), Variational(jnp.zeros(3), -jnp.ones(3)))
    return params.mean, params.log_std, state[1][0].mu.mean


@both
def test_an_ordered_dictionary_and_a_default_dictionary(lib, more):
    ordered = collections.OrderedDict(b=jnp.ones(2), a=jnp.zeros(2))
    default = collections.defaultdict(list, {"x": jnp.ones(2)})
    return train(adam(lib), ordered), dict(train(lib.sgd(0.1), default)[0])


@both
def test_holes(lib, more):
    return train(adam(lib), {"a": None, "b": jnp.ones(2), "c": (None, jnp.zeros(2))})


@both
def test_a_gradient_with_holes(lib, more):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    grads = {"a": None, "b": jnp.ones(3)}
    updates, _ = lib.sgd(0.1).update(grads, lib.sgd(0.1).init(params))
    return updates, optax.apply_updates(params, {"a": jnp.zeros(2), "b": updates["b"]})


@both
def test_everything_mapped_to_none(lib, more):
    tx = lib.adam(0.1)
    params = jax.tree.map(lambda p: None, PARAMS)
    updates, state = tx.update(params, tx.init(params), params)
    return jax.tree.leaves(updates), state[0].count


@both
def test_nothing(lib, more):
    tx = adam(lib)
    updates, state = tx.update({}, tx.init({}), {})
    return state, updates, lib.apply_updates({}, updates)


@both
def test_nothing_in_a_tuple_and_a_list(lib, more):
    tx = lib.sgd(0.1, momentum=0.9)
    return tx.update((), tx.init(()), ()), tx.update([], tx.init([]), [])[1], jnp.ones(1)


@both
def test_arrays_without_elements(lib, more):
    return train(adam(lib), {"a": jnp.zeros((0, 3)), "b": jnp.ones(2)})


@both
def test_integer_leaves_that_are_split_off(lib, more):
    params = {"w": jnp.ones(2), "steps": jnp.int32(3)}
    floats = {name: p for name, p in params.items() if jnp.issubdtype(p.dtype, jnp.floating)}
    new, state = train(adam(lib), floats)
    return {**params, **new}, state


@both
def test_zero_updates_of_integers(lib, more):
    params = {"w": jnp.ones(2), "n": jnp.int32(3)}
    return lib.apply_updates(params, {"w": -0.1 * jnp.ones(2), "n": jnp.int32(0)})


@both
def test_integer_updates_of_integers(lib, more):
    return lib.apply_updates({"n": jnp.int32(3)}, {"n": jnp.int32(2)})


@both
def test_integer_gradients_of_floats(lib, more):
    tx = lib.sgd(0.5)
    params = jnp.array([1.0, 2.0])
    updates, _ = tx.update(jnp.array([1, -1]), tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_a_gradient_of_python_integers(lib, more):
    tx = lib.sgd(0.5)
    updates, _ = tx.update(1, tx.init(0.0), 0.0)
    return lib.apply_updates(0.0, updates)


@both
def test_complex_parameters(lib, more):
    params = jnp.array([1.0 + 2.0j, -0.5j])
    tx = lib.sgd(0.1)
    grads = jax.grad(lambda z: jnp.sum(jnp.abs(z) ** 2))(params)
    updates, _ = tx.update(jax.tree.map(jnp.conj, grads), tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_complex_parameters_with_adam(lib, more):
    params = jnp.array([1.0 + 2.0j, -0.5j])
    tx = lib.adam(0.1)
    updates, _ = tx.update(jnp.conj(params), tx.init(params), params)
    return updates


@both
def test_complex_parameters_as_two_real_ones(lib, more):
    params = {"z": jnp.array([1.0 + 2.0j, -0.5j]), "x": jnp.ones(2)}
    tx = more.split_real_and_imaginary(lib.adam(0.1))
    updates, _ = tx.update(params, tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_conjugation_in_a_chain(lib, more):
    params = jnp.array([1.0 + 2.0j, -0.5j])
    conj = lib.stateless(lambda updates, params=None: jax.tree.map(jnp.conj, updates))
    tx = lib.chain(conj, lib.sgd(0.1))
    return tx.update(params, tx.init(params), params)


@both
def test_brain_floats(lib, more):
    return train(lib.sgd(0.125), jnp.ones(3, jnp.bfloat16), steps=2)


@both
def test_half_precision_gradients_of_single_precision_parameters(lib, more):
    tx = lib.sgd(0.5)
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradients(PARAMS))
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    return lib.apply_updates(PARAMS, updates)


@both
def test_a_first_moment_in_half_precision(lib, more):
    return train(lib.adamw(0.1, mu_dtype=jnp.bfloat16), steps=2)[1][0].mu


@both
def test_dtypes_as_strings(lib, more):
    state = lib.adam(0.1, mu_dtype="bfloat16").init(PARAMS)
    trace = lib.sgd(0.1, momentum=0.9, accumulator_dtype="float32").init(PARAMS)
    return state, trace


@both
def test_cast_to_single_precision_for_the_update(lib, more):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    master = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    master, state = train(lib.adam(0.1), master)
    return jax.tree.map(lambda m, p: m.astype(p.dtype), master, params), state


@both
def test_double_precision(lib, more):
    with jax.enable_x64(True):
        params = {"w": jnp.array([1.0, -2.0], jnp.float64)}
        return train(lib.adamw(0.1), params)


@both
def test_single_precision_within_double_precision(lib, more):
    with jax.enable_x64(True):
        params = {"w": jnp.array([1.0, -2.0], jnp.float32)}
        params, state = train(lib.sgd(0.1, momentum=0.9), params)
        return params, state


@both
def test_prng_keys_beside_parameters(lib, more):
    train_state = {"params": PARAMS, "key": jax.random.key(0)}
    params, _ = train(adam(lib), train_state["params"])
    return {**train_state, "params": params}["params"]


@both
def test_updates_added_by_hand(lib, more):
    tx = lib.adam(0.1)
    updates, _ = tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS)
    return jax.tree.map(lambda p, u: p + u, PARAMS, updates), jax.tree.map(jnp.add, PARAMS, updates)


@both
def test_parameters_shared_between_two_places(lib, more):
    shared = jnp.ones((2, 2))
    return train(adam(lib), {"encoder": shared, "decoder": shared})


@both
def test_many_leaves_in_a_list(lib, more):
    return train(lib.sgd(0.1), [jnp.full(2, float(i)) for i in range(20)], steps=1)[0]
