"""What holds for every initializer: signature, dtypes, devices, and use by other libraries."""

import inspect
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from gradtx import initializers as gi
from gradtx.initializers.initializer import rescale

KEY = jax.random.key(6)
SHAPE = (16, 8)

FACTORIES = {
    "constant": lambda dtype: gi.constant(0.3, dtype),
    "uniform": lambda dtype: gi.uniform(0.3, dtype),
    "uniform_symmetric": lambda dtype: gi.uniform_symmetric(0.3, dtype),
    "normal": lambda dtype: gi.normal(0.3, dtype),
    "truncated_normal": lambda dtype: gi.truncated_normal(0.3, dtype),
    "truncated_normal tail": lambda dtype: gi.truncated_normal(0.3, dtype, 2.0, math.inf),
    "variance_scaling": lambda dtype: gi.variance_scaling(1.0, "fan_out", "normal", dtype=dtype),
    "lecun_normal": lambda dtype: gi.lecun_normal(dtype=dtype),
    "lecun_uniform": lambda dtype: gi.lecun_uniform(dtype=dtype),
    "glorot_normal": lambda dtype: gi.glorot_normal(dtype=dtype),
    "glorot_uniform": lambda dtype: gi.glorot_uniform(dtype=dtype, count_bias=True),
    "he_normal": lambda dtype: gi.he_normal(dtype=dtype),
    "he_uniform": lambda dtype: gi.he_uniform(dtype=dtype),
    "orthogonal": lambda dtype: gi.orthogonal(0.3, dtype=dtype),
    "identity": lambda dtype: gi.identity(0.3, dtype),
    "bias_normal": lambda dtype: gi.bias_normal(8, dtype),
    "small_random": lambda dtype: gi.small_random(0.3, dtype),
}
INITIALIZERS = {
    "zeros": gi.zeros,
    "ones": gi.ones,
    **{name: build(None) for name, build in FACTORIES.items()},
}


# The largest absolute values, for 16 inputs and 8 outputs.
WIDTH = 2 / stats.truncnorm(-2, 2).std()
BOUNDS = {
    "uniform": 0.3,
    "uniform_symmetric": 0.3,
    "truncated_normal": 0.6,
    "lecun_normal": WIDTH * math.sqrt(1 / 16),
    "lecun_uniform": math.sqrt(3 / 16),
    "glorot_normal": WIDTH * math.sqrt(2 / 24),
    "glorot_uniform": math.sqrt(6 / 25),
    "he_normal": WIDTH * math.sqrt(2 / 16),
    "he_uniform": math.sqrt(6 / 16),
}


def test_every_public_initializer_is_here():
    covered = {name.split()[0] for name in INITIALIZERS}
    elsewhere = {"Initializer", "compute_fans", "delta_orthogonal"}
    aliases = {f"{rule}_{kind}" for rule in ("xavier", "kaiming") for kind in ("normal", "uniform")}
    assert covered | elsewhere | aliases == set(gi.__all__)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_signature(name):
    parameters = inspect.signature(INITIALIZERS[name]).parameters
    peers = inspect.signature(jax.nn.initializers.normal()).parameters
    assert [p.name for p in parameters.values()] == [p.name for p in peers.values()]
    assert [p.default for p in parameters.values()] == [p.default for p in peers.values()]
    assert isinstance(INITIALIZERS[name], gi.Initializer)


SHARED_NAMES = sorted(set(gi.__all__) & set(dir(jax.nn.initializers)) - {"Initializer"})


def test_shared_names():
    missing = set(dir(jax.nn.initializers)) - set(gi.__all__)
    assert {name for name in missing if not name.startswith("_")} <= {"compute_fans"}


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_arguments_are_those_of_jax(name):
    ours = list(inspect.signature(getattr(gi, name)).parameters.values())
    peers = list(inspect.signature(getattr(jax.nn.initializers, name)).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(peers)]] == [(p.name, p.default) for p in peers]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(peers) :])


