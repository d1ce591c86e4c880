"""Moments: against NumPy in float64, masked, merged, across devices, and where squares fail."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradtx.normalization import Moments, merge_moments, moments, normalize

close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)


def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """Seeded normal numbers in float64."""
    return np.random.default_rng(0).normal(mean, deviation, shape)


def check_moments(actual: Moments, values: np.ndarray, axis=None) -> None:
    """Compares with NumPy's count, mean and variance of the values."""
    mean = np.mean(values, axis)
    close(actual.count, np.full(mean.shape, values.size / mean.size))
    close(actual.mean, mean)
    close(actual.variance(), np.var(values, axis))
    close(actual.variance(unbiased=True), np.var(values, axis, ddof=1))


@pytest.mark.usefixtures("x64")
class TestFloat64:
    @pytest.mark.parametrize("axis", [0, -1, (0, 2), (-1, 1, 0)], ids=str)
    def test_equal_numpy(self, axis):
        x = normal(4, 3, 5, mean=3.0)
        check_moments(moments(x, axis), x, axis)

    @pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 1), (1, 3, 5), (4, 1, 1)], ids=str)
    def test_a_mask_selects_a_subset(self, shape):
        x = normal(4, 3, 5, mean=3.0)
        mask = np.random.default_rng(1).random(shape) < 0.6
        actual = moments(x, (0, 2), mask=mask)
        everywhere = np.broadcast_to(mask, x.shape)
        for feature in range(3):
            own = jax.tree.map(lambda field, i=feature: field[i], actual)
            check_moments(own, x[:, feature][everywhere[:, feature]])

    def test_masked_values_do_not_matter_even_when_nan(self):
        x = normal(6, 2)
        mask = np.arange(6)[:, None] < 4
        check_moments(moments(np.where(mask, x, np.nan), 0, mask=mask), x[:4], 0)

    @pytest.mark.parametrize("sizes", [(3, 4), (1, 6), (0, 7), (7, 0)], ids=str)
    def test_merged_equal_the_concatenation(self, sizes):
        x = normal(7, 2, mean=3.0)
        first, second = x[: sizes[0]], x[sizes[0] :]
        check_moments(merge_moments(moments(first, 0), moments(second, 0)), x, 0)

    def test_micro_batches_merge_in_a_scan(self):
        x = normal(5, 4, 3, mean=3.0)
        mask = np.random.default_rng(1).random((5, 4, 1)) < 0.5

        def accumulate(seen, batch):
            return merge_moments(seen, moments(batch[0], 0, mask=batch[1])), None

        empty = Moments(*(jnp.zeros(3) for _ in range(3)))
        total, _ = jax.lax.scan(accumulate, empty, (jnp.asarray(x), jnp.asarray(mask)))
        check_moments(total, x[mask[..., 0]], 0)

    @pytest.mark.parametrize("masked", [False, True], ids=["whole", "unequal-masks"])
    def test_vmap_and_shard_map_see_the_whole_batch(self, mesh, masked):
        x = normal(8, 3, 2, mean=3.0)
        # Masked, device i counts its first min(i, 3) rows: the first device counts none.
        rows = np.arange(8) if masked else np.full(8, 3)
        mask = np.arange(3)[None, :, None] < rows[:, None, None]
        across = partial(moments, axis=0, axis_name="data")

        def local(values, counted):
            return across(values, mask=counted) if masked else across(values)

        mapped = jax.vmap(local, axis_name="data")(x, mask)
        for field in jax.tree.leaves(mapped):
            close(field, np.broadcast_to(field[:1], field.shape))
        shards = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())
        sharded = jax.jit(shards)(x.reshape(24, 2), mask.reshape(24, 1))
        for actual in (jax.tree.map(lambda field: field[0], mapped), sharded):
            check_moments(actual, x[mask[..., 0]], 0)

    def test_gradients_are_those_of_the_definition(self):
        x = normal(5, mean=3.0)
        close(jax.jit(jax.grad(lambda x: moments(x, 0).mean))(x), np.full(5, 1 / 5))
        close(jax.jit(jax.grad(lambda x: moments(x, 0).variance()))(x), 2 * (x - x.mean()) / 5)
        # A shift that is held constant must not change second derivatives either.
        curvature = jax.jit(jax.hessian(lambda x: moments(x, 0).variance()))(x)
        close(curvature, 2 / 5 * (np.eye(5) - 1 / 5))

    def test_gradients_through_merged_and_masked_moments(self):
        x, mask = jnp.asarray(normal(6, mean=3.0)), jnp.asarray([1, 1, 0, 1, 0, 1], bool)

        def variance(x):
            both = merge_moments(moments(x[:4], 0, mask=mask[:4]), moments(x[4:], 0, mask=mask[4:]))
            return both.variance(unbiased=True)

        expected = np.where(mask, 2 * (x - np.mean(x[mask])) / 3, 0.0)
        close(jax.jit(jax.grad(variance))(x), expected)

    def test_merged_moments_normalize_as_the_whole_batch(self):
        x = normal(6, 3, mean=3.0)
        both = merge_moments(moments(x[:2], 0), moments(x[2:], 0))
        y = normalize(x, both.mean, both.variance(), np.full(3, 2.0), np.full(3, 0.5), epsilon=1e-3)
        close(y, 2.0 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) + 0.5)


