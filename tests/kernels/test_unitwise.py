"""Norms and clipping unit by unit, against NumPy and against `adaptive_grad_clip`."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

AXES = {
    (): None,
    (4,): None,
    (1, 4): None,
    (4, 3): 0,
    (4, 2, 3): 0,
    (2, 3, 2, 2): (0, 1, 2),
    (2, 1, 3, 2, 2): (0, 1, 2, 3),
}


@pytest.mark.parametrize("shape", AXES, ids=str)
def test_norm_sums_over_what_feeds_a_unit(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.sqrt(np.sum(np.float64(x) ** 2, axis=AXES[shape], keepdims=True))
    norm = gradtx.unitwise_norm(jnp.asarray(x))
    np.testing.assert_allclose(norm, np.broadcast_to(expected, shape), rtol=1e-6)


def test_norm_along_given_axes_of_integers_and_of_complex_numbers():
    x = jnp.array([[3, 0], [4, 2]])
    np.testing.assert_allclose(gradtx.unitwise_norm(x, axis=1), [[3, 3], [20**0.5, 20**0.5]])
    norm = gradtx.unitwise_norm(jnp.array([3 + 4j, 12j], jnp.complex64))
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, [13, 13], rtol=1e-6)


def test_a_number_is_a_unit_of_its_own():
    assert gradtx.unitwise_norm(-2.5) == 2.5


def test_norm_leaves_the_range_of_half_precision_on_the_way_only():
    norm = gradtx.unitwise_norm(jnp.array([3e4, 4e4], jnp.float16))
    assert norm.dtype == jnp.float16
    np.testing.assert_allclose(norm, [5e4, 5e4], rtol=1e-3)
    np.testing.assert_allclose(gradtx.unitwise_norm(jnp.array([3e-30, 4e-30])), 5e-30, rtol=1e-6)


def test_more_than_five_axes_must_be_named():
    x = jnp.ones((1, 2, 1, 2, 1, 2))
    with pytest.raises(ValueError, match=r"unitwise_norm.*\(1, 2, 1, 2, 1, 2\).*axis"):
        gradtx.unitwise_norm(x)
    np.testing.assert_allclose(gradtx.unitwise_norm(x, axis=(1, 3)), 2 * np.ones(x.shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=["float32", "float16"])
def test_clip_is_that_of_adaptive_grad_clip(dtype):
    rng = np.random.default_rng(1)
    p, g = (jnp.asarray(rng.normal(size=(4, 3)), dtype) for _ in range(2))
    g = g * jnp.array([[0.001, 1.0, 10.0]], dtype)
    largest = 0.5 * jnp.maximum(gradtx.unitwise_norm(p), 1e-3)
    clipped = gradtx.unitwise_clip(gradtx.unitwise_norm(g), largest.astype(dtype), g)
    tx = gradtx.adaptive_grad_clip(0.5)
    expected, _ = tx.update(g, tx.init(p), p)
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(clipped[:, 0], g[:, 0])
    # In half precision the norms that are handed over are rounded too.
    tolerance = 1e-6 if dtype == jnp.float32 else 3e-3
    np.testing.assert_allclose(clipped, expected, rtol=tolerance)


def test_clip_divides_by_no_less_than_div_eps():
    norm, largest, g = jnp.full(2, 1e-3), jnp.full(2, 1e-4), jnp.array([6e-4, 8e-4])
    clipped = gradtx.unitwise_clip(norm, largest, g, div_eps=1e-2)
    np.testing.assert_allclose(clipped, [6e-6, 8e-6], rtol=1e-6)
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(gradtx.unitwise_clip(zero, zero, zero, div_eps=0.0), zero)


@pytest.mark.parametrize("name", ["g_norm", "max_norm"])
def test_clip_never_broadcasts(name):
    arguments = {"g_norm": jnp.ones(2), "max_norm": jnp.ones(2), "grad": jnp.ones(2)}
    with pytest.raises(ValueError, match=rf"{name}.*\(2,\).*\(1,\)"):
        gradtx.unitwise_clip(**arguments | {name: jnp.ones(1)})
