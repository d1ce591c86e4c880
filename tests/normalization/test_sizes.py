"""Values whose squares are out of range for their dtype, against NumPy in long double."""

import itertools
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import PartitionSpec as P

from gradtx.normalization import (
    BatchStats,
    Moments,
    _measure,
    batch_norm,
    group_norm,
    init_batch_stats,
    instance_norm,
    layer_norm,
    merge_moments,
    moments,
    normalize,
    rms_norm,
    standardize,
    whiten,
)

LARGEST = float(np.finfo(np.float32).max)
# Each row is one size. float32 holds 1.2e-38 to 3.4e38, and float64 1e-308 to 1e308.
SIZES = {
    "float16": [6e-5, 1e-2, 1.0, 1e4],
    "bfloat16": [1e-37, 1e-30, 1e-20, 1e-12, 1.0, 1e13, 1e19, 1e30, 1e38],
    "float32": [1e-37, 1e-30, 1e-20, 1e-12, 1.0, 1e13, 1e19, 1e30, 1e38],
    "float64": [1e-300, 1e-170, 1e-20, 1.0, 1e20, 1e170, 1e300],
}
BASE = np.array([-1.0, 2.0, 0.5, 3.0, -0.25, 1.5])


def exactly(x) -> np.ndarray:
    """The numbers in long double, whose squares fit."""
    return np.asarray(x).astype(np.float64).astype(np.longdouble)


def by_definition(x, axis, epsilon, *, mean=True, ddof=0):
    """The standard score and the inverse of its denominator."""
    x = exactly(x)
    deviations = x - x.mean(axis, keepdims=True) if mean else x
    count = x.size // np.mean(x, axis).size
    variance = (deviations**2).sum(axis, keepdims=True) / (count - ddof)
    inverse = 1 / np.sqrt(variance + np.longdouble(epsilon))
    return deviations * inverse, inverse


def assert_near(actual, expected, digits, axis=None):
    """Close relative to the largest value of the same row."""
    actual, expected = exactly(actual), exactly(expected)
    size = np.abs(expected).max(axis, keepdims=True)
    assert np.all(np.abs(actual - expected) <= digits * size)


def batch_norm_of_rows(x, epsilon):
    """Every row is a feature."""
    stats = init_batch_stats(len(x))
    return batch_norm(x, stats, training=True, axis=0, epsilon=epsilon)[0]


# Each takes an array of rows and normalizes each row separately.
OF_ROWS = {
    "layer": layer_norm,
    "layer-unbiased": partial(layer_norm, unbiased=True),
    "rms": rms_norm,
    "standardize": partial(standardize, axis=-1),
    "group": lambda x, epsilon: group_norm(x, groups=1, epsilon=epsilon),
    "instance": lambda x, epsilon: instance_norm(x[..., None], epsilon=epsilon)[..., 0],
    "batch": batch_norm_of_rows,
}


# Half precision is widened once, whatever is measured: a case for each way of measuring.
HALF = [(name, dtype) for name in ("layer", "rms", "batch") for dtype in ("float16", "bfloat16")]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*itertools.product(OF_ROWS, ("float32", "float64")), *HALF],
)
def test_values_and_gradients(name, dtype):
    """Rows of all sizes in one array, each with its own unit."""
    rule = {"mean": name != "rms", "ddof": int(name == "layer-unbiased")}
    weight = np.cos(np.arange(6.0))

    @jax.jit
    def both(x, epsilon):
        def loss(x):
            y = OF_ROWS[name](x, epsilon=epsilon)
            return jnp.sum(y * jnp.asarray(weight, dtype)[None]), y

        return jax.grad(loss, has_aux=True)(x)

    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(np.outer(SIZES[dtype], BASE), dtype)
        digits = 8 * float(jnp.finfo(dtype).eps)
        for epsilon in (0.0, 1e-5):
            gradient, y = both(x, epsilon)
            expected, inverse = by_definition(x, 1, epsilon, **rule)
            assert_near(y, expected, digits, axis=1)
            g = exactly(jnp.asarray(weight, dtype))[None]
            along = (expected * g).sum(1, keepdims=True) / (6 - rule["ddof"])
            centered = g - g.mean() if rule["mean"] else g
            # Gradients of numbers near 1e38 are as small as float32 holds, which 1e-37 is not.
            fit = inverse[:, 0] < 6e4 if dtype == "float16" else inverse[:, 0] > 1e-37
            right = (inverse * (centered - expected * along))[fit]
            assert_near(gradient[fit], right, digits, axis=1)
            assert np.all(np.isfinite(np.asarray(gradient, np.float64)[fit]))


