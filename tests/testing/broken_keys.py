"""Mistakes with random numbers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .broken import ExtraArgs, Table, breaks, changed, is_number, on_numbers, start, step

BROKEN: Table = {}


class NoisyState(NamedTuple):
    key: Any
    inner: Any


def noisy(key_of, advance=lambda key: jax.random.split(key)[0], init=None) -> ExtraArgs:
    """The good transformation, with noise.

    Args:
        key_of: the key of a leaf from that of the state, its number, and the count.
        advance: the next key of the state.
        init: the first key.
    """

    def update(updates, state, params=None, **extra):
        updates, inner = step(updates, state.inner, params)
        leaves, treedef = jax.tree.flatten(updates)
        for i, leaf in enumerate(leaves):
            if is_number(leaf):
                key = key_of(state.key, i, state.inner.count)
                leaves[i] = leaf + jax.random.normal(key, leaf.shape, leaf.dtype)
        return treedef.unflatten(leaves), NoisyState(advance(state.key), inner)

    return ExtraArgs(lambda params: NoisyState(jax.random.key(1), start(params)), update)


def right_key(key, leaf, count):
    return jax.random.fold_in(jax.random.split(key)[1], leaf)


GOOD = noisy(right_key)
COUNTED = noisy(
    lambda key, leaf, count: jax.random.fold_in(jax.random.fold_in(key, count), leaf),
    lambda key: key,
)


@breaks(BROKEN, "random_keys", "expected")
def a_constant_key():
    return noisy(lambda key, leaf, count: jax.random.key(leaf))


@breaks(BROKEN, "random_keys", "expected")
def a_key_that_never_advances():
    return noisy(right_key, advance=lambda key: key)


def counted(key_of) -> ExtraArgs:
    """The good transformation with noise whose key comes from the count and a leaf's number."""
    return noisy(lambda key, leaf, count: key_of(key, count, leaf), lambda key: key)


@breaks(BROKEN, "random_keys", "in step 4 for an array of shape (3,), got those of step 3")
def a_key_that_stops_after_two_steps():
    return counted(
        lambda key, count, leaf: jax.random.fold_in(
            jax.random.fold_in(key, jnp.minimum(count, 2)), leaf
        )
    )


@breaks(BROKEN, "random_keys", "in step 2 for an array of shape (3,), got those of step 1")
def a_key_that_changes_in_every_second_step():
    return counted(
        lambda key, count, leaf: jax.random.fold_in(jax.random.fold_in(key, count // 2), leaf)
    )


@breaks(BROKEN, "random_keys", "got those of step 1 for an array of shape (8, 3)")
def the_next_key_of_the_leaf_before():
    return counted(lambda key, count, leaf: jax.random.fold_in(key, count + leaf))


@breaks(BROKEN, "random_keys", "expected")
def one_key_for_all_leaves():
    return noisy(lambda key, leaf, count: jax.random.split(key)[1])


@breaks(BROKEN, "random_keys", "expected")
def one_noise_for_leaves_of_one_shape():
    def update(updates, state, params=None, **extra):
        updates, inner = step(updates, state.inner, params)
        use, key = jax.random.split(state.key)
        made = {}

        def add(u):
            if (u.shape, u.dtype) not in made:
                own = jax.random.fold_in(use, len(made))
                made[u.shape, u.dtype] = jax.random.normal(own, u.shape, u.dtype)
            return u + made[u.shape, u.dtype]

        return on_numbers(add, updates), NoisyState(key, inner)

    return ExtraArgs(lambda params: NoisyState(jax.random.key(1), start(params)), update)


@breaks(BROKEN, "random_keys", "expected init to draw new random bits for each leaf")
def starting_all_leaves_with_one_key():
    def draw(m):
        return m + jax.random.normal(jax.random.key(0), m.shape, m.dtype)

    def init(params):
        state = start(params)
        return state._replace(mu=on_numbers(draw, state.mu))

    return changed(init=init)
