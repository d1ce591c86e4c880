"""Checks of schedules, initializers and normalizations: what they find, and what they let pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import initializers, normalization
from gradtx.testing import (
    ConformanceError,
    check_initializer,
    check_normalization,
    check_schedule,
)

SCHEDULES = {
    "constant_schedule": optax.constant_schedule(0.1),
    "cosine_decay_schedule": optax.cosine_decay_schedule(0.1, 100),
    "cosine_onecycle_schedule": optax.cosine_onecycle_schedule(100, 0.1),
    "exponential_decay": optax.exponential_decay(0.1, 10, 0.9, 5, True, 0.01),
    "join_schedules": optax.join_schedules(
        [optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0.0, 50)], [20]
    ),
    "linear_onecycle_schedule": optax.linear_onecycle_schedule(100, 0.1),
    "linear_schedule": optax.linear_schedule(0.1, 0.0, 50),
    "piecewise_constant_schedule": optax.piecewise_constant_schedule(0.1, {10: 0.5, 50: 0.1}),
    "piecewise_interpolate_schedule": optax.piecewise_interpolate_schedule(
        "cosine", 0.1, {10: 0.5, 50: 0.1}
    ),
    "polynomial_schedule": optax.polynomial_schedule(0.1, 0.0, 2, 50),
    "sgdr_schedule": optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": 0.1, "decay_steps": 50, "warmup_steps": 10}] * 2
    ),
    "warmup_constant_schedule": optax.warmup_constant_schedule(0.0, 0.1, 10),
    "warmup_cosine_decay_schedule": optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100),
    "warmup_exponential_decay_schedule": optax.warmup_exponential_decay_schedule(
        0.0, 0.1, 10, 10, 0.9
    ),
}


@pytest.fixture
def usual_promotion():
    """Let dtypes be promoted, as optax's schedules need it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_optax_pass(name):
    check_schedule(SCHEDULES[name])


def test_all_schedules_of_optax_are_tried():
    named = {name for name in gradtx.schedules.__all__ if name.endswith(("schedule", "decay"))}
    assert named - {"Schedule"} <= {*SCHEDULES, "join_schedules"}


calls = []

BROKEN_SCHEDULES = {
    "calls: expected one real number at 0, got float32[1]": lambda c: jnp.full([1], 0.1),
    "calls: expected one real number at 0, got bool[]": lambda c: c > 3,
    "calls: expected 0.0 at 0 in a second call, got 1.0": lambda c: (
        calls.append(c) or jnp.float32(len(calls) - 1)
    ),
    "counts: expected 0.05000000074505806 at 1 for a float32, got 0.10000000149011612": lambda c: (
        0.1 if jnp.issubdtype(jnp.result_type(c), jnp.floating) else 0.1 / (1 + jnp.float32(c))
    ),
    "jit: expected a compiled schedule to run, got a decision in Python": lambda c: (
        0.1 if c < 50 else 0.01
    ),
    "finite: expected the value at 101 that is finite, got nan": lambda c: jnp.sqrt(
        100 - jnp.asarray(c, jnp.float32)
    ),
}


@pytest.mark.parametrize("says", BROKEN_SCHEDULES)
def test_mistakes_of_schedules_are_found(says):
    with pytest.raises(ConformanceError) as caught:
        check_schedule(BROKEN_SCHEDULES[says])
    assert str(caught.value).startswith(says)


