"""The reference has a page for each public name, and equations stand apart from the text."""

import importlib
import inspect
from collections import Counter

import pytest

import gradtx
from examples.site import pages
from gradtx.arguments import Range

PACKAGES = ["gradtx", *(f"gradtx.{name}" for name in pages.PACKAGES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "reference"
    pages.write(folder)
    return folder


def test_each_public_name_is_in_one_table(folder):
    shown = Counter((topic.home, name) for topic in pages.topics() for name in topic.names)
    assert set(shown.values()) == {1}
    public = {
        (home, name)
        for home in PACKAGES
        for module in [importlib.import_module(home)]
        for name in module.__all__
        # Packages have a topic of their own.
        if not inspect.ismodule(getattr(module, name))
    }
    assert public - set(shown) == set()


@pytest.mark.parametrize("home", PACKAGES)
def test_each_name_of_ours_has_a_page(folder, home):
    module = importlib.import_module(home)
    for name in module.__all__:
        thing = getattr(module, name)
        if getattr(thing, "__module__", "").startswith("gradtx") and not isinstance(thing, Range):
            assert f":: {home}::{name}\n" in (folder / f"{home}.{name}.md").read_text()


def test_a_table_tells_the_ranges_of_hyperparameters(folder):
    row = "| `DECAY` | the range of a hyperparameter: in [0, 1) |\n"
    assert row in (folder / "kernels.md").read_text()
    assert "](gradtx.kernel.Slot.md)" in (folder / "kernels.md").read_text()
    assert "returns the update, followed by the new value" in (folder / "kernels.md").read_text()


def test_a_table_tells_state_and_locality(folder):
    row = "| [`adam`](gradtx.adam.md) | Adam: a first moment divided by the root of a second one. "
    assert f"{row}| Kingma & Ba 2015 | 8 | element |" in (folder / "optimizers.md").read_text()


@pytest.mark.parametrize("kind", ["optimizer", "piece"])
def test_each_equation_stands_apart(kind):
    """In lines of its own, above the arguments, which a page shows as they are."""
    without = set()
    for name in (row.name for row in pages.rows(kind)):
        lines = list(pages.set_apart((inspect.getdoc(getattr(gradtx, name)) or "").splitlines()))
        if "   :class: equation" not in lines:
            without.add(name)
    assert not without


def test_text_keeps_its_bars_and_stars():
    text = ["The norm |g|, and 2 * g.", "", "    u = |g| * 2", "", "Args:", "    **kwargs: any."]
    assert list(pages.set_apart(text)) == [
        "The norm \\|g\\|, and 2 \\* g.",
        "",
        *(".. code-block:: none", "   :class: equation", ""),
        *text[2:],
    ]


def test_experiments_run_where_their_pages_are_missing(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(pages.subprocess, "run", lambda command, **_: commands.append(command))
    pages.show_experiments(tmp_path)
    (tmp_path / "index.md").touch()
    pages.show_experiments(tmp_path)
    ((_, _, module, *arguments),) = commands
    assert module == "examples.experiments"
    assert arguments == ["--quick", "--out", tmp_path, "--pages", tmp_path]
