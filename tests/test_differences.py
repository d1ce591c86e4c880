"""gradtx agrees with optax, except where the table of differences says otherwise.

Both directions are checked: what is in no row agrees, and what is in a row differs.
"""

import inspect
import re
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.catalogue import updated
from gradtx.differences import DIFFERENCES, EARLY, PRECISE, PROMISES, REAL, table

from .test_parity import peer_of
from .ways import adam, descent, pieces, step_size_free, wrappers
from .ways.beside import OPTAX, close, differences, extremes, layout, lenient
from .ways.functions import CALLS
from .ways.initial import INITIALIZERS, READY_MADE

PAGE = Path(__file__).parents[1] / "examples" / "site" / "differences.md"
WAYS = {
    name: ways
    for family in (adam, descent, pieces, step_size_free, wrappers)
    for name, ways in family.WAYS.items()
}
# Of optax, which calls them itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
]
# Each of them is asked by a test of its own.
GENERAL = tuple(row for row in DIFFERENCES if not row.names)
EXPECTED = defaultdict(set)
for row in DIFFERENCES:
    for name in row.names:
        EXPECTED[name].update(row.kinds)
# Made into other things by their arguments, and asked with these.
ASKED_ELSEWHERE = {"measure_with_ema"}


def test_all_that_both_libraries_have_is_asked():
    shared = {
        name
        for name in gradtx.__all__
        if not inspect.ismodule(getattr(gradtx, name)) and peer_of(name) is not None
    }
    own = {name for name in shared if getattr(gradtx, name) is not peer_of(name)}
    assert own == {*WAYS, *CALLS, *ASKED_ELSEWHERE}
    assert all(len(WAYS[name]) >= min(3, 1 + len(arguments_of(name))) for name in WAYS)
    assert gradtx.tree is optax.tree
    for name in set(vars(gradtx.schedules)) & set(vars(optax.schedules)) - {*WAYS}:
        if not name.startswith("_"):
            assert getattr(gradtx.schedules, name) is getattr(optax.schedules, name)
    initializers = {
        name
        for name in vars(jax.nn.initializers)
        if not name.startswith("_") and inspect.isfunction(getattr(jax.nn.initializers, name))
    }
    assert initializers == {*INITIALIZERS, *READY_MADE}


def arguments_of(name):
    arguments = inspect.signature(peer_of(name)).parameters.values()
    return [argument for argument in arguments if argument.kind is not argument.VAR_POSITIONAL]


@pytest.mark.parametrize("name", WAYS)
def test_transformation(name):
    found = set().union(*(differences(name, way) for way in WAYS[name]))
    if "result" not in found and "fails" not in found:
        # Gradients of zero, and such whose squares leave the range of floats.
        sizes = [extremes(name, WAYS[name][0], scale) for scale in (0.0, 1e-25, 1e25)]
        found |= {"extremes"} if "result" in set().union(*sizes) else set()
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", CALLS)
def test_function(name):
    found = set()
    for call in CALLS[name]:
        expected = failing = None
        with lenient():
            try:
                expected = call(OPTAX)
            except TypeError as error:
                failing = error
        result = call(gradtx)
        if failing is not None:
            found.add("fails")
        else:
            found |= {"layout"} if layout(result) != layout(expected) else set()
            found |= set() if close(result, expected) else {"result"}
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", [*INITIALIZERS, *READY_MADE])
def test_initializer(name):
    with jax.disable_jit():
        assert initializer_differences(name) == EXPECTED[f"initializers.{name}"]


def initializer_differences(name):
    found = set()
    for arguments, shape in INITIALIZERS.get(name, [({}, (3, 4))]):
        ours, theirs = [
            maker if name in READY_MADE else maker(**arguments)
            for maker in (getattr(gradtx.initializers, name), getattr(jax.nn.initializers, name))
        ]
        key = jax.random.key(3)
        expected = theirs(key, shape)
        assert layout(ours(key, shape)) == layout(expected)
        if not close(ours(key, shape), expected):
            found.add("result")
        # The same numbers, rounded; jax draws others, or fails. What would round to a bound, which
        # is then the largest of all, is one step nearer to zero.
        narrow = ours(key, shape, jnp.bfloat16)
        rounded = ours(key, shape, jnp.float32).astype(jnp.bfloat16)
        inner = jnp.nextafter(rounded, jnp.zeros_like(rounded))
        is_largest = jnp.abs(rounded) == jnp.max(jnp.abs(rounded), initial=0.0)
        assert jnp.all((narrow == rounded) | (is_largest & (narrow == inner)))
    return found


