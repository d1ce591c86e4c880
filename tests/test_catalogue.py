"""The tables of methods in the documentation say what the code says."""

import inspect
import re
from pathlib import Path

import pytest

import gradtx
from gradtx.catalogue import methods, table, updated

PAGE = Path(__file__).parents[1] / "examples" / "site" / "methods.md"
RENEW = "python -m gradtx.catalogue examples/site/methods.md renews it"


@pytest.mark.parametrize("kind", ["optimizer", "piece", "wrapper"])
def test_the_page_has_the_table_of_all_methods(kind):
    assert table(kind) in PAGE.read_text(), RENEW


def test_renewing_the_page_changes_its_tables_only():
    text = PAGE.read_text()
    assert updated(text) == text
    assert updated(re.sub(r"^\| `(adam|acprop).*\n", "", text, flags=re.MULTILINE)) == text


@pytest.mark.parametrize("kind", ["optimizer", "piece", "wrapper"])
def test_every_method_has_a_summary_of_one_line(kind):
    for method in methods(kind):
        assert 10 < len(method.summary) < 100, method
        assert "|" not in method.summary


def test_every_named_optimizer_has_a_paper():
    assert [method.name for method in methods() if not method.papers] == []


@pytest.mark.parametrize(
    ("name", "state_bytes", "locality"),
    [
        ("sgd", 0, "element"),
        ("adam", 8, "element"),
        ("amsgrad", 12, "element"),
        ("lamb", 8, "leaf"),
        ("prodigy", 16, "tree"),
        ("adafactor", 0.01, "leaf"),  # a row and a column
        ("galore", 1.5, "leaf"),  # a projector and two moments, all of 128 by 1024
        ("newton", 0, "tree"),
    ],
)
def test_columns(name, state_bytes, locality):
    (method,) = [method for method in methods() if method.name == name]
    assert (method.state_bytes, method.locality) == (state_bytes, locality)


def test_everything_that_makes_a_transformation_is_in_a_table():
    names = {method.name for kind in ("optimizer", "piece", "wrapper") for method in methods(kind)}
    made = {
        name
        for name in gradtx.__all__
        for thing in [getattr(gradtx, name)]
        if inspect.isfunction(thing)
        and "ExtraArgs" in str(inspect.signature(thing).return_annotation)
        and thing.__module__.split(".")[1] in ("recipes", "kernels", "wrappers", "precision")
    }
    # These are what their factory is.
    assert made - names == {"with_hyperparams", "inject_hyperparams", "inject_stateful_hyperparams"}
    assert len(names) > 120
