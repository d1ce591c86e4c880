"""States that are read, replaced, rebuilt and searched by hand."""

import collections

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from .both import PARAMS, both, gradients, train

ADAMW = {"learning_rate": lambda count: 0.1 / (1 + count), "weight_decay": 0.1}


def of_class(state, kind):
    """All states of a class within a state, wherever they are."""
    found = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in found if isinstance(node, kind)]


@both
def test_moments_by_index_and_attribute(lib, more):
    _, state = train(lib.adam(0.1))
    return state[0].mu, state[0].nu, state[0].count, state[0][1]["dense"]["bias"]


@both
def test_moments_of_the_last_piece_of_a_nested_chain(lib, more):
    _, state = train(lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(**ADAMW)))
    return state[-1][0].mu, state[1][0].count, state[1][-1].count


@both
def test_the_class_of_each_piece(lib, more):
    state = lib.chain(lib.clip(1.0), lib.adamw(**ADAMW)).init(PARAMS)
    assert isinstance(state, tuple)
    assert isinstance(state[1], tuple)
    assert isinstance(state[1][0], optax.ScaleByAdamState)
    assert isinstance(state[1][0], lib.ScaleByAdamState)
    return [type(piece).__name__ for piece in (state[0], *state[1])]


@both
def test_the_state_of_a_chain_is_unpacked(lib, more):
    _, state = train(lib.chain(lib.clip(1.0), lib.scale_by_adam(), lib.scale(-0.1)))
    clip_state, (count, mu, nu), scale_state = state
    return clip_state, count, mu, nu, scale_state


@both
def test_counts_found_by_class(lib, more):
    _, state = train(lib.chain(lib.clip(1.0), lib.adamw(**ADAMW)))
    return [found.count for found in of_class(state, optax.ScaleByScheduleState)]


@both
def test_every_node_with_a_count_is_set_to_a_step(lib, more):
    _, state = train(lib.adamw(**ADAMW))

    def reset(node):
        if "count" in getattr(node, "_fields", ()):
            return node._replace(count=jnp.array(7, jnp.int32))
        return node

    state = jax.tree.map(reset, state, is_leaf=lambda node: hasattr(node, "_replace"))
    return train(lib.adamw(**ADAMW), state=state)


@both
def test_momentum_reset_by_replace(lib, more):
    tx = lib.adam(0.1)
    params, state = train(tx)
    fresh = jax.tree.map(jnp.zeros_like, state[0].mu)
    state = (state[0]._replace(mu=fresh), *state[1:])
    return train(tx, params, state)


@both
def test_a_state_built_by_hand(lib, more):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    state = lib.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)
    return train(lib.adam(0.1), state=(state, lib.EmptyState()))


@both
def test_a_state_built_with_a_python_count(lib, more):
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    tx = lib.scale_by_adam()
    updates, _ = tx.update(gradients(PARAMS), lib.ScaleByAdamState(5, ones, ones), PARAMS)
    return updates


@both
def test_a_schedule_restarted_by_a_python_zero(lib, more):
    tx = lib.sgd(lambda count: 0.1 / (1 + count))
    params, state = train(tx)
    state = type(state)(
        lib.ScaleByScheduleState(0) if isinstance(piece, lib.ScaleByScheduleState) else piece
        for piece in state
    )
    updates, _ = tx.update(gradients(params), state, params)
    return updates


@both
def test_a_momentum_state_of_ones(lib, more):
    tx = lib.trace(0.9, nesterov=True)
    state = lib.TraceState(trace=jax.tree.map(jnp.ones_like, PARAMS))
    return tx.update(gradients(PARAMS), state)


@both
def test_momentum_scaled_over_the_whole_state(lib, more):
    tx = lib.sgd(0.1, momentum=0.9)
    params, state = train(tx)
    return train(tx, params, jax.tree.map(lambda x: 0.5 * x, state))


@both
def test_dead_units_lose_their_moments(lib, more):
    tx = lib.adam(0.1)
    params, state = train(tx)
    moments = state[0]
    mu = {**moments.mu, "head": jax.tree.map(jnp.zeros_like, moments.mu["head"])}
    nu = {**moments.nu, "head": jax.tree.map(jnp.ones_like, moments[2]["head"])}
    moments = lib.ScaleByAdamState(moments.count, mu=mu, nu=nu)
    pieces = list(state)
    pieces[0] = moments
    return train(tx, params, tuple(pieces))


