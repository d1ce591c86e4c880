"""Matrix methods on a mesh with explicit axes: types stay as they are, and numbers are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx.explicit import gathered, laid_out_as, layout_of

P = PartitionSpec
SHAPES = {
    "rows": ((8, 12), P("data")),
    "rows too": ((8, 12), P("data")),
    "columns": ((8, 12), P(None, "model")),
    "both": ((12, 8), P("data", "model")),
    "layers": ((4, 4, 6), P("data")),
    "bias": ((8,), P("model")),
}
AXES = gradtx.MuonDimensionNumbers
NUMBERS = {name: AXES(-2, -1) for name in SHAPES} | {
    "rows": AXES(1, 0),
    "layers": AXES((0, 1), 2),
    "bias": None,
}
PROJECTED = gradtx.GaLoreDimensionNumbers(-2, -1)
METHODS = {
    "muon": lambda: gradtx.muon(0.1, weight_decay=0.1, muon_weight_dimension_numbers=NUMBERS),
    "normuon": lambda: gradtx.normuon(0.1, muon_weight_dimension_numbers=NUMBERS),
    "shampoo": lambda: gradtx.shampoo(0.1, max_dimension=8),
    "soap": lambda: gradtx.soap(0.1, precondition_frequency=1),
    "galore": lambda: gradtx.galore(0.1, 2, weight_dimension_numbers=PROJECTED),
    "flatten": lambda: gradtx.flatten(gradtx.adam(0.1)),
}


def tree(seed):
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.standard_normal(shape), jnp.float32)
        for name, (shape, _) in SHAPES.items()
    }


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def laid_out(tree, mesh):
    return {x: jax.device_put(tree[x], NamedSharding(mesh, SHAPES[x][1])) for x in tree}


@pytest.mark.parametrize("name", METHODS)
def test_matrices_sharded_along_any_axis(name, mesh):
    tx = METHODS[name]()

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return gradtx.apply_updates(params, updates), state

    def run(laid_out):
        params = laid_out(tree(0))
        state, types = tx.init(params), []
        for seed in (1, 2, 3):
            params, state = step(params, state, laid_out(tree(seed)))
            types.append(jax.tree.map(jax.typeof, (params, state)))
        assert types[0] == types[1] == types[2]
        return params, types[0][0]

    expected, _ = run(lambda tree: tree)
    found, types = run(lambda tree: laid_out(tree, mesh))
    assert types == jax.tree.map(jax.typeof, laid_out(tree(0), mesh))
    for x in SHAPES:
        np.testing.assert_allclose(
            np.asarray(found[x]), np.asarray(expected[x]), rtol=1e-5, atol=1e-5, err_msg=x
        )


def test_layouts_are_read_and_changed(mesh):
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("data", "model")))
    assert layout_of(x) == ("data", "model")
    assert layout_of(gathered(x, (-1,))) == ("data", None)
    assert layout_of(gathered(x)) == layout_of(jnp.ones((8, 4))) == layout_of(np.ones(2)) == ()
    whole = gathered(x)
    assert gathered(whole) is whole
    assert laid_out_as(x, x) is x
    assert layout_of(laid_out_as(whole, x)) == ("data", "model")
    assert layout_of(laid_out_as(x, whole)) == ()
    assert layout_of(jax.jit(lambda x: gathered(x, (0,)))(x)) == (None, "model")


def test_nothing_happens_where_types_have_no_layouts():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("data")))
    assert gathered(x) is x
    assert laid_out_as(x, jnp.ones((8, 4))) is x
