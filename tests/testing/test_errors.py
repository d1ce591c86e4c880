"""Errors of jax, NumPy and Python are said in other words. Each is raised by the library itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gradtx.testing.errors import explained

ONES = jnp.ones(3)


def traced(function):
    return lambda: jax.jit(function)(ONES)


def leaking():
    kept = []
    jax.jit(kept.append)(ONES)
    return kept[0] + 1


def give_away_twice():
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.ones(3)
    step(x)
    return step(x)


def write_into_a_gradient():
    np.asarray(ONES)[0] = 2.0


def add_from_two_devices():
    first, second = jax.devices()[:2]
    return jax.jit(jnp.add)(jax.device_put(ONES, first), jax.device_put(ONES, second))


def drop_the_parameters():
    tx = optax.add_decayed_weights(0.1)
    return tx.update(ONES, tx.init(ONES), None)


RAISES = {
    "devices": (add_from_two_devices, "on different devices", "where their parameters lie"),
    "not_passed": (
        lambda: (lambda updates, state, params: updates)(ONES, ()),
        "a demand for `params`",
        "let a wrapper hand `params` on",
    ),
    "dropped": (drop_the_parameters, "a demand for `params`", "let a wrapper hand `params` on"),
    "branch": (traced(lambda x: x if x.sum() > 0 else -x), "a decision in Python", "jnp.where"),
    "numpy": (traced(lambda x: np.sin(x)), "NumPy called on a traced array", "jax.numpy"),
    "integer": (
        traced(lambda x: [1, 2][x[0].astype(jnp.int32)]),
        "used as a Python integer",
        "jax arrays",
    ),
    "float": (traced(lambda x: float(x[0])), "used as a Python number", "jax arrays"),
    "index": (traced(lambda x: x[x > 0]), "an index whose number of elements", "jnp.where"),
    "leak": (leaking, "a traced array of an earlier call", "in the state"),
    "carry": (
        lambda: lax.scan(lambda c, _: (c.astype(jnp.float16), None), ONES, None, 2),
        "a state of another type or structure",
        "that init gives it",
    ),
    "growing": (
        lambda: lax.scan(lambda c, _: ((*c, 1.0), None), (), None, 2),
        "a state of another type or structure",
        "that init gives it",
    ),
    "keyword": (
        lambda: (lambda updates: updates)(ONES, value=1),
        "a refusal of the extra argument 'value'",
        "**extra_args",
    ),
    "missing": (
        lambda: (lambda *, value, key: value)(),
        "a demand for the argument 'value' and 'key'",
        "capabilities=",
    ),
    "positional": (
        lambda: (lambda updates: updates)(ONES, ONES, ONES),
        "a function that takes 1 positional argument",
        "update(updates, state, params=None)",
    ),
    "float0": (
        lambda: np.zeros(2, jax.dtypes.float0) * ONES,
        "arithmetic with a float0 array",
        "no parameter",
    ),
    "square": (
        lambda: np.square(np.zeros(2, jax.dtypes.float0)),
        "arithmetic with a leaf that is no number",
        "as it is",
    ),
    "tanh": (lambda: jnp.tanh * 2, "arithmetic with a leaf that is no number", "as it is"),
    "structure": (
        lambda: jax.tree.map(jnp.add, {"a": 1.0}, {"b": 1.0}),
        "trees of different structures",
        "is_leaf",
    ),
    "length": (
        lambda: jax.tree.map(jnp.add, [1.0], [1.0, 2.0]),
        "trees of different structures",
        "is_leaf",
    ),
    "container": (
        lambda: jax.tree.map(jnp.add, [1.0], (1.0,)),
        "trees of different structures",
        "is_leaf",
    ),
    "none_has_no": (lambda: None.shape, "a leaf that is None where an array", "skip leaves"),
    "none_times": (lambda: None * 2, "arithmetic with None", "skip leaves"),
    "text": (lambda: jax.jit(lambda x: x)("name"), "that is no array", "into the closure"),
    "promotion": (
        lambda: ONES + jnp.ones(3, jnp.bfloat16),
        "an implicit promotion of dtypes",
        "cast to one dtype",
    ),
    "ranks": (
        lambda: ONES + jnp.ones((2, 3)),
        "an implicit promotion of ranks",
        "one number of dimensions",
    ),
    "donated": (give_away_twice, "one buffer in two places", "let the update donate nothing"),
    "in_place": (write_into_a_gradient, "an assignment into an array", "change no argument"),
    "largest": (lambda: jnp.max(jnp.ones(0)), "a maximum of no elements", "initial=0"),
    "stack": (lambda: jnp.stack([]), "a concatenation of no arrays", "return early"),
    "shapes": (lambda: ONES + jnp.ones(2), "arrays whose shapes do not fit", "its own shape"),
}


@pytest.mark.parametrize("name", RAISES)
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_an_error_is_explained_with_its_line_and_what_to_look_at(name):
    call, meaning, hint = RAISES[name]
    with pytest.raises(Exception, match=r".*") as caught:
        call()
    got, look = explained(caught.value)
    assert meaning in got, str(caught.value)
    assert hint in look
    assert f"({type(caught.value).__name__} at test_errors.py:" in got
    assert len(got) < 250


def test_what_nobody_knows_is_quoted_in_short():
    error = RuntimeError("word " * 1000)
    got, look = explained(error)
    assert got.startswith("RuntimeError: word word")
    assert len(got) < 250
    assert look == ""
