"""`quantize_state` on several devices: the state of one device, wherever the blocks lie."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx
from gradtx.sharding import state_shardings, zero
from gradtx.testing import collectives

# By name the shape, and that of the scales of blocks of 64.
SHAPES = {
    "rows_in_a_block": ((32, 16), (8,)),
    "blocks_in_a_row": ((8, 128), (8, 2)),
    "few_blocks": ((256,), (4,)),
    "uneven_blocks": ((536,), (9,)),
}
LAYOUTS = ["rows", "columns", "zero"]
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


# Both laws of rounding on automatic axes, one on explicit axes, where
# `tests.precision.test_quantize` has both.
OPTIMIZERS = {AUTO: lambda: gradtx.adam(0.1), EXPLICIT: lambda: gradtx.sgd(0.1, momentum=0.9)}


def optimizer(kind):
    return gradtx.quantize_state(OPTIMIZERS[kind](), block_size=64, min_size=1)


def arrays(seed):
    generator = np.random.default_rng(seed)
    return {
        name: np.float32(generator.standard_normal(shape)) for name, (shape, _) in SHAPES.items()
    }


def spec_of(shape, layout):
    axes = ["data", *[None] * (len(shape) - 1)]
    return P(*{"rows": axes, "columns": axes[::-1], "zero": [None] * len(shape)}[layout])


def sharded(tree, mesh, layout):
    return {
        name: jax.device_put(leaf, NamedSharding(mesh, spec_of(leaf.shape, layout)))
        for name, leaf in tree.items()
    }


def stepped(tx, place) -> tuple[Any, Any, Any]:
    """The state before the first step and after three, and the function of a step."""

    @jax.jit
    def step(g, state, params):
        return gradtx.update_and_apply(tx, g, state, params)

    params = place(arrays(0))
    first = state = jax.jit(tx.init)(params)
    for seed in (1, 2, 3):
        params, state = step(place(arrays(seed)), state, params)
    return first, state, step


@functools.cache
def on_one_device(kind):
    return stepped(optimizer(kind), lambda tree: jax.tree.map(jnp.asarray, tree))[1]


def mesh_of(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    return mesh, jax.set_mesh(mesh) if kind == EXPLICIT else contextlib.nullcontext()


def check_layouts(state, shardings):
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=lambda kind: kind.name)
def test_state_is_that_of_one_device(kind, layout):
    expected = on_one_device(kind)
    (mesh, context), tx = mesh_of(kind), optimizer(kind)
    tx = zero(tx, mesh) if layout == "zero" else tx
    params = sharded(arrays(0), mesh, layout)
    with context:
        first, state, step = stepped(tx, lambda tree: sharded(tree, mesh, layout))
        if kind == EXPLICIT:
            assert step._cache_size() == 1
            jax.eval_shape(  # which holds the types of the state
                lambda *carry: jax.lax.scan(
                    lambda own, _: (step(params, own[1], own[0]), None), carry, None, 2
                ),
                *(params, state),
            )
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    moment = state.inner_state[0].nu if kind == AUTO else state.inner_state[0].trace
    for name, (shape, blocks) in SHAPES.items():
        stored = moment[name]
        assert (stored.codes.shape, stored.scales.shape) == (shape, blocks)
        # Each device has its part of the codes.
        assert stored.codes.addressable_shards[0].data.size == stored.codes.size // 8

    shardings = state_shardings(tx, params)
    check_layouts(first, shardings)
    check_layouts(state, shardings)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [*((AUTO, layout) for layout in LAYOUTS), (EXPLICIT, "rows")],
    ids=lambda own: getattr(own, "name", own),
)
def test_an_eager_init_places_the_state_alike(kind, layout):
    (mesh, context), tx = mesh_of(kind), gradtx.trace(0.9)
    tx = gradtx.quantize_state(tx, block_size=64, min_size=1)
    tx = zero(tx, mesh) if layout == "zero" else tx
    params = sharded(arrays(0), mesh, layout)
    params = {name: params[name] for name in ("blocks_in_a_row", "uneven_blocks")}
    with context:
        state = tx.init(params)
    codes = state.inner_state.trace["blocks_in_a_row"].codes
    assert codes.addressable_shards[0].data.size == codes.size // 8
    check_layouts(state, state_shardings(tx, params))


@pytest.mark.parametrize("wrapper", [gradtx.quantize_state, gradtx.cast_state])
def test_whole_blocks_stay_on_their_devices(wrapper):
    mesh, tx = jax.make_mesh((8,), ("data",)), wrapper(gradtx.adam(0.1))
    shapes = {"rows_in_a_block": (64, 64), "blocks_in_a_row": (8, 512), "flat": (8192,)}
    params = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, spec_of(shape, "rows"))
        )
        for name, shape in shapes.items()
    }
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        step = jax.jit(lambda g, state, p: gradtx.update_and_apply(tx, g, state, p))
        sent = collectives(step.lower(params, state, params).compile())
    assert not any(own.number for own in sent.values()), sent
