"""Norms that neither overflow nor underflow, with their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import gradtx
from gradtx import norms

pytestmark = pytest.mark.usefixtures("usual_compilation")

NORMS = {
    "float32-huge": ([np.float32(3e30), np.float32(4e30)], 5e30),
    "float32-largest": ([np.float32(2e38), np.float32(1e38)], 2.2360679e38),
    "float32-tiny": ([np.float32(3e-30), np.float32(4e-30)], 5e-30),
    "float32-smallest": ([np.float32(1.2e-38)], 1.2e-38),
    "float32-ordinary": ([np.float32(3), np.float32(-4)], 5.0),
    "float32-mixed": ([np.float32(1e30), np.float32(1e-30)], 1e30),
    "float16": ([np.full(4, 300, np.float16)], 600.0),
    "float16-largest": ([np.full(10_000, 60_000, np.float16)], 6e6),
    "float16-subnormal": ([np.full(4, 6e-8, np.float16)], 2 * float(np.float16(6e-8))),
    "integers": ([np.array([3, 4])], 5.0),
    "complex": ([np.array([3 + 4j], np.complex64)], 5.0),
    "complex-huge": ([np.array([3e30 + 4e30j], np.complex64)], 5e30),
    "none-and-empty": ([None, np.zeros((0, 3), np.float32), np.float32(2)], 2.0),
    "zero": ([np.zeros(3, np.float32)], 0.0),
    "nothing": ([], 0.0),
    "infinite": ([np.float32(np.inf), np.float32(1)], np.inf),
    "nan": ([np.float32(np.nan), np.float32(1)], np.nan),
}


@pytest.fixture(params=["float64", "float32"], scope="module")
def sums(request):
    """Sums of squares in float64, and as on a platform whose float64 has another range."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "float32":
            patch.setattr(norms, "_PLATFORMS_WITH_FLOAT64", ())
        # Traced functions remember how they sum.
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize(("leaves", "expected"), NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_global_norm_is_right_where_its_square_is_not(leaves, expected, jitted):
    norm = jax.jit(gradtx.global_norm) if jitted else gradtx.global_norm
    result = norm(jax.tree.map(jnp.asarray, leaves))
    assert result.dtype == jnp.float32
    assert result.shape == ()
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.usefixtures("sums")
def test_global_norm_of_two_thousand_bfloat16_leaves():
    leaves = [jnp.full(3, 0.1, jnp.bfloat16)] * 2000
    expected = float(jnp.bfloat16(0.1)) * np.sqrt(6000)
    # Two thousand equal numbers are added in float32: as many roundings, all to the same side.
    np.testing.assert_allclose(gradtx.global_norm(leaves), expected, rtol=2e-5)


@pytest.mark.parametrize("size", [1e300, 1e-300, 1.0], ids=["huge", "tiny", "ordinary"])
def test_global_norm_of_float64(size):
    with jax.enable_x64(True):
        tree = {"a": jnp.full(3, size), "b": jnp.full(1, size, jnp.float64)}
        norm = gradtx.global_norm(tree)
        assert norm.dtype == jnp.float64
        np.testing.assert_allclose(norm, 2 * size, rtol=1e-15)


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"),
    [(0.0, 0.0, 0.0), (3e30, 4e30, 5e30), (3e-30, 4e-30, 5e-30), (1e-30, 1e-40, 1e-30)],
    ids=["zero", "huge", "tiny", "narrow-counts"],
)
def test_global_norm_of_a_float32_and_a_float64_leaf(narrow, wide, expected):
    with jax.enable_x64(True):
        norm = gradtx.global_norm([jnp.float32(narrow), jnp.float64(wide)])
        assert norm.dtype == jnp.float64
        np.testing.assert_allclose(norm, expected, rtol=1e-7)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("known", [0.0, 1e-30, 3e25])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1.0, 4e25])