def test_large_gradients_of_the_largest_values():
    x, weight = jnp.asarray(BASE * 1e38, jnp.float32), 1e3 * jnp.cos(jnp.arange(6.0))
    for function in (layer_norm, rms_norm):
        y, inverse = by_definition(x, 0, 1e-5, mean=function is layer_norm)
        g = exactly(weight)
        centered = g - g.mean() if function is layer_norm else g
        # The matrix of derivatives is symmetric, so that both ways give the same.
        right = inverse * (centered - y * (y * g).mean())
        for differentiate in (backward, forward):
            along = partial(differentiate, function)
            assert_near(along(x, weight), right, 1e-6)
            # The inverse of the deviation is a number that a compiled program takes for 0.
            assert_near(jax.jit(along)(x, weight), right, 1e-6)


def backward(function, x, weight):
    return jax.grad(lambda x: jnp.sum(weight * function(x)))(x)


def forward(function, x, tangent):
    return jax.jvp(function, (x,), (tangent,))[1]


def test_second_derivatives():
    """Without an epsilon those of x -> f(1e20 x) equal those of f at 1, for any unit."""
    x, weight = jnp.asarray(BASE, jnp.float32), jnp.cos(jnp.arange(6.0))
    for function in (layer_norm, rms_norm):

        def loss(x, size=1.0, function=function):
            return jnp.sum(weight * function(x * size, epsilon=0.0))

        hessian = jax.jit(jax.hessian(loss))
        assert_near(hessian(x, 2.0**70), hessian(x), 1e-5)
        assert_near(hessian(x, 2.0**-70), hessian(x), 1e-5)


@pytest.mark.parametrize("size", [1.1e13, 1.1e20, 1.1e38])
def test_equal_values_have_variance_zero_whatever_rounding_leaves_of_them(size):
    # 1,000 equal numbers have a rounded mean, and so deviations that are all alike.
    x = jnp.full((1000, 2), size, jnp.float32)
    y, stats = jax.jit(partial(batch_norm, training=True, momentum=0.0))(x, init_batch_stats(2))
    np.testing.assert_array_equal(y, 0.0)
    np.testing.assert_array_equal(stats.var, 0.0)
    np.testing.assert_allclose(stats.mean, size, rtol=1e-6)
    weight = jnp.arange(1000.0)[:, None]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weight * standardize(x, axis=0))))(x)
    expected = np.broadcast_to((exactly(weight) - 499.5) / np.sqrt(1e-5), x.shape)
    assert_near(gradient, expected, 1e-5)


def test_what_is_not_finite_stays_visible_where_it_is():
    x = jnp.asarray([[1.0, 2.0, 3.0], [1.0, jnp.nan, 3.0], [1.0, jnp.inf, 3.0]])
    for function in (layer_norm, rms_norm):
        y = function(x)
        assert np.all(np.isfinite(y[0]))
        assert np.isnan(y[1]).all()
        assert np.isnan(y[2]).any()


class TestRunningStatistics:
    step = staticmethod(jax.jit(partial(batch_norm, training=True)))

    def test_a_variance_that_fits_is_right(self):
        # Its sum of squares is 14e38, beyond float32.
        x = jnp.asarray(BASE[:, None] * 1e19, jnp.float32)
        _, stats = self.step(x, init_batch_stats(1))
        np.testing.assert_allclose(stats.var, 0.9 + 0.1 * exactly(x).var(), rtol=1e-6)
        np.testing.assert_allclose(stats.mean, 0.1 * exactly(x).mean(), rtol=1e-6)

    @pytest.mark.parametrize("size", [1e20, 1e38])
    def test_a_variance_that_does_not_fit_is_the_largest_number_and_decays(self, size):
        x = jnp.asarray(BASE[:, None] * size, jnp.float32)
        _, stats = self.step(x, init_batch_stats(1))
        np.testing.assert_allclose(stats.var, LARGEST)
        np.testing.assert_allclose(stats.mean, 0.1 * exactly(x).mean(), rtol=1e-6)
        ordinary = jnp.asarray(BASE[:, None], jnp.float32)
        for _ in range(3):
            _, stats = self.step(ordinary, stats)
        np.testing.assert_allclose(stats.var, 0.9**3 * LARGEST, rtol=1e-6)

    def test_an_infinity_that_was_stored_is_healed(self):
        ordinary = jnp.asarray(BASE[:, None], jnp.float32)
        _, stats = self.step(ordinary, BatchStats(jnp.zeros(1), jnp.full(1, jnp.inf)))
        np.testing.assert_allclose(stats.var, LARGEST)

    def test_of_float16(self):
        # Mean 1.1e5 and variance 2e10 of float32 data: float16 ends at 65504.
        x = jnp.asarray(BASE[:, None] * 1e5, jnp.float32) + 1e6
        _, stats = self.step(x, init_batch_stats(1, jnp.float16), momentum=0.0)
        np.testing.assert_array_equal([stats.mean[0], stats.var[0]], [65504.0, 65504.0])

    def test_evaluation_with_the_largest_statistics(self):
        stats = BatchStats(jnp.full(1, -3e38), jnp.full(1, 3e38))
        y, _ = batch_norm(jnp.full((1, 1), 3e38), stats, training=False)
        np.testing.assert_allclose(y, 6e38 / np.sqrt(exactly(np.float32(3e38))), rtol=1e-6)


