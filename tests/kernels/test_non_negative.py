"""Which slots are declared never to be negative, in runs along random gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.compose.parts import parts_of
from gradtx.lift import kernel_of
from gradtx.wrappers.accumulate import MultiSteps

from ..testing.test_exports import EXPORTS

PARAMS = {"w": jnp.linspace(-1, 2, 24, dtype=jnp.float32).reshape(4, 6)}
# Not negative here, because the loss is convex.
SIGNED = {("scale_by_sophia", "nu")}


def kernels_in(tx):
    kernel = kernel_of(tx)
    found = {} if kernel is None or not kernel.slots else {kernel.name: kernel}
    for part in parts_of(tx):
        found |= kernels_in(part.transformation)
    return found


def slots_in(kernels, node):
    """The kernel and the arrays of each slot in a state."""
    for kernel in kernels.values():
        if type(node) is kernel.state:
            for slot in kernel.slots:
                yield kernel.name, slot, jax.tree.leaves(getattr(node, slot.name))
    for part in jax.tree.leaves(node, is_leaf=lambda x: x is not node):
        if part is not node:
            yield from slots_in(kernels, part)


def drawn(generator, p):
    return jnp.asarray(generator.normal(size=p.shape), p.dtype)


def is_real(x):
    return jnp.issubdtype(x.dtype, jnp.floating) and x.size


@functools.cache
def observed():
    """For each slot of a kernel that has positive elements: its declaration, and the smallest."""
    found, covered = {}, set()
    for export in EXPORTS.values():
        tx = export.make()
        tx = tx.gradient_transformation() if isinstance(tx, MultiSteps) else tx
        kernels = kernels_in(tx)
        if not kernels.keys() - covered:
            continue
        covered |= kernels.keys()
        params = PARAMS if export.params is None else export.params
        extra = export.extra_args(params) if export.extra_args else {}
        state, generator = tx.init(params), np.random.default_rng(0)
        update = jax.jit(tx.update, static_argnames="value_fn")
        for _ in range(3):
            g = jax.tree.map(functools.partial(drawn, generator), params)
            _, state = update(g, state, params, **extra)
            for name, slot, arrays in slots_in(kernels, state):
                values = [np.asarray(x) for x in arrays if is_real(x)]
                if any((x > 0).any() for x in values):
                    least = min(float(x.min()) for x in values)
                    old = found.get((name, slot.name), (slot, least))[1]
                    found[name, slot.name] = slot, min(old, least)
    return found


def test_declared_slots_are_never_negative():
    declared = {key: least for key, (slot, least) in observed().items() if slot.non_negative}
    assert len(declared) > 20
    assert not {key: least for key, least in declared.items() if least < 0}


def test_slots_that_are_never_negative_are_declared():
    # Matrices of products, such as Shampoo's, are no such slots.
    others = {
        key: least
        for key, (slot, least) in observed().items()
        if not slot.non_negative and slot.shape is None
    }
    assert len(others) > 20
    assert {key for key, least in others.items() if least >= 0} <= SIGNED
