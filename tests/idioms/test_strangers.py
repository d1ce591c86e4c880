"""What a library may not expect: containers that check their leaves, duck types, odd callers."""

import functools
import operator
from typing import Any, NamedTuple

import chex
import equinox.internal as eqxi
import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import export
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

from .both import PARAMS, both, gradients, train

V = jnp.array([0.5, -1.0, 2.0])


@jax.tree_util.register_pytree_node_class
class Checked:
    """A container that refuses anything but arrays, even when jax builds it."""

    def __init__(self, weight, bias):
        for leaf in (weight, bias):
            if type(leaf) is not object and not hasattr(leaf, "shape"):
                raise TypeError(f"no array: {leaf!r}")
        self.weight, self.bias = weight, bias

    def tree_flatten(self):
        return (self.weight, self.bias), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Duck:
    """An optimizer that has the two methods, and is not a named tuple."""

    def init(self, params):
        return {"steps": jnp.zeros([], jnp.int32)}

    def update(self, updates, state, params=None):
        return jax.tree.map(lambda u: -0.1 * u, updates), {"steps": state["steps"] + 1}


@both
def test_containers_that_check_their_leaves(lib, more):
    params = Checked(V, V + 1.0)
    txs = [
        lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1), lib.ema(0.9)),
        lib.MultiSteps(lib.lion(0.1), 2),
        lib.inject_hyperparams(lib.adam)(0.1),
        more.schedule_free(lib.sgd(0.1), 0.1),
    ]
    return [jax.tree.leaves(train(tx, params, steps=2, compiled=True)) for tx in txs]


@both
def test_averages_of_containers_that_check_their_leaves(lib, more):
    new, old = Checked(V, V), Checked(2 * V, V)
    average = lib.incremental_update(new, old, 0.1)
    target = lib.periodic_update(new, old, jnp.int32(4), 2)
    return jax.tree.leaves((average, target)), lib.global_norm(new)


@both
def test_parameters_in_containers_of_chex_and_flax(lib, more):
    @chex.dataclass
    class Net:
        w: Any
        b: Any

    class Node(flax.struct.PyTreeNode):
        w: Any
        name: str = flax.struct.field(pytree_node=False)

    mask = Net(w=True, b=False)
    net, _ = train(lib.masked(lib.adam(0.1), mask), Net(w=V, b=V), steps=1)
    node, _ = train(lib.adamw(0.1), Node(w=V, name="node"), steps=1)
    return net.w, net.b, node.w


@both
def test_boxes_with_names_of_axes(lib, more):
    init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    model = nn.Dense(2, kernel_init=init)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    tx = lib.adamw(0.1, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree))
    params, state = train(tx, params, steps=2)
    assert nn.get_partition_spec(state)[0].mu["kernel"] == P(None, "model")
    return nn.unbox(params)


@both
def test_duck_types_within_wrappers(lib, more):
    labels = {"dense": "a", "head": "b"}
    txs = [
        lib.MultiSteps(Duck(), 2),
        lib.apply_if_finite(Duck(), 2),
        lib.masked(Duck(), {"dense": True, "head": False}),
        lib.multi_transform({"a": Duck(), "b": lib.sgd(0.1)}, labels),
        lib.chain(lib.clip(1.0), lib.with_extra_args_support(Duck())),
        more.schedule_free(Duck(), 0.1),
    ]
    return [train(tx, steps=2, compiled=True) for tx in txs]


@both
def test_a_named_tuple_of_two_functions(lib, more):
    class Pair(NamedTuple):
        init: Any
        update: Any

    duck = Duck()
    return train(lib.chain(lib.clip(1.0), Pair(duck.init, duck.update)))


@both
def test_closures_turned_into_trees(lib, more):
    tx = eqxi.closure_to_pytree(lib.chain(lib.clip(1.0), lib.adam(0.1)))
    return tx.update(V, tx.init(V), V, value=1.0, grad=V, value_fn=jnp.sum)


@both
def test_a_function_that_carries_an_update_through_jit(lib, more):
    tx = lib.adam(0.1)
    traces = []

    @jax.jit
    def call(update, grads, state):
        traces.append(1)
        return update(grads, state)

    state = tx.init(V)
    first = call(jax.tree_util.Partial(tx.update), V, state)
    return first, call(jax.tree_util.Partial(tx.update), V, state), len(traces)


@both
def test_transformations_in_a_tree(lib, more):
    txs = {"a": lib.adam(0.1), "b": lib.sgd(0.1, momentum=0.9)}

    def is_leaf(node):
        return isinstance(node, lib.GradientTransformation)

    states = jax.tree.map(lambda tx, p: tx.init(p), txs, {"a": V, "b": V}, is_leaf=is_leaf)
    return states, len(jax.tree.leaves(txs)), len(jax.tree.leaves(txs, is_leaf=is_leaf))


