"""What every normalization guarantees: dtypes, degenerate data, and JAX's transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradtx.normalization import (
    batch_norm,
    group_norm,
    init_batch_stats,
    instance_norm,
    layer_norm,
    normalize,
    rms_norm,
    standardize,
    whiten,
)

FEATURES = 4


def batch_norm_in_training(x, scale=None, bias=None):
    return batch_norm(x, init_batch_stats(FEATURES), scale, bias, training=True)[0]


def batch_norm_in_evaluation(x, scale=None, bias=None):
    return batch_norm(x, init_batch_stats(FEATURES), scale, bias, training=False)[0]


def normalize_by_ones(x, scale=None, bias=None):
    return normalize(x, jnp.ones(FEATURES), jnp.ones(FEATURES), scale, bias)


WITH_SCALE = {
    "batch-training": batch_norm_in_training,
    "batch-evaluation": batch_norm_in_evaluation,
    "normalize": normalize_by_ones,
    "layer": layer_norm,
    "rms": rms_norm,
    "group": partial(group_norm, groups=2),
    "instance": instance_norm,
}
EVERY = WITH_SCALE | {
    "standardize": partial(standardize, axis=(0, 1)),
    "whiten": lambda x: whiten(x.reshape(-1, FEATURES)).reshape(x.shape),
}
with_scale = pytest.mark.parametrize("function", WITH_SCALE.values(), ids=WITH_SCALE)
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)


def example(dtype=jnp.float32, mean: float = 1.0, deviation: float = 1.0) -> jax.Array:
    """Seeded numbers of shape (2, 3, features)."""
    x = np.random.default_rng(0).normal(mean, deviation, (2, 3, FEATURES))
    return jnp.asarray(x, dtype)


def value_and_gradients(function):
    """The function, and the gradients of the sum of its squares, compiled together."""

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(jnp.square(y.astype(jnp.float32))), y

    def both(*arguments):
        gradients, y = jax.grad(loss, range(len(arguments)), has_aux=True)(*arguments)
        return y, gradients

    return jax.jit(both)


@with_scale
@pytest.mark.parametrize(
    ("dtype", "parameter_dtype", "roundings"),
    [
        (jnp.float16, jnp.float32, 0.51),
        (jnp.bfloat16, jnp.bfloat16, 0.51),
        (jnp.float32, jnp.float32, 4.0),
    ],
)
def test_low_precision_is_the_rounded_float64_result(function, dtype, parameter_dtype, roundings):
    # The squares of 300 overflow float16, and its sums are too coarse in both 16-bit dtypes.
    x = example(dtype, mean=300.0, deviation=20.0)
    scale = jnp.asarray([1.0, 2.0, -1.0, 0.5], parameter_dtype)
    bias = jnp.asarray([0.0, 1.0, -1.0, 0.5], parameter_dtype)
    y, gradients = value_and_gradients(function)(x, scale, bias)
    assert y.dtype == dtype
    assert [g.dtype for g in gradients] == [dtype, parameter_dtype, parameter_dtype]
    with jax.enable_x64(True):
        arguments = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias))
        exact = jax.jit(function)(*arguments)
        assert exact.dtype == jnp.float64
    rtol = roundings * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=rtol, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_constant_data_have_finite_values_and_gradients(function, dtype):
    compiled = value_and_gradients(function)
    for constant in (0.0, 7.0):
        y, (gradient,) = compiled(jnp.full((2, 3, FEATURES), constant, dtype))
        assert np.all(np.isfinite(np.asarray(y, np.float32)))
        assert np.all(np.isfinite(np.asarray(gradient, np.float32)))


@every
def test_transformations_of_jax_agree(function):
    def loss(x):
        return jnp.sum(jnp.sin(function(x)))

    x = example()
    batch = jnp.stack([x, 2.0 - x, 3.0 * x])
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)

    @jax.jit
    def by_itself(x):
        return function(x), jax.grad(loss)(x)

    @jax.jit
    def transformed(x, batch):
        values = function(x), jax.vmap(function)(batch)[0], jax.lax.map(function, batch)[0]
        gradients = jax.grad(jax.checkpoint(loss))(x), jax.vmap(jax.grad(loss))(batch)[0]
        return values, gradients, jax.jvp(loss, (x,), (x,))[1]

    expected, gradient = by_itself(x)
    values, gradients, tangent = transformed(x, batch)
    for value in values:
        close(value, expected)
    for one in gradients:
        close(one, gradient)
    close(tangent, np.vdot(gradient, x))


@every
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_other_numbers_are_refused(function, dtype):
    with pytest.raises(ValueError, match=f"x must hold real .* got dtype {np.dtype(dtype)}"):
        function(np.ones((2, 3, FEATURES), dtype))


def test_an_epsilon_may_be_traced():
    x = example()
    gradient = jax.jit(jax.grad(lambda e: jnp.sum(jnp.square(layer_norm(x, epsilon=e)))))(0.5)
    var = np.var(np.asarray(x, np.float64), -1)
    np.testing.assert_allclose(gradient, np.sum(-4 * var / (var + 0.5) ** 2), rtol=1e-5)


@pytest.mark.parametrize("spec", [P("rows"), P("rows", None, "features")], ids=str)
@pytest.mark.parametrize("name", ["layer", "rms", "instance"])
def test_explicit_layouts_are_kept(name, spec):
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 4), ("rows", "features"), axis_types=kinds)
    x = example()
    with jax.set_mesh(mesh):
        laid_out = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        y = jax.jit(EVERY[name])(laid_out)
        assert jax.typeof(y).sharding.spec == jax.typeof(laid_out).sharding.spec
    np.testing.assert_allclose(y, EVERY[name](x), rtol=1e-6, atol=1e-6)
