"""Two processes train as one does, and nothing is left of them, however they end."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from examples import distributed

ROOT = Path(distributed.__file__).parent.parent


@pytest.fixture
def start(tmp_path):
    """Starts the example with its temporary files in `tmp_path`."""
    running = []

    def start_with(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.distributed", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "TMPDIR": str(tmp_path),
                "JAX_PLATFORMS": "cpu",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time
            },
        )
        running.append(process)
        return process

    yield start_with
    for process in running:
        process.kill()
        process.communicate()


def workers(folder):
    """The processes that work in a folder, which is in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if b"--work" in text and bytes(folder) in text:
            found.append(int(path.parent.name))
    return found


def test_two_processes_train_as_one_does(start, tmp_path):
    process = start()
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    rows = re.findall(r"│ (\S.*?) +│ +(\d x \d) │ +(\d+) │ +(\S+) │ +(\S*) │", output)
    layouts = ["data parallel", "ZeRO-1", "FSDP"]
    resumed = [f"{layout}, then alone" for layout in layouts]
    assert [row[0] for row in rows] == ["one process", *layouts, *resumed]
    assert [row[1] for row in rows] == ["1 x 1", *["2 x 2"] * 3, *["1 x 1"] * 3]
    # Adam's two moments of 85,000 parameters in float32.
    expected = [1, 1, 1 / 4, 1 / 4, 1, 1, 1]
    assert [float(row[2]) for row in rows] == pytest.approx([688 * x for x in expected], rel=0.01)
    assert [float(row[3]) for row in rows] == pytest.approx([float(rows[0][3])] * 7, abs=2e-6)
    assert all(float(row[4]) < 1e-5 for row in rows[1:])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no list of processes")
@pytest.mark.parametrize("started", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_all_processes(start, tmp_path, number, started):
    process = start()
    end = time.monotonic() + 60
    while len(workers(tmp_path)) < started:
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == "Interrupted\n"
    assert workers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_takes_too_long_is_ended(start, tmp_path):
    process = start("--limit", "0.1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "A process took too long." in output
    assert workers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_fails_ends_the_others(tmp_path):
    end = time.monotonic() + 60
    works = [{"folder": str(tmp_path)}, {"folder": str(tmp_path / "none"), "wrong": 1}]
    with pytest.raises(SystemExit, match=r"(?s)A process ended with status 1.*'wrong'"):
        distributed.finish(works, str(tmp_path), end, threading.Event())
    assert workers(tmp_path) == []


def test_a_run_that_differs_is_reported(capsys):
    alone = {"loss": np.float32(1.0), "bytes": np.array(24), "w": np.zeros(3)}
    for difference, status in ((1e-6, 0), (1e-4, 1), (np.nan, 1)):
        results = {distributed.ALONE: alone, "FSDP": {**alone, "w": np.float64([0, difference, 0])}}
        assert distributed.print_table(results, "2 x 2") == status
    assert "1.0e-04" in capsys.readouterr().out
