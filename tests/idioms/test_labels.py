"""Groups of parameters: labels as trees and functions, frozen parts, LoRA, separate rates."""

import functools

import equinox as eqx
import flax
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util

from .both import PARAMS, both, gradients, train


def by_rank(params):
    return jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "other", params)


def two(lib):
    return {"matrix": lib.adam(0.1), "other": lib.sgd(0.2, momentum=0.9)}


@both
def test_labels_by_function(lib, more):
    return train(lib.multi_transform(two(lib), by_rank))


@both
def test_labels_by_tree(lib, more):
    return train(lib.multi_transform(two(lib), by_rank(PARAMS)))


@both
def test_labels_by_prefix(lib, more):
    return train(lib.multi_transform(two(lib), {"dense": "matrix", "head": "other"}))


@both
def test_labels_by_keyword(lib, more):
    tx = lib.multi_transform(transforms=two(lib), param_labels=by_rank)
    return train(lib.chain(lib.clip_by_global_norm(1.0), tx))


@both
def test_partition_is_the_newer_name(lib, more):
    return train(lib.partition(two(lib), by_rank))


@both
def test_a_function_that_walks_nested_dictionaries(lib, more):
    def walk(function):
        def over(tree):
            return {
                key: over(value) if isinstance(value, dict) else function(key, value)
                for key, value in tree.items()
            }

        return over

    tx = lib.multi_transform(
        {"kernel": lib.adam(1.0), "bias": lib.sgd(1.0)}, walk(lambda key, _: key)
    )
    return train(tx)


@both
def test_labels_by_path_aware_map(lib, more):
    labels = traverse_util.path_aware_map(
        lambda path, _: "frozen" if "dense" in path else "trainable", PARAMS
    )
    tx = lib.multi_transform({"trainable": lib.adam(3e-2), "frozen": lib.set_to_zero()}, labels)
    return train(tx)


@both
def test_frozen_dictionaries_of_transformations_and_labels(lib, more):
    transforms = flax.core.freeze({"sgd": lib.sgd(0.1, 0.9), "zero": lib.set_to_zero()})
    labels = flax.core.freeze({"dense": "sgd", "head": "zero"})
    return train(lib.multi_transform(transforms, labels), flax.core.freeze(PARAMS))[0].unfreeze()


@both
def test_labels_as_booleans(lib, more):
    labels = jax.tree.map(lambda p: p.ndim == 2, PARAMS)
    return train(lib.multi_transform({True: lib.adam(0.1), False: lib.set_to_zero()}, labels))[0]


@both
def test_labels_as_numbers(lib, more):
    labels = jax.tree.map(lambda p: p.ndim, PARAMS)
    return train(
        lib.multi_transform({1: lib.sgd(0.1), 2: lib.sgd(0.01), 3: lib.adam(1.0)}, labels)
    )[0]


@both
def test_a_group_without_members(lib, more):
    transforms = {**two(lib), "nobody": lib.adam(0.5)}
    return train(lib.multi_transform(transforms, by_rank))


@both
def test_frozen_by_a_zeroing_transformation_of_your_own(lib, more):
    def zero_grads():
        def update(updates, state, params=None):
            return jax.tree.map(jnp.zeros_like, updates), ()

        return lib.GradientTransformation(lambda _: (), update)

    tx = lib.multi_transform(
        {"train": lib.adamw(0.1), "zero": zero_grads()}, {"dense": "train", "head": "zero"}
    )
    return train(tx)


@both
def test_nested_groups(lib, more):
    inner = lib.multi_transform(two(lib), by_rank)
    outer = lib.multi_transform(
        {"net": inner, "head": lib.sgd(0.5)}, {"dense": "net", "head": "head"}
    )
    return train(outer)[0]


@both
def test_a_group_that_clips_by_its_own_norm(lib, more):
    clipped = lib.chain(lib.clip_by_global_norm(0.1), lib.sgd(1.0))
    tx = lib.multi_transform({"a": clipped, "b": clipped}, {"dense": "a", "head": "b"})
    return train(tx, steps=1)[0]