class TestLargeMean:
    """Data with mean 1e4 and deviation 0.1 in float32, whose squares all but agree."""

    @pytest.fixture(params=[(100, 0), (100, 1), (100_000, 0), (100_000, 1)], ids=str)
    def data(self, request):
        count, axis = request.param
        x = normal(*((count, 2) if axis == 0 else (2, count)), mean=1e4, deviation=1e-1)
        return x.astype(np.float32), axis

    def test_variance_is_right(self, data):
        x, axis = data
        actual = jax.jit(moments, static_argnums=1)(x, axis)
        expected = np.var(x.astype(np.float64), axis)
        np.testing.assert_allclose(actual.variance(), expected, rtol=1e-5)
        np.testing.assert_allclose(actual.mean, np.mean(x.astype(np.float64), axis), rtol=1e-7)

    def test_subtracting_squares_would_not_do(self, data):
        x, axis = data
        naive = jnp.mean(jnp.square(x), axis) - jnp.square(jnp.mean(x, axis))
        assert np.all(np.abs(naive / np.var(x.astype(np.float64), axis) - 1) > 0.01)

    def test_merged_and_mapped_variances_are_right(self, data):
        x, axis = data
        parts = np.stack(np.split(x, 4, axis))
        mapped = jax.vmap(partial(moments, axis=axis, axis_name="i"), axis_name="i")(parts)
        merged = moments(parts[0], axis)
        for part in parts[1:]:
            merged = merge_moments(merged, moments(part, axis))
        expected = np.var(x.astype(np.float64), axis)
        np.testing.assert_allclose(mapped.variance()[2], expected, rtol=1e-5)
        # Merging sees the means only as float32 holds them, here to 5e-4.
        np.testing.assert_allclose(merged.variance(), expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_statistics_are_float32(dtype):
    x = jnp.full((4, 2), 300.0, dtype)  # 300^2 overflows float16
    actual = moments(x, 0)
    assert {field.dtype for field in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(actual.mean, [300.0, 300.0])
    np.testing.assert_array_equal(actual.m2, [0.0, 0.0])


@pytest.mark.parametrize(
    "x", [np.zeros((0, 2), np.float32), np.ones((1, 2), np.float32)], ids=["none", "one"]
)
def test_too_few_values_have_variance_zero(x):
    actual = moments(x, 0)
    for unbiased in (False, True):
        np.testing.assert_array_equal(actual.variance(unbiased=unbiased), [0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.ones(3, np.int32), "axis": 0}, "x must hold real .* int32"),
        ({"x": np.ones(3, np.complex64), "axis": 0}, "x must hold real .* complex64"),
        ({"x": np.ones(3, np.float32), "axis": 1}, "axis must name .* rank 1, got 1"),
        ({"x": np.ones((3, 2), np.float32), "axis": (0, -2)}, r"axis .* got \(0, -2\)"),
        ({"x": np.ones((3, 2), np.float32), "axis": ()}, r"axis .* got \(\)"),
        ({"x": np.ones((3, 2), np.float32), "axis": 0.5}, r"axis .* got 0\.5"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^moments: {message}"):
        moments(**arguments)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 2), np.float32), "mask must be boolean, got dtype float32"),
        (np.ones(3, bool), r"mask must have the shape \(3, 2\) .* got shape \(3,\)"),
        (np.ones((2, 3), bool), r"mask must have the shape \(3, 2\) .* got shape \(2, 3\)"),
    ],
)
def test_wrong_masks_are_named(mask, message):
    with pytest.raises(ValueError, match=f"^moments: {message}"):
        moments(np.ones((3, 2), np.float32), 0, mask=mask)


def test_moments_of_different_shapes_do_not_merge():
    x = np.ones((3, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"^merge_moments: b must have .* shape \(3,\).* has \(2,\)"
    ):
        merge_moments(moments(x, 0), moments(x, 1))
