"""Random bits and stochastic rounding against statistics, enumeration and NumPy's dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradtx.precision.rounding import random_bits, round_stochastically

KEY = jax.random.key(7)
NARROW = [
    np.dtype(np.float16),
    *map(np.dtype, (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)),
]


def agreement(x, y):
    """How far from 1/2 the share of equal bits is at each of the 32 places, in deviations."""
    equal = np.unpackbits((~(x ^ y)).view(np.uint8).reshape(-1, 4), axis=1).mean(0)
    return np.abs(equal - 0.5) * 2 * np.sqrt(x.size)


def draw(step=0, leaf=0, shape=(256, 256), key=KEY):
    return np.asarray(random_bits(key, step, leaf, shape))


def test_bits_are_uniform():
    bits = draw(shape=(512, 512))
    assert bits.dtype == np.uint32
    for byte in range(4):
        counts = np.bincount((bits.ravel() >> 8 * byte) & 255, minlength=256)
        # Chi squared with 255 degrees of freedom has deviation 22.6.
        assert abs(((counts - 1024) ** 2 / 1024).sum() - 255) < 4.5 * 22.6
    assert agreement(bits, np.zeros_like(bits)).max() < 4.5


def test_each_number_occurs_once_in_a_leaf():
    assert np.unique(draw()).size == 256 * 256


@pytest.mark.parametrize(
    "other",
    [
        draw(step=1),
        draw(leaf=1),
        draw(step=2**30),
        draw(key=jax.random.key(8)),
        draw(key=jax.random.fold_in(KEY, 1)),
        draw().T.copy(),
        np.roll(draw(), 1, 0),
        np.roll(draw(), 1, 1),
        np.roll(draw(), 128, 0),
    ],
    ids=["step", "leaf", "later", "key", "folded", "axes", "row", "column", "half"],
)
def test_streams_and_neighbours_are_independent(other):
    bits = draw()
    assert agreement(bits, other).max() < 4.5
    centred = [x.ravel() / 2**32 - 0.5 for x in (bits, other)]
    assert abs(np.mean(centred[0] * centred[1]) * 12 * np.sqrt(bits.size)) < 4.5


def test_one_element_over_many_steps():
    steps = np.asarray(jax.vmap(lambda t: random_bits(KEY, t, 3, ()))(jnp.arange(2**14)))
    counts = np.bincount(steps >> 24, minlength=256)
    assert abs(((counts - 64) ** 2 / 64).sum() - 255) < 4.5 * 22.6
    assert agreement(steps[1:], steps[:-1]).max() < 4.5


def test_keys_of_either_kind():
    np.testing.assert_array_equal(draw(), draw(key=jax.random.key_data(KEY)))
    assert draw(key=jax.random.key(0, impl="rbg"), shape=(3,)).shape == (3,)


def test_a_leaf_of_more_than_32_bits_repeats_nothing():
    # XLA computes only the slices, of 2^33 elements.
    @jax.jit
    def corners(step):
        bits = random_bits(KEY, step, 0, (2, 2**16, 2**16))
        return bits[:, :64, :64], bits[:, 2**15 : 2**15 + 64, :64]

    here, there = map(np.asarray, corners(0))
    parts = [here[0], here[1], there[0], there[1]]
    for i, x in enumerate(parts):
        for y in parts[:i]:
            assert agreement(x, y).max() < 4.5


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_same_bits_on_every_sharding(kind):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spec = P("d", None)
        if kind is AxisType.Explicit:
            bits = jax.jit(lambda t: random_bits(KEY, t, 0, (256, 256), out_sharding=spec))(0)
        else:
            bits = jax.jit(
                lambda t: random_bits(KEY, t, 0, (256, 256)),
                out_shardings=NamedSharding(mesh, spec),
            )(0)
        assert bits.sharding.spec == spec
        np.testing.assert_array_equal(bits, draw())


def nonnegative(dtype):
    """All finite numbers of a narrow dtype that have no sign, in their order."""
    word = np.dtype(f"uint{8 * dtype.itemsize}")
    largest = np.asarray(ml_dtypes.finfo(dtype).max, dtype).view(word)
    return np.arange(int(largest) + 1).astype(word).view(dtype)


def rounded(x, dtype, bits):
    x, bits = np.broadcast_arrays(x, np.asarray(bits, np.uint32))
    result = jax.jit(round_stochastically, static_argnums=1)(x, dtype, bits)
    assert result.dtype == dtype
    return np.asarray(result)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [(wide, dtype) for wide in (np.float32, np.float64) for dtype in NARROW]
    + [(np.float64, np.dtype(np.float32))],
    ids=str,
)
def test_the_chance_of_rounding_up_is_exact(wide, narrow):
    with jax.enable_x64(wide == np.float64):
        if narrow == np.float32:
            down = np.float32(2.0) ** np.arange(-140, 127, dtype=np.float32)
            up = np.nextafter(down, np.float32(np.inf))
        else:
            down, up = nonnegative(narrow)[:-1], nonnegative(narrow)[1:]
        down, up = down.astype(np.float64), up.astype(np.float64)
        share = np.random.default_rng(0).uniform(size=down.size)
        x = (down + share * (up - down)).astype(wide)
        # XLA reads subnormal numbers of its wide dtype as zero wherever it calculates.
        kept = (x > np.finfo(wide).tiny) & (x < up)
        x, down, up = x[kept], down[kept], up[kept]
        count = np.floor((x - down) / (up - down) * 2.0**32)
        for sign in (1, -1):
            for bits, expected in ((2.0**32 - count, up), (2.0**32 - 1 - count, down)):
                expected = np.where(bits < 2**32, expected, down)
                bits = np.minimum(bits, 2.0**32 - 1)
                np.testing.assert_array_equal(rounded(sign * x, narrow, bits), sign * expected)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_what_is_exact_stays(dtype):
    word = np.dtype(f"uint{8 * dtype.itemsize}")
    for x in (nonnegative(dtype), -nonnegative(dtype)):
        for bits in (0, 2**31, 2**32 - 1):
            result = rounded(x.astype(np.float32), dtype, bits)
            np.testing.assert_array_equal(result.view(word), x.view(word))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_finite_numbers_stay_finite_and_others_are_cast(dtype):
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    beyond = np.array([np.nextafter(largest, np.inf), 3.4e38, -3.4e38], np.float32)
    expected = np.array([largest, largest, -largest])
    np.testing.assert_array_equal(rounded(beyond, dtype, 2**32 - 1).astype(np.float32), expected)
    special = np.array([np.inf, -np.inf, np.nan], np.float32)
    result = rounded(special, dtype, 2**32 - 1)
    expected = special.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(result.astype(np.float32), expected)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_mean_is_the_number(dtype):
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    small = [] if tiny < 1e-38 else [0.3 * tiny, 5.2 * tiny]
    for x in np.array([0.3, -1.7, 3.1415, *small], np.float32):
        results = rounded(x, dtype, draw()).astype(np.float64)
        steps = np.unique(results)
        assert steps.size == 2
        deviation = results.std() / np.sqrt(results.size)
        assert abs(results.mean() - np.float64(x)) < 4.5 * deviation


def test_other_dtypes_are_cast():
    x = jnp.array([1.0, -0.3])
    bits = jnp.full(2, 2**32 - 1, jnp.uint32)
    for dtype in (jnp.float32, jnp.float8_e4m3fnuz, jnp.complex64):
        np.testing.assert_array_equal(round_stochastically(x, dtype, bits), x.astype(dtype))
    z = jnp.array([1.0 + 2.0j, 0.5j])
    np.testing.assert_array_equal(round_stochastically(z, jnp.complex64, bits), z)
