"""Each clause is tested on a transformation that breaks it, and on a good one.

The broken ones are the good one with a single mistake. The table says every clause that the
mistake breaks, so that a clause that complains about something else fails too.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gradtx
from gradtx.effect import Effect, declared
from gradtx.kernel import Kernel
from gradtx.kernels.momentum import TRACE
from gradtx.kernels.sign import SIGN
from gradtx.lift import kernel_of, lift
from gradtx.testing import ConformanceError, check_layouts, check_transformation, clauses

ExtraArgs = optax.GradientTransformationExtraArgs
GOOD = gradtx.trace(0.9, nesterov=True)
MOMENTUM = {"decay": 0.9, "dampening": 0.0, "nesterov": True}


class Broken(NamedTuple):
    """A transformation, the clauses that it breaks, and what the first one's error says."""

    make: Callable[[], Any]
    clauses: tuple[str, ...]
    says: str


BROKEN: dict[str, Broken] = {}

# The clauses that have None among the gradients.
HAVE_NONE = ("none_leaves", "empty_trees", "missing_gradients", "non_parameters")


def breaks(*clauses: str, says: str):
    """Add a function that makes a transformation to the table, under the function's name."""

    def add(make):
        BROKEN[make.__name__] = Broken(make, clauses, says)
        return make

    return add


def changed(init=None, result=None) -> ExtraArgs:
    """The good transformation with another init, or another result of its update."""

    def update(updates, state, params=None, **extra):
        new = GOOD.update(updates, state, params, **extra)
        return new if result is None else result(updates, state, *new)

    return ExtraArgs(init or GOOD.init, update)


def passenger(init) -> ExtraArgs:
    """The good transformation, whose state carries something more that never changes."""

    def update(updates, state, params=None, **extra):
        updates, new_state = GOOD.update(updates, state[1], params)
        return updates, (state[0], new_state)

    return ExtraArgs(lambda params: (init(params), GOOD.init(params)), update)


def is_traced(tree) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def is_inexact(leaf) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.inexact)


@breaks(
    "calls", says="expected update to return a tuple of the updates and the new state, got a dict"
)
def returning_the_updates_alone():
    return ExtraArgs(GOOD.init, lambda updates, state, params=None, **extra: updates)


@breaks("calls", says="got a demand for the argument 'loss' (TypeError")
def demanding_a_loss():
    def update(updates, state, params=None, *, loss, **extra):
        return GOOD.update(updates, state, params)

    return ExtraArgs(GOOD.init, update)


@breaks(*HAVE_NONE, says="got a leaf that is None where an array was")
def with_a_shape_for_every_leaf():
    def result(updates, state, new_updates, new_state):
        leaves = jax.tree.leaves(updates, is_leaf=lambda leaf: leaf is None)
        assert all(leaf.shape is not None for leaf in leaves)
        return new_updates, new_state

    return changed(result=result)


@breaks("type", says="expected an optax.GradientTransformationExtraArgs, got a Gradient")
def without_extra_arguments():
    return optax.GradientTransformation(*GOOD)


@breaks("type", says="a refusal of the extra argument 'an_unknown_extra_argument' (TypeError)")
def refusing_extra_arguments():
    return ExtraArgs(GOOD.init, lambda updates, state, params=None: GOOD.update(updates, state))


@breaks("purity", says="expected update to leave its arguments alone, got another leaf there")
def overwriting_its_argument():
    def result(updates, state, new_updates, new_state):
        if "temperature" in updates and is_inexact(updates["temperature"]):
            updates["temperature"] = jnp.copy(updates["temperature"])
        return new_updates, new_state

    return changed(result=result)


@breaks("purity", says="expected an update without effects, got debug_callback")
def calling_back():
    def result(updates, state, new_updates, new_state):
        jax.debug.callback(lambda: None)
        return new_updates, new_state

    return changed(result=result)


@breaks(
    "purity",
    "jit",
    "vmap",
    "donation",
    "sharding",
    says="at '0': expected the state of a second init to be 0 at",
)
def counting_in_secret():
    count = itertools.count()
    return passenger(lambda params: jnp.int32(next(count)))


@breaks(
    "updates",
    "half_precision",
    says="at 'dense/bias': expected the updates of type float32[3], got float16[3]",
)
def narrowing_updates():
    def result(updates, state, new_updates, new_state):
        return jax.tree.map(
            lambda u: u.astype(jnp.float16) if is_inexact(u) and u.ndim < 2 else u, new_updates
        ), new_state

    return changed(result=result)


