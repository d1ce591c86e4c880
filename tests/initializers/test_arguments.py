"""Wrong arguments fail where they are given, with the function's name; what jax takes works."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from gradtx import initializers as gi

KEY = jax.random.key(0)
OLD_KEY = jax.random.PRNGKey(0)
# What an argument without a default is given.
NEEDED = {"scale": 1.0, "mode": "fan_in", "distribution": "normal", "value": 1.0, "limit": 1.0}
NEEDED |= {"fan_in": 4}
FACTORIES = sorted(set(gi.__all__) - {"Initializer", "compute_fans", "zeros", "ones"})
IGNORING = ("zeros", "ones", "constant", "identity")


def arguments_of(name):
    return inspect.signature(getattr(gi, name)).parameters.values()


def own_name(name):
    return getattr(gi, name).__name__


def built(name, **arguments):
    needed = {each.name: NEEDED[each.name] for each in arguments_of(name) if each.name in NEEDED}
    if name in ("identity", "orthogonal", "delta_orthogonal", "uniform"):
        needed.pop("scale")
    return getattr(gi, name)(**needed | arguments)


def initializer(name):
    return getattr(gi, name) if name in ("zeros", "ones") else built(name)


# Which needs three arguments, and is not called with two.
@pytest.mark.parametrize("name", sorted({*FACTORIES} - {"variance_scaling"}))
@pytest.mark.parametrize("key", [KEY, OLD_KEY], ids=["key", "old_key"])
def test_forgotten_inner_call(name, key):
    message = rf"^{own_name(name)}: .* must be .*, got "
    with pytest.raises(ValueError, match=message) as caught:
        getattr(gi, name)(key, (4, 4))
    assert f"{own_name(name)}(...)(key, shape)" in str(caught.value)


@pytest.mark.parametrize("name", FACTORIES)
def test_each_argument_is_checked_when_the_initializer_is_built(name):
    for each in arguments_of(name):
        for wrong in (KEY, "nonsense", print, [[1], [1, 2]]):
            with pytest.raises(ValueError, match=f"^{own_name(name)}: {each.name} must ") as caught:
                built(name, **{each.name: wrong})
            assert len(str(caught.value).splitlines()) == 1
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize("dtype", [(5, 5), [("a", "f4")], str, (np.float32, (2,)), jnp.ones(2)])
def test_what_is_no_dtype_of_numbers(dtype):
    with pytest.raises(ValueError, match=r"^normal: dtype must be a dtype of numbers, got "):
        gi.normal(0.1, dtype)
    with pytest.raises(ValueError, match=r"^ones: dtype must be a dtype of numbers, got "):
        gi.ones(KEY, (2,), dtype)


@pytest.mark.parametrize("name", sorted({*FACTORIES, "zeros", "ones"}))
@pytest.mark.parametrize("key", [KEY, OLD_KEY], ids=["key", "old_key"])
def test_key_and_shape_swapped(name, key):
    init = initializer(name)
    with pytest.raises(ValueError, match=rf"^{own_name(name)}: shape .* with the key first, "):
        init((3, 4, 4), key)
    if name in IGNORING:
        assert init(None, (3, 4, 4)).shape == (3, 4, 4)
        return
    for wrong in (0, None, (1, 2), "key", jnp.ones(2)):
        with pytest.raises(ValueError, match=rf"^{own_name(name)}: key must be a PRNG key, got "):
            init(wrong, (3, 4, 4))


@pytest.mark.parametrize("shape", [(2.0, 3), (-1,), "ab", None, (None, 2), np.ones(2), KEY, {2, 3}])
def test_what_is_no_shape(shape):
    with pytest.raises(ValueError, match=r"^zeros: shape must hold whole numbers >= 0, got "):
        gi.zeros(KEY, shape)
    with pytest.raises(
        ValueError, match=r"^compute_fans: shape must hold whole numbers >= 0, got "
    ):
        gi.compute_fans(shape)


@pytest.mark.parametrize("shape", [[2, 3], range(2, 4), np.array([2, 3]), jnp.array([2, 3]), 3])
def test_shapes_that_jax_takes(shape):
    for name in ("zeros", "normal"):
        ours, peers = initializer(name), getattr(jax.nn.initializers, name)
        peers = peers if name == "zeros" else peers()
        assert ours(KEY, shape).shape == peers(KEY, shape).shape


def test_symbolic_shapes():
    rows, columns = export.symbolic_shape("m, n")
    exported = export.export(jax.jit(lambda x: gi.ones(None, x.shape) + x))
    made = exported(jax.ShapeDtypeStruct((rows, columns), jnp.float32))
    np.testing.assert_array_equal(made.call(jnp.zeros((2, 3))), np.ones((2, 3), np.float32))


@pytest.mark.parametrize("axes", [np.array([0]), [0], {0}, range(1), 0])
def test_axes_that_jax_takes(axes):
    ours, peers = (
        lib.he_uniform(in_axis=axes, out_axis=1)(KEY, (4, 5)) for lib in (gi, jax.nn.initializers)
    )
    np.testing.assert_allclose(ours, peers, rtol=1e-6)


def test_numbers_that_jax_takes():
    stddev = [[0.5], [2.0]]
    ours, peers = (lib.normal(stddev)(KEY, (2, 3)) for lib in (gi, jax.nn.initializers))
    np.testing.assert_allclose(ours, peers, rtol=1e-6)
    np.testing.assert_array_equal(gi.constant([1.0, 2.0])(KEY, (2, 2)), [[1, 2], [1, 2]])
    assert gi.normal(np.float32(0.1), "bfloat16")(KEY, (2,)).dtype == jnp.bfloat16
    assert gi.zeros(KEY, (2,), bool).dtype == bool


def test_traced_numbers_of_inputs():
    drawn = jax.jit(lambda n: gi.bias_normal(n)(KEY, (4,)))(99)
    np.testing.assert_allclose(drawn, gi.bias_normal(99)(KEY, (4,)), rtol=1e-6)
    assert math.isclose(np.std(gi.bias_normal(99)(KEY, (9999,))), 0.1, rel_tol=0.05)