@pytest.mark.parametrize("name", INITIALIZERS)
def test_default_dtype(name):
    assert INITIALIZERS[name](KEY, SHAPE).dtype == jnp.float32
    assert INITIALIZERS[name](KEY, SHAPE, None).dtype == jnp.float32
    with jax.enable_x64(True):
        assert INITIALIZERS[name](KEY, SHAPE).dtype == jnp.float64
        assert INITIALIZERS[name](KEY, SHAPE, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("name", FACTORIES)
def test_dtype_of_the_factory(name):
    assert FACTORIES[name](jnp.bfloat16)(KEY, SHAPE).dtype == jnp.bfloat16
    assert FACTORIES[name](jnp.bfloat16)(KEY, SHAPE, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn], ids=["bfloat16", "float16", "float8"]
)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_low_precision_is_rounded_once(name, dtype):
    low = INITIALIZERS[name](KEY, SHAPE, dtype)
    assert low.dtype == dtype
    expected = np.asarray(INITIALIZERS[name](KEY, SHAPE, jnp.float32).astype(dtype))
    # A number that would be rounded beyond a bound is the last one before it, one step away.
    rounds_beyond = np.abs(expected.astype(np.float64)) >= BOUNDS.get(name, math.inf)
    one_step = np.asarray(jax.lax.nextafter(expected, np.zeros_like(expected)))
    np.testing.assert_array_equal(np.asarray(low), np.where(rounds_beyond, one_step, expected))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_empty_shape(name):
    for shape in ((0, 3), (3, 0)):
        empty = INITIALIZERS[name](KEY, shape, jnp.bfloat16)
        assert empty.shape == shape
        assert empty.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", INITIALIZERS)
def test_shape_may_be_a_list(name):
    np.testing.assert_array_equal(
        INITIALIZERS[name](KEY, list(SHAPE)), INITIALIZERS[name](KEY, SHAPE)
    )


def test_shape_may_be_an_integer():
    # As jax's zeros take it.
    for name in ("zeros", "constant", "normal"):
        ours = INITIALIZERS[name](KEY, np.int64(5))
        np.testing.assert_array_equal(ours, INITIALIZERS[name](KEY, (5,)))


RANDOM = sorted(set(INITIALIZERS) - {"zeros", "ones", "constant", "identity"})


@pytest.mark.parametrize("name", RANDOM)
def test_key_decides(name):
    first, again = (np.asarray(INITIALIZERS[name](KEY, SHAPE)) for _ in range(2))
    other = np.asarray(INITIALIZERS[name](jax.random.key(7), SHAPE))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    legacy = INITIALIZERS[name](jax.random.PRNGKey(6), SHAPE)
    np.testing.assert_array_equal(first, legacy)


def assert_same_numbers(placed, expected):
    """Equal up to the last few bits, which a compiler may round differently."""
    tolerance = 4 * np.finfo(np.float32).eps
    np.testing.assert_allclose(
        placed, expected, rtol=tolerance, atol=tolerance * abs(expected).max()
    )


