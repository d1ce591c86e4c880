"""Mistakes that show only after some steps, or when a counter is full."""

import jax.numpy as jnp
import optax

from .broken import Table, breaks, changed, passenger, rescaled

BROKEN: Table = {}


@breaks(BROKEN, "long_run", "expected the updates of step 3 that are finite, got nan")
def undefined_in_step_3():
    return rescaled(lambda count: jnp.where(count == 2, jnp.nan, 1.0))


@breaks(BROKEN, "long_run", "step 40 that are finite, got -inf")
def infinite_from_step_40():
    return rescaled(lambda count: 1 / jnp.maximum(39 - count, 0).astype(jnp.float32))


@breaks(BROKEN, "long_run", "'0': expected the state after step 11 without NaN")
def undefined_in_a_state_that_nothing_reads():
    return passenger(lambda params: jnp.zeros([]), lambda x: jnp.where(x < 10, x + 1, jnp.nan))


def counting(advance, dtype=jnp.int32, first=0):
    return passenger(lambda params: jnp.full([], first, dtype), advance)


@breaks(BROKEN, "counters", "to be 42 after step 42, one more than before, got 41")
def missing_a_step():
    return counting(lambda count: count + (count != 41).astype(count.dtype))


@breaks(BROKEN, "counters", "expected the counter")
def counting_twice_after_40_steps():
    return counting(lambda count: optax.safe_increment(count) + (count == 40).astype(count.dtype))


@breaks(BROKEN, "counters", "expected the counter")
def no_longer_counting_after_40_steps():
    return counting(lambda count: jnp.minimum(count + 1, 40))


@breaks(BROKEN, "full_counters", "got -2147483648")
def overflowing():
    return changed(
        lambda given, updates, state: (updates, state._replace(count=given[1].count + 1))
    )


@breaks(BROKEN, "counters", "expected a counter of 32 bits, got int8, which ends at 127")
def counting_in_8_bits():
    return counting(lambda count: count + jnp.int8(1), jnp.int8)


@breaks(BROKEN, "counters", "got uint8, which ends at 255")
def staying_at_the_largest_number_of_8_bits():
    return counting(optax.safe_increment, jnp.uint8)


@breaks(BROKEN, "counters", "to be 1 after step 1, one more than before, got 2")
def counting_by_two():
    return changed(
        lambda given, updates, state: (updates, state._replace(count=given[1].count + 2))
    )


@breaks(BROKEN, "full_counters", "got 0")
def starting_again_after_the_largest_number():
    return counting(lambda count: count + jnp.uint32(1), jnp.uint32)


@breaks(BROKEN, "counters", "bfloat16")
def counting_in_bfloat16():
    return counting(lambda count: count + jnp.bfloat16(1), jnp.bfloat16)


@breaks(BROKEN, "full_counters", "that are finite")
def undefined_in_late_steps():
    return rescaled(lambda count: jnp.sqrt(1e9 - count.astype(jnp.float32)))