def general(reason):
    """The row about all functions that has this reason."""
    (row,) = [row for row in GENERAL if row.reason == reason]
    return row


W = jnp.array([[1.0, -2.0]])
COMPLEX = jnp.array([[1.0 + 1j, -2.0]])


def test_half_precision():
    assert general(PRECISE).kinds == ("result", "layout")
    for lib, dtype in ((gradtx, jnp.float32), (optax, jnp.bfloat16)):
        state = lib.inject_hyperparams(lib.adam)(0.1).init(W.astype(jnp.bfloat16))
        assert state.inner_state[0].mu.dtype == state.hyperparams["b2"].dtype == dtype
        assert (state.hyperparams["b2"] == 1) == (lib is optax)
    half = jnp.float16([6e4])
    for lib, expected in ((gradtx, 6e4), (optax, np.inf)):
        tx = lib.chain(lib.scale(2.0), lib.scale(0.5))
        np.testing.assert_array_equal(tx.update(half, tx.init(half))[0], np.float16([expected]))
    drawn = [
        lib.normal()(jax.random.key(0), (9,), jnp.bfloat16)
        for lib in (gradtx.initializers, jax.nn.initializers)
    ]
    assert not np.array_equal(*drawn)


def test_complex_parameters():
    assert general(REAL).kinds == ("layout", "fails")
    for lib, dtype in ((gradtx, jnp.float32), (optax, jnp.complex64)):
        assert lib.scale_by_adam().init(COMPLEX).nu.dtype == dtype
    ours, theirs = gradtx.madgrad(0.1), optax.contrib.madgrad(0.1)
    with pytest.raises(TypeError), lenient():
        theirs.update(COMPLEX, theirs.init(COMPLEX), COMPLEX)
    assert jnp.isfinite(ours.update(COMPLEX, ours.init(COMPLEX), COMPLEX)[0]).all()


def muon_of(lib, ns_steps):
    return (lib if lib is gradtx else lib.contrib).scale_by_muon(ns_steps=ns_steps)


@pytest.mark.parametrize(
    "make",
    [
        lambda lib: lib.scale_by_adam(b1=1.0),
        lambda lib: lib.scale_by_lion(mode="hardest"),
        lambda lib: lib.clip(-1.0),
        lambda lib: lib.scale_by_adam(mu_dtype=jnp.float32).init(COMPLEX),
        lambda lib: lib.scale_by_adam().update(jnp.ones((3, 2)), lib.scale_by_adam().init(W)),
        lambda lib: jax.eval_shape(lambda n: muon_of(lib, n).init(W), jnp.int32(5)),
    ],
    ids=["range", "choice", "sign", "dtype", "shape", "traced"],
)
def test_what_would_be_read_wrongly(make):
    assert general(EARLY).kinds == ("refuses",)
    with lenient():
        make(optax)
    with pytest.raises(ValueError, match=r"^(scale_by_\w+|clip): "):
        make(gradtx)


def test_every_reason_is_a_paper_or_a_promise():
    assert len(GENERAL) == 3, "each has its own test"
    for row in DIFFERENCES:
        papers = row.reason.split("; ")
        is_paper = all(re.match(r"[A-Z][\w&,. ]+ \d{4}", paper) for paper in papers)
        assert is_paper or row.reason in PROMISES
    assert {row.reason for row in DIFFERENCES} >= {*PROMISES}


def test_the_page_has_the_table():
    text = PAGE.read_text()
    assert f"\n\n{table()}\n\n" in text, "python -m gradtx.catalogue prints it"
    shorter = re.sub(r"^\| `(acprop|sam).*\n", "", text, flags=re.MULTILINE)
    assert shorter != text
    assert updated(shorter) == text