# One of each sampler; the others are based on these.
SAMPLERS = [
    "zeros",
    "uniform",
    "normal",
    "truncated_normal",
    "truncated_normal tail",
    "glorot_uniform",
    "he_normal",
    "orthogonal",
    "identity",
]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_same_numbers_on_any_layout(name, kind):
    init = INITIALIZERS[name]
    expected = np.asarray(init(KEY, SHAPE))
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
    spec = PartitionSpec("rows", "columns")
    sharding = NamedSharding(mesh, spec)

    compiled = jax.jit(lambda key: init(key, SHAPE), out_shardings=sharding)(KEY)
    named = init(KEY, SHAPE, None, sharding)
    with jax.set_mesh(mesh):
        by_spec = init(KEY, SHAPE, None, spec)
        by_spec_compiled = jax.jit(lambda key: init(key, SHAPE, None, spec))(KEY)
        without = init(KEY, SHAPE)
    for placed in (compiled, named, by_spec, by_spec_compiled):
        assert placed.sharding.is_equivalent_to(sharding, placed.ndim)
        assert_same_numbers(placed, expected)
    assert_same_numbers(without, expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_compiled_and_eager_are_identical(name):
    init, shape = INITIALIZERS[name], (333, 77)
    compiled = jax.jit(lambda key: init(key, shape))(KEY)
    np.testing.assert_array_equal(compiled, init(KEY, shape))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_traced_scale_on_a_mesh(kind):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        draw = jax.jit(lambda stddev: gi.normal(stddev)(KEY, SHAPE, None, PartitionSpec("rows")))
        assert_same_numbers(draw(0.3), np.asarray(gi.normal(0.3)(KEY, SHAPE)))


def test_complex_numbers_on_any_layout():
    mesh = jax.make_mesh((8,), ("rows",))
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    for distribution in ("uniform", "normal", "truncated_normal"):
        init = gi.variance_scaling(1.0, "fan_in", distribution)
        placed = init(KEY, SHAPE, jnp.complex64, sharding)
        assert placed.sharding.is_equivalent_to(sharding, 2)
        assert_same_numbers(placed, np.asarray(init(KEY, SHAPE, jnp.complex64)))


@pytest.mark.parametrize("name", RANDOM)
def test_flax_linen_takes_it(name):
    model = nn.Dense(8, kernel_init=INITIALIZERS[name], bias_init=gi.constant(0.01))
    params = model.init(KEY, jnp.ones((1, 16)))["params"]
    peer = nn.Dense(8, kernel_init=lambda key, shape, dtype: INITIALIZERS[name](key, shape, dtype))
    np.testing.assert_array_equal(
        params["kernel"], peer.init(KEY, jnp.ones((1, 16)))["params"]["kernel"]
    )
    np.testing.assert_array_equal(params["bias"], np.full(8, 0.01, np.float32))


def test_flax_linen_attention_and_convolution_take_it():
    attention = nn.MultiHeadDotProductAttention(num_heads=4, kernel_init=gi.glorot_uniform())
    x = jnp.ones((1, 5, 16))
    assert attention.init(KEY, x, x)["params"]["query"]["kernel"].shape == (16, 4, 4)
    convolution = nn.Conv(8, (3, 3), kernel_init=gi.delta_orthogonal())
    assert convolution.init(KEY, jnp.ones((1, 5, 5, 4)))["params"]["kernel"].shape == (3, 3, 4, 8)


def test_flax_embedding_default():
    # flax scales embeddings by their width, with an in_axis and an out_axis that are the same.
    ours, peers = (
        source.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        for source in (gi, jax.nn.initializers)
    )
    tables = [
        nn.Embed(50, 16, embedding_init=init).init(KEY, jnp.zeros(1, jnp.int32))["params"]
        for init in (ours, peers)
    ]
    np.testing.assert_allclose(tables[0]["embedding"], tables[1]["embedding"], rtol=1e-6)


def test_flax_nnx_takes_it():
    rngs = nnx.Rngs(params=KEY)
    layer = nnx.Linear(16, 8, kernel_init=gi.he_normal(), bias_init=gi.bias_normal(16), rngs=rngs)
    peer = nnx.Linear(16, 8, kernel_init=jax.nn.initializers.he_normal(), rngs=nnx.Rngs(params=KEY))
    np.testing.assert_allclose(layer.kernel[...], peer.kernel[...], rtol=3e-6, atol=1e-7)
    assert np.asarray(layer.bias[...]).std() > 0


def test_equinox_takes_it():
    layer = eqx.nn.Linear(16, 8, key=KEY)
    init = gi.he_normal(in_axis=-1, out_axis=-2)
    weight = init(KEY, layer.weight.shape, layer.weight.dtype)
    layer = eqx.tree_at(lambda linear: linear.weight, layer, weight)
    assert layer(jnp.ones(16)).shape == (8,)
    assert gi.compute_fans(weight.shape, in_axis=-1, out_axis=-2) == (16, 8)


def test_samples_keep_their_dtype_when_they_are_scaled():
    scaled = rescale(jnp.ones(2, jnp.float16), jnp.float32(0.5))
    np.testing.assert_array_equal(scaled, np.full(2, 0.5, np.float16), strict=True)
