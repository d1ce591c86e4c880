"""Orthogonality, uniformity over the group, and convolutions that preserve lengths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradtx import initializers as gi

KEY = jax.random.key(4)


def rows_by_columns(kernel, column_axis):
    """The matrix of an array: `column_axis` last, every other axis flattened into rows."""
    columns_last = np.moveaxis(np.asarray(kernel, np.complex128), column_axis, -1)
    return columns_last.reshape(-1, columns_last.shape[-1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=["float32", "complex64"])
@pytest.mark.parametrize(
    ("shape", "column_axis"),
    [((8, 8), -1), ((12, 5), -1), ((5, 12), 1), ((12, 5), 0), ((3, 4, 5), 1), ((2, 3, 4, 9), -1)],
)
def test_singular_values(shape, column_axis, dtype):
    kernel = gi.orthogonal(1.7, column_axis)(KEY, shape, dtype)
    assert kernel.shape == shape
    assert kernel.dtype == dtype
    matrix = rows_by_columns(kernel, column_axis)
    gram = (
        matrix.conj().T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.conj().T
    )
    np.testing.assert_allclose(gram, 1.7**2 * np.eye(len(gram)), atol=5e-6)
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), 1.7, rtol=3e-6)


def test_float64():
    with jax.enable_x64(True):
        q = np.asarray(gi.orthogonal()(KEY, (20, 20)))
    assert q.dtype == np.float64
    np.testing.assert_allclose(q.T @ q, np.eye(20), atol=1e-14)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (3, 4, 5)])
@pytest.mark.parametrize("column_axis", [-1, 0])
def test_same_numbers_as_jax(shape, column_axis):
    ours = gi.orthogonal(2.0, column_axis)(KEY, shape)
    peers = jax.nn.initializers.orthogonal(2.0, column_axis)(KEY, shape)
    np.testing.assert_allclose(ours, peers, atol=1e-6)


def test_haar_moments():
    """Diaconis and Shahshahani (1994): traces of powers of a uniform orthogonal matrix.

    For size >= 2j, E[tr Qʲ] is 0 for odd j and 1 for even j, with variance j. Without the sign
    correction the diagonal is biased, and E[tr Q] far from 0.
    """
    draws = 20_000
    keys = jax.random.split(KEY, draws)
    q = np.asarray(jax.vmap(lambda key: gi.orthogonal()(key, (4, 4)))(keys))
    trace = np.trace(q, axis1=1, axis2=2)
    trace_of_square = np.trace(q @ q, axis1=1, axis2=2)
    assert abs(trace.mean()) < 5 / math.sqrt(draws)
    # tr Q has the moments of a standard normal up to the fourth at this size.
    assert abs((trace**2).mean() - 1) < 5 * math.sqrt(2 / draws)
    assert abs(trace_of_square.mean() - 1) < 5 * math.sqrt(2 / draws)
    # Reflections are as frequent as rotations.
    assert abs(np.linalg.det(q).mean()) < 5 / math.sqrt(draws)


def test_haar_columns_are_uniform_on_the_sphere():
    # One coordinate of a uniform point on the sphere in three dimensions is U[-1, 1].
    q = jax.vmap(lambda key: gi.orthogonal()(key, (3, 3)))(jax.random.split(KEY, 20_000))
    for row in range(3):
        for column in range(3):
            coordinate = np.asarray(q[:, row, column], np.float64)
            assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(7, 3, 4), (5, 4, 4), (3, 4, 2, 6), (2, 3, 4, 3, 3)])
def test_delta_orthogonal_keeps_lengths_under_convolution(shape):
    *taps, fan_in, _ = shape
    kernel = gi.delta_orthogonal(1.5)(KEY, shape)
    space = "DHW"[: len(taps)]
    x = jax.random.normal(jax.random.key(5), (2, *range(5, 5 + len(taps)), fan_in))
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[1] * len(taps),
        padding="SAME",
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        precision="highest",
    )
    lengths = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(np.asarray(y, np.float64), axis=-1), 1.5 * lengths, rtol=1e-5
    )
    peer = jax.nn.initializers.delta_orthogonal(1.5)(KEY, shape)
    np.testing.assert_allclose(kernel, peer, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3, 2)])
def test_identity_matrix(shape):
    np.testing.assert_array_equal(gi.identity(-2.0)(KEY, shape), -2.0 * np.eye(*shape))


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4, 4), (3, 5, 4, 4), (2, 3, 4, 4, 4)])
def test_identity_kernel_passes_its_input_on(shape):
    *taps, channels, _ = shape
    space = "DHW"[: len(taps)]
    x = jax.random.normal(KEY, (2, *range(5, 5 + len(taps)), channels))
    y = jax.lax.conv_general_dilated(
        x,
        gi.identity()(KEY, shape),
        window_strides=[1] * len(taps),
        padding="SAME",
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        precision="highest",
    )
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("init", [gi.orthogonal(), gi.delta_orthogonal(), gi.identity()])
@pytest.mark.parametrize("shape", [(3, 0, 2), (0, 2, 2), (2, 0, 0)])
def test_empty_kernels(init, shape):
    assert init(KEY, shape).shape == shape


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "message"),
    [
        ("orthogonal", (), (5,), r"two axes.* got shape=\(5,\) and column_axis=-1"),
        ("orthogonal", (), (), r"got shape=\(\)"),
        ("orthogonal", (1.0, 2), (5, 4), r"got shape=\(5, 4\) and column_axis=2"),
        ("delta_orthogonal", (1.0, 2), (3, 4, 4), r"got shape=\(4, 4\) and column_axis=2"),
        ("delta_orthogonal", (), (4, 4), r"3, 4 or 5 axes, got shape=\(4, 4\)"),
        ("delta_orthogonal", (), (1, 1, 1, 1, 4, 4), "3, 4 or 5 axes, got shape"),
        ("delta_orthogonal", (), (3, 5, 4), "got fan_in=5 and fan_out=4"),
        ("identity", (), (4,), r"2 to 5 axes, got shape=\(4,\)"),
        ("identity", (), (1, 1, 1, 1, 4, 4), "2 to 5 axes"),
    ],
)
def test_wrong_shapes(name, arguments, shape, message):
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        getattr(gi, name)(*arguments)(KEY, shape)


@pytest.mark.parametrize("build", [gi.orthogonal, gi.delta_orthogonal])
def test_negative_scale(build):
    message = rf"^{build.__name__}: scale must be a finite number >= 0, got -1\.0"
    with pytest.raises(ValueError, match=message):
        build(-1.0)