@both
def test_a_new_head_gets_moments_of_its_own(lib, more):
    tx = lib.adam(0.1)
    params, state = train(tx)
    new = {**params, "extra": jnp.ones(2)}
    fresh = tx.init(new)
    grown = fresh[0]._replace(
        count=state[0].count,
        mu={**state[0].mu, "extra": fresh[0].mu["extra"]},
        nu={**state[0].nu, "extra": fresh[0].nu["extra"]},
    )
    return train(tx, new, (grown, *fresh[1:]))


@both
def test_a_chain_state_handed_over_as_a_list(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.adam(0.1))
    params, state = train(tx)
    updates, _ = tx.update(gradients(params), list(state), params)
    return updates


@both
def test_the_state_of_a_mask(lib, more):
    mask = {"dense": True, "head": False}
    _, state = train(lib.masked(lib.adam(0.1), mask))
    assert isinstance(state, optax.MaskedState)
    inner = state.inner_state[0]
    assert isinstance(inner.mu["head"], optax.MaskedNode)
    return inner.mu["dense"], inner.count


@both
def test_the_states_of_a_partition(lib, more):
    tx = lib.multi_transform({"a": lib.adam(0.1), "b": lib.sgd(0.1)}, {"dense": "a", "head": "b"})
    _, state = train(tx)
    assert isinstance(state, optax.MultiTransformState)
    return state.inner_states["a"].inner_state[0].mu, sorted(state.inner_states)


@both
def test_the_state_of_a_named_chain_is_a_dictionary(lib, more):
    tx = lib.named_chain(("clip", lib.clip(1.0)), ("adam", lib.scale_by_adam()))
    _, state = train(tx)
    return state["adam"].mu, sorted(state), state["clip"]


@both
def test_a_named_chain_takes_a_dictionary_in_any_order(lib, more):
    tx = lib.named_chain(("trace", lib.trace(0.9)), ("adam", lib.scale_by_adam()))
    params, state = train(tx)
    shuffled = collections.OrderedDict(reversed(list(state.items())))
    updates, _ = tx.update(gradients(params), shuffled, params)
    return updates


@both
def test_the_states_of_further_methods(lib, more):
    return [
        lib.trace(0.9).init(PARAMS),
        lib.scale_by_lion().init(PARAMS),
        lib.scale_by_rms().init(PARAMS),
        lib.scale_by_rss().init(PARAMS),
        lib.scale_by_belief().init(PARAMS),
        lib.scale_by_amsgrad().init(PARAMS),
        lib.scale_by_adan().init(PARAMS),
        lib.ema(0.9).init(PARAMS),
        lib.apply_every(2).init(PARAMS),
        lib.scale_by_factored_rms().init(PARAMS),
        more.schedule_free(lib.sgd(0.1), 0.1).init(PARAMS),
        more.prodigy().init(PARAMS),
        more.mechanize(lib.sgd(0.1)).init(PARAMS),
    ]


@both
def test_states_are_averaged_over_replicas(lib, more):
    tx = lib.adam(0.1)
    _, one = train(tx, steps=1)
    _, two = train(tx, steps=1, first=1)
    mean = jax.tree.map(lambda a, b: jnp.mean(jnp.stack([a, b]), 0).astype(a.dtype), one, two)
    return train(tx, state=mean)


@both
def test_the_number_of_elements_and_bytes_of_a_state(lib, more):
    leaves = jax.tree.leaves(lib.adam(0.1).init(PARAMS))
    return sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


@both
def test_states_of_members_of_a_population_stacked_and_taken_apart(lib, more):
    tx = lib.adam(0.1)
    states = [train(tx, steps=n)[1] for n in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    best = jax.tree.map(lambda leaf: leaf[1], stacked)
    return train(tx, state=best)


@both
def test_a_state_with_a_step_is_selected(lib, more):
    tx = lib.adam(0.1)
    _, old = train(tx, steps=1)
    _, new = train(tx, steps=2)
    keep = jnp.array(True)
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


@both
def test_a_state_with_a_field_of_your_own(lib, more):
    class Extended(optax.ScaleByAdamState):
        """A subclass of the usual state."""

    tx = lib.scale_by_adam()
    state = tx.init(PARAMS)
    updates, _ = tx.update(gradients(PARAMS), Extended(*state), PARAMS)
    return updates
