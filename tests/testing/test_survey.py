"""What is known of the factories of both libraries, and the page about it."""

import contextlib
import io
import json
import re
from pathlib import Path

import jax
import pytest

from gradtx.testing import clauses, survey

PATH = Path(__file__).parent / "survey.json"
PAGE = (Path(__file__).parents[2] / "examples" / "site" / "contract.md").read_text()
RESULTS = json.loads(PATH.read_text())
RENEW = "python -m gradtx.testing tests/testing/survey.json examples/site/contract.md"

# They compile nothing.
EAGER = ("calls", "type", "missing_gradients", "non_parameters", "mismatches")


@pytest.mark.parametrize("library", survey.LIBRARIES)
def test_every_factory_was_tried_on_every_clause(library):
    assert sorted(RESULTS[library]) == survey.factories(), RENEW
    for name, found in RESULTS[library].items():
        tried = [*found["breaks"].split(), *found["keeps"].split()]
        assert sorted(tried) == sorted(clauses()), f"{name}: {RENEW}"


@pytest.mark.parametrize(
    ("library", "name"),
    [("optax", "sgd"), ("optax", "sm3"), ("optax", "identity"), ("gradtx", "sgd")],
)
def test_the_results_are_what_comes_out(library, name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = survey.broken(library, name, EAGER)
    stored = RESULTS[library][name]["breaks"].split()
    assert found == set(EAGER).intersection(stored), RENEW


def test_what_is_missing_is_tried_and_what_is_gone_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "factories", lambda: ["identity", "sgd"])
    few = {name: clauses()[name] for name in ("calls", "type")}
    monkeypatch.setattr(survey, "clauses", lambda: few)
    path, said = tmp_path / "results.json", []
    known = {"identity": {"breaks": "calls", "keeps": "old"}, "gone": {"breaks": "", "keeps": ""}}
    path.write_text(json.dumps({"optax": known}))
    survey.update(path, said.append)
    assert json.loads(path.read_text()) == {
        # What is known is not tried again.
        "optax": {
            "identity": {"breaks": "calls type", "keeps": ""},
            "sgd": {"breaks": "", "keeps": "calls type"},
        },
        "gradtx": {name: {"breaks": "", "keeps": "calls type"} for name in ("identity", "sgd")},
    }
    assert said[0] == "optax.identity: breaks 2 of 2"
    assert len(said) == 4


def test_the_page_has_the_table():
    assert survey.table(RESULTS) in PAGE, RENEW
    assert f"of {len(survey.factories())} factories" in PAGE
    shorter = re.sub(r"^\| `scan` .*\n", "", PAGE, flags=re.MULTILINE)
    assert shorter != PAGE
    assert survey.with_table(shorter, RESULTS) == PAGE


def test_what_the_page_shows_is_what_is_said():
    found = re.search(
        r"```python\n(import jax\n.*?\ndef drop_small.*?)```\n\n```\n(.*?)```", PAGE, re.S
    )
    code, shown = found.groups()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "drop_small.py", "exec"), {})
    said, wanted = printed.getvalue().splitlines(), shown.splitlines()
    assert said[:2] == wanted[:2]
    # The others depend on how many devices there are.
    assert set(re.findall(r"\w+", wanted[2])) <= set(re.findall(r"\w+", said[2]))
