"""Functions of trees, names and hashes of transformations, types in annotations."""

import copy
import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import optax

from .both import PARAMS, both, gradients, train

GRADS = gradients(PARAMS)


@both
def test_arithmetic_of_trees(lib, more):
    tree = lib.tree
    return {
        "add": tree.add(PARAMS, GRADS),
        "sub": tree.sub(PARAMS, GRADS),
        "mul": tree.mul(PARAMS, GRADS),
        "div": tree.div(PARAMS, tree.ones_like(PARAMS)),
        "scale": tree.scale(0.5, PARAMS),
        "add_scale": tree.add_scale(PARAMS, -0.1, GRADS),
        "vdot": tree.vdot(PARAMS, GRADS),
        "where": tree.where(True, PARAMS, GRADS),
    }


@both
def test_reductions_of_trees(lib, more):
    tree = lib.tree
    return {
        "norm": tree.norm(GRADS),
        "squared": tree.norm(GRADS, squared=True),
        "largest": tree.norm(GRADS, ord=jnp.inf),
        "sum": tree.sum(GRADS),
        "max": tree.max(GRADS),
        "min": tree.min(GRADS),
        "size": tree.size(GRADS),
        "close": tree.allclose(GRADS, GRADS),
        "dtype": str(tree.dtype(GRADS)),
    }


@both
def test_trees_made_like_others(lib, more):
    tree = lib.tree
    return {
        "zeros": tree.zeros_like(PARAMS),
        "halves": tree.full_like(PARAMS, 0.5),
        "cast": tree.cast(PARAMS, jnp.bfloat16),
        "cast_like": tree.cast_like(PARAMS, tree.cast(GRADS, jnp.float16)),
        "clip": tree.clip(PARAMS, -0.5, 0.5),
        "random": tree.random_like(jax.random.key(0), PARAMS),
    }


@both
def test_values_of_a_state_by_name(lib, more):
    _, state = train(lib.chain(lib.clip(1.0), lib.adam(lib.constant_schedule(0.1))))
    by_path = lib.tree.get_all_with_path(state, "count")
    return lib.tree.get(state, "mu"), lib.tree.get(state, "missing", 7), [v for _, v in by_path]


@both
def test_values_of_a_state_by_name_and_filter(lib, more):
    _, state = train(lib.chain(lib.adam(0.1), lib.ema(0.9)))
    return lib.tree.get(
        state, "count", filtering=lambda path, value: path[-1].tuple_name == "ScaleByAdamState"
    )


@both
def test_values_of_a_state_set_by_name(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.inject_hyperparams(lib.adam)(learning_rate=0.1))
    params, state = train(tx)
    state = lib.tree.set(state, learning_rate=0.01, mu=jax.tree.map(jnp.zeros_like, params))
    return train(tx, params, state)[0]


@both
def test_values_of_injected_and_scheduled_rates_set_by_name(lib, more):
    tx = lib.inject_hyperparams(lib.sgd)(learning_rate=lib.linear_schedule(0.1, 0.0, 5))
    params, state = train(tx)
    state = lib.tree.set(state, count=jnp.array(0, jnp.int32))
    return train(tx, params, state)


@both
def test_parameter_like_leaves_of_a_state_are_mapped(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.adamw(0.1))
    _, state = train(tx)
    return lib.tree.map_params(tx, lambda x: 2 * x, state)


@both
def test_parameter_like_leaves_meet_the_parameters(lib, more):
    tx = lib.adam(0.1)
    _, state = train(tx)
    return lib.tree_map_params(tx, lambda leaf, p: leaf + p, state, PARAMS)


@both
def test_parameter_like_leaves_by_the_init_function(lib, more):
    tx = lib.sgd(0.1, momentum=0.9)
    return lib.tree_map_params(tx.init, lambda leaf: leaf + 1, tx.init(PARAMS))


