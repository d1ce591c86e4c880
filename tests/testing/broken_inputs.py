"""Mistakes with inputs that a first test does not give: numpy arrays, doubles, complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from .broken import Table, breaks, changed, is_numpy, on_numbers, start

BROKEN: Table = {}


@breaks(BROKEN, "numpy", "changed in place")
def scaling_gradients_in_place():
    def scale(g):
        g *= np.float32(2) if is_numpy(g) else jnp.asarray(2, g.dtype)
        return g

    return changed(before=lambda updates: on_numbers(scale, updates))


@breaks(BROKEN, "numpy", "changed in place")
def clearing_parameters_in_place():
    def result(given, updates, state):
        for leaf in jax.tree.leaves(given[2]):
            if is_numpy(leaf):
                leaf.fill(0)
        return updates, state

    return changed(result)


@breaks(BROKEN, "numpy", "AttributeError")
def asking_numpy_for_an_attribute_of_jax():
    def scale(g):
        return g.at[...].multiply(jnp.asarray(2, g.dtype))

    return changed(before=lambda updates: on_numbers(scale, updates))


@breaks(BROKEN, "numpy", "expected")
def passing_on_what_is_not_of_jax():
    def result(given, updates, state):
        def same(u, g):
            return g if is_numpy(g) else u

        return jax.tree.map(same, updates, given[0]), state

    return changed(result)


@breaks(BROKEN, "double_precision", "expected the updates")
def narrowing_updates():
    def result(given, updates, state):
        def narrow(u):
            return u.astype(jnp.float32) if u.dtype == jnp.float64 else u

        return on_numbers(narrow, updates), state

    return changed(result)


def narrow_slot(leaf):
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf


@breaks(BROKEN, "double_precision", "expected")
def keeping_a_narrow_state():
    def init(params):
        state = start(params)
        return state._replace(mu=on_numbers(narrow_slot, state.mu))

    return changed(init=init)


@breaks(BROKEN, "double_precision", "expected")
def narrowing_the_state_in_the_first_step():
    def result(given, updates, state):
        return updates, state._replace(mu=on_numbers(narrow_slot, state.mu))

    return changed(result)


@breaks(BROKEN, "double_precision", "digits")
def calculating_in_float32():
    def through_float32(g):
        return g.astype(jnp.float32).astype(g.dtype) if g.dtype == jnp.float64 else g

    return changed(before=lambda updates: on_numbers(through_float32, updates))


@breaks(BROKEN, "double_precision", "expected")
def widening_float32():
    def result(given, updates, state):
        def widen(u):
            return (
                u.astype(jnp.float64) if u.dtype == jnp.float32 and jax.config.jax_enable_x64 else u
            )

        return on_numbers(widen, updates), state

    return changed(result)


@breaks(BROKEN, "complex", "expected")
def conjugating_the_update():
    def result(given, updates, state):
        return on_numbers(jnp.conj, updates), state

    return changed(result)


@breaks(BROKEN, "complex", "expected")
def conjugating_the_gradient():
    return changed(before=lambda updates: on_numbers(jnp.conj, updates))


@breaks(BROKEN, "complex", "expected")
def dropping_the_imaginary_part():
    def real(g):
        return jnp.real(g).astype(g.dtype) if jnp.iscomplexobj(g) else g

    return changed(before=lambda updates: on_numbers(real, updates))


@breaks(BROKEN, "zeros", "expected")
def dividing_by_the_norm_of_the_gradient():
    def normalize(g):
        if not g.size:
            return g
        wide = g.astype(jnp.float32) if g.dtype.itemsize < 4 else g
        largest = jnp.max(jnp.abs(wide))
        if g.dtype.itemsize < 4:
            largest = jnp.maximum(largest, jnp.asarray(1e-30, largest.dtype))
        return (wide / largest.astype(wide.dtype)).astype(g.dtype)

    return changed(before=lambda updates: on_numbers(normalize, updates))


@breaks(BROKEN, "zeros", "expected")
def dividing_by_the_norm_of_the_parameter():
    def result(given, updates, state):
        def ratio(u, p):
            if not u.size or u.dtype != jnp.float32 or p is None:
                return u
            return u * (jnp.sum(p * p) / jnp.sum(p * p)).astype(u.dtype)

        if given[2] is None:
            return updates, state
        return on_numbers(ratio, updates, given[2]), state

    return changed(result)


@breaks(BROKEN, "init_values", "expected")
def starting_with_parameters_times_zero():
    def init(params):
        state = start(params)
        return state._replace(
            mu=on_numbers(
                lambda m, p: m + (p * jnp.zeros_like(p)).astype(m.dtype), state.mu, params
            )
        )

    return changed(init=init)
