"""Mistakes that leave something behind: in closures, in modules, in buffers, in the state."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import gradtx

from .broken import (
    ExtraArgs,
    Table,
    breaks,
    changed,
    on_numbers,
    passenger,
    start,
    step,
    zeros,
)

BROKEN: Table = {}


@breaks(BROKEN, "leaks", "expected")
def keeping_the_last_gradient():
    kept = {}

    def before(updates):
        kept["gradient"] = updates
        return updates

    return changed(before=before)


@breaks(BROKEN, "leaks", "expected")
def keeping_the_parameters_of_init():
    class Method:
        def init(self, params):
            self.seen = jax.tree.map(lambda p: p, params)
            return start(params)

        def update(self, updates, state, params=None, **extra):
            return step(updates, state, params)

    method = Method()
    return ExtraArgs(method.init, method.update)


@breaks(BROKEN, "leaks", "no traced array to outlive init and update")
def keeping_ones_of_each_shape():
    # Whatever was traced after an eager call finds these there.
    ones = {}

    def before(updates):
        def times_one(u):
            kind = u.shape, jnp.dtype(u.dtype)
            if kind not in ones:
                ones[kind] = jnp.ones_like(u)
            return u * ones[kind]

        return on_numbers(times_one, updates)

    return changed(before=before)


@breaks(BROKEN, "side_effects", "expected")
def another_step_after_40_calls():
    calls = itertools.count()

    def result(given, updates, state):
        if next(calls) >= 40:
            updates = on_numbers(lambda u: -u, updates)
        return updates, state

    return changed(result)


@breaks(BROKEN, "side_effects", "expected")
def growing_a_list():
    history = []

    def result(given, updates, state):
        history.append(len(jax.tree.leaves(updates)))
        return updates, state

    return changed(result)


@breaks(BROKEN, "side_effects", "expected")
def counting_calls():
    calls = 0

    def result(given, updates, state):
        nonlocal calls
        calls += 1
        return updates, state

    return changed(result)


@breaks(BROKEN, "side_effects", "expected")
def drawing_from_numpy():
    def result(given, updates, state):
        np.random.random()
        return updates, state

    return changed(result)


def structure(tree):
    return jax.tree.structure(tree, is_leaf=lambda leaf: leaf is None)


@breaks(BROKEN, "side_effects", "expected the result to be")
def remembering_the_tree_of_init():
    kept = {}

    def init(params):
        kept["tree"] = structure(params)
        return start(params)

    def result(given, updates, state):
        if kept["tree"] != structure(given[0]):
            updates = on_numbers(lambda u: -u, updates)
        return updates, state

    return changed(result, init)


@breaks(BROKEN, "side_effects", "expected an update to run, got ")
def demanding_the_tree_of_init():
    kept = {}

    def init(params):
        kept["tree"] = structure(params)
        return start(params)

    def result(given, updates, state):
        leaves = jax.tree.leaves(updates, is_leaf=lambda leaf: leaf is None)
        return kept["tree"].unflatten(leaves), state

    return changed(result, init)


CALLS = 0


@breaks(BROKEN, "side_effects", "expected")
def counting_calls_in_a_module():
    def result(given, updates, state):
        global CALLS
        CALLS += 1
        return updates, state

    return changed(result)


@breaks(BROKEN, "donation", "expected")
def returning_a_buffer_of_its_own():
    weight = jnp.arange(3, dtype=jnp.float32)
    return passenger(lambda params: weight + 1, lambda own: weight)


@breaks(BROKEN, "donation", "one that had been given away")
def looking_back_at_an_earlier_state():
    kept = {}

    def result(given, updates, state):
        if isinstance(given[1].count, jax.core.Tracer):
            return updates, state
        before = kept.get("count", given[1].count)
        kept["count"] = given[1].count
        factor = jnp.where(before < 0, 0.5, 1.0)
        return on_numbers(lambda u: u * factor.astype(u.dtype), updates), state

    return changed(result)


@breaks(BROKEN, "idle", "expected")
def forgetting_to_return_the_new_momentum():
    return changed(lambda given, updates, state: (updates, state._replace(mu=given[1].mu)))


@breaks(BROKEN, "idle", "expected")
def keeping_what_is_never_used():
    return passenger(zeros)


@breaks(BROKEN, "idle", "expected")
def an_average_of_nothing():
    return passenger(
        zeros,
        lambda m: on_numbers(lambda x: x * jnp.asarray(0.9, x.dtype), m),
    )


@breaks(BROKEN, "idle", "the same number after each step")
def calling_init_in_each_update():
    inner = gradtx.scale_by_schedule(lambda count: 1 / (1 + count))

    def update(updates, state, params=None, **extra):
        return inner.update(updates, inner.init(params), params)

    return ExtraArgs(inner.init, update)


@breaks(BROKEN, "unread_parameters", "expected")
def asking_for_parameters_in_vain():
    def result(given, updates, state):
        if given[2] is None:
            raise ValueError("needs params")
        return updates, state

    return changed(result)