@both
def test_parameter_like_leaves_of_masks_and_partitions(lib, more):
    tx = lib.multi_transform({"a": lib.adam(0.1), "b": lib.sgd(0.1)}, {"dense": "a", "head": "b"})
    return lib.tree_map_params(
        tx,
        lambda _: "parameter",
        tx.init(PARAMS),
        transform_non_params=lambda _: "other",
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


@both
def test_parameter_like_leaves_of_many_steps(lib, more):
    tx = lib.MultiSteps(lib.adam(0.1), 2).gradient_transformation()
    return lib.tree_map_params(tx, lambda _: 1, tx.init(PARAMS), transform_non_params=lambda _: 0)


@both
def test_names_of_functions(lib, more):
    tx = lib.adam(0.1)
    return bool(tx.update.__name__), bool(tx.init.__name__), callable(tx.update), lib.adam.__name__


@both
def test_functions_wrapped_by_their_names(lib, more):
    tx = lib.sgd(0.1)

    @functools.wraps(tx.update)
    def update(*arguments, **keywords):
        return tx.update(*arguments, **keywords)

    return update(GRADS, tx.init(PARAMS))


@both
def test_signatures_of_factories(lib, more):
    parameters = inspect.signature(lib.adamw).parameters
    wanted = ("learning_rate", "b1", "b2", "eps", "weight_decay", "mask")
    defaults = [parameters[name].default for name in ("b1", "b2", "eps", "weight_decay")]
    return [name in parameters for name in wanted], defaults


@both
def test_arguments_are_chosen_by_signature(lib, more):
    settings = {"learning_rate": 0.1, "momentum": 0.9, "b1": 0.8, "weight_decay": 0.01}
    results = []
    for factory in (lib.sgd, lib.adam, lib.adamw):
        names = inspect.signature(factory).parameters
        chosen = {name: value for name, value in settings.items() if name in names}
        results.append(train(factory(**chosen), steps=1)[0])
    return results


@both
def test_signatures_of_updates(lib, more):
    names = list(inspect.signature(lib.clip(1.0).update).parameters)
    return names[:3]


@both
def test_equality_hash_and_copies(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.adam(0.1))
    same = copy.deepcopy(tx)
    return same == tx, hash(same) == hash(tx), copy.copy(tx) == tx, tx != lib.adam(0.1)


@both
def test_a_copy_as_a_static_argument_compiles_once(lib, more):
    traces = []

    @functools.partial(jax.jit, static_argnames="tx")
    def step(tx, params):
        traces.append(1)
        return tx.update(params, tx.init(params), params)[0]

    tx = lib.adamw(0.1)
    first = step(tx, PARAMS)
    return first, step(copy.deepcopy(tx), PARAMS), len(traces)


@both
def test_a_cache_of_transformations(lib, more):
    @functools.lru_cache
    def make(rate):
        return lib.adam(rate)

    assert make(0.1) is make(0.1)
    return train(make(0.1))


@both
def test_types_in_annotations(lib, more):
    class Trainer(typing.NamedTuple):
        tx: lib.GradientTransformation
        state: lib.OptState
        schedule: lib.Schedule
        params: lib.Params
        updates: lib.Updates
        rate: lib.ScalarOrSchedule
        init: lib.TransformInitFn
        update: lib.TransformUpdateFn

    tx = lib.sgd(0.1)
    trainer = Trainer(tx, tx.init(PARAMS), None, PARAMS, GRADS, 0.1, *tx)
    return trainer.update(trainer.updates, trainer.state, trainer.params)


@both
def test_positional_arguments(lib, more):
    return [
        train(tx, steps=1)[0]
        for tx in (
            lib.adam(0.1, 0.8, 0.9, 1e-6, 1e-9),
            lib.adamw(0.1, 0.8, 0.9, 1e-6, 0.0, None, 0.01),
            lib.sgd(0.1, 0.9, True),
            lib.rmsprop(0.1, 0.8, 1e-6, 0.1),
            lib.lion(0.1, 0.8, 0.9),
            lib.adagrad(0.1, 0.2, 1e-6),
        )
    ]


@both
def test_learning_rates_of_many_kinds(lib, more):
    rates = [
        1,
        0.1,
        jnp.float32(0.1),
        jnp.asarray(0.1),
        lambda count: 0.1,
        lib.constant_schedule(0.1),
    ]
    return [train(lib.sgd(rate), steps=1)[0] for rate in rates]


@both
def test_numbers_of_numpy_and_jax_for_hyperparameters(lib, more):
    import numpy as np

    tx = lib.adamw(
        np.float64(0.1), b1=np.float32(0.9), eps=jnp.float32(1e-8), weight_decay=np.array(0.1)
    )
    return train(tx, steps=1)[0]
