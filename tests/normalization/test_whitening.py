"""Whitening against the matrix square root of SciPy, and its derivative where others are NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from gradtx.normalization import whiten

close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)


def correlated(samples: int, features: int) -> np.ndarray:
    """Seeded correlated samples with mean 3 in float64."""
    random = np.random.default_rng(0)
    return 3.0 + random.normal(size=(samples, features)) @ random.normal(size=(features, features))


@pytest.mark.usefixtures("x64")
class TestFloat64:
    @pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
    def test_equals_the_inverse_of_the_matrix_square_root(self, epsilon):
        x = correlated(20, 4)
        covariance = np.cov(x, rowvar=False, bias=True) + epsilon * np.eye(4)
        expected = (x - x.mean(0)) @ np.linalg.inv(scipy.linalg.sqrtm(covariance))
        close(whiten(x, epsilon), expected)

    def test_whitened_samples_have_unit_covariance_and_stay_when_whitened_again(self):
        y = whiten(correlated(20, 4), epsilon=0.0)
        close(np.cov(y, rowvar=False, bias=True), np.eye(4))
        close(whiten(y, epsilon=0.0), y)

    def test_derivatives_by_differences(self):
        check_grads(jax.jit(whiten), (jnp.asarray(correlated(6, 3)), jnp.asarray(0.1)), order=1)

    @pytest.mark.parametrize("kind", ["all-equal", "two-equal", "constant", "few-samples"])
    def test_derivatives_by_differences_where_eigenvalues_coincide(self, kind):
        x = {
            # Rows +-e_i: the covariance is a multiple of the identity.
            "all-equal": np.concatenate([np.eye(3), -np.eye(3)]),
            "two-equal": np.concatenate([np.diag([1.0, 1.0, 2.0]), -np.diag([1.0, 1.0, 2.0])]),
            "constant": np.full((4, 3), 2.0),
            "few-samples": correlated(2, 3),
        }[kind]
        check_grads(jax.jit(partial(whiten, epsilon=0.1)), (jnp.asarray(x),), order=1)

    def test_gradient_where_that_of_eigenvectors_is_not_finite(self):
        x = jnp.asarray(np.concatenate([np.eye(3), -np.eye(3)]))
        weight = jnp.asarray(correlated(6, 3))

        def plainly(x):
            values, vectors = jnp.linalg.eigh(x.T @ x / 6 + 0.1 * jnp.eye(3))
            return jnp.sum(weight * (x @ (vectors / jnp.sqrt(values)[None, :]) @ vectors.T))

        def by_rule(x):
            return jnp.sum(weight * whiten(x, 0.1))

        assert not np.all(np.isfinite(jax.jit(jax.grad(plainly))(x)))
        assert np.all(np.isfinite(jax.jit(jax.grad(by_rule))(x)))


@pytest.mark.parametrize(("dtype", "digits"), [(jnp.float32, 5e-5), (jnp.float16, 1e-3)])
def test_lower_precisions_and_large_means(dtype, digits):
    x = jnp.asarray(correlated(50, 3) + 100.0, dtype)
    y = jax.jit(whiten)(x)
    assert y.dtype == dtype
    exact = np.asarray(x, np.float64)
    covariance = np.cov(exact, rowvar=False, bias=True) + 1e-5 * np.eye(3)
    expected = (exact - exact.mean(0)) @ np.linalg.inv(scipy.linalg.sqrtm(covariance))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=digits, atol=digits)


def test_rounding_below_zero_is_not_a_square_root_of_a_negative_number():
    # Rank one at scale 1e4: float32 leaves eigenvalues near -1, far beyond epsilon.
    x = jnp.asarray(1e4 * np.random.default_rng(0).normal(size=(8, 1)) @ np.ones((1, 5)), "float32")
    assert np.all(np.isfinite(whiten(x)))


def test_whiten_batches_under_vmap():
    x = jnp.asarray(np.stack([correlated(6, 3), 2.0 - correlated(6, 3)]), jnp.float32)
    np.testing.assert_allclose(jax.vmap(whiten)(x)[1], whiten(x[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "epsilon", "message"),
    [
        (np.ones((2, 3, 4), np.float32), 1e-5, r"x must have .* got shape \(2, 3, 4\)"),
        (np.ones((2, 3), np.int32), 1e-5, "x must hold real .* int32"),
        (np.ones((2, 3), np.float32), -1.0, r"epsilon .* got -1\.0"),
    ],
)
def test_wrong_arguments_are_named(x, epsilon, message):
    with pytest.raises(ValueError, match=f"^whiten: {message}"):
        whiten(x, epsilon)
