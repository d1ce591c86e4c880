"""Limits on updates against their definitions, on one device and across a mapped axis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    NON_NEGATIVE,
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)

CASES = [
    *cases(gradtx.clip, {"max_delta": 0.0}, {"max_delta": 0.7}),
    *cases(
        gradtx.clip_by_global_norm,
        {"max_norm": 0.01},
        {"max_norm": 8.0},
    ),
    *cases(gradtx.clip_by_block_rms, {"threshold": 0.1}, {"threshold": 1.5}),
    *cases(
        gradtx.normalize_by_update_norm,
        {},
        {"scale_factor": 0.0},
        {"scale_factor": 3.0, "eps": 2.0},
    ),
    *cases(
        gradtx.adaptive_grad_clip,
        {"clipping": 0.01},
        {"clipping": 1.0, "eps": 2.0, "axis": 0},
        {"clipping": 0.7, "eps": 0.5},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize(
    ("shape", "axis", "unit_axes"),
    [
        ((), None, ()),
        ((5,), None, (0,)),
        ((1, 5, 1), None, (0, 1, 2)),
        ((3, 5), None, (0,)),
        ((2, 3, 5), None, (0,)),
        ((2, 2, 3, 5), None, (0, 1, 2)),
        ((2, 1, 2, 3, 5), None, (0, 1, 2, 3)),
        ((3, 5), 1, (1,)),
        ((2, 3, 5), (0, 2), (0, 2)),
        ((1, 1, 2, 1, 3, 2), (2, 4), (2, 4)),
    ],
    ids=str,
)
def test_units_of_adaptive_clipping(shape, axis, unit_axes):
    rng = np.random.default_rng(0)
    g, p = rng.normal(size=(2, *shape))
    expected = np.array(g)
    # One unit at a time: an index of the other axes.
    others = [range(size) if i not in unit_axes else [slice(None)] for i, size in enumerate(shape)]
    for index in np.ndindex(*[len(axis) for axis in others]):
        unit = tuple(axis[i] for axis, i in zip(others, index, strict=True))
        ratio = np.sqrt(np.sum(g[unit] ** 2) / np.sum(p[unit] ** 2))
        expected[unit] *= min(1, 0.3 / ratio)
    tx = gradtx.adaptive_grad_clip(0.3, eps=0.0, axis=axis)
    updates, _ = tx.update(jnp.asarray(g), tx.init(p), jnp.asarray(p))
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert np.any(expected != g)


def test_adaptive_clipping_refuses_more_axes_than_it_knows():
    params = jnp.zeros((2,) * 6)
    tx = gradtx.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match="axis"):
        tx.update(params, tx.init(params), params)


def test_zero_nans():
    tx = gradtx.zero_nans()
    state = tx.init({"a": jnp.zeros(3), "b": jnp.zeros(())})
    steps = [
        ([np.nan, 2.0, -np.inf], 1.0, [0.0, 2.0, -np.inf], 1.0),
        ([1.0, 2.0, 3.0], np.nan, [1.0, 2.0, 3.0], 0.0),
        ([1.0, 2.0, 3.0], 4.0, [1.0, 2.0, 3.0], 4.0),
    ]
    for a, b, expected_a, expected_b in steps:
        updates, state = tx.update({"a": jnp.array(a), "b": jnp.array(b)}, state)
        np.testing.assert_array_equal(updates["a"], expected_a)
        np.testing.assert_array_equal(updates["b"], expected_b)
        assert state.found_nan == {"a": np.isnan(a).any(), "b": np.isnan(b)}


def test_zero_nans_of_complex_numbers():
    g = jnp.array([complex(np.nan, 1), complex(1, np.nan), 1 + 2j])
    for tx in (gradtx.zero_nans(), optax.zero_nans()):
        updates, state = tx.update(g, tx.init(g))
        np.testing.assert_array_equal(updates, [0, 0, 1 + 2j])
        assert state.found_nan


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_whose_squares_leave_the_range_of_floats(size):
    g = jnp.array([3.0, 4.0]) * jnp.float32(size)
    for tx in (gradtx.clip_by_global_norm(size), gradtx.normalize_by_update_norm(size, eps=0.0)):
        updates, _ = jax.jit(tx.update)(g, tx.init(g))
        np.testing.assert_allclose(updates, np.array([0.6, 0.8]) * size, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 1e-30, 1e-3, 1.0, 9.0, 1e6, 1e20, 3e38, np.inf])
@pytest.mark.parametrize("is_array", [False, True], ids=["number", "array"])
def test_clip_by_global_norm_over_all_magnitudes(max_norm, is_array):
    tx = gradtx.clip_by_global_norm(jnp.float32(max_norm) if is_array else max_norm)
    update = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    for size in (1e-35, 1e-20, 1e-3, 1.0, 1e5, 1e25, 3e38):
        g = np.array([0.6, -0.8], np.float32) * np.float32(size)
        norm = np.linalg.norm(g.astype(np.float64))
        if norm <= max_norm:
            np.testing.assert_array_equal(update(g), g)
        else:
            np.testing.assert_allclose(update(g), g * (max_norm / norm), rtol=4e-7)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_tiny_learning_rate_after_clipping_is_no_zero(shape):
    # XLA multiplies the numbers that follow on each other in advance.
    tx = gradtx.chain(gradtx.clip_by_global_norm(1e-3), gradtx.sgd(1e-30))
    g = jnp.full(shape, 4e30)
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    np.testing.assert_allclose(updates, np.full(shape, -1e-33 / np.sqrt(g.size)), rtol=1e-6)


PIECES = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
NORMS = {
    "sum": np.sqrt(np.sum(np.float64(PIECES) ** 2)),
    "mean": np.mean(np.sqrt(np.sum(np.float64(PIECES) ** 2, axis=1))),
}


def by_vmap(update):
    return jax.vmap(update, axis_name="pieces")


def by_shard_map(update):
    mesh = jax.make_mesh((8,), ("pieces",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(update, mesh=mesh, in_specs=P("pieces"), out_specs=P("pieces")))


@pytest.mark.parametrize("spread", [by_vmap, by_shard_map])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_norms_across_a_mapped_axis(reduction, spread):
    axis = {"axis_name": "pieces", "axis_reduction": reduction}
    clip = gradtx.clip_by_global_norm(0.5, **axis)
    clipped = spread(lambda g: clip.update(g, clip.init(g))[0])(jnp.asarray(PIECES))
    np.testing.assert_allclose(clipped, 0.5 * PIECES / NORMS[reduction], rtol=2e-6)
    normalize = gradtx.normalize_by_update_norm(2.0, eps=0.0, **axis)
    unit = spread(lambda g: normalize.update(g, normalize.init(g))[0])(jnp.asarray(PIECES))
    np.testing.assert_allclose(unit, 2 * PIECES / NORMS[reduction], rtol=2e-6)


def test_norms_across_a_mapped_axis_are_summed_unless_told_otherwise():
    clip = gradtx.clip_by_global_norm(0.5, axis_name="pieces")
    clipped = by_vmap(lambda g: clip.update(g, clip.init(g))[0])(jnp.asarray(PIECES))
    np.testing.assert_allclose(clipped, 0.5 * PIECES / NORMS["sum"], rtol=2e-6)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.clip, {}, max_delta=NON_NEGATIVE),
        *wrong_arguments(
            gradtx.clip_by_global_norm,
            {"max_norm": 1.0},
            max_norm=NON_NEGATIVE,
            axis_reduction=("max",),
        ),
        *wrong_arguments(gradtx.clip_by_block_rms, {}, threshold=NON_NEGATIVE),
        *wrong_arguments(
            gradtx.normalize_by_update_norm,
            {},
            scale_factor=ANY_NUMBER,
            eps=NON_NEGATIVE,
            axis_reduction=("max",),
        ),
        *wrong_arguments(
            gradtx.adaptive_grad_clip, {"clipping": 1.0}, clipping=NON_NEGATIVE, eps=NON_NEGATIVE
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize("size", [1e30, 1e38, 3e38])
def test_norms_whose_inverse_is_subnormal(size):
    g = jnp.array([size, 0.0], jnp.float32)
    for tx in (gradtx.clip_by_global_norm(1.0), gradtx.normalize_by_update_norm()):
        for update in (tx.update, jax.jit(tx.update)):
            np.testing.assert_allclose(update(g, tx.init(g))[0], [1.0, 0.0], rtol=1e-6)
    tx = gradtx.clip_by_block_rms(1e-3)
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], [1e-3 * np.sqrt(2), 0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2,)])
@pytest.mark.parametrize(
    "clip",
    [
        gradtx.clip_by_global_norm(jnp.float32(0.5)),
        gradtx.clip_by_global_norm(1e-3),
        gradtx.clip_by_global_norm(0.5),
        gradtx.clip_by_block_rms(0.5),
        gradtx.adaptive_grad_clip(0.5),
    ],
    ids=["array", "small", "global-norm", "block-rms", "adaptive"],
)
def test_what_is_clipped_can_be_squared_whatever_its_size(clip, shape):
    tx = gradtx.chain(clip, gradtx.scale_by_rms(decay=0.0, eps=0.0))
    params = jnp.ones(shape)
    updates, state = jax.jit(lambda g: tx.update(g, tx.init(params), params))(3 * params)
    np.testing.assert_allclose(updates, 1, rtol=1e-6)
    assert np.all(np.isfinite(state[1].nu))
