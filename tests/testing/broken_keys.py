"""Mistakes with random numbers."""

from typing import Any, NamedTuple

import jax

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
