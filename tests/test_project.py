"""What the project says in several places is the same: versions, bounds, names of files."""

import itertools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
import yaml

import gradtx

ROOT = Path(__file__).parents[1]
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = TOML["project"]
PREFIX = "Programming Language :: Python :: "
PYTHONS = re.findall(rf"{PREFIX}(3\.\d+)", "\n".join(PROJECT["classifiers"]))
README = (ROOT / "README.md").read_text()
GITHUB = ROOT / ".github"
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


def jobs_of_the_workflow():
    """The jobs that the workflow starts, as (system, Python, oldest or newest versions)."""
    (job,) = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())["jobs"].values()
    matrix = job["strategy"]["matrix"]
    more = [tuple(each[key] for key in ("os", "python", "versions")) for each in matrix["include"]]
    return [*itertools.product(matrix["os"], matrix["python"], matrix["versions"]), *more], job


def test_the_workflow_runs_everything_that_is_supported():
    jobs, job = jobs_of_the_workflow()
    systems = ("ubuntu-latest", "macos-latest")
    newest = {(system, python, "newest") for system in systems for python in PYTHONS}
    assert set(jobs) == newest | {(system, PYTHONS[0], "oldest") for system in systems}
    *_, constrained, last = job["steps"]
    assert constrained["if"] == "matrix.versions == 'oldest'"
    assert ".ci/oldest >" in constrained["run"]
    assert "PIP_CONSTRAINT=" in constrained["run"]
    assert last["run"] == ".ci/run"


def test_the_workflow_runs_no_action_that_may_change():
    _, job = jobs_of_the_workflow()
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert len(actions) == 2
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in actions)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_the_issue_forms_are_valid(name):
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown")
        assert field["attributes"]["label"]
        options = field["attributes"].get("options", [])
        # Words such as "yes" are booleans without quotes, which a form refuses.
        assert all(isinstance(option, str) for option in options)
        assert bool(options) == (field["type"] == "dropdown")


def test_a_bug_is_reported_with_an_example_and_versions():
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    required = {f["id"] for f in form["body"] if f.get("validations", {}).get("required")}
    assert {"example", "expected", "happened", "versions"} == required


def test_the_readme_says_what_is_supported():
    rows = dict(
        re.findall(r"^\| ([\w, ]+) \| ([\d.]+) \| (?:[\d.]+|any newer one) \|$", README, re.M)
    )
    names = {"jax, jaxlib": "jax", "optax": "optax", "numpy": "numpy"}
    assert f"| Python | {PYTHONS[0]} | {PYTHONS[-1]} |" in README
    assert {names[row]: oldest for row, oldest in rows.items() if row != "Python"} == {
        name: bound for name, bound in BOUNDS.items() if name != "jaxlib"
    }
    assert BOUNDS["jaxlib"] == BOUNDS["jax"]


def test_the_readme_of_the_package_has_no_relative_links():
    hook = TOML["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert hook["fragments"] == [{"path": "README.md"}]
    text = README
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    home = PROJECT["urls"]["Homepage"]
    raw = home.replace("github.com", "raw.githubusercontent.com")
    pattern = r"(!?)\[[^\]]+\]\(([^)\s]+)\)"
    for (mark, old), (_, new) in zip(
        re.findall(pattern, README), re.findall(pattern, text), strict=True
    ):
        is_whole = old.startswith(("https://", "#"))
        assert new == (
            old if is_whole else f"{raw}/main/{old}" if mark else f"{home}/blob/main/{old}"
        )
    assert text.count(f"]({raw}/main/examples/site/static/") == 4


def test_the_changelog_has_a_section_for_this_version_or_for_what_comes():
    sections = re.findall(r"^## (.+)$", (GITHUB / "CHANGELOG.md").read_text(), re.M)
    assert sections[0] == "Unreleased"
    released = [section.split()[0] for section in sections[1:]]
    assert released[:1] in ([], [gradtx.__version__])


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.md")), ids=lambda path: path.name)
def test_pages_refer_to_what_is_there(path):
    page = path.read_text()
    for name in re.findall(r"`(\.?[\w/]+(?:/|\.\w+)+)`", page):
        if name.startswith((".ci", ".github", "gradtx/", "tests/", "examples/")):
            is_example = f"# {name}\n" in page
            assert is_example or "your_" in name or (ROOT / name).exists(), name
