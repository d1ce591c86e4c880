"""What the project says in several places is the same: versions, bounds, names of files."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, version
from pathlib import Path

import gradtx

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PREFIX = "Programming Language :: Python :: "
PYTHONS = re.findall(rf"{PREFIX}(3\.\d+)", "\n".join(PROJECT["classifiers"]))
BOUNDS = dict(requirement.split(">=") for requirement in PROJECT["dependencies"])


def test_the_version_is_written_once():
    assert "version" not in PROJECT
    assert gradtx.__version__ == version("gradtx") == metadata("gradtx")["Version"]


def test_the_oldest_python_is_the_first_classifier():
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert sorted(PYTHONS, key=lambda text: int(text.split(".")[1])) == PYTHONS


def test_the_oldest_versions_are_the_bounds():
    script = [sys.executable, str(ROOT / ".ci" / "oldest")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert dict(line.split("==") for line in printed.splitlines()) == BOUNDS
    assert {"jax", "jaxlib", "numpy", "optax"} == BOUNDS.keys()
