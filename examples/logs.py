"""Writes the measurements of a run as lines of JSON and as events for TensorBoard."""

import contextlib
import json
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from examples import extras

Row = dict[str, float]


class Log:
    """What was measured at the steps of a run, in a file `metrics.jsonl` and a folder `events`.

    The measurements wait on the device until `flush`, so that no step waits for the one before.

    Args:
        folder: where to write.
        start: the step after which the run goes on; what was written of later steps is dropped.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        self.rows = [row for row in read_rows(path) if row["step"] <= start]
        self._waiting: list[Any] = []
        self._stack = contextlib.ExitStack()
        self._lines = self._stack.enter_context(path.open("w"))
        self._lines.writelines(json.dumps(row) + "\n" for row in self.rows)
        writer = extras.load("tensorboardX").SummaryWriter
        events = writer(str(folder / "events"), purge_step=start + 1 if start else None)
        self._events = self._stack.enter_context(events)

    def add(self, step: int, **measured: Any) -> None:
        """Record what was measured at a step."""
        self._waiting.append({"step": step, **measured})

    def flush(self) -> None:
        """Write what has been recorded since the last call."""
        for measured in jax.device_get(self._waiting):
            row = {name: np.asarray(value).item() for name, value in measured.items()}
            self._lines.write(json.dumps(row) + "\n")
            for name in row.keys() - {"step"}:
                self._events.add_scalar(name, row[name], row["step"])
            self.rows.append(row)
        self._waiting.clear()
        self._lines.flush()

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write the rest and close the files."""
        self.flush()
        self._stack.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
