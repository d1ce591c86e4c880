"""Mistakes about which leaf is where, and how large it is."""

import jax
import jax.numpy as jnp

from .broken import Table, breaks, changed, is_number, on_numbers

BROKEN: Table = {}


def scaled(u, factor):
    return u * jnp.asarray(factor, u.dtype)


@breaks(BROKEN, "order", "expected")
def doubling_the_first_leaf():
    def result(given, updates, state):
        leaves, treedef = jax.tree.flatten(updates)
        for i, leaf in enumerate(leaves):
            if is_number(leaf):
                leaves[i] = scaled(leaf, 2)
                break
        return treedef.unflatten(leaves), state

    return changed(result)


@breaks(BROKEN, "order", "expected")
def halving_leaves_of_lists():
    def result(given, updates, state):
        def halve(path, u):
            is_in_list = any(isinstance(key, jax.tree_util.SequenceKey) for key in path)
            return scaled(u, 0.5) if is_in_list and is_number(u) else u

        return jax.tree_util.tree_map_with_path(halve, updates), state

    return changed(result)


@breaks(BROKEN, "order", "expected")
def halving_what_is_called_kernel():
    def result(given, updates, state):
        def halve(path, u):
            is_chosen = "kernel" in jax.tree_util.keystr(path)
            return scaled(u, 0.5) if is_chosen and is_number(u) else u

        return jax.tree_util.tree_map_with_path(halve, updates), state

    return changed(result)


@breaks(BROKEN, "order", "at 'bias': expected the updates of leaves under other names")
def halving_what_is_called_bias():
    def result(given, updates, state):
        def halve(path, u):
            is_chosen = "bias" in jax.tree_util.keystr(path)
            return scaled(u, 0.5) if is_chosen and is_number(u) else u

        return jax.tree_util.tree_map_with_path(halve, updates), state

    return changed(result)


@breaks(BROKEN, "order", "expected")
def pairing_by_the_order_of_insertion():
    def result(given, updates, state):
        _, _, params = given
        if isinstance(updates, dict) and isinstance(params, dict) and list(updates) != list(params):
            values = list(updates.values())
            return dict(zip(params, values, strict=True)), state
        return updates, state

    return changed(result)


@breaks(BROKEN, "sizes", "expected")
def seeing_the_first_64_elements():
    def result(given, updates, state):
        def cut(u):
            seen = jnp.arange(u.size).reshape(u.shape) < 64
            return u * seen.astype(u.dtype)

        return on_numbers(cut, updates), state

    return changed(result)


@breaks(BROKEN, "sizes", "at 'stack of shape (2, 3, 4)': expected the update to have the shape")
def transposing_stacked_matrices():
    def result(given, updates, state):
        return on_numbers(lambda u: jnp.swapaxes(u, -1, -2) if u.ndim == 3 else u, updates), state

    return changed(result)


@breaks(BROKEN, "sizes", "the shape of its gradient, got (3,)")
def squeezing_columns():
    def result(given, updates, state):
        return on_numbers(lambda u: u[:, 0] if u.shape[1:] == (1,) else u, updates), state

    return changed(result)


@breaks(BROKEN, "sizes", "expected")
def doubling_what_follows_64_elements():
    def result(given, updates, state):
        def double(u):
            late = jnp.arange(u.size).reshape(u.shape) >= 64
            return u * (1 + late.astype(u.dtype))

        return on_numbers(double, updates), state

    return changed(result)


@breaks(BROKEN, "sizes", "expected")
def counting_rows_in_8_bits():
    def result(given, updates, state):
        def weigh(u):
            if not u.ndim:
                return u
            rows = jnp.arange(u.shape[0]).astype(jnp.int8).reshape(-1, *[1] * (u.ndim - 1))
            return u * jnp.where(rows < 0, -1, 1).astype(u.dtype)

        return on_numbers(weigh, updates), state

    return changed(result)


@breaks(BROKEN, "sizes", "expected")
def seeing_the_first_of_stacked_matrices():
    def result(given, updates, state):
        def first(u):
            if u.ndim < 3 or u.size < 65:
                return u
            seen = jnp.arange(u.shape[0]).reshape(-1, *[1] * (u.ndim - 1)) < 1
            return u * seen.astype(u.dtype)

        return on_numbers(first, updates), state

    return changed(result)
