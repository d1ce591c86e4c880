"""The examples of `.github/CONTRIBUTING.md` are complete, and what one leaves out is named.

Each block of Python is a file, or lines for a list that is there already; with these, a copy of the
library is tested in a process of its own.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = "examples/site/methods.md"
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


def write_library(folder, left_out=()):
    """A copy of the library with the examples of the page, but for some of its blocks."""
    for name in ("gradtx", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / METHODS).parent.mkdir(parents=True)
    shutil.copy(ROOT / METHODS, folder / METHODS)
    for number, (name, text) in enumerate(BLOCKS):
        path = folder / name
        old = path.read_text() if path.exists() else ""
        if number in left_out:
            continue
        if path.name == "__init__.py":
            line, listed = text.strip().split("\n\n")
            old = re.sub("^from gradtx", f"{line}\nfrom gradtx", old, count=1, flags=re.MULTILINE)
            old, text = old.replace("__all__ = [", f"__all__ = [\n{listed}"), ""
        path.write_text(old + text)


def output_of(folder, *command):
    """What a module prints when it is run in the copy."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    ).stdout


def test_nothing_is_forgotten_in_the_examples_and_they_keep_the_contract(tmp_path):
    write_library(tmp_path)
    output_of(tmp_path, "gradtx.catalogue", METHODS)
    written = [name for name, _ in BLOCKS if not re.search("__init__|exports", name)]
    tests = [*written, "tests/test_contributing.py", "tests/test_argument_texts.py"]
    contract = "tests/testing/test_exports.py::test_contract"
    tests += [f"{contract}[{name}]" for name in ("add_sign", "downhill")]
    output = output_of(tmp_path, "pytest", "-q", "-n", "0", *tests)
    assert re.search(r"^\d+ passed", output, re.MULTILINE), output


def test_what_is_left_out_of_the_examples_is_named(tmp_path):
    left_out = {
        "gradtx/__init__.pyi": "add_sign is not in gradtx/__init__.pyi",
        "tests/kernels/test_add_sign.py": "add_sign is not in a test in tests/kernels",
        "tests/testing/exports/add_sign.py": "add_sign is not in a table in tests/testing/exports",
        "tests/testing/exports/downhill.py": "downhill is not in a table in tests/testing/exports",
        "gradtx/diagnostics/__init__.py": "gradient_alignment is not in __all__ of gradtx/diagnos",
        "gradtx/initializers/__init__.py": "sparse_normal is not in __all__ of gradtx/initializers",
        "tests/normalization/test_mean_only.py": "mean_only_norm is not in a test in tests/normal",
    }
    names = [name for name, _ in BLOCKS]
    write_library(tmp_path, [names.index(name) for name in left_out])
    output = output_of(tmp_path, "pytest", "-q", "-n", "0", "tests/test_contributing.py")
    for text in (*left_out.values(), "downhill is not in the tables of all methods"):
        assert text in output, output


@pytest.mark.parametrize(
    "kind", ["optimizer", "wrapper", "diagnostic", "normalization", "initializer"]
)
def test_there_is_an_example_of_each_kind(kind):
    assert re.search(rf"^## An? {kind}$", PAGE, re.MULTILINE)