@both
def test_programs_that_are_exported(lib, more):
    tx = lib.adam(0.1)

    def step(grads, mu, nu, count):
        state = (lib.ScaleByAdamState(count, mu, nu), lib.EmptyState())
        return tx.update(grads, state)[0]

    arguments = (V, V, V * V, jnp.int32(3))
    return export.export(jax.jit(step))(*arguments).call(*arguments)


@both
def test_programs_that_are_checked(lib, more):
    tx = lib.adamw(0.1)
    step = checkify.checkify(tx.update, errors=checkify.float_checks)
    error, result = step(V, tx.init(V), V)
    error.throw()
    return result


@both
def test_programs_without_compilation(lib, more):
    with jax.disable_jit():
        return train(lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(0.1)), V)


@both
def test_programs_that_look_for_nans(lib, more):
    with jax.debug_nans(True):
        return train(lib.chain(lib.clip_by_global_norm(1.0), lib.adam(0.1)), V)


@both
def test_updates_in_other_hands(lib, more):
    tx = lib.adamw(0.1)
    state = tx.init(V)
    return (
        nnx.jit(tx.update)(V, state, V),
        jax.checkpoint(tx.update)(V, state, V),
        jax.jit(tx.update, donate_argnums=1)(V, tx.init(V), params=V),
        jax.linearize(lambda g: tx.update(g, state, V)[0], V)[0],
    )


@both
def test_counts_of_odd_kinds(lib, more):
    tx = lib.adam(lambda count: 0.1 / (1 + count))
    adam, schedule = tx.init(V)
    return [
        tx.update(V, (adam._replace(count=count), schedule._replace(count=count)))[0]
        for count in (5, np.int64(5), jnp.array([5], jnp.int32))
    ]


@both
def test_a_chain_whose_last_state_is_replaced_by_slices(lib, more):
    schedule = lib.cosine_decay_schedule(0.1, 10)
    tx = lib.chain(lib.scale_by_adam(), lib.identity(), lib.scale_by_schedule(schedule))
    state = tx.init(V)
    state = (*state[:2], lib.ScaleByScheduleState(count=jnp.array([4], np.int32)))
    return tx.update(V, state, V)[0]


@both
def test_muon_whose_dimensions_are_one_for_all_or_a_function(lib, more):
    params = {"kernel": jnp.eye(4, 3) + 0.1}
    sides = more.MuonDimensionNumbers(-2, -1)
    every = more.muon(0.1, muon_weight_dimension_numbers=sides)
    chosen = more.muon(
        lib.linear_schedule(0.1, 0.0, 5),
        weight_decay=0.1,
        muon_weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: sides, tree),
    )
    return train(every, params, steps=1)[0], train(chosen, params, steps=1)[0]


@both
def test_a_plateau_in_many_places(lib, more):
    plateau = functools.partial(more.reduce_on_plateau, factor=0.5, patience=1)
    labels = {"dense": "a", "head": "b"}
    txs = [
        lib.chain(lib.scale_by_adam(), plateau(), lib.scale(-0.1)),
        lib.multi_transform({"a": lib.chain(lib.sgd(0.1), plateau()), "b": lib.sgd(0.1)}, labels),
        lib.MultiSteps(lib.chain(lib.sgd(0.1), plateau()), 2),
        lib.named_chain(("sgd", lib.sgd(0.1)), ("plateau", plateau())),
    ]
    results = []
    for tx in txs:
        update, state = jax.jit(tx.update), tx.init(PARAMS)
        for _ in range(4):
            updates, state = update(gradients(PARAMS), state, PARAMS, value=1.0)
        results.append((updates, lib.tree.get(state, "scale")))
    return results


@both
def test_keys_of_dictionaries_of_odd_kinds(lib, more):
    return [
        train(lib.adam(0.1), params, steps=1)[0]
        for params in ({0: V, 1: V}, {("a", 0): V}, {"a/b": V, "c.d": V}, {"x": {}, "y": V})
    ]


@both
def test_masks_made_by_other_logic(lib, more):
    one = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    two = jax.tree.map(lambda p: p.shape[-1] == 3, PARAMS)
    joined = jax.tree.map(operator.and_, one, two)
    many = jax.tree.map(lambda p: np.array([p.ndim > 1, True]), PARAMS)
    first = jax.tree.map(lambda flags: flags[0], many)
    return [train(lib.masked(lib.sgd(0.1), mask), steps=1) for mask in (joined, first)]
