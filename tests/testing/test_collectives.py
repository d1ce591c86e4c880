"""Collectives are counted as they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradtx.testing import collectives

pytestmark = pytest.mark.usefixtures("usual_compilation")

P = PartitionSpec
GATHER = {"all-gather": (1, 16)}
SUM = {"all-reduce": (1, 2)}


def looped(x):
    return lax.fori_loop(0, 5, lambda _, y: y + lax.psum(y, "data"), x)


def nested(x):
    return lax.fori_loop(0, 3, lambda _, y: looped(y), x)


def chosen(x):
    def gathered(y):
        return lax.all_gather(y, "data").sum(0)

    return lax.cond(x.sum() > 0, gathered, lambda y: lax.psum(y, "data"), x)


def until(x):
    return lax.while_loop(lambda y: y[0] < 9, lambda y: y + lax.psum(y, "data"), x)


PROGRAMS = {
    "nothing": (lambda x: x + 1, {}),
    "all-gather": (lambda x: lax.all_gather(x, "data", tiled=True), GATHER),
    "all-reduce": (lambda x: lax.psum(x, "data"), SUM),
    "all-to-all": (
        lambda x: lax.all_to_all(jnp.tile(x, (8, 1)), "data", 0, 0, tiled=True),
        {"all-to-all": (1, 16)},
    ),
    "collective-permute": (
        lambda x: lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]),
        {"collective-permute": (1, 2)},
    ),
    "reduce-scatter": (
        lambda x: lax.psum_scatter(jnp.tile(x, 8), "data", tiled=True),
        {"reduce-scatter": (1, 2)},
    ),
    "loop": (looped, {"all-reduce": (5, 10)}),
    "loop-in-a-loop": (nested, {"all-reduce": (15, 30)}),
    "the-branch-that-sends-more": (chosen, GATHER),
}


def compiled(function):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    x = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    return jax.jit(mapped).lower(x).compile()


def found(program, **arguments):
    return {kind: own for kind, own in collectives(program, **arguments).items() if own.number}


@pytest.mark.parametrize("name", PROGRAMS)
def test_known_collectives(name):
    function, expected = PROGRAMS[name]
    assert found(compiled(function)) == expected


def test_a_loop_of_unknown_length_counts_as_often_as_one_says():
    program = compiled(until)
    assert found(program) == SUM
    assert found(program, unknown_trips=7) == {"all-reduce": (7, 14)}


def test_collectives_that_are_started_and_awaited():
    # What a GPU and a TPU have: operands and results in one tuple, then numbers of their own.
    text = """ENTRY %main (p: f32[2]) -> f32[16] {
      %p = f32[2]{0} parameter(0)
      %g = (f32[2]{0}, f32[16]{0}) all-gather-start(f32[2]{0} %p), dimensions={0}
      %r = f32[2]{0} all-reduce-start(f32[2]{0} %p), to_apply=%add
      %c = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(f32[2]{0} %p)
      ROOT %d = f32[16]{0} all-gather-done((f32[2]{0}, f32[16]{0}) %g)
    }"""
    assert found(text) == GATHER | SUM | {"collective-permute": (1, 2)}


def test_the_text_of_something_else_is_refused():
    text = jax.jit(jnp.sin).lower(np.float32(1)).as_text()
    with pytest.raises(ValueError, match=r"^collectives: program must be"):
        collectives(text)