@breaks(
    "half_precision",
    "double_precision",
    says="gradients in float16 of type float16[8, 3], got float32[8, 3]",
)
def widening_updates():
    def result(updates, state, new_updates, new_state):
        return jax.tree.map(
            lambda u: u.astype(jnp.float32) if is_inexact(u) else u, new_updates
        ), new_state

    return changed(result=result)


@breaks(
    "half_precision",
    "double_precision",
    says="expected the state after steps in float16 of type float16",
)
def widening_a_state_of_half_precision():
    def init(params):
        slots = GOOD.init(params).trace
        return jax.tree.map(lambda p, v: None if v is None else v.astype(p.dtype), params, slots)

    def update(updates, state, params=None, **extra):
        updates, new_state = GOOD.update(updates, optax.TraceState(state), params)
        return updates, jax.tree.map(lambda v: v.astype(jnp.float32), new_state.trace)

    return ExtraArgs(init, update)


@breaks("weak_types", says="of type weakly typed float32[], got float32[]")
def starting_weakly_typed():
    def init(params):
        return GOOD.init(params), jnp.asarray(0.0)

    def update(updates, state, params=None, **extra):
        updates, new_state = GOOD.update(updates, state[0], params)
        return updates, (new_state, state[1] + jnp.float32(1))

    return ExtraArgs(init, update)


@breaks(
    "state",
    "scan",
    "weak_types",
    "half_precision",
    says="at 'trace/dense/kernel': expected the state after step 1 of type",
)
def widening_state():
    def init(params):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), GOOD.init(params))

    def result(updates, state, new_updates, new_state):
        return new_updates, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), new_state)

    return changed(init, result)


@breaks("missing_gradients", says="at 'dense/bias': expected the slot of 'dense/bias' to be")
def decaying_slots_without_gradient():
    def result(updates, state, new_updates, new_state):
        trace = jax.tree.map(
            lambda g, v: v * 0.5 if g is None and v is not None else v,
            updates,
            new_state.trace,
            is_leaf=lambda leaf: leaf is None,
        )
        return new_updates, optax.TraceState(trace)

    return changed(result=result)


@breaks("missing_gradients", says="expected the updates to have None, got float32[3]")
def inventing_updates():
    def update(updates, state, params=None, **extra):
        new_updates, new_state = GOOD.update(updates, state, params)
        has_no_gradient = jax.tree.map(
            lambda g, v: g is None and is_inexact(v),
            updates,
            state.trace,
            is_leaf=lambda x: x is None,
        )
        filled = jax.tree.map(
            lambda missing, u, v: jnp.zeros_like(v) if missing else u,
            has_no_gradient,
            new_updates,
            state.trace,
            is_leaf=lambda x: x is None,
        )
        return filled, new_state

    return ExtraArgs(GOOD.init, update)


@breaks("masked_leaves", says="expected the updates to have no leaf there, got float32[]")
def filling_masked_leaves():
    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    def result(updates, state, new_updates, new_state):
        filled = jax.tree.map(
            lambda u: jnp.zeros(()) if is_masked(u) else u, new_updates, is_leaf=is_masked
        )
        return filled, new_state

    return changed(result=result)


@breaks("empty_trees", says="got a maximum of no elements")
def dividing_by_the_largest_gradient():
    def result(updates, state, new_updates, new_state):
        def divide(u):
            return u / jnp.max(jnp.abs(u) + 1) if is_inexact(u) and u.dtype == jnp.float32 else u

        return jax.tree.map(divide, new_updates), new_state

    return changed(result=result)


@breaks("empty_trees", says="ZeroDivisionError at test_clauses.py:")
def dividing_by_the_number_of_leaves():
    def result(updates, state, new_updates, new_state):
        assert 1 / len(jax.tree.leaves(updates)) > 0
        return new_updates, new_state

    return changed(result=result)


@breaks("non_parameters", says="expected the update of an integer to be 0")
def updating_integers():
    def result(updates, state, new_updates, new_state):
        def descend(u):
            return u - 1 if getattr(u, "dtype", None) == jnp.int32 else u

        return jax.tree.map(descend, new_updates), new_state

    return changed(result=result)


