"""The small changes of `tests.mutation`, and the tests that they are tried with."""

import ast

import pytest

from .mutation.__main__ import chosen, report
from .mutation.changes import changes, compiles
from .mutation.covering import ROOT, covering
from .mutation.equivalents import EQUIVALENTS

SOURCE = '''"""A file."""

LIMIT: float = 2.0


def step(g: Array | None, *, mu, nu, b1, b2, t):
    """The docstring - 1."""
    if not 0 <= b1 < 1:
        raise ValueError(f"b1 must be below {1}")
    mu = b1 * mu + (1 - b1) * g
    nu = jnp.where(g > 0, nu.astype(g.dtype), jnp.sqrt(nu))
    check(mu, t)
    return -mu / nu**2 if b2 else jnp.maximum(mu, LIMIT)
'''


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("operator", "1 - b1", "(1 + b1)"),
        ("dropped", "b1 * mu + (1 - b1) * g", "(b1 * mu)"),
        ("dropped", "check(mu, t)", "pass"),
        ("power", "2", "(2 + 1)"),
        ("sign", "-mu", "mu"),
        ("swap", "b1", "b2"),
        ("step", "t", "(t + 1)"),
        ("mask", "g > 0", "~((g > 0))"),
        ("mask", "jnp.where(g > 0, nu.astype(g.dtype), jnp.sqrt(nu))", "jnp.sqrt(nu)"),
        ("comparison", "g > 0", "g >= 0"),
        ("dtype", "nu.astype(g.dtype)", "nu"),
        ("forgotten", "jnp.sqrt(nu)", "nu"),
        ("function", "jnp.maximum", "jnp.minimum"),
        ("constant", "2.0", "1.0"),
        (
            "condition",
            "-mu / nu**2 if b2 else jnp.maximum(mu, LIMIT)",
            "(jnp.maximum(mu, LIMIT) if b2 else (-mu / nu**2))",
        ),
    ],
)
def test_every_kind_of_change_is_made(kind, old, new):
    found = {(change.kind, change.old, change.new) for change in changes("file.py", SOURCE)}
    assert (kind, old, new) in found


def test_a_change_is_one_that_compiles_and_leaves_messages_and_annotations_alone():
    for change in changes("file.py", SOURCE):
        changed = change.apply(SOURCE)
        assert compiles(changed)
        assert changed != SOURCE
        assert "raise ValueError" in changed
        assert "Array | None" in changed
        assert '"""The docstring - 1."""' in changed
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(SOURCE))


def test_changes_of_the_same_text_have_different_names():
    names = [change.name for change in changes("file.py", SOURCE)]
    assert len(names) == len(set(names))
    assert {"file.py::step: mu -> nu", "file.py::step: mu -> nu (2)"} <= set(names)


def test_the_same_seed_chooses_the_same_changes_in_every_file():
    sample = chosen(count=12, seed=3, only="compose/")
    assert sample == chosen(count=12, seed=3, only="compose/")
    assert sample != chosen(count=12, seed=4, only="compose/")
    assert {change.file for change in sample} == {
        f"gradtx/compose/{name}.py" for name in ("conditions", "groups", "parts", "sequence")
    }


@pytest.mark.parametrize("file", ["gradtx/kernels/soap.py", "gradtx/wrappers/factory.py"])
def test_every_file_is_covered_by_tests_that_exist(file):
    tests = covering(file)
    assert file in tests
    assert len(tests) > 1
    assert all((ROOT / test).is_file() for test in tests)


def test_survivors_are_listed_unless_there_is_a_reason(monkeypatch):
    name = "gradtx/kernels/adam.py::step: 1 -> 2"
    other = "gradtx/kernels/adam.py::step: 2 -> 3"
    monkeypatch.setitem(EQUIVALENTS, other, "It is not read.")
    lost = {"outcome": "survived", "line": 7}
    text = report({name: lost, other: lost, "gradtx/lift.py::x: 1 -> 2": {"outcome": "killed"}})
    assert f"survived: {name} (line 7)" in text
    assert other not in text
    assert "| all | 1 | 1 | 1 | 0 | 0 |" in text


def test_every_reason_belongs_to_a_change_that_can_still_be_made():
    files = {name.split("::")[0] for name in EQUIVALENTS}
    possible = {c.name for file in files for c in changes(file, (ROOT / file).read_text())}
    assert set(EQUIVALENTS) <= possible
    assert all(EQUIVALENTS.values())
