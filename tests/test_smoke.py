"""Which tests are run: the quick selection, those that are not slow, or what was asked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import slow
from .smoke import SMOKE

ROOT = Path(__file__).parents[1]
# It has slow tests only.
SLOW = "tests/testing/test_devices.py"


@pytest.mark.parametrize("name", SMOKE)
def test_what_is_listed_is_there(name):
    file, _, test = name.partition("::")
    assert (ROOT / file).exists()
    assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text()


def test_every_part_has_some():
    parts = {path.relative_to(ROOT).parts[1] for path in (ROOT / "tests").glob("*/**/test_*.py")}
    assert parts == {name.split("/")[1] for name in SMOKE if name.count("/") > 1}


def test_the_mark_selects_them():
    command = [sys.executable, "-m", "pytest", "-m", "smoke", "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(
        [*command, "tests/kernels"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line]
    assert len(found) > 20
    assert set(found) == {name for name in SMOKE if name.startswith("tests/kernels")}


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["-o", f"testpaths={SLOW}"], False),
        (["-o", f"testpaths={SLOW}", "-m", "slow"], True),
        ([SLOW], True),
    ],
    ids=["alone", "by mark", "by name"],
)
def test_what_is_slow_runs_where_it_is_asked_for(arguments, runs):
    command = [sys.executable, "-m", "pytest", "-v", "-n", "1", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if runs else pytest.ExitCode.NO_TESTS_COLLECTED), done.stdout
    assert ("PASSED" in done.stdout) == runs


def test_what_is_listed_as_slow_is_there():
    assert [name for name in slow.SLOW if not is_test(*name.split("::"))] == []


def is_test(file, *names):
    text = (ROOT / file).read_text()
    return all(re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE) for name in names)


def test_the_list_of_slow_tests_comes_from_reports(tmp_path):
    def write(report, *cases):
        lines = [
            f'<testcase classname="{name}" name="{test}" file="tests/a/both.py" time="{time}"/>'
            for name, test, time in cases
        ]
        (tmp_path / report).write_text(f"<testsuites>{''.join(lines)}</testsuites>")
        return tmp_path / report

    limit = slow.LIMIT
    quick = write(
        "quick.xml",
        ("tests.a.b", "test_quick[x]", 0.5 * limit),
        ("tests.a.b", "test_became_slow[y]", 3 * limit),
        ("gradtx.norms", "gradtx.norms.global_norm", 5 * limit),
    )
    rest = write(
        "slow.xml",
        ("tests.a.b", "test_mixed[x]", 0.1 * limit),
        ("tests.a.b", "test_mixed[y]", 3 * limit),
        ("tests.a.b.TestC", "test_long", 2 * limit),
        ("tests.a.b.TestC", "test_became_quick", 0.5 * limit),
    )
    assert slow.slow_functions(quick, rest) == [
        "tests/a/b.py::TestC::test_long",
        "tests/a/b.py::test_became_slow",
        "tests/a/b.py::test_mixed",
    ]