INITIALIZERS = {
    "constant": (lambda: initializers.constant(3.0), 3.0, 0.0),
    "glorot_uniform": (initializers.glorot_uniform, 0.0, (2 / 128) ** 0.5),
    "identity": (initializers.identity, None, None),
    "normal": (lambda: initializers.normal(0.1), 0.0, 0.1),
    "orthogonal": (initializers.orthogonal, 0.0, 0.125),
    "truncated_normal": (lambda: initializers.truncated_normal(exact_stddev=True), 0.0, 0.01),
    "uniform": (lambda: initializers.uniform(1.0), 0.5, 12**-0.5),
    "uniform_symmetric": (lambda: initializers.uniform_symmetric(0.3), 0.0, 0.3 / 3**0.5),
    "variance_scaling": (
        lambda: initializers.variance_scaling(2.0, "fan_in", "truncated_normal"),
        0.0,
        (2 / 64) ** 0.5,
    ),
    "zeros": (lambda: initializers.zeros, 0.0, 0.0),
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_pass(name):
    make, mean, stddev = INITIALIZERS[name]
    check_initializer(make(), (64, 64), mean=mean, stddev=stddev)


def draw(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


BROKEN_INITIALIZERS = {
    "calls: expected the result of type float32[16, 24], got float32[24, 16]": (
        lambda k, s, d=jnp.float32: draw(k, s[::-1], d)
    ),
    "dtypes: expected the result for bfloat16 of type bfloat16": lambda k, s, d=None: draw(k, s),
    "dtypes: expected numbers with the digits of float64, got those of float32": (
        lambda k, s, d=jnp.float32: draw(k, s).astype(d)
    ),
    "keys: expected other numbers for another key, got the same": lambda k, s, d=jnp.float32: draw(
        jax.random.key(0), s, d
    ),
    "keys: expected rows that differ, got two that are the same": lambda k, s, d=jnp.float32: (
        jnp.broadcast_to(draw(k, (1, *s[1:]), d), s)
    ),
    "keys: expected columns that differ, got two that are the same": lambda k, s, d=jnp.float32: (
        jnp.broadcast_to(draw(k, (*s[:-1], 1), d), s)
    ),
    "jit: expected the result for key 0 of a batch to be": lambda k, s, d=jnp.float32: (
        draw(k, s, d) * (2 if isinstance(k, jax.core.Tracer) else 1)
    ),
}


@pytest.mark.parametrize("says", BROKEN_INITIALIZERS)
def test_mistakes_of_initializers_are_found(says):
    with pytest.raises(ConformanceError) as caught:
        check_initializer(BROKEN_INITIALIZERS[says])
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(("moment", "value"), [("mean", 0.1), ("stddev", 1.1)])
def test_wrong_moments_of_initializers_are_found(moment, value):
    with pytest.raises(ConformanceError, match=f"^moments: expected a {moment} of {value}, got"):
        check_initializer(draw, (64, 64), **{moment: value})


def batch_norm(x, mask=None):
    features = jnp.shape(x)[-1]
    stats = normalization.init_batch_stats(features)
    return normalization.batch_norm(x, stats, training=True, mask=mask)[0]


def in_parts(parts):
    moments = [normalization.moments(part, 0) for part in parts]
    both = normalization.merge_moments(*moments)
    return [normalization.normalize(part, both.mean, both.var) for part in parts]


def test_normalizations_pass():
    check_normalization(normalization.layer_norm)
    check_normalization(normalization.rms_norm, centers=False)
    check_normalization(
        lambda x: normalization.standardize(x, 0), (8, 3), axes=0, in_parts=in_parts
    )
    check_normalization(batch_norm, (8, 3), axes=0, mask="mask")


def plain(x, eps=1e-5, dtype=None):
    wide = x.astype(dtype or (jnp.float32 if x.dtype.itemsize < 4 else x.dtype))
    centered = wide - jnp.mean(wide, -1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + jnp.asarray(eps, wide.dtype))
    return (centered * scale).astype(x.dtype)


def without_gradient_of_the_scale(x):
    wide = x.astype(jnp.float32 if x.dtype.itemsize < 4 else x.dtype)
    centered = wide - jnp.mean(wide, -1, keepdims=True)
    return (centered * jax.lax.stop_gradient(plain(wide) / centered)).astype(x.dtype)


BROKEN_NORMALIZATIONS = {
    "calls: expected the result of type bfloat16": lambda x: plain(x).astype(jnp.float32),
    "statistics: expected the mean of the result to be 0": lambda x: (
        plain(x) + jnp.ones([], x.dtype)
    ),
    "statistics: expected the mean square of the result to be 1": lambda x: plain(x, 0.1),
    "half_precision: expected the result in bfloat16 to be": lambda x: plain(x, dtype=x.dtype),
    "half_precision: expected the result for large numbers in float16 to be": lambda x: plain(
        x * jnp.asarray(2, x.dtype)
    ),
    "gradients: expected the slope of the result, from differences in float64, to be": (
        without_gradient_of_the_scale
    ),
    "zeros: expected results for 0 everywhere, in float32, that are finite": lambda x: plain(
        x, 0.0
    ),
    "jit: expected the compiled result to be": lambda x: (
        2 * plain(x) if type(x).__name__ == "DynamicJaxprTracer" else plain(x)
    ),
}


@pytest.mark.parametrize("says", BROKEN_NORMALIZATIONS)
def test_mistakes_of_normalizations_are_found(says):
    with pytest.raises(ConformanceError) as caught:
        check_normalization(BROKEN_NORMALIZATIONS[says])
    assert next(iter(caught.value.causes)) == says.split(":")[0]
    assert str(caught.value).startswith(says)


def test_mistakes_with_masks_and_parts_are_found():
    with pytest.raises(ConformanceError, match=r"^mask: expected the result beside masked"):
        check_normalization(lambda x, mask=None: plain(x), mask="mask")
    with pytest.raises(ConformanceError, match=r"^parts: expected the results of parts to be"):
        check_normalization(
            lambda x: normalization.standardize(x, 0),
            (8, 3),
            axes=0,
            in_parts=lambda parts: [normalization.standardize(part, 0) for part in parts],
        )


@pytest.mark.parametrize(
    ("check", "argument"),
    [(check_schedule, "schedule"), (check_initializer, "init"), (check_normalization, "normalize")],
)
def test_what_is_no_function_is_refused(check, argument):
    says = f"{check.__name__}: {argument} must be a function, got 3"
    with pytest.raises(ValueError, match=says):
        check(3)


def test_a_complex_dtype_may_be_refused_and_is_kept_otherwise():
    def refusing(key, shape, dtype=jnp.float32):
        if np.issubdtype(dtype, np.complexfloating):
            raise ValueError("only real numbers")
        return draw(key, shape, dtype)

    def dropping(key, shape, dtype=jnp.float32):
        return draw(key, shape, jnp.float32 if dtype == jnp.complex64 else dtype)

    check_initializer(refusing)
    with pytest.raises(ConformanceError, match=r"^dtypes: expected the result for complex64"):
        check_initializer(dropping)


CHOOSING = {
    "check_schedule": (check_schedule, lambda count: jnp.sqrt(-jnp.float32(count)), "finite"),
    "check_initializer": (
        check_initializer,
        lambda k, s, d=jnp.float32: draw(jax.random.key(0), s, d),
        "keys",
    ),
    "check_normalization": (check_normalization, lambda x: plain(x, 0.0), "zeros"),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_clauses_are_chosen_by_name(name):
    check, function, broken = CHOOSING[name]
    with pytest.raises(ConformanceError) as caught:
        check(function, clauses=["calls", broken])
    assert list(caught.value.failures) == [broken]
    check(function, skip=[broken])
    check(function, clauses=[broken], skip=[broken])
    for argument in ("clauses", "skip"):
        says = rf"^{name}: {argument} has the unknown names .'jot'.; there are .*'jit'"
        with pytest.raises(ValueError, match=says):
            check(function, **{argument: ["jot"]})
    assert f'"{broken}"' in str(check.__doc__)