@breaks("mismatches", "idle", says="names 'dense/kernel' and (1, 3) and (8, 3), got no error")
def broadcasting():
    def add(g, v):
        if not is_inexact(g):
            return jnp.zeros_like(g) if getattr(g, "dtype", None) == jnp.int32 else g
        return (g + v.astype(g.dtype)).astype(g.dtype)

    def update(updates, state, params=None, **extra):
        return jax.tree.map(add, updates, state, is_leaf=lambda leaf: leaf is None), state

    return ExtraArgs(lambda params: GOOD.init(params).trace, update)


@breaks("mismatches", says="got the message 'something is wrong'")
def refusing_without_a_name():
    def update(updates, state, params=None, **extra):
        try:
            return GOOD.update(updates, state, params)
        except ValueError as error:
            raise ValueError("something is wrong") from error

    return ExtraArgs(GOOD.init, update)


@breaks(
    "mismatches",
    "unread_parameters",
    says="expected params with a leaf of another shape to be refused",
)
def not_looking_at_parameters():
    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("no parameters")
        return GOOD.update(updates, state)

    return ExtraArgs(GOOD.init, update)


@breaks("jit", "vmap", says="expected the compiled init to be 0.0 at index (0, 0), got 1.0")
def starting_elsewhere_when_traced():
    def init(params):
        start = 1 if is_traced(params) else 0
        return jax.tree.map(lambda leaf: leaf + jnp.asarray(start, leaf.dtype), GOOD.init(params))

    return changed(init)


@breaks("vmap", says="at '0/dense/kernel': expected element 0 of a batch to be")
def with_a_wrong_batching_rule():
    @jax.custom_batching.custom_vmap
    def same(x):
        return x

    @same.def_vmap
    def same_for_a_batch(axis_size, in_batched, x):
        return 2 * x, in_batched[0]

    def result(updates, state, new_updates, new_state):
        return jax.tree.map(lambda u: same(u) if is_inexact(u) else u, new_updates), new_state

    return changed(result=result)


@breaks("weak_types", says="of type float32[], got weakly typed float32[]")
def weakly_typed_when_traced():
    def init(params):
        weight = jnp.asarray(1.0) if is_traced(params) else jnp.float32(1)
        return GOOD.init(params), weight

    def update(updates, state, params=None, **extra):
        updates, new_state = GOOD.update(updates, state[0], params)
        return updates, (new_state, state[1])

    return ExtraArgs(init, update)


@breaks(
    *("jit", "vmap", "scan", "eval_shape", "sharding"),
    *("weak_types", "donation", "layouts", "half_precision"),
    says="got a decision in Python about a number that is only known when the program runs",
)
def deciding_in_python():
    def result(updates, state, new_updates, new_state):
        total = sum(jnp.sum(u) for u in jax.tree.leaves(new_updates) if is_inexact(u))
        return (new_updates if total < jnp.inf else updates), new_state

    return changed(result=result)


@breaks("donation", "idle", says="a new buffer, got that of the parameter 'dense/kernel'")
def keeping_the_parameters():
    return passenger(lambda params: params)


@breaks("donation", "idle", says="got that of '0/0/dense/kernel' of this or an earlier state")
def keeping_one_buffer_twice():
    def init(params):
        zeros = GOOD.init(params).trace
        return zeros, zeros

    return passenger(init)


@breaks("donation", says="got that of '0' of this or an earlier state")
def giving_away_its_own_buffer():
    weight = jnp.arange(3.0)
    return passenger(lambda params: weight)


@breaks("layouts", says="at 'dense/kernel': expected the state of init to lie as NamedSharding")
def starting_on_one_device():
    def init(params):
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), GOOD.init(params))

    return changed(init)


@breaks("layouts", says="expected the state of the compiled init to lie as NamedSharding")
def starting_on_one_device_when_traced():
    def init(params):
        state = GOOD.init(params)
        if not is_traced(params):
            return state
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), state)

    return changed(init)


@breaks("layouts", says="on a mesh with explicit axes to be sharded ('devices',), got ()")
def gathering_its_state_where_layouts_are_types():
    def gathered(v):
        own = jax.typeof(v).sharding
        return jax.reshard(v, PartitionSpec(*[None] * v.ndim)) if own.mesh.explicit_axes else v

    def result(updates, state, new_updates, new_state):
        return new_updates, jax.tree.map(gathered, new_state)

    return changed(result=result)


