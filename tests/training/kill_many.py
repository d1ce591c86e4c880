"""Kill a training run again and again, and compare it with one that was never killed.

    python -m tests.training.kill_many --kills 100

Each kill is a SIGKILL, at a random moment: while the process starts, between two steps, or as soon
as a save is seen to have begun. The run then goes on from its last checkpoint in a new process.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from . import killed_run

PROGRAM = Path(killed_run.__file__)
# The seconds after which a process is killed because it hangs.
LIMIT = 120
# What a process is to do when it is killed, in turn.
WAYS = ("saving", "training", "saving", "starting")


class Process:
    """A process of the run.

    Attributes:
        start: the step that it began with; None: it has not begun.
        steps: the last step that it reported.
        digest: what it reported at the end; None: it was killed before.
    """

    def __init__(self, folder=None):
        command = [sys.executable, str(PROGRAM), *(["--folder", str(folder)] if folder else [])]
        environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.start = self.steps = self.digest = None
        self._limit = threading.Timer(LIMIT, self._process.kill)
        self._limit.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def read(self):
        """Wait for the next report; returns whether there was one."""
        # The last line of a killed process may be cut off, and a library may print its own lines.
        for line in iter(self._process.stdout.readline, ""):
            kind, _, value = line.partition(" ")
            if kind == "end":
                self.digest = value.strip()
                return False
            if kind in ("start", "step") and line.endswith("\n"):
                self.steps = int(value)
                self.start = self.steps if kind == "start" else self.start
                return True
        return False

    def kill(self):
        """Kill it, and read what it had reported; returns whether it was still running."""
        self._process.kill()
        while self.read():
            pass
        return self._process.wait() == -9


def whole_run(folder=None):
    """The digest of a run that nobody interrupts."""
    with Process(folder) as process:
        while process.read():
            pass
        assert process.digest is not None, "the run failed"
        return process.digest


def interrupted(folder, rng, way, steps):
    """Begin or continue a run, and kill it when it has taken about `steps` steps or fewer.

    Returns:
        The process, and when it was killed: "starting", "training", "saving", or None if it had
        finished.
    """
    left = unfinished(folder)
    with Process(folder) as process:
        if way == "starting":
            time.sleep(rng.uniform(0, 1.5))
        else:
            for _ in range(rng.randint(1, steps)):
                process.read()
        if way == "training":
            time.sleep(rng.uniform(0, 0.03))
        elif way == "saving":
            end = time.monotonic() + 2
            while not unfinished(folder) - left and time.monotonic() < end:
                time.sleep(0.0005)
            time.sleep(rng.choice([0, rng.uniform(0, 0.02)]))
        was_running = process.kill()
    if not was_running:
        return process, None
    if unfinished(folder) - left:
        return process, "saving"
    return process, "starting" if process.steps in (None, process.start) else "training"


def unfinished(folder):
    """The checkpoints that are being written, or were when a process was killed."""
    if not folder.exists():
        return set()
    return {entry.inode() for entry in os.scandir(folder) if "orbax-checkpoint-tmp" in entry.name}


def survive(folder, kills, seed, steps):
    """Kill runs in a folder so many times, and let the last one finish.

    Returns:
        How many kills there were of each kind, and the digests of the runs that finished.

    Raises:
        AssertionError: if a process loses more than the two last checkpoints.
    """
    rng, counts, digests = random.Random(seed), Counter(), []
    run, reached, left = 0, 0, kills
    while left:
        process, moment = interrupted(folder / str(run), rng, WAYS[left % 4], steps)
        if process.start is not None:
            # A save begins when the one before it is complete, and there is one in three steps.
            assert process.start >= reached - 5, f"back from step {reached} to {process.start}"
            reached = process.steps
        if moment is None:
            assert process.digest is not None, "the run failed"
            digests.append(process.digest)
            run, reached = run + 1, 0
        else:
            counts[moment] += 1
            left -= 1
    return counts, [*digests, whole_run(folder / str(run))]


def main():
    """Kill as many times as the command line says, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # The programs are compiled once.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        expected = whole_run()
        counts, digests = survive(Path(folder), arguments.kills, arguments.seed, steps=6)
    same = sum(digest == expected for digest in digests)
    for moment, count in sorted(counts.items()):
        print(f"killed while {moment}: {count}")
    print(f"runs that ended with the bits of the uninterrupted one: {same} of {len(digests)}")
    print(f"{time.monotonic() - begin:.0f} s")
    return same != len(digests)


if __name__ == "__main__":
    sys.exit(main())
