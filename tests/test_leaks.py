"""What is left of optimizers that are no longer used: nothing; a longer run is `tests.leaks`."""

import gc
import pickle
import weakref

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.kernel import Kernel, Slot
from gradtx.leaf import composed_step, leaf_step_of
from gradtx.lift import lift
from gradtx.remembered import PROGRAMS, passing_among, remembered

from .leaks import METHODS, Trace, own_kernel, run_many


def test_four_threads_get_the_right_numbers_and_leave_nothing_behind():
    both_ways = 2 * (len(METHODS) + 1)
    first, second = run_many(optimizers=2 * both_ways, steps=2, threads=4, every=both_ways)
    assert first.alive == second.alive == 0
    assert first.arrays == second.arrays


def test_caches_of_programs_are_bounded():
    assert composed_step.cache_info().maxsize == PROGRAMS
    assert leaf_step_of.cache_info().maxsize < 10_000


@pytest.mark.parametrize("jitted", [True, False], ids=["compiled", "eager"])
def test_a_kernel_of_the_caller_ends_with_its_last_user(jitted):
    tx, step = own_kernel(0.5)
    update = jax.jit(tx.update) if jitted else tx.update
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0.5 * np.ones(2))
    left = weakref.ref(step)
    del tx, step, update
    gc.collect()
    assert left() is None


def test_a_kernel_of_the_caller_is_compiled_once():
    traces = []

    def step(g, *, trace):
        traces.append(g.shape)
        return trace + g, trace + g

    tx = lift(Kernel("counted", step, slots=(Slot("trace"),), state=Trace))
    params = jnp.ones(2)
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state)
    assert traces == [(2,)]


def test_what_is_made_of_a_local_function_is_kept_with_it():
    made = []

    @remembered(lambda function, number: passing_among([function]), maxsize=2)
    def pair(function, number):
        made.append(number)
        return function, number

    def local():
        pass

    assert pair(local, 1) is pair(local, 1)
    assert pair(len, 2) is pair(len, 2)
    assert made == [1, 2]
    assert pair.cache_info().currsize == 1
    for number in (3, 4, 2):
        pair(len, number)
    assert made == [1, 2, 3, 4, 2]
    left = weakref.ref(local)
    del local
    gc.collect()
    assert left() is None


def test_a_pickled_kernel_leaves_its_programs_behind():
    tx, _ = own_kernel(0.5)
    params = jnp.ones(2)
    tx.update(params, tx.init(params))
    again = pickle.loads(cloudpickle.dumps(tx))
    np.testing.assert_array_equal(again.update(params, again.init(params))[0], 0.5 * np.ones(2))


def test_only_functions_in_functions_pass():
    assert passing_among([1.0, "b1", len, gradtx.adam, run_many]) is None

    def local():
        pass

    assert passing_among([1.0, local]) is local
