"""Checks of initializers: numbers that are drawn twice, and initializers of gradtx and jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import initializers
from gradtx.testing import ConformanceError, check_initializer

MADE = ["glorot_normal", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform", "small_random"]
HEALTHY = {
    **{name: (getattr(initializers, name)(), (16, 8), ()) for name in MADE},
    "bias_normal": (initializers.bias_normal(4), (8,), ()),
    "delta_orthogonal": (initializers.delta_orthogonal(), (3, 3, 4, 8), ()),
    "ones": (initializers.ones, (4, 8), ()),
    "jax_zeros": (jax.nn.initializers.zeros, (4, 8), ()),
    "jax_normal": (jax.nn.initializers.normal(), (3, 3, 4, 8), ()),
    "jax_uniform": (jax.nn.initializers.uniform(), (64,), ()),
    "jax_truncated_normal": (jax.nn.initializers.truncated_normal(), (4, 2), ()),
    # They divide by a fan that is 0 in an array without elements.
    "jax_he_normal": (jax.nn.initializers.he_normal(), (16, 8), ["sizes"]),
    # LAPACK has no bfloat16.
    "jax_orthogonal": (jax.nn.initializers.orthogonal(), (16, 8), ["dtypes"]),
}


def draw(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


def signs(key, shape, dtype=jnp.float32):
    return jax.random.rademacher(key, shape, dtype)


def rare(key, shape, dtype=jnp.float32):
    one, two = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(one, 0.1, shape), draw(two, shape, dtype), 0)


@pytest.mark.parametrize("name", HEALTHY)
def test_initializers_of_gradtx_and_jax_pass(name):
    init, shape, skip = HEALTHY[name]
    check_initializer(init, shape, skip=skip)


@pytest.mark.parametrize(
    ("init", "shape"), [(signs, (4, 24)), (signs, (8,)), (rare, (8, 24)), (draw, (24, 1))]
)
def test_numbers_that_are_the_same_by_chance_pass(init, shape):
    check_initializer(init, shape, clauses=["keys"])


def repeated(axis, times):
    """Numbers that are drawn for a part of an axis, and repeated along it."""

    def init(key, shape, dtype=jnp.float32):
        part = [size // times if i == axis % len(shape) else size for i, size in enumerate(shape)]
        return jnp.concatenate([draw(key, part, dtype)] * times, axis)

    return init


REPEATED = {
    "columns": (repeated(-1, 24), (16, 24), "columns that differ"),
    "half_of_the_columns": (repeated(-1, 2), (16, 24), "columns that differ"),
    "columns_of_a_convolution": (repeated(-1, 8), (3, 3, 4, 8), "columns that differ"),
    "inputs_of_a_convolution": (repeated(2, 4), (3, 3, 4, 8), "slices along axis 2 that differ"),
    "half_of_a_vector": (repeated(0, 2), (32,), "halves along axis 0 that differ"),
}


@pytest.mark.parametrize("name", REPEATED)
def test_numbers_that_are_drawn_once_for_several_slices_are_found(name):
    init, shape, says = REPEATED[name]
    with pytest.raises(ConformanceError, match=f"^keys: expected {says}, got") as caught:
        check_initializer(init, shape)
    assert list(caught.value.failures) == ["keys"]
    check_initializer(init, shape, skip=["keys"])


FUNCTIONS_OF_OTHER_ARGUMENTS = {
    "a demand for the argument 'dtype'": lambda key, shape, dtype: draw(key, shape, dtype),
    "a function that takes 2 positional arguments": lambda key, shape: draw(key, shape),
    "a demand for the argument 'scale'": lambda key, shape, dtype=None, *, scale: scale,
}


@pytest.mark.parametrize("says", FUNCTIONS_OF_OTHER_ARGUMENTS)
def test_the_signature_is_named_where_arguments_differ(says):
    with pytest.raises(ConformanceError) as caught:
        check_initializer(FUNCTIONS_OF_OTHER_ARGUMENTS[says])
    assert list(caught.value.failures) == ["calls"]
    assert says in str(caught.value)
    assert "`init(key, shape, dtype=jnp.float32)`; bind every other" in str(caught.value)
    assert "extra_args" not in str(caught.value)


HINTS = {
    "of the shape and dtype asked for": lambda k, s, d=jnp.float32: draw(k, s[::-1], d),
    "float32 where none is": lambda k, s, d=jnp.bfloat16: draw(k, s, d),
    "return a jax array": lambda k, s, d=jnp.float32: np.zeros(s, d),
    "pass the dtype on": lambda k, s, d=jnp.float32: draw(k, s),
    "draw in float32 and cast the result": lambda k, s, d=jnp.float32: (
        -jnp.log(
            jnp.floor(8 * jax.random.uniform(k, s, d)) if d == jnp.bfloat16 else draw(k, s, d) ** 2
        )
    ),
    "let no earlier call matter": lambda k, s, d=jnp.float32: (
        CALLS.append(k) or jnp.full(s, len(CALLS), d)
    ),
    "decide nothing in Python by the key": lambda k, s, d=jnp.float32: (
        draw(k, s, d) * (2 if isinstance(k, jax.core.Tracer) else 1)
    ),
}
CALLS = []


@pytest.mark.parametrize("hint", HINTS)
def test_the_hint_fits_the_fault(hint):
    with pytest.raises(ConformanceError) as caught:
        check_initializer(HINTS[hint], skip=["sizes"])
    assert hint in str(caught.value).splitlines()[1]