@both
def test_schedules_of_their_own_for_each_group(lib, more):
    schedule = lib.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)
    tx = lib.multi_transform(
        {"a": lib.adam(schedule), "b": lib.adam(lambda count: 10 * schedule(count))},
        {"dense": "a", "head": "b"},
    )
    return train(tx)


@both
def test_injected_rates_read_from_each_group(lib, more):
    injected = lib.inject_hyperparams(lib.adam)
    tx = lib.multi_transform(
        {"regular": injected(learning_rate=0.1), "ssm": injected(learning_rate=0.01)},
        {"dense": "regular", "head": "ssm"},
    )
    params, state = train(tx)
    state.inner_states["ssm"].inner_state.hyperparams["learning_rate"] = jnp.array(0.5)
    params, state = train(tx, params, state)
    rates = [
        state.inner_states[name].inner_state.hyperparams["learning_rate"]
        for name in ("regular", "ssm")
    ]
    return params, rates


@both
def test_low_rank_adapters_train_alone(lib, more):
    params = {
        "layer": {"w": jnp.ones((3, 3)), "lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 3))}
    }
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "lora" if "lora" in path[-1].key else "frozen", params
    )
    tx = lib.multi_transform({"lora": lib.adamw(0.1), "frozen": lib.set_to_zero()}, labels)
    return train(tx, params)


@both
def test_low_rank_adapters_in_a_tree_with_holes(lib, more):
    params = {"layer": {"w": None, "lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 3))}}
    return train(lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1)), params)


@both
def test_haiku_modules_partitioned_by_name(lib, more):
    def net(x):
        return hk.Linear(1, name="head")(jnp.tanh(hk.Linear(3, name="body")(x)))

    forward = hk.without_apply_rng(hk.transform(net))
    params = forward.init(jax.random.PRNGKey(0), jnp.ones((1, 2)))
    trainable, frozen = hk.data_structures.partition(lambda m, n, p: m == "head", params)
    tx = lib.adam(0.1)
    state = tx.init(trainable)
    grads = jax.grad(
        lambda t: forward.apply(hk.data_structures.merge(t, frozen), jnp.ones((1, 2))).sum()
    )(trainable)
    updates, state = tx.update(grads, state, trainable)
    return lib.apply_updates(trainable, updates), state


@both
def test_haiku_labels_from_data_structures_map(lib, more):
    params = {"lin": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
    labels = hk.data_structures.map(lambda m, n, p: "matrix" if n == "w" else "other", params)
    return train(lib.multi_transform(two(lib), labels), params)[0]


@both
def test_labels_over_an_equinox_module(lib, more):
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def label(params):
        labels = jax.tree.map(lambda _: "body", params)
        return eqx.tree_at(lambda m: m.layers[-1].weight, labels, "last")

    tx = lib.multi_transform({"body": lib.adam(0.1), "last": lib.adam(1.0)}, label)
    params, _ = train(tx, params)
    return eqx.combine(params, static)(jnp.ones(2))


@both
def test_labels_over_an_nnx_module(lib, more):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = lib.multi_transform(two(lib), by_rank)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, gradients(nnx.state(model, nnx.Param)))
    return model.kernel[...], model.bias[...]


@both
def test_labels_from_the_state_of_an_nnx_module(lib, more):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    # optax refuses a tree of nnx variables, whose leaves are in the same order.
    labels = by_rank if lib is optax else by_rank(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, lib.multi_transform(two(lib), labels), wrt=nnx.Param)
    optimizer.update(model, gradients(nnx.state(model, nnx.Param)))
    return model.kernel[...], model.bias[...]


@both
def test_multipliers_for_each_layer_by_stateless(lib, more):
    factors = {"dense": 0.1, "head": 1.0}

    def multiply(updates, params=None):
        scaled = {}
        for name, part in updates.items():
            scaled[name] = jax.tree.map(functools.partial(jnp.multiply, factors[name]), part)
        return scaled

    return train(lib.chain(lib.adam(0.1), lib.stateless(multiply)))


@both
def test_rates_that_decay_by_depth(lib, more):
    names = ["dense", "head"]
    transforms = {name: lib.sgd(0.1 * 0.5**depth) for depth, name in enumerate(names)}
    return train(lib.multi_transform(transforms, {name: name for name in names}))[0]
