"""Masks of every form: for weight decay, for freezing, around any transformation."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx, traverse_util

from .both import PARAMS, both, gradients, train


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


@both
def test_decay_of_matrices_by_a_function(lib, more):
    return train(lib.adamw(0.1, weight_decay=0.5, mask=matrices))


@both
def test_decay_of_matrices_by_a_tree(lib, more):
    return train(lib.adamw(0.1, weight_decay=0.5, mask=matrices(PARAMS)))


@both
def test_decay_by_a_prefix_tree(lib, more):
    return train(lib.adamw(0.1, weight_decay=0.5, mask={"dense": True, "head": False}))


@both
def test_decay_of_everything_or_nothing_by_one_boolean(lib, more):
    return train(lib.adamw(0.1, mask=True))[0], train(lib.lion(0.1, mask=False))[0]


@both
def test_decay_by_flattened_names(lib, more):
    def mask(params):
        flat = traverse_util.flatten_dict(params)
        return traverse_util.unflatten_dict({path: path[-1] != "bias" for path in flat})

    return train(lib.adamw(0.1, weight_decay=0.5, mask=mask))


@both
def test_decay_by_key_path(lib, more):
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: "bias" not in jax.tree_util.keystr(path), PARAMS
    )
    return train(lib.add_decayed_weights(0.1, mask=mask))


@both
def test_decay_by_path_aware_map(lib, more):
    mask = traverse_util.path_aware_map(lambda path, _: "kernel" in path, PARAMS)
    return train(lib.chain(lib.add_decayed_weights(0.1, mask), lib.sgd(0.1)))


@both
def test_masked_decay_in_a_chain(lib, more):
    tx = lib.chain(
        lib.scale_by_adam(),
        lib.masked(lib.add_decayed_weights(0.1), matrices),
        lib.scale(-0.1),
    )
    return train(tx)


@both
def test_a_mask_of_zeros_and_ones(lib, more):
    mask = jax.tree.map(lambda p: int(p.ndim > 1), PARAMS)
    return train(lib.masked(lib.sgd(0.1), mask))


@both
def test_a_mask_of_numpy_booleans(lib, more):
    mask = jax.tree.map(lambda p: np.bool_(p.ndim > 1), PARAMS)
    return train(lib.masked(lib.sgd(0.1), mask))


@both
def test_a_mask_by_partial(lib, more):
    def above(params, rank):
        return jax.tree.map(lambda p: jnp.ndim(p) > rank, params)

    return train(lib.masked(lib.adam(0.1), partial(above, rank=1)))


@both
def test_a_mask_as_a_method_of_an_object(lib, more):
    class Masker:
        def __call__(self, params):
            return matrices(params)

    return train(lib.masked(lib.adam(0.1), Masker()))


@both
def test_a_frozen_part_by_masked_zero(lib, more):
    tx = lib.chain(lib.adam(0.1), lib.masked(lib.set_to_zero(), {"dense": True, "head": False}))
    return train(tx)


@both
def test_a_frozen_part_before_the_optimizer(lib, more):
    tx = lib.chain(lib.masked(lib.set_to_zero(), {"dense": False, "head": True}), lib.adamw(0.1))
    return train(tx)


@both
def test_two_masks_that_complement_each_other(lib, more):
    mask = matrices(PARAMS)
    other = jax.tree.map(lambda m: not m, mask)
    tx = lib.chain(lib.masked(lib.adam(0.1), mask), lib.masked(lib.sgd(0.2, momentum=0.9), other))
    return train(tx)


@both
def test_leaves_outside_of_a_mask_pass_unchanged(lib, more):
    tx = lib.masked(lib.scale(-1.0), {"dense": True, "head": False})
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS)


@both
def test_a_named_tuple_of_parameters(lib, more):
    class Net(NamedTuple):
        weight: jax.Array
        bias: jax.Array

    params = Net(jnp.ones((2, 2)), jnp.ones(2))
    params, _ = train(lib.adamw(0.1, weight_decay=0.5, mask=Net(True, False)), params)
    return tuple(params)


@both
def test_a_named_tuple_as_a_mask_by_function(lib, more):
    class Net(NamedTuple):
        weight: jax.Array
        bias: jax.Array

    params = Net(jnp.ones((2, 2)), jnp.ones(2))
    tx = lib.masked(lib.sgd(0.1), lambda p: p._replace(weight=True, bias=False))
    return tuple(train(tx, params)[0])


@both
def test_a_registered_dataclass_of_parameters(lib, more):
    @partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=["name"])
    @dataclass
    class Net:
        w: jax.Array
        b: jax.Array
        name: str

    params = Net(jnp.ones((2, 2)), jnp.ones(2), "net")
    tx = lib.adamw(0.1, weight_decay=0.5, mask=Net(True, False, "net"))
    params, _ = train(tx, params)
    return params.w, params.b


@both
def test_a_flax_struct_of_parameters(lib, more):
    @flax.struct.dataclass
    class Net:
        w: jax.Array
        b: jax.Array

    tx = lib.adamw(0.1, weight_decay=0.5, mask=lambda net: net.replace(w=True, b=False))
    params, _ = train(tx, Net(jnp.ones((2, 2)), jnp.ones(2)))
    return params.w, params.b


@both
def test_a_frozen_dict_with_a_mask_of_its_kind(lib, more):
    params = flax.core.freeze(PARAMS)
    params, _ = train(
        lib.adamw(0.1, weight_decay=0.5, mask=flax.core.freeze(matrices(PARAMS))), params
    )
    return params.unfreeze()


@both
def test_a_frozen_dict_with_a_function(lib, more):
    return train(lib.masked(lib.adam(0.1), matrices), flax.core.freeze(PARAMS))


@both
def test_linen_names_of_layers(lib, more):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.LayerNorm()(nn.Dense(3)(x)))

    params = Net().init(jax.random.key(0), jnp.ones((1, 3)))["params"]

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "LayerNorm" not in path[0].key and path[-1].key != "bias", params
        )

    return train(lib.adamw(0.1, weight_decay=0.5, mask=mask), params)


@both
def test_a_mask_over_the_state_of_an_nnx_module(lib, more):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    # optax refuses a tree of nnx variables, whose leaves are in the same order.
    mask = matrices if lib is optax else matrices(params)
    tx = lib.adamw(0.1, weight_decay=0.5, mask=mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, gradients(params))
    return model.kernel[...], model.bias[...]


@both
def test_a_mask_by_function_with_nnx(lib, more):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lib.adamw(0.1, weight_decay=0.5, mask=matrices), wrt=nnx.Param)
    optimizer.update(model, gradients(nnx.state(model, nnx.Param)))
    return model.kernel[...], model.bias[...]


@both
def test_an_equinox_module_as_a_mask(lib, more):
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    mask = eqx.tree_at(lambda m: (m.weight, m.bias), model, (True, False))
    tx = lib.masked(lib.adam(0.1), mask)
    updates, _ = tx.update(gradients(model), tx.init(model), model)
    new = eqx.apply_updates(model, updates)
    return new.weight, new.bias


@both
def test_decay_of_equinox_matrices(lib, more):
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    tx = lib.adamw(0.1, weight_decay=0.5, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    params, _ = train(tx, params)
    return eqx.combine(params, static)(jnp.ones(2))


@both
def test_clipping_within_a_mask_counts_what_it_chooses(lib, more):
    tx = lib.masked(lib.clip_by_global_norm(0.1), {"dense": True, "head": False})
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS)[0]


@both
def test_a_mask_for_further_factories(lib, more):
    transformations = [
        lib.lamb(0.1, weight_decay=0.5, mask=matrices),
        lib.lars(0.1, trust_ratio_mask=matrices),
        lib.lion(0.1, weight_decay=0.5, mask=matrices),
        lib.adamaxw(0.1, weight_decay=0.5, mask=matrices),
        lib.nadamw(0.1, weight_decay=0.5, mask=matrices),
        lib.adafactor(0.1, weight_decay_rate=0.5, weight_decay_mask=matrices),
    ]
    return [train(tx, steps=1)[0] for tx in transformations]


@both
def test_a_mask_within_an_injected_factory(lib, more):
    # optax takes a function for a schedule unless told.
    static = {"static_args": "mask"} if lib is optax else {}
    inject = lib.inject_hyperparams(lib.adamw, **static)
    return train(inject(learning_rate=0.1, weight_decay=0.5, mask=matrices))[0]


@both
def test_a_tree_mask_within_an_injected_factory(lib, more):
    tx = lib.inject_hyperparams(lib.adamw, static_args=("mask",))(
        learning_rate=0.1, weight_decay=0.5, mask=matrices(PARAMS)
    )
    return train(tx)[0]
