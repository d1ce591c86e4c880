"""Runs tests against a changed file, each time in a fork of a process that has imported jax."""

import contextlib
import importlib.abc
import importlib.util
import io
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .changes import Change
from .covering import ROOT

OPTIONS = ["-x", "-q", "-n", "0", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
# What is imported early is no longer rewritten, which only makes its own messages shorter.
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


def prepare(programs: Path) -> None:
    """Import what takes long and is not changed; without starting jax, which no fork survives.

    Args:
        programs: a folder for compiled programs, shared by all runs.
    """
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    # Threads of linear algebra do not come along either.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from tests import conftest  # noqa: F401 (it sets the environment of the tests)

    for name in ("optax", "equinox", "flax.linen", "flax.nnx", "chex", "scipy.stats"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    imported = [name for name in sys.modules if name.partition(".")[0] == "gradtx"]
    if imported:
        raise RuntimeError(f"{imported[0]} is imported already, and could not be changed")


def run(change: Change | None, tests: Sequence[str], limit: int) -> dict[str, Any]:
    """Run tests until one fails.

    Args:
        change: what to change; None: nothing.
        tests: paths of files with tests.
        limit: after how many seconds of the processor to give up.

    Returns:
        "outcome" ("killed", "survived", "too slow" or "no result"), "by" (the test that
        failed, or the error) and "seconds".
    """
    began = time.monotonic()
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore"):
        child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))
        try:
            answer = _run_here(change, tests)
        except BaseException as error:
            answer = {"outcome": "no result", "by": f"{type(error).__name__}: {error}"[:300]}
        os.write(writing, json.dumps(answer).encode())
        # Not sys.exit, which would clean up what belongs to the parent.
        os._exit(0)
    os.close(writing)
    # Other processes may have the processor, so that a limit in seconds of the clock is long.
    ready, _, _ = select.select([reading], [], [], 20 * limit)
    text = os.read(reading, 65536) if ready else b""
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return _answer(text, status, bool(ready)) | {"seconds": round(time.monotonic() - began, 1)}


def _answer(text: bytes, status: int, is_in_time: bool) -> dict[str, Any]:
    if text:
        return json.loads(text)
    if not is_in_time or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"outcome": "too slow", "by": ""}
    # A process that ended without a word has crashed.
    return {"outcome": "killed", "by": "crash"}


class _Session:
    """A plugin that changes a module and remembers which test failed."""

    def __init__(self, change: Change | None) -> None:
        self._change = change
        self.failed = ""
        self.passed = 0

    def pytest_sessionstart(self) -> None:
        # Only here does it come before pytest's own importer of files with tests, and doctests.
        if self._change is not None:
            sys.meta_path.insert(0, _Changed(self._change))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (collected)"


def _run_here(change: Change | None, tests: Sequence[str]) -> dict[str, Any]:
    import pytest

    os.chdir(ROOT)
    session = _Session(change)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main([*OPTIONS, *tests], plugins=[session])
    if session.failed:
        return {"outcome": "killed", "by": session.failed}
    if code == pytest.ExitCode.OK:
        return {"outcome": "survived", "by": "", "passed": session.passed}
    # What cannot be imported fails before any test is collected.
    outcome = (
        "killed"
        if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR)
        else "no result"
    )
    return {"outcome": outcome, "by": output.getvalue()[-300:]}


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module with its change and leaves the others, and the file, alone."""

    def __init__(self, change: Change) -> None:
        self._path = ROOT / change.file
        self._module = change.file.removesuffix(".py").replace("/", ".")
        self._source = change.apply(self._path.read_text())

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._module.removesuffix(".__init__"):
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str) -> bytes:
        if Path(path) == self._path:
            return self._source.encode()
        # No compiled file either, which belongs to the unchanged module.
        raise OSError(path)

    def path_stats(self, path: str) -> Any:
        raise OSError(path)
