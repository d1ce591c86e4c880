"""The list of all kinds of findings says what the code says, and the page what the list says."""

import ast
from pathlib import Path

import pytest

from gradtx.diagnostics.checkup import check_up
from gradtx.diagnostics.checkup.finding import _BROUGHT_ABOUT, SEVERITIES, Finding
from gradtx.diagnostics.checkup.kinds import KINDS
from gradtx.diagnostics.checkup.result import CheckUp

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "gradtx" / "diagnostics" / "checkup").glob("*.py"))
ALL = {kind: one for kinds in KINDS.values() for kind, one in kinds.items()}


def constants(expression):
    """The strings that an expression may be, as far as one sees."""
    if isinstance(expression, ast.IfExp):
        return constants(expression.body) | constants(expression.orelse)
    return {expression.value} if isinstance(expression, ast.Constant) else set()


def made():
    """The kind and the severity of each finding that is made, as it is written."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            is_made = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
            if is_made and len(node.args) >= 2:
                yield constants(node.args[0]), constants(node.args[1])


def test_each_finding_has_a_kind_of_the_list():
    found = list(made())
    assert len(found) > 50
    for kinds, severities in found:
        for kind in kinds:
            assert severities <= set(ALL[kind][0].split(", ")), kind


def test_each_kind_of_the_list_is_found():
    written = "".join(path.read_text() for path in FILES if path.name != "kinds.py")
    signal = (ROOT / "gradtx" / "diagnostics" / "signal").glob("*.py")
    written += "".join(path.read_text() for path in signal)
    assert [kind for kind in ALL if f'"{kind}"' not in written] == []
    assert set(_BROUGHT_ABOUT) | {k for ks in _BROUGHT_ABOUT.values() for k in ks} <= set(ALL)
    parts = {one.name for one in (*check_up._EXAMINATIONS, check_up.LEARNING)}
    assert parts == set(KINDS) - {"any"}


def test_severities_are_sorted():
    for severities, sentence in ALL.values():
        listed = severities.split(", ")
        assert listed == [one for one in SEVERITIES if one in listed]
        assert 10 < len(sentence) < 70


def test_the_page_has_the_table_of_all_kinds():
    rows = [
        f"| {part} | `{kind}` | {severities} | {sentence} |"
        for part, kinds in KINDS.items()
        for kind, (severities, sentence) in kinds.items()
    ]
    table = "\n".join(["| part | kind | severity | what it says |", "|---|---|---|---|", *rows])
    assert f"\n\n{table}\n\n" in (ROOT / "examples/site/findings.md").read_text(), table


def test_what_is_ignored_has_to_be_a_kind():
    checked = CheckUp(1.0, (Finding("unused", "warning", "a sentence.", "a cure."),))
    checked.assert_healthy(ignore=["unused"])
    with pytest.raises(ValueError, match=r"ignore must hold .*'unsued'\]; did you mean 'unused'"):
        checked.assert_healthy(ignore=["unsued"])
