"""Layer, root-mean-square, group and instance normalization against NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gradtx.normalization import group_norm, instance_norm, layer_norm, rms_norm, standardize

close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)


def normal(seed: int, *shape: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """Seeded normal numbers in float64."""
    return np.random.default_rng(seed).normal(mean, deviation, shape)


def standard(x: np.ndarray, axis, epsilon: float, ddof: int = 0) -> np.ndarray:
    """The standard score in NumPy."""
    mean, var = x.mean(axis, keepdims=True), x.var(axis, keepdims=True, ddof=ddof)
    return (x - mean) / np.sqrt(var + epsilon)


@pytest.mark.usefixtures("x64")
class TestFloat64:
    @pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
    @pytest.mark.parametrize("axis", [-1, 0, (1, 2), (2, 0), (0, 1, 2)], ids=str)
    def test_layer_norm(self, axis, unbiased):
        x = normal(0, 3, 4, 5, mean=2.0)
        axes = np.sort(np.atleast_1d(axis) % 3)
        scale, bias = (normal(seed, *np.take(x.shape, axes)) for seed in (1, 2))
        others = tuple(set(range(3)) - set(axes.tolist()))
        y = layer_norm(x, scale, bias, axis=axis, epsilon=1e-3, unbiased=unbiased)
        expected = standard(x, axis, 1e-3, ddof=int(unbiased))
        close(y, expected * np.expand_dims(scale, others) + np.expand_dims(bias, others))

    @pytest.mark.parametrize("axis", [-1, 0, (1, 2), (2, 0)], ids=str)
    def test_rms_norm(self, axis):
        x = normal(0, 3, 4, 5, mean=2.0)
        axes = np.sort(np.atleast_1d(axis) % 3)
        scale, bias = (normal(seed, *np.take(x.shape, axes)) for seed in (1, 2))
        others = tuple(set(range(3)) - set(axes.tolist()))
        expected = x / np.sqrt((x**2).mean(axis, keepdims=True) + 1e-3)
        expected = expected * np.expand_dims(scale, others) + np.expand_dims(bias, others)
        close(rms_norm(x, scale, bias, axis=axis, epsilon=1e-3), expected)

    @pytest.mark.parametrize("axis", [0, -1, (0, 2)], ids=str)
    def test_standardize(self, axis):
        x = normal(0, 3, 4, 5, mean=2.0)
        close(standardize(x, axis), standard(x, axis, 1e-5))
        close(standardize(x, axis, epsilon=0.1), standard(x, axis, 0.1))

    @pytest.mark.parametrize("axis", [1, 2, -1], ids=str)
    @pytest.mark.parametrize("groups", [1, 2, 6])
    def test_group_norm(self, groups, axis):
        x, scale, bias = normal(0, 3, 6, 6, mean=2.0), normal(1, 6), normal(2, 6)
        moved = np.moveaxis(x, axis, -1)
        size = 6 // groups
        expected = np.concatenate(
            [
                standard(moved[..., i : i + size], (1, 2), 1e-3) * scale[i : i + size]
                + bias[i : i + size]
                for i in range(0, 6, size)
            ],
            axis=-1,
        )
        y = group_norm(x, scale, bias, groups=groups, axis=axis, epsilon=1e-3)
        close(y, np.moveaxis(expected, -1, axis))

    @pytest.mark.parametrize("axis", [1, -1, 2], ids=str)
    def test_instance_norm(self, axis):
        x = normal(0, 2, 3, 4, 5, mean=2.0)
        features = x.shape[axis]
        scale, bias = normal(1, features), normal(2, features)
        moved = np.moveaxis(x, axis, -1)
        expected = scale * standard(moved, (1, 2), 1e-3) + bias
        y = instance_norm(x, scale, bias, axis=axis, epsilon=1e-3)
        close(y, np.moveaxis(expected, -1, axis))

    def test_gradient_of_layer_norm_in_closed_form(self):
        x, weight = normal(0, 4, 7, mean=2.0), normal(1, 4, 7)
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(weight * layer_norm(x, epsilon=1e-3))))(x)
        deviation = np.sqrt(x.var(1, keepdims=True) + 1e-3)
        y = (x - x.mean(1, keepdims=True)) / deviation
        along_y = (weight * y).mean(1, keepdims=True)
        close(gradient, (weight - weight.mean(1, keepdims=True) - y * along_y) / deviation)

    @pytest.mark.parametrize(
        ("function", "order"),
        # The others are this one between changes of shape.
        [(layer_norm, 2), (rms_norm, 2), (partial(group_norm, groups=2), 1), (instance_norm, 1)],
        ids=["layer", "rms", "group", "instance"],
    )
    def test_first_and_second_derivatives_by_differences(self, function, order):
        arguments = normal(0, 2, 3, 4, mean=1.0), normal(1, 4), normal(2, 4)
        smooth = jax.jit(partial(function, epsilon=0.1))
        check_grads(smooth, jax.tree.map(jnp.asarray, arguments), order=order, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1], ids=str)
def test_large_mean_and_small_deviation_in_float32(axis):
    x = normal(0, *((10_000, 2) if axis == 0 else (2, 10_000)), mean=1e4, deviation=1e-1)
    x = x.astype(np.float32)
    y = jax.jit(partial(layer_norm, axis=axis, epsilon=0.0))(x)
    expected = standard(x.astype(np.float64), axis, 0.0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (layer_norm, {"axis": 3}, "axis must name .* rank 3, got 3"),
        (layer_norm, {"epsilon": -1.0}, r"epsilon .* got -1\.0"),
        (layer_norm, {"epsilon": float("nan")}, "epsilon .* got nan"),
        (layer_norm, {"scale": np.ones(3, np.float32)}, r"scale .*\(4,\).*got shape \(3,\)"),
        (layer_norm, {"bias": np.float32(1.0)}, r"bias .*\(4,\).*got shape \(\)"),
        (
            layer_norm,
            {"axis": (1, 2), "scale": np.ones(4, np.float32)},
            r"scale must have shape \(3, 4\).*got shape \(4,\)",
        ),
        (rms_norm, {"epsilon": float("inf")}, "epsilon .* got inf"),
        (rms_norm, {"scale": np.ones(3, np.float32)}, r"scale .*\(4,\).*got shape \(3,\)"),
        (group_norm, {"groups": 3}, "groups must divide the 4 features of x, got 3"),
        (group_norm, {"groups": 0}, "groups .* got 0"),
        (group_norm, {"groups": 2.0}, r"groups .* got 2\.0"),
        (group_norm, {"groups": 2, "axis": 0}, "axis must be .* other than 0.* got 0"),
        (group_norm, {"groups": 2, "axis": -3}, "axis must be .* other than 0.* got -3"),
        (
            group_norm,
            {"groups": 2, "scale": np.ones(2, np.float32)},
            r"scale .*\(4,\).*got shape \(2,\)",
        ),
        (instance_norm, {"axis": 0}, "axis must be .* other than 0.* got 0"),
        (instance_norm, {"x": np.ones((2, 4), np.float32)}, r"x must have .* got shape \(2, 4\)"),
        (standardize, {"axis": (0, 0)}, r"axis .* got \(0, 0\)"),
    ],
)
def test_wrong_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=f"^{function.__name__}: {message}"):
        function(**({"x": np.ones((2, 3, 4), np.float32)} | arguments))
