"""Kernels that are not what they declare."""

from dataclasses import replace

import jax.numpy as jnp

from gradtx.kernel import Kernel
from gradtx.kernels.momentum import TRACE
from gradtx.lift import lift

from .broken import Table, breaks

BROKEN: Table = {}


@breaks(BROKEN, "locality", "updates beside elements whose gradients change to be")
def subtracting_the_mean_of_a_leaf_elementwise():
    def center(g):
        return g - jnp.mean(g) if g.size else g

    return lift(Kernel("center", center))


@breaks(BROKEN, "degree", "expected no updates of trace, as its sense says")
def calling_momentum_a_standstill():
    kernel = replace(TRACE, sense=0)
    return lift(kernel, decay=0.9, dampening=0.0, nesterov=False)


@breaks(
    BROKEN,
    "degree",
    "of square for 4 g to be at most 4 times those for g, as its degree of between",
)
def calling_a_square_less_than_proportional():
    return lift(Kernel("square", lambda g: g * jnp.abs(g), degree="between"))