class TestMoments:
    @pytest.mark.parametrize("size", [1e-17, 1e-10, 1e16, 1e19])
    @pytest.mark.parametrize("mapping", ["whole", "masked", "merged", "vmap", "shard_map"])
    def test_are_right_wherever_they_fit(self, mapping, size, mesh):
        x = np.outer(np.sin(np.arange(16.0)), [size, 1.0]).astype(np.float32)
        if mapping == "whole":
            actual = moments(x, 0)
        elif mapping == "masked":
            mask = np.arange(20)[:, None] < 16
            actual = moments(np.concatenate([x, np.full((4, 2), LARGEST)]), 0, mask=mask)
        elif mapping == "merged":
            actual = merge_moments(moments(x[:5], 0), moments(x[5:], 0))
        elif mapping == "vmap":
            local = partial(moments, axis=0, axis_name="data")
            actual = jax.vmap(local, axis_name="data", out_axes=None)(x.reshape(8, 2, 2))
        else:
            local = partial(moments, axis=0, axis_name="data")
            actual = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P()))(x)
        variance = exactly(x).var(0)
        np.testing.assert_allclose(actual.mean, exactly(x).mean(0), rtol=1e-5)
        np.testing.assert_allclose(actual.variance(), variance, rtol=1e-6)
        np.testing.assert_allclose(actual.variance(unbiased=True), variance * 16 / 15, rtol=1e-6)
        m2 = np.where(16 * variance > LARGEST, np.inf, 16 * variance)
        np.testing.assert_allclose(actual.m2, m2.astype(np.float64), rtol=1e-6)

    def test_the_mean_fits_wherever_the_values_do(self):
        x = np.float32([[3e38, 3e38, -3e38, 3e38], [1e-37, 3e-37, 2e-37, 1e-37]])
        np.testing.assert_allclose(moments(x, 1).mean, exactly(x).mean(1), rtol=1e-6)
        both = merge_moments(moments(x[:, :3], 1), moments(x[:, 3:], 1))
        np.testing.assert_allclose(both.mean, exactly(x).mean(1), rtol=1e-6)

    @pytest.mark.parametrize("size", [1e-17, 1e18])
    def test_derivatives(self, size):
        x = jnp.asarray(BASE * size, jnp.float32)
        deviations = exactly(x) - exactly(x).mean()

        def variance(x):
            both = merge_moments(moments(x[:4], 0), moments(x[4:], 0))
            return both.variance()

        for function in (variance, lambda x: moments(x, 0).variance()):
            assert_near(jax.jit(jax.grad(function))(x), deviations / 3, 1e-6)

    @pytest.mark.parametrize("size", [1e-17, 1e18])
    def test_normalize_merged_data(self, size):
        x, weight = jnp.asarray(BASE * size, jnp.float32), jnp.cos(jnp.arange(6.0))

        def loss(x):
            both = merge_moments(moments(x[:4], 0), moments(x[4:], 0))
            mean, variance = both.mean[None], both.variance()[None]
            y = normalize(x[:, None], mean, variance, epsilon=0.0)[:, 0]
            return jnp.sum(weight * y), y

        gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
        expected, inverse = by_definition(x, 0, 0.0)
        g = exactly(weight)
        assert_near(y, expected, 1e-6)
        assert_near(gradient, inverse * (g - g.mean() - expected * (expected * g).mean()), 1e-6)

    def test_are_made_of_three_numbers_or_specifications(self):
        given = Moments(jnp.asarray(4.0), jnp.asarray(1.0), jnp.asarray(6.0))
        assert float(given.variance()) == 1.5
        assert float(given.variance(unbiased=True)) == 2.0
        specifications = Moments(P(), P("data"), P())
        assert jax.tree.leaves(specifications, is_leaf=lambda p: isinstance(p, P)) == [
            P(),
            P("data"),
            P(),
            P(),
        ]
        assert jax.tree.leaves(jax.tree.map(lambda _: None, given)) == []