@breaks("layouts", says="at 'dense/kernel': expected the state of update to lie as NamedSharding")
def gathering_its_state():
    def gathered(v):
        mesh = jax.typeof(v).sharding.mesh
        if mesh.empty or not mesh.auto_axes or not isinstance(v, jax.core.Tracer):
            return v
        mesh = Mesh(np.array(jax.devices()), mesh.axis_names)
        return jax.lax.with_sharding_constraint(v, NamedSharding(mesh, PartitionSpec()))

    def result(updates, state, new_updates, new_state):
        return new_updates, jax.tree.map(gathered, new_state)

    return changed(result=result)


@breaks("sharding", says="got results that may differ from device to device")
def depending_on_the_device():
    def result(updates, state, new_updates, new_state):
        try:
            number = jax.lax.axis_index("devices").astype(jnp.float32)
        except NameError:
            return new_updates, new_state
        shifted = jax.tree.map(lambda u: u + number.astype(u.dtype), new_updates)
        return shifted, new_state

    return changed(result=result)


@breaks(
    "half_precision",
    "complex",
    says="expected updates for zero gradients in float16 that are finite",
)
def dividing_in_half_precision():
    def result(updates, state, new_updates, new_state):
        def normalize(u):
            if not is_inexact(u):
                return u
            return u / (jnp.sqrt(u * u) + jnp.asarray(1e-8, u.dtype))

        return jax.tree.map(normalize, new_updates), new_state

    return changed(result=result)


@breaks("locality", says="at 'dense/kernel': expected updates of shuffled leaves to be")
def calling_a_mean_elementwise():
    def center(g):
        return g - jnp.mean(g, axis=-1, keepdims=True) if g.ndim else g

    return lift(Kernel("center", center))


@breaks("degree", says="expected the updates of scale_by_sign for 4 g to be 4 times those for g")
def calling_a_sign_as_long_as_the_gradient():
    return lift(replace(SIGN, degree=1))


@breaks("degree", says="the updates of scale_by_learning_rate to point along the gradient")
def calling_descent_an_ascent():
    descent = gradtx.scale_by_learning_rate(0.1)
    kernel = replace(kernel_of(descent), sense=1)
    return lift(kernel, learning_rate=0.1, flip_sign=True)


@breaks("degree", says="expected the updates of trace for 4 g to be 1 times those for g")
def calling_momentum_as_long_as_itself():
    return gradtx.chain(gradtx.clip(1.0), lift(replace(TRACE, degree=0), **MOMENTUM))


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_breaks_exactly_these_clauses(name):
    broken = BROKEN[name]
    with pytest.raises(ConformanceError) as caught:
        check_transformation(broken.make())
    # What follows from the mistake is not listed in full.
    assert set(caught.value.causes) <= set(broken.clauses) <= set(caught.value.failures)
    assert broken.says in caught.value.failures[broken.clauses[0]]
    assert broken.clauses[0] in str(caught.value)


def test_a_clause_alone_complains_as_in_the_whole():
    tx = calling_a_mean_elementwise()
    with pytest.raises(ConformanceError, match=r"^locality: with the .*, at 'dense/kernel'"):
        clauses()["locality"](tx)


def test_the_good_one_breaks_nothing():
    check_transformation(GOOD)


@pytest.mark.parametrize(
    ("dtype", "is_kept"), [(jnp.float32, True), (jnp.bfloat16, True), (jnp.float16, False)]
)
def test_updates_may_be_wider_where_that_is_declared(dtype, is_kept):
    @declared(Effect(widens=True))
    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: u.astype(dtype), updates), state

    # Declared inside, so that what is around it may hand that on.
    tx = gradtx.chain(ExtraArgs(GOOD.init, update))
    check = clauses()["updates"]
    if is_kept:
        check(tx, {"w": jnp.ones(3, jnp.bfloat16)})
        return
    with pytest.raises(ConformanceError, match=r"type bfloat16\[3\], got float16\[3\]"):
        check(tx, {"w": jnp.ones(3, jnp.bfloat16)})


def test_a_count_may_start_on_one_device():
    def update(updates, state, params=None, **extra):
        return gradtx.scale(-1.0).update(updates, None, params)[0], (state[0] + 1,)

    check_layouts(ExtraArgs(lambda params: (jnp.zeros([], jnp.int32),), update))
