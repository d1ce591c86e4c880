"""What messages say about names and values, and that it is never long."""

import difflib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradtx.messages import listed, shown

LAYERS = 1_000
PATHS = [f"encoder/layers/{i}/{name}" for i in range(LAYERS) for name in ("kernel", "bias")]


def test_names_are_cut_after_ten_and_the_rest_counted():
    text = listed(PATHS)
    assert [path for path in PATHS if f"'{path}'" in text] == PATHS[:10]
    assert text.endswith(" and 1,990 more")
    assert listed(PATHS[:10]) == str(PATHS[:10])
    assert listed([]) == "[]"
    assert listed(["a", 2, (3, None)]) == "['a', 2, (3, None)]"


def test_long_names_are_cut_in_their_middle():
    text = listed(["a" * 1_000 + "/kernel"] * 30)
    assert len(text) < 1_500
    assert "/kernel'" in text


@pytest.mark.parametrize(
    ("wanted", "suggestion"),
    [
        ("kernal", "kernel"),
        (r"^encodr/layers/\d+/bias$", "encoder"),
        ("^encoder/.*(biass|embedding)", "bias"),
    ],
)
def test_nearest_names_are_suggested(wanted, suggestion):
    assert listed(PATHS, near=wanted).endswith(f"and 1,990 more; did you mean '{suggestion}'?")
    # The suggestion is what the standard library finds, and the words are cut from the paths.
    word = next(word for word in ("kernal", "encodr", "biass") if word in wanted)
    parts = {part for path in PATHS for part in path.split("/")}
    assert difflib.get_close_matches(word, sorted(parts), n=1) == [suggestion]


def test_names_with_the_words_that_were_looked_for_come_first():
    text = listed(["a/kernel", "b/bias", "b/kernel"], 1, near="b/.*kernel/value")
    assert text == "['b/kernel'] and 2 more"
    assert "did you mean" not in listed(PATHS, near="zzz")


def test_values_are_shown_in_one_line_without_the_elements_of_arrays():
    assert shown({"w": jnp.ones((2, 3)), "b": np.zeros(4, np.int32)}) == (
        "{'b': int32[4], 'w': float32[2,3]}"
    )
    assert shown(optax.TraceState(jax.ShapeDtypeStruct((5,), jnp.bfloat16))) == (
        "TraceState(trace=bfloat16[5])"
    )
    assert [shown(x) for x in (-3.5, "tahn", None, (1,))] == ["-3.5", "'tahn'", "None", "(1,)"]
    traced = []
    jax.eval_shape(lambda x: traced.append(shown(x)), jnp.ones(3))
    assert traced == ["float32[3]"]


@pytest.mark.parametrize(
    "value",
    [
        {path: jnp.ones(2) for path in PATHS},
        [[[list(PATHS)]]],
        optax.adam(1.0).init(dict.fromkeys(PATHS, jnp.ones(()))),
        np.random.default_rng(0).normal(size=(30, 30)),
        "x\n" * 2_000,
    ],
    ids=["dict", "list", "state", "array", "text"],
)
def test_values_are_cut(value):
    assert len(shown(value)) <= 200
    assert "\n" not in shown(value)