def test_global_norm_with_a_leaf_that_the_compiler_knows(size, known):
    # Such as the gradient of an unused parameter, which is a constant zero.
    norm = jax.jit(lambda leaf: gradtx.global_norm([leaf, jnp.full(2, known)]))(jnp.full(2, size))
    np.testing.assert_allclose(norm, np.sqrt(2 * (size**2 + known**2)), rtol=1e-6)


@pytest.mark.usefixtures("sums")
def test_global_norm_agrees_with_numpy_over_all_magnitudes():
    rng = np.random.default_rng(0)
    norm = jax.jit(gradtx.global_norm)
    for exponent in range(-36, 37, 3):
        values = (rng.normal(size=50) * 10.0**exponent).astype(np.float32)
        expected = np.linalg.norm(values.astype(np.float64))
        np.testing.assert_allclose(norm([values[:20], values[20:]]), expected, rtol=1e-6)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30], ids=str)
def test_gradient_of_the_norm_is_the_direction(size):
    x = jnp.array([3.0, -4.0]) * size
    gradient = jax.grad(gradtx.global_norm)(x)
    np.testing.assert_allclose(gradient, [0.6, -0.8] if size else [0.0, 0.0], rtol=1e-5)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30], ids=str)
def test_norm_of_one_array_along_an_axis(size):
    x = np.array([[3.0, 0.0], [4.0, 0.0]], np.float32) * np.float32(size)
    np.testing.assert_allclose(
        norms.norm(jnp.asarray(x), 0), np.array([[5.0, 0.0]]) * size, rtol=1e-6
    )
    gradient = jax.grad(lambda v: jnp.sum(norms.norm(v, 0)))(jnp.asarray(x))
    expected = [[0.6, 0.0], [0.8, 0.0]] if size else np.zeros((2, 2))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [3e38, 1.5e38, 4e-38])
def test_norm_of_one_array_up_to_the_ends_of_float32(size):
    x = jnp.full((4,), size / 2, jnp.float32)
    np.testing.assert_allclose(jax.jit(norms.norm)(x), [size], rtol=1e-6)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [0.0, 4e-37, 1.0, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("axes", [(), (1,), (-1, 0)], ids=str)
def test_root_mean_square_up_to_the_ends_of_float32(size, axes):
    x = np.array([[1.0, -0.5], [0.25, 1.0], [1.0, 0.0]], np.float32) * np.float32(size)
    expected = np.sqrt(np.mean(np.square(x.astype(np.float64)), axes))
    found = jax.jit(norms.root_mean_square, static_argnums=1)(x, axes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.usefixtures("sums")
def test_norm_of_infinities_and_nan_is_what_it_is():
    assert np.isinf(norms.norm(jnp.array([jnp.inf, 1.0]))).all()
    assert np.isnan(norms.norm(jnp.array([jnp.nan, 1.0]))).all()


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [1.0, 1e30], ids=str)
@pytest.mark.parametrize("mapping", ["vmap", "shard_map"])
def test_norm_over_a_mapped_axis_is_summed_or_averaged(mapping, size):
    pieces = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32) * np.float32(size)
    exact = pieces.astype(np.float64)

    def mapped(reduction):
        def norm(piece):
            return gradtx.global_norm([piece], axis_name="i", axis_reduction=reduction)

        if mapping == "vmap":
            return jax.jit(jax.vmap(norm, axis_name="i"))(pieces)[0]
        mesh = Mesh(np.array(jax.devices()), ("i",))
        return jax.jit(jax.shard_map(norm, mesh=mesh, in_specs=P("i"), out_specs=P()))(pieces)

    np.testing.assert_allclose(mapped("sum"), np.linalg.norm(exact), rtol=1e-6)
    by_device = np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(mapped("mean"), by_device.mean(), rtol=1e-6)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15], ids=str)
