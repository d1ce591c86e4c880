"""Arrays lie where the parameters lie beside which they are made."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx
from gradtx.placement import full_beside, lengths, zeros_beside

KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)


def on_mesh(kind, shape, *spec):
    """An array of NaN on a mesh of 4 by 2 devices."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    return jax.device_put(jnp.full(shape, jnp.nan), NamedSharding(mesh, P(*spec)))


def within(parameter):
    """Explicit axes must be those of the mesh around a compiled function."""
    mesh = parameter.sharding.mesh
    return jax.set_mesh(mesh) if mesh.explicit_axes else contextlib.nullcontext()


def sharded_along(array):
    """The mesh axes of each axis, without those that are not sharded at the end."""
    spec = [*array.sharding.spec]
    while spec and spec[-1] is None:
        spec.pop()
    return spec


@KINDS
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_axes_follow_those_that_their_lengths_are_from(kind, compiled):
    parameter = on_mesh(kind, (8, 8), "a", "b")

    def make(parameter):
        rows, columns = lengths(parameter)
        shapes = [(rows,), (columns,), (3, rows, columns), (1, columns), (rows, rows), (rows // 2,)]
        shapes.append((columns, rows))
        eye = full_beside(parameter, (columns, columns), lambda n, t: jnp.eye(*n, dtype=t), "f4")
        return [full_beside(parameter, shape, 1.5, jnp.float32) for shape in shapes], eye

    with within(parameter):
        arrays, eye = (jax.jit(make) if compiled else make)(parameter)
    assert [sharded_along(array) for array in arrays] == [
        *(["a"], ["b"], [None, "a", "b"], [None, "b"], ["a"], [], ["b", "a"])
    ]
    assert all(np.all(array == 1.5) for array in arrays)
    assert sharded_along(eye) == ["b"]
    np.testing.assert_array_equal(eye, np.eye(8))


@KINDS
def test_arrays_of_one_shape_lie_as_their_own_parameters_do(kind):
    specs = [["a", "b"], ["b", "a"], [None, "a"], [("a", "b")], []]
    parameters = [on_mesh(kind, (8, 8), *spec) for spec in specs]
    with within(parameters[0]):
        state = jax.jit(gradtx.scale_by_adam().init)(parameters)
    for moments in (state.mu, state.nu):
        assert [sharded_along(moment) for moment in moments] == specs
        assert not any(np.any(moment) for moment in moments)


@KINDS
def test_types_are_known_in_the_abstract_where_axes_are_explicit(kind):
    shape = on_mesh(kind, (8, 4), "a", "b")
    shape = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shape.sharding)
    row, column = jax.eval_shape(gradtx.scale_by_sm3().init, shape).mu
    if kind == AxisType.Explicit:
        assert [row.sharding.spec, column.sharding.spec] == [P("a"), P("b")]
    else:
        assert row.sharding is column.sharding is None


@KINDS
def test_a_parameter_that_is_a_constant_of_the_program_is_followed(kind):
    parameter = on_mesh(kind, (8, 4), "a", "b")
    with within(parameter):
        zeros = jax.jit(lambda fill: full_beside(parameter, lengths(parameter), fill, "f4"))(2.0)
    assert sharded_along(zeros) == ["a", "b"]
    assert np.all(zeros == 2)


def test_elements_of_a_batch_follow_too():
    parameter = on_mesh(AxisType.Auto, (4, 8), "a", "b")
    state = jax.jit(jax.vmap(gradtx.scale_by_sm3().init))(parameter)
    assert sharded_along(state.nu) == ["a", "b"]
    assert [sharded_along(mu) for mu in state.mu] == [["a", "b"]]


def test_a_start_is_constant_for_derivatives():
    parameter = on_mesh(AxisType.Auto, (8,), "a")
    slope = jax.jit(jax.grad(lambda p: jnp.sum(zeros_beside(p)) + 3 * jnp.sum(p)))(parameter)
    np.testing.assert_array_equal(slope, np.full(8, 3))


@pytest.mark.parametrize("shape", [(), (0, 8)], ids=str)
def test_what_has_nothing_to_divide(shape):
    parameter = on_mesh(AxisType.Auto, shape)
    state = jax.jit(gradtx.scale_by_adam().init)([parameter, on_mesh(AxisType.Auto, (8,), "a")])
    assert sharded_along(state.mu[0]) == []
    assert state.mu[0].shape == shape


def test_inside_of_shard_map_each_shard_has_its_own():
    parameter = on_mesh(AxisType.Auto, (8, 4), "a", "b")
    spec = parameter.sharding.spec
    init = partial(jax.shard_map, mesh=parameter.sharding.mesh, in_specs=spec, out_specs=spec)
    zeros = jax.jit(init(zeros_beside))(parameter)
    assert sharded_along(zeros) == ["a", "b"]
    assert not np.any(zeros)


def test_complex_parameters_have_real_slots_beside_them():
    parameter = on_mesh(AxisType.Auto, (8, 4), "a", "b").astype(jnp.complex64)
    state = jax.jit(gradtx.scale_by_adam().init)(parameter)
    assert state.nu.dtype == jnp.float32
    assert sharded_along(state.nu) == sharded_along(state.mu) == ["a", "b"]


def test_one_device_pays_nothing():
    text = str(jax.make_jaxpr(gradtx.adafactor(0.1).init)(jnp.ones((256, 256))))
    assert "select" not in text
    assert "barrier" not in text


@KINDS
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "tx",
    [
        gradtx.adam(0.1),
        gradtx.scale_by_schedule(lambda count: 1.0 / (1 + count)),
        gradtx.apply_if_finite(gradtx.scale(-1.0), 3),
        gradtx.hutchinson_estimator_diag_hessian(),
    ],
    ids=["moments", "a count", "a wrapper's count", "a key"],
)
def test_numbers_of_the_whole_tree_are_on_all_devices(tx, kind, compiled):
    parameter = on_mesh(kind, (8, 8), "a", "b")
    with within(parameter):
        state = (jax.jit(tx.init) if compiled else tx.init)(parameter)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.device_set == parameter.sharding.device_set
