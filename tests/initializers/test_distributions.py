"""The elementwise distributions against SciPy's and against jax.nn.initializers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradtx import initializers as gi

KEY = jax.random.key(0)
SHAPE = (1000, 100)

LAWS = {
    "uniform": (gi.uniform(0.3), stats.uniform(0, 0.3)),
    "uniform default": (gi.uniform(), stats.uniform(0, 0.01)),
    "uniform_symmetric": (gi.uniform_symmetric(0.3), stats.uniform(-0.3, 0.6)),
    "normal": (gi.normal(0.3), stats.norm(0, 0.3)),
    "normal default": (gi.normal(), stats.norm(0, 0.01)),
}


@pytest.mark.parametrize("name", LAWS)
def test_distribution(name, assert_distributed):
    init, law = LAWS[name]
    assert_distributed(init(KEY, SHAPE), law)


@pytest.mark.parametrize("name", LAWS)
def test_float64_uses_all_its_bits(name, assert_distributed):
    init, law = LAWS[name]
    with jax.enable_x64(True):
        samples = init(KEY, SHAPE, jnp.float64)
    assert samples.dtype == jnp.float64
    assert_distributed(samples, law)
    assert np.mean(np.asarray(samples, np.float32) != np.asarray(samples)) > 0.99


@pytest.mark.parametrize("name", LAWS)
def test_moments_in_bfloat16(name, assert_moments):
    init, law = LAWS[name]
    assert_moments(init(KEY, SHAPE, jnp.bfloat16), law)


@pytest.mark.parametrize("limit", [1e-3, 0.1, 7.0])
def test_uniform_bounds(limit):
    one_sided = np.asarray(gi.uniform(limit)(KEY, SHAPE))
    assert one_sided.min() >= 0
    assert 0.999 * limit < one_sided.max() < np.float32(limit)
    two_sided = np.asarray(gi.uniform_symmetric(limit)(KEY, SHAPE))
    assert -np.float32(limit) <= two_sided.min() < -0.999 * limit
    assert 0.999 * limit < two_sided.max() <= np.float32(limit)


def test_complex_normal_splits_its_variance(assert_distributed):
    samples = gi.normal(0.3)(KEY, SHAPE, jnp.complex64)
    assert_distributed(samples.real, stats.norm(0, 0.3 / math.sqrt(2)))
    assert_distributed(samples.imag, stats.norm(0, 0.3 / math.sqrt(2)))


@pytest.mark.parametrize("name", ["zeros", "ones"])
def test_zeros_and_ones(name):
    ours, peers = getattr(gi, name), getattr(jax.nn.initializers, name)
    for dtype in (None, jnp.bfloat16, jnp.int32, jnp.complex64):
        np.testing.assert_array_equal(ours(KEY, (2, 3), dtype), peers(KEY, (2, 3), dtype))
        assert ours(KEY, (2, 3), dtype).dtype == peers(KEY, (2, 3), dtype).dtype


@pytest.mark.parametrize("value", [0.01, -7, [1.0, 2.0, 3.0]], ids=["float", "int", "array"])
def test_constant(value):
    filled = gi.constant(jnp.asarray(value, jnp.float32))(KEY, (2, 3))
    np.testing.assert_array_equal(filled, np.broadcast_to(np.asarray(value, np.float32), (2, 3)))


PEERS = {
    "uniform": (gi.uniform(0.3), jax.nn.initializers.uniform(0.3)),
    "normal": (gi.normal(0.3), jax.nn.initializers.normal(0.3)),
}


@pytest.mark.parametrize("name", PEERS)
def test_same_numbers_as_jax(name):
    ours, peers = PEERS[name]
    np.testing.assert_allclose(ours(KEY, (50, 20)), peers(KEY, (50, 20)), rtol=3e-6, atol=1e-7)


INTERVALS = [
    (-2.0, 2.0),
    (-1, 3),
    (-0.01, 0.01),
    (-0.1, 2.7),
    (0.5, 0.75),
    (-math.inf, 0.5),
    (-4.0, 4.0),
    (-3.0, -1.5),
    (2.0, 4.0),
]


@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [
        *(("float32", bounds) for bounds in INTERVALS),
        *(("float64", bounds) for bounds in INTERVALS),
        # In float32 jax has only a few digits left there.
        ("float64", (2.5, 4.0)),
        ("float64", (-5.0, -3.0)),
    ],
    ids=str,
)
def test_truncated_normal_draws_the_same_numbers_as_jax(dtype, bounds):
    with jax.enable_x64(dtype == "float64"):
        for stddev, shape in ((1e-2, (50, 20)), (3.0, (7,)), (0.0, (7,))):
            arguments = (stddev, dtype, *bounds)
            ours = gi.truncated_normal(*arguments)(KEY, shape)
            peers = jax.nn.initializers.truncated_normal(*arguments)(KEY, shape)
            assert ours.dtype == peers.dtype == dtype
            digits = 1e-6 if dtype == "float32" else 1e-11
            np.testing.assert_allclose(ours, peers, rtol=digits, atol=digits**2)


def test_bounds_may_be_arrays_or_traced_as_in_jax():
    lower = jnp.asarray([-1.0, -0.5, 0.25])[None]

    def draw(library, lower):
        return library.truncated_normal(2.0, None, lower, 1.5)(KEY, (40, 3))

    expected = draw(jax.nn.initializers, lower)
    np.testing.assert_allclose(draw(gi, lower), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x: draw(gi, x))(lower), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^truncated_normal: exact_stddev needs .* concrete"):
        gi.truncated_normal(1.0, None, lower, exact_stddev=True)


def test_scales_may_be_arrays_as_in_jax():
    columns = jnp.asarray([0.5, 2.0, 0.0])[None]
    for name in ("uniform", "normal", "truncated_normal"):
        ours, peers = (getattr(lib, name)(columns) for lib in (gi, jax.nn.initializers))
        np.testing.assert_allclose(ours(KEY, (5, 3)), peers(KEY, (5, 3)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"^normal: stddev must be a finite number >= 0"):
        gi.normal(-columns)


# In the tails, float32 arithmetic on Φ near 1 breaks down, and with infinite bounds on Φ⁻¹(0).
BOUNDS = {
    "default": (-2.0, 2.0),
    "wide": (-40.0, 40.0),
    "narrow": (-0.01, 0.01),
    "asymmetric": (-1.0, 3.0),
    "half line": (0.0, math.inf),
    "lower half line": (-math.inf, 0.5),
    "whole line": (-math.inf, math.inf),
    "off center": (0.5, 0.75),
    "upper tail": (4.0, 5.0),
    "lower tail": (-math.inf, -3.0),
    "far upper tail": (10.0, math.inf),
    "far lower tail": (-12.5, -12.0),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("exact", [False, True], ids=["before truncation", "of the samples"])
def test_truncated_normal_has_the_deviation_asked_for(name, exact, assert_distributed):
    lower, upper = BOUNDS[name]
    init = gi.truncated_normal(0.3, None, lower, upper, exact_stddev=exact)
    samples = np.asarray(init(KEY, SHAPE))
    assert np.isfinite(samples).all()
    deviation = stats.truncnorm(lower, upper).std()
    scale = 0.3 / deviation if exact else 0.3
    assert_distributed(samples, stats.truncnorm(lower, upper, scale=scale))
    # The deviation's standard error, with the kurtosis of an exponential tail, the heaviest here.
    expected = scale * deviation
    assert abs(samples.std() - expected) < 5 * expected * math.sqrt((9 - 1) / 4 / samples.size)
    rounding = 1 + 4 * np.finfo(np.float32).eps
    assert samples.min() >= scale * lower * rounding ** -np.sign(lower)
    assert samples.max() <= scale * upper * rounding ** np.sign(upper)


def test_bounds_may_be_arrays():
    init = gi.truncated_normal(0.3, None, jnp.float32(-1.0), np.float64(2.0))
    expected = gi.truncated_normal(0.3, None, -1, 2)(KEY, (5,))
    np.testing.assert_array_equal(init(KEY, (5,)), expected)


def test_infinite_bounds_give_finite_numbers():
    # Among this many float32 uniforms is one that is exactly 0, where Φ⁻¹ is infinite.
    init = gi.truncated_normal(1.0, None, -math.inf, math.inf)
    assert 5 < abs(np.asarray(init(KEY, (2**23,)))).max() < 6


@pytest.mark.parametrize("exact", [False, True], ids=["before truncation", "of the samples"])
def test_truncated_normal_reaches_its_bounds(exact):
    samples = np.asarray(gi.truncated_normal(1.0, exact_stddev=exact)(KEY, SHAPE))
    bound = 2 / stats.truncnorm(-2, 2).std() if exact else 2
    assert 0.999 * bound < samples.max() < np.float32(bound)
    assert 0.999 * bound < -samples.min() < np.float32(bound)


HALF_OPEN = {
    "uniform": (lambda scale: gi.uniform(scale), 0.0, 1.0),
    "uniform_symmetric": (lambda scale: gi.uniform_symmetric(scale), -1.0, 1.0),
    "truncated_normal": (lambda scale: gi.truncated_normal(scale, None, -0.5, 1.0), -0.5, 1.0),
    "lecun_uniform": (lambda scale: gi.variance_scaling(scale**2, "fan_in", "uniform"), -3, 3),
    "lecun_normal": (
        lambda scale: gi.variance_scaling(scale**2, "fan_in", "truncated_normal"),
        -4 / stats.truncnorm(-2, 2).var(),
        4 / stats.truncnorm(-2, 2).var(),
    ),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float32", "float64"])
@pytest.mark.parametrize("name", HALF_OPEN)
def test_no_dtype_rounds_to_a_bound(name, dtype):
    """Neither if the dtype contains the bound, nor if it lies between two of its numbers."""
    build, lower, upper = HALF_OPEN[name]
    if name.startswith("lecun"):  # of 3,000 inputs
        lower, upper = (math.copysign(math.sqrt(abs(b) / 3000), b) for b in (lower, upper))
    with jax.enable_x64(dtype == "float64"):
        for scale in (1.0, 0.3, 7.0):
            samples = build(scale)(KEY, (3000, 10), dtype)
            step = float(jnp.finfo(samples.dtype).eps)
            samples = np.asarray(samples, np.float64)
            assert lower * scale <= samples.min()
            assert (1 - 2e-3 - 2 * step) * upper * scale < samples.max() < upper * scale


def test_where_a_dtype_has_no_number_between_the_bounds():
    np.testing.assert_array_equal(gi.uniform(0.0)(KEY, (3,), jnp.bfloat16), 0.0)
    np.testing.assert_array_equal(gi.truncated_normal(0.0)(KEY, (3,), jnp.bfloat16), 0.0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("uniform", (-0.1,), "scale must be a finite number >= 0, got -0.1"),
        ("uniform_symmetric", (-1,), "limit must be a finite number >= 0, got -1"),
        ("uniform_symmetric", (math.inf,), "limit must be .* got inf"),
        ("normal", (math.nan,), "stddev must be a finite number >= 0, got nan"),
        ("truncated_normal", (-2.0,), "stddev must be .* got -2.0"),
        ("truncated_normal", (1.0, None, 2.0, 2.0), "got lower=2.0 and upper=2.0"),
        ("truncated_normal", (1.0, None, 3.0, -3.0), "lower must be below upper"),
        ("truncated_normal", (1.0, None, math.nan, 1.0), "got lower=nan and upper=1.0"),
        ("truncated_normal", (1.0, None, 13.0, 14.0), "within 12 of zero, got lower=13.0"),
        ("truncated_normal", (1.0, None, -14.0, -13.0), "within 12 of zero, got lower=-14"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        getattr(gi, name)(*arguments)


@pytest.mark.parametrize(
    "init", [gi.uniform(), gi.uniform_symmetric(0.1), gi.normal()], ids=["uniform", "sym", "normal"]
)
def test_random_integers_are_refused(init):
    with pytest.raises(ValueError, match="dtype"):
        init(KEY, (2, 3), jnp.int32)


def test_scale_may_be_traced():
    def draw(stddev):
        return gi.normal(stddev)(KEY, (4, 3))

    stacked = jax.jit(jax.vmap(draw))(jnp.asarray([0.1, 0.2]))
    np.testing.assert_allclose(stacked[1], draw(0.2), rtol=1e-6)
    np.testing.assert_allclose(stacked[0], draw(0.1), rtol=1e-6)


def test_symmetric_uniform_reaches_its_lower_limit_and_not_its_upper_one():
    draw = gi.uniform_symmetric(0.5)(jax.random.key(0), (4096,), jnp.bfloat16)
    assert jnp.min(draw) == -0.5
    assert jnp.max(draw) < 0.5