@pytest.mark.parametrize("mapping", ["vmap", "shard_map"])
def test_masked_and_mapped_batches(mapping, mesh):
    """A unit for all devices together: the first holds the largest values of feature 0."""
    sizes = np.where(np.arange(16)[:, None] < 2, [1e34, 1.0], [1e30, 1e-20])
    x = jnp.asarray(np.cos(np.arange(32.0)).reshape(16, 2) * sizes, jnp.float32)
    mask = jnp.arange(16) % 3 > 0
    stats, weight = init_batch_stats(2), jnp.sin(jnp.arange(32.0)).reshape(16, 2)

    def local(x, mask):
        return batch_norm(x, stats, training=True, mask=mask, axis_name="data")

    def loss(x):
        if mapping == "shard_map":
            specs = P("data"), (P("data"), P())
            mapped = jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1])
            y, new = mapped(x, mask)
        else:
            mapped = jax.vmap(local, out_axes=(0, None), axis_name="data")
            y, new = mapped(x.reshape(8, 2, 2), mask.reshape(8, 2))
        y = y.reshape(16, 2)
        return jnp.sum(weight * jnp.where(mask[:, None], y, 0)), (y, new)

    gradient, (y, new) = jax.jit(jax.grad(loss, has_aux=True))(x)
    inside = np.asarray(mask)
    expected, inverse = by_definition(x[inside], 0, 1e-5)
    assert_near(y[inside], expected, 1e-6, axis=0)
    g = exactly(weight[inside])
    along = (expected * g).mean(0)
    assert_near(gradient[inside], inverse * (g - g.mean(0) - expected * along), 1e-6, axis=0)
    np.testing.assert_array_equal(gradient[~inside], 0.0)
    variance = 0.9 + 0.1 * np.minimum(exactly(x[inside]).var(0), LARGEST * 10)
    np.testing.assert_allclose(new.var, np.minimum(variance, LARGEST), rtol=1e-6)


@jax.jit
@jax.grad
def gradient_of_whitened(x, size):
    weight = jnp.cos(jnp.arange(60.0)).reshape(20, 3)
    return jnp.sum(weight * whiten(x * size, epsilon=0.0))


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e15, 1e34])
def test_whiten(size):
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 3)) @ random.normal(size=(3, 3)) + 1.0
    small, scaled = jnp.asarray(x, jnp.float32), jnp.asarray(x * size, jnp.float32)
    centered = np.asarray(scaled, np.float64) / size
    centered -= centered.mean(0)
    covariance = centered.T @ centered / 20
    expected = centered @ np.linalg.inv(scipy.linalg.sqrtm(covariance))
    assert_near(whiten(scaled, epsilon=0.0), expected, 1e-5)
    if size > 1e-3:
        assert_near(whiten(scaled), expected, 1e-5)
    else:
        assert np.all(np.isfinite(whiten(scaled)))
    # The same function of x, whichever the size.
    assert_near(gradient_of_whitened(small, size), gradient_of_whitened(small, 1.0), 1e-4)


def test_a_condition_stays_one_under_vmap():
    """A conditional on a batch of flags would run both branches for the whole batch."""

    def conditions(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "cond":
                yield equation.invars[0].aval.shape
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from conditions(inner)

    x = jnp.ones((2, 3, 4, 6))
    for function in (layer_norm, jax.grad(lambda x: jnp.sum(layer_norm(x)))):
        mapped = jax.vmap(jax.vmap(function))
        found = list(conditions(jax.make_jaxpr(mapped)(x).jaxpr))
        # One for the kind of device, one for whether the data are ordinary.
        assert found == [(), ()]


def test_one_extraordinary_row_of_a_batch_is_enough():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    x[1] *= 1e-25
    rows = jnp.asarray(x)
    apart = jnp.stack([layer_norm(row, epsilon=0.0) for row in rows])
    together = jax.vmap(lambda row: layer_norm(row, epsilon=0.0))(rows)
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    np.testing.assert_allclose(jnp.std(together, 1), np.ones(3), rtol=1e-5)


class TestAccelerators:
    """They have no conditional to wait for, and give the same numbers."""

    def test_have_no_condition(self):
        def conditions(platform):
            lowered = traced.lower(lowering_platforms=(platform,))
            return lowered.as_text().count("stablehlo.case")

        traced = jax.jit(layer_norm).trace(jnp.ones((4, 6)))
        # The conditions that remain are on the kind of device, and constant.
        assert conditions("cuda") == conditions("tpu") == conditions("cpu") - 1

    def test_get_the_same_numbers(self, monkeypatch):
        sizes = [1e-30, 1e-12, 1e-3, 1.0, 1e4, 1e13, 1e30]
        x = jnp.asarray(np.outer(sizes, BASE), jnp.float32)

        def results():
            return [
                function(x, epsilon=epsilon)
                for function in (layer_norm, rms_norm)
                for epsilon in (0.0, 1e-5)
            ]

        on_cpu = results()
        monkeypatch.setattr(_measure, "_measure", _measure._measure.__wrapped__)
        monkeypatch.setattr(
            _measure.lax, "platform_dependent", lambda *args, default, **_: default(*args)
        )
        elsewhere = results()
        for ours, theirs in zip(on_cpu, elsewhere, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=3e-7)
