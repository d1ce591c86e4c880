"""The table of methods in the README says what the code says."""

from pathlib import Path

import pytest

import gradtx
from gradtx.catalogue import methods, table

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_has_the_table_of_all_methods():
    assert table() in README.read_text(), "python -m gradtx.catalogue prints the table"


@pytest.mark.parametrize("package", ["recipes", "kernels"])
def test_every_method_has_a_summary_of_one_line(package):
    for method in methods(package):
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
        ("newton", 0, "tree"),
    ],
)
def test_columns(name, state_bytes, locality):
    (method,) = [method for method in methods() if method.name == name]
    assert (method.state_bytes, method.locality) == (state_bytes, locality)


def test_every_recipe_is_in_the_table():
    names = {method.name for method in methods()}
    assert {"adamw", "lion", "sgd", "lars"} <= names
    assert names <= set(gradtx.__all__)
