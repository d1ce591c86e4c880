"""Transformations that users write, wrap and take apart, in chains with those of a library."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .both import PARAMS, both, gradients, train


class CountState(NamedTuple):
    """A state as users write it."""

    count: jax.Array
    norm: Any


def recording(lib):
    """A piece that counts its steps and keeps the norm of what it saw."""

    def init(params):
        return CountState(jnp.zeros([], jnp.int32), jnp.zeros([]))

    def update(updates, state, params=None):
        del params
        return updates, CountState(lib.safe_increment(state.count), lib.global_norm(updates))

    return lib.GradientTransformation(init, update)


@both
def test_a_piece_with_a_state_in_a_chain(lib, more):
    return train(lib.chain(lib.clip(1.0), recording(lib), lib.adam(0.1)))


@both
def test_a_piece_with_a_state_around_which_things_go(lib, more):
    tx = lib.MultiSteps(lib.apply_if_finite(lib.chain(recording(lib), lib.sgd(0.1)), 3), 2)
    return train(tx, steps=4)


@both
def test_a_piece_without_a_default_for_params(lib, more):
    def update(updates, state, params):
        return jax.tree.map(lambda u, p: u + 0.1 * p, updates, params), state

    decay = lib.GradientTransformation(lambda _: lib.EmptyState(), update)
    return train(lib.chain(decay, lib.sgd(0.1)))


@both
def test_a_piece_that_hands_an_empty_tuple_around(lib, more):
    def update(updates, state, params=None):
        return jax.tree.map(jnp.sign, updates), ()

    return train(lib.chain(lib.GradientTransformation(lambda _: (), update), lib.scale(-0.1)))


@both
def test_a_piece_whose_state_is_a_dictionary(lib, more):
    def init(params):
        return {"sum": jax.tree.map(jnp.zeros_like, params)}

    def update(updates, state, params=None):
        total = jax.tree.map(jnp.add, state["sum"], updates)
        return total, {"sum": total}

    return train(lib.chain(lib.GradientTransformation(init, update), lib.scale(-0.1)))


@both
def test_a_piece_with_further_arguments(lib, more):
    def update(updates, state, params=None, *, loss=None, **extra):
        return jax.tree.map(lambda u: u * loss, updates), state

    tx = lib.chain(
        lib.clip(1.0),
        lib.GradientTransformationExtraArgs(lib.init_empty_state, update),
        lib.adam(0.1),
    )
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS, loss=2.0)


@both
def test_further_arguments_that_no_one_reads(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.with_extra_args_support(recording(lib)), lib.adam(0.1))
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS, value=1.0, anything="x")


@both
def test_a_transformation_that_wraps_another(lib, more):
    def halved(inner):
        def update(updates, state, params=None):
            updates, state = inner.update(updates, state, params)
            return jax.tree.map(lambda u: 0.5 * u, updates), state

        return lib.GradientTransformation(inner.init, update)

    return train(halved(lib.adamw(0.1)))


@both
def test_a_transformation_that_wraps_another_with_all_arguments(lib, more):
    inner = lib.with_extra_args_support(lib.adam(0.1))

    def update(grads, state, params=None, **extra):
        return inner.update(jax.tree.map(jnp.sign, grads), state, params, **extra)

    tx = lib.GradientTransformationExtraArgs(inner.init, update)
    return tx.update(gradients(PARAMS), tx.init(PARAMS), PARAMS, value=1.0)


@both
def test_a_piece_with_methods_replaced(lib, more):
    tx = lib.adam(0.1)

    def init(params):
        return lib.adam(0.1).init(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    tx = tx._replace(init=init)
    return train(tx)


@both
def test_methods_of_a_class_as_a_transformation(lib, more):
    class Momentum:
        def __init__(self, decay):
            self.decay = decay

        def init(self, params):
            return jax.tree.map(jnp.zeros_like, params)

        def update(self, updates, state, params=None):
            state = jax.tree.map(lambda m, u: self.decay * m + u, state, updates)
            return state, state

    momentum = Momentum(0.9)
    tx = lib.GradientTransformation(momentum.init, momentum.update)
    return train(lib.chain(tx, lib.scale(-0.1)))


@both
def test_the_classes_of_transformations(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.adam(0.1))
    assert isinstance(tx, tuple)
    assert isinstance(tx, optax.GradientTransformation)
    assert isinstance(lib.chain(tx, tx), optax.GradientTransformationExtraArgs)
    assert issubclass(lib.GradientTransformationExtraArgs, optax.GradientTransformation)
    return tx._fields, len(tx), callable(tx.init), callable(tx[1])


@both
def test_a_subclass_of_the_class_of_transformations(lib, more):
    class Named(lib.GradientTransformation):
        """A transformation that can be distinguished from others."""

    tx = Named(*lib.sgd(0.1, momentum=0.9))
    assert isinstance(tx, optax.GradientTransformation)
    return train(lib.chain(lib.clip(1.0), tx))


@both
def test_a_list_of_pieces(lib, more):
    pieces = [lib.clip_by_global_norm(1.0), lib.scale_by_adam()]
    pieces.append(lib.add_decayed_weights(0.1))
    pieces += [lib.scale_by_schedule(lib.constant_schedule(0.1)), lib.scale(-1)]
    return train(lib.chain(*pieces))


@both
def test_a_chain_of_one(lib, more):
    return train(lib.chain(lib.sgd(0.1, momentum=0.9)))


@both
def test_optional_pieces_are_identities(lib, more):
    tx = lib.chain(
        lib.identity(),
        lib.scale_by_adam(),
        lib.trace(0.9) if PARAMS is None else lib.identity(),
        lib.scale(-0.1),
    )
    return train(tx)


@both
def test_pieces_chosen_by_name(lib, more):
    results = []
    for name, arguments in {"adam": {"b1": 0.8}, "sgd": {"momentum": 0.9}, "lion": {}}.items():
        tx = getattr(lib, name)(learning_rate=0.1, **arguments)
        results.append(train(tx, steps=1)[0])
    return results


@both
def test_stateless_functions_of_updates_and_params(lib, more):
    tx = lib.chain(
        lib.stateless(
            lambda updates, params: jax.tree.map(
                lambda u, p: u * jnp.sign(p + 0.1), updates, params
            )
        ),
        lib.stateless_with_tree_map(lambda u, p: u + 0.1 * p),
        lib.sgd(0.1),
    )
    return train(tx)


@both
def test_a_stateless_function_that_looks_for_nans(lib, more):
    def check(updates, params=None):
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(u)) for u in jax.tree.leaves(updates)]))
        return jax.tree.map(lambda u: jnp.where(finite, u, 0.0), updates)

    tx = lib.chain(lib.stateless(check), lib.sgd(0.1))
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    return tx.update(bad, tx.init(PARAMS), PARAMS)


@both
def test_moments_by_hand(lib, more):
    grads = gradients(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    mu = lib.update_moment(grads, zeros, 0.9, 1)
    nu = lib.update_moment_per_elem_norm(grads, zeros, 0.99, 2)
    largest = lib.update_infinity_moment(grads, zeros, 0.9, 1e-8)
    count = lib.safe_int32_increment(jnp.zeros([], jnp.int32))
    return lib.bias_correction(mu, 0.9, count), lib.bias_correction(nu, 0.99, count), largest


@both
def test_a_method_of_your_own_from_the_state_of_adam(lib, more):
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return lib.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        mu = lib.tree.update_moment(updates, state.mu, 0.9, 1)
        nu = lib.tree.update_moment(updates, state.nu, 0.99, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-3), mu, nu)
        return updates, lib.ScaleByAdamState(lib.safe_increment(state.count), mu, nu)

    return train(
        lib.chain(lib.GradientTransformation(init, update), lib.scale_by_learning_rate(0.1))
    )


@both
def test_a_gated_optimizer(lib, more):
    def gated(inner, until):
        def init(params):
            return jnp.zeros([], jnp.int32), inner.init(params)

        def update(updates, state, params=None):
            count, inner_state = state
            new, new_state = inner.update(updates, inner_state, params)
            go = count < until
            new = jax.tree.map(lambda u: jnp.where(go, u, 0.0), new)
            new_state = jax.tree.map(lambda a, b: jnp.where(go, a, b), new_state, inner_state)
            return new, (count + 1, new_state)

        return lib.GradientTransformation(init, update)

    return train(gated(lib.adam(0.1), 2))


@both
def test_gradients_accumulated_by_hand_within_an_optimizer(lib, more):
    @functools.partial(jax.jit, static_argnames="tx")
    def micro(tx, accumulated, grads, state, params, last):
        accumulated = jax.tree.map(jnp.add, accumulated, grads)
        zeros = jax.tree.map(jnp.zeros_like, accumulated)
        return jax.lax.cond(
            last,
            lambda: (*tx.update(accumulated, state, params), zeros),
            lambda: (zeros, state, accumulated),
        )

    tx = lib.adam(0.1)
    grads = gradients(PARAMS)
    updates, state, rest = micro(tx, grads, grads, tx.init(PARAMS), PARAMS, False)
    return micro(tx, rest, grads, state, PARAMS, True), updates


@both
def test_updates_masked_by_hand(lib, more):
    tx = lib.adam(0.1)
    updates, _ = tx.update(gradients(PARAMS), tx.init(PARAMS))
    mask = {"dense": 0.0, "head": 1.0}
    updates = jax.tree.map(lambda m, part: jax.tree.map(lambda u: u * m, part), mask, updates)
    return lib.apply_updates(PARAMS, updates)


@both
def test_transformations_as_keys_and_in_sets(lib, more):
    tx, other = lib.adam(0.1), lib.adam(0.1)
    table = {tx: "first", other: "second"}
    assert table[tx] == "first"
    assert tx in {tx, other}
    return len(table), tx == other, hash(tx) == hash(lib.adam(0.1)) and tx == other


@both
def test_pieces_of_a_chain_share_a_step_of_numpy(lib, more):
    def update(updates, state, params=None):
        return jax.tree.map(lambda u: np.asarray(u) * 2, updates), state

    tx = lib.chain(lib.GradientTransformation(lambda _: lib.EmptyState(), update), lib.sgd(0.1))
    return train(tx)
