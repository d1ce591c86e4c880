"""Batch normalization: against NumPy in float64, masked, across devices, over many steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradtx.normalization import (
    BatchStats,
    batch_norm,
    init_batch_stats,
    merge_moments,
    moments,
    normalize,
)

close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)


def normal(seed: int, *shape: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """Seeded normal numbers in float64."""
    return np.random.default_rng(seed).normal(mean, deviation, shape)


def by_definition(x, mean, var, *, momentum=0.9, epsilon=1e-5, ddof=0, running_ddof=0):
    """One training step on (positions, features) in NumPy: x hat, and the running statistics."""
    standardized = (x - x.mean(0)) / np.sqrt(x.var(0, ddof=ddof) + epsilon)
    mean = momentum * mean + (1 - momentum) * x.mean(0)
    var = momentum * var + (1 - momentum) * x.var(0, ddof=running_ddof)
    return standardized, mean, var


def check_stats(stats: BatchStats, mean: np.ndarray, var: np.ndarray) -> None:
    """Compares both running statistics."""
    close(stats.mean, mean)
    close(stats.var, var)


@pytest.mark.usefixtures("x64")
class TestFloat64:
    @pytest.mark.parametrize(
        ("unbiased", "unbiased_running", "ddof", "running_ddof"),
        [(False, None, 0, 0), (True, None, 1, 1), (False, True, 0, 1), (True, False, 1, 0)],
    )
    def test_several_steps_equal_numpy(self, unbiased, unbiased_running, ddof, running_ddof):
        stats, mean, var = init_batch_stats(3, jnp.float64), np.zeros(3), np.ones(3)
        scale, bias = normal(8, 3), normal(9, 3)
        for step in range(4):
            x = normal(step, 5, 2, 3, mean=step)
            y, stats = batch_norm(
                x,
                stats,
                scale,
                bias,
                training=True,
                momentum=0.7,
                epsilon=1e-3,
                unbiased=unbiased,
                unbiased_running=unbiased_running,
            )
            expected, mean, var = by_definition(
                x.reshape(10, 3),
                mean,
                var,
                momentum=0.7,
                epsilon=1e-3,
                ddof=ddof,
                running_ddof=running_ddof,
            )
            close(y.reshape(10, 3), scale * expected + bias)
            check_stats(stats, mean, var)

    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    @pytest.mark.parametrize("axis", [0, 1, -2], ids=str)
    def test_any_axis_is_the_last_one_moved(self, axis, training):
        x = normal(0, 3, 4, 5)
        features = x.shape[axis]
        stats = BatchStats(normal(1, features), np.exp(normal(2, features)))
        scale, bias = normal(3, features), normal(4, features)
        y, new = batch_norm(x, stats, scale, bias, training=training, axis=axis)
        moved = np.moveaxis(x, axis, -1)
        expected, expected_new = batch_norm(moved, stats, scale, bias, training=training)
        close(y, np.moveaxis(expected, -1, axis))
        check_stats(new, *expected_new)

    def test_several_feature_axes_are_one_flattened(self):
        x, scale = normal(0, 4, 6, 5), normal(1, 4, 5)
        stats = init_batch_stats((4, 5), jnp.float64)
        y, new = batch_norm(x, stats, scale, training=True, axis=(-1, 0))
        flat = x.transpose(1, 0, 2).reshape(6, 20)
        expected, mean, var = by_definition(flat, np.zeros(20), np.ones(20))
        close(y, scale[:, None] * expected.reshape(6, 4, 5).transpose(1, 0, 2))
        check_stats(new, mean.reshape(4, 5), var.reshape(4, 5))

    def test_evaluation_uses_the_running_statistics_and_returns_them(self):
        stats = BatchStats(jnp.asarray([1.0, -2.0]), jnp.asarray([4.0, 0.25]))
        x = normal(0, 5, 2)
        y, same = batch_norm(x, stats, training=False, epsilon=0.0)
        close(y, (x - [1.0, -2.0]) / [2.0, 0.5])
        assert same is stats

    @pytest.mark.parametrize("shape", [(6, 4, 1), (6, 4), (6, 1), (1, 4, 1)], ids=str)
    def test_masked_statistics_are_those_of_the_subset(self, shape):
        x, mask = normal(0, 6, 4, 3, mean=2.0), np.random.default_rng(1).random(shape) < 0.6
        weight = normal(2, 6, 4, 3)
        everywhere = np.broadcast_to(
            mask.reshape(shape if mask.ndim == 3 else (*shape, 1)), x.shape
        )
        chosen = everywhere[..., 0]
        stats = init_batch_stats(3, jnp.float64)
        step = partial(batch_norm, stats=stats, training=True, unbiased_running=True)

        y, new = step(x, mask=mask)
        expected, mean, var = by_definition(x[chosen], stats.mean, stats.var, running_ddof=1)
        close(y[chosen], expected)
        check_stats(new, mean, var)
        # The others are normalized with the statistics of the chosen ones.
        outside = (x - x[chosen].mean(0)) / np.sqrt(x[chosen].var(0) + 1e-5)
        close(y, outside)

        # A loss on the chosen positions does not see the others.
        @jax.jit
        @jax.grad
        def gradient_of_chosen(x, weight, mask):
            return jnp.sum(weight * step(x, mask=mask)[0])

        gradient = gradient_of_chosen(x, weight * chosen[..., None], mask)
        alone = gradient_of_chosen(x[chosen], weight[chosen], np.ones(chosen.sum(), bool))
        close(gradient[chosen], alone)
        np.testing.assert_array_equal(gradient[~chosen], 0.0)

    @pytest.mark.parametrize("masked", [False, True], ids=["whole", "unequal-masks"])
    @pytest.mark.parametrize("mapping", ["vmap", "shard_map"])
    def test_devices_together_see_the_whole_batch(self, mesh, mapping, masked):
        x, weight = normal(0, 16, 2, mean=2.0), jnp.asarray(normal(1, 16, 2))
        mask = np.arange(16) % 3 > 0 if masked else np.ones(16, bool)
        scale, stats = jnp.asarray([2.0, -1.0]), init_batch_stats(2, jnp.float64)

        def loss(x, scale, step):
            y, new = step(x, stats, scale, mask=mask)
            return jnp.sum(weight * y), (y, new)

        def mapped_step(x, stats, scale, *, mask):
            def local(x, scale, mask):
                return batch_norm(
                    x, stats, scale, mask=mask, training=True, unbiased=True, axis_name="data"
                )

            if mapping == "shard_map":
                specs = (P("data"), P(), P("data")), (P("data"), P())
                return jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1])(
                    x, scale, mask
                )
            y, new = jax.vmap(local, (0, None, 0), (0, None), axis_name="data")(
                x.reshape(8, 2, 2), scale, mask.reshape(8, 2)
            )
            return y.reshape(16, 2), new

        differentiate = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2
        )
        whole = partial(batch_norm, training=True, unbiased=True)
        jax.tree.map(close, differentiate(x, scale, mapped_step), differentiate(x, scale, whole))

    def test_merged_micro_batches_normalize_as_the_whole_batch(self):
        x = normal(0, 12, 3, mean=2.0)
        seen = moments(x[:5], 0)
        seen = merge_moments(seen, moments(x[5:], 0))
        expected, _ = batch_norm(x, init_batch_stats(3, jnp.float64), training=True)
        close(normalize(x, seen.mean, seen.variance()), expected)

    def test_a_momentum_of_one_minus_one_over_step_averages_all_batches(self):
        batches = normal(0, 5, 4, 3, mean=2.0)

        def step(stats, batch):
            number, x = batch
            _, stats = batch_norm(x, stats, training=True, momentum=1 - 1 / number)
            return stats, None

        numbers = jnp.arange(1.0, 6.0)
        stats, _ = jax.lax.scan(
            step, init_batch_stats(3, jnp.float64), (numbers, jnp.asarray(batches))
        )
        check_stats(stats, batches.mean((0, 1)), batches.var(1).mean(0))


def test_one_position_has_variance_zero_however_it_is_estimated():
    stats = init_batch_stats(2)
    x = jnp.asarray([[3.0, -4.0]])
    for unbiased in (False, True):
        y, new = batch_norm(x, stats, training=True, unbiased=unbiased, momentum=0.5)
        np.testing.assert_array_equal(y, [[0.0, 0.0]])
        np.testing.assert_array_equal(new.mean, [1.5, -2.0])
        np.testing.assert_array_equal(new.var, [0.5, 0.5])


@pytest.mark.parametrize("shape", [(3, 2), (0, 2)], ids=["masked", "empty"])
def test_statistics_stay_where_no_position_enters(shape):
    x = jnp.ones(shape)
    stats = BatchStats(jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0]))

    def loss(x):
        y, new = batch_norm(x, stats, training=True, mask=jnp.zeros(shape[:1], bool))
        return jnp.sum(y), (y, new)

    gradient, (y, new) = jax.grad(loss, has_aux=True)(x)
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(gradient))
    jax.tree.map(np.testing.assert_array_equal, new, stats)


def test_large_mean_and_small_deviation_in_float32():
    x = normal(0, 100_000, 2, mean=1e4, deviation=1e-1).astype(np.float32)
    step = jax.jit(partial(batch_norm, training=True, momentum=0.0, epsilon=0.0))
    y, stats = step(x, init_batch_stats(2))
    expected, mean, var = by_definition(x.astype(np.float64), 0, 0, momentum=0, epsilon=0)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(stats.var, var, rtol=1e-5)
    # Far below the 5e-3 of a deviation by which float32 rounds the mean itself.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stats_dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_a_training_loop_compiles_once(x_dtype, stats_dtype):
    traces = []

    @partial(jax.jit, static_argnames="training")
    def step(x, stats, training):
        traces.append(training)
        return batch_norm(x, stats, training=training)

    stats = init_batch_stats(3, stats_dtype)
    like = jax.tree.map(jax.typeof, stats)
    for _ in range(3):
        y, stats = step(jnp.ones((4, 3), x_dtype), stats, training=True)
        assert y.dtype == x_dtype
        assert jax.tree.map(jax.typeof, stats) == like
    assert traces == [True]
    _, evaluated = step(jnp.ones((4, 3), x_dtype), stats, training=False)
    assert jax.tree.map(jax.typeof, evaluated) == like


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": 1}, "training must be a Python bool, got 1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1\.0"),
        ({"momentum": -0.1}, r"momentum .* got -0\.1"),
        ({"momentum": float("nan")}, "momentum .* got nan"),
        ({"epsilon": -1e-5}, "epsilon must be non-negative and finite, got -1e-05"),
        ({"axis": 2}, "axis must name .* rank 2, got 2"),
        ({"scale": np.ones(2, np.float32)}, r"scale must have shape \(3,\).*got shape \(2,\)"),
        ({"bias": np.ones((1, 3), np.float32)}, r"bias must have shape \(3,\).*shape \(1, 3\)"),
        ({"scale": np.ones(3, np.int32)}, "scale must hold real .* int32"),
        ({"stats": init_batch_stats(4)}, r"stats\.mean must have shape \(3,\).*shape \(4,\)"),
        ({"mask": np.ones(4, np.int32)}, "mask must be boolean, got dtype int32"),
        ({"mask": np.ones(5, bool)}, r"mask .* \(4, 3\) .* axes \(1,\).* got shape \(5,\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    good = {"x": np.ones((4, 3), np.float32), "stats": init_batch_stats(3), "training": True}
    with pytest.raises(ValueError, match=f"^batch_norm: {message}"):
        batch_norm(**(good | arguments))


def test_a_traced_training_flag_is_explained():
    x, stats = jnp.ones((4, 3)), init_batch_stats(3)
    with pytest.raises(ValueError, match="static_argnames"):
        jax.jit(lambda flag: batch_norm(x, stats, training=flag))(True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_features must be a positive integer, got 0"),
        ((2.5,), r"num_features must be a positive integer, got 2\.5"),
        ((2, jnp.int32), "dtype must be a real floating-point dtype, got .*int32"),
    ],
)
def test_wrong_initial_statistics_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^init_batch_stats: {message}"):
        init_batch_stats(*arguments)