@pytest.mark.parametrize("of_tree", [True, False], ids=["tree", "array"])
def test_second_derivative_of_the_norm(size, of_tree):
    direction = np.array([0.6, 0.0, 0.8], np.float32)

    def norm(x):
        return gradtx.global_norm([x[:1], x[1:]]) if of_tree else norms.norm(x)[0]

    # (I - u u^T) / ||x||
    expected = (np.eye(3) - np.outer(direction, direction)) / size
    np.testing.assert_allclose(
        jax.hessian(norm)(jnp.asarray(size * direction)), expected, atol=1e-5 / size
    )
    assert not np.any(jax.hessian(norm)(jnp.zeros(3))[0, 1])


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [0.0, 1.0, 1e30], ids=str)
@pytest.mark.parametrize("mapping", ["vmap", "shard_map"])
def test_derivative_of_a_norm_over_a_mapped_axis(mapping, size):
    pieces = jnp.arange(1.0, 17.0).reshape(8, 2) * size

    def norm(piece):
        return gradtx.global_norm(piece, axis_name="i")

    def whole(pieces):
        if mapping == "vmap":
            return jax.vmap(norm, axis_name="i")(pieces)[0]
        mesh = Mesh(np.array(jax.devices()), ("i",))
        return jax.shard_map(norm, mesh=mesh, in_specs=P("i"), out_specs=P())(pieces)

    expected = np.arange(1.0, 17.0).reshape(8, 2) * (size > 0)
    expected = expected / np.linalg.norm(np.arange(1.0, 17.0))
    np.testing.assert_allclose(jax.jit(jax.grad(whole))(pieces), expected, rtol=1e-5)


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match=r"axis_reduction.*'max'"):
        gradtx.global_norm(jnp.ones(2), axis_reduction="max")
    with pytest.raises(ValueError, match=r"clip_by_global_norm: axis_reduction.*'max'"):
        gradtx.clip_by_global_norm(1.0, axis_reduction="max")


@pytest.mark.parametrize(
    "factory",
    [
        lambda: gradtx.clip_by_global_norm(1.0),
        lambda: gradtx.clip_by_block_rms(1.0),
        lambda: gradtx.adaptive_grad_clip(0.1),
        lambda: gradtx.normalize_by_update_norm(),
        lambda: gradtx.clip(1.0),
    ],
    ids=["global_norm", "block_rms", "adaptive", "normalize", "clip"],
)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30], ids=str)
def test_gradient_through_clipping_is_finite(factory, size):
    tx = factory()
    params = jnp.ones(4)

    def clipped(gradient):
        updates, _ = tx.update(gradient, tx.init(params), params)
        return jnp.sum(updates)

    assert bool(jnp.all(jnp.isfinite(jax.grad(clipped)(jnp.full(4, size)))))


@pytest.mark.usefixtures("sums")
def test_platforms_differ_in_the_dtype_of_sums(request):
    in_float64 = request.node.callspec.params["sums"] == "float64"
    assert ("f64" in str(jax.make_jaxpr(gradtx.global_norm)(jnp.ones(2)))) == in_float64
    assert ("while" in str(jax.make_jaxpr(gradtx.global_norm)(jnp.ones(2)))) != in_float64


def test_clipping_makes_no_copy_of_the_gradient():
    params = jnp.ones(1 << 16)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(1e-3))
    state = tx.init(params)

    def temporary_bytes(tx):
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(tx) < 4096
    if jax.default_backend() != "cpu":
        return  # elsewhere XLA computes the gradient's share again
    # The measure can tell: optax's clipping keeps a copy.
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    with jax.numpy_dtype_promotion("standard"):
        assert temporary_bytes(theirs) >= params.nbytes


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("size", [0.0, 1e-15, 1.0, 1.8e19], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_mean_square_up_to_the_ends_of_float32(size, axis):
    x = (np.float32(size) * np.random.default_rng(2).uniform(-1, 1, (40, 30))).astype(np.float32)
    mean = jax.jit(norms.mean_square, static_argnums=1)(x, axis)
    assert mean.dtype == jnp.float32
    expected = np.mean(x.astype(np.float64) ** 2, axis, keepdims=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
