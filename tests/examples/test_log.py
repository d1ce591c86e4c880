"""The log of the guide that reads a run is complete, and waits for no single step."""

import contextlib
import json
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import gradtx

GUIDE = Path(__file__).parents[2] / "examples" / "site" / "guides" / "17_while_it_runs.md"
CELL = re.compile(r"```\{code-cell\}[^\n]*\n(?:(?::[^\n]*\n)*)(.*?)```", re.DOTALL)
CELLS = CELL.findall(GUIDE.read_text())
[LOG] = [number for number, code in enumerate(CELLS) if "SummaryWriter" in code]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the cells up to the log ran and left their files."""
    folder, namespace = tmp_path_factory.mktemp("log"), {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for code in CELLS[: LOG + 1]:
            exec(code, namespace)
    return folder


def events_in(path):
    """The scalars in a file of TensorBoard's: each record is a length, its checksum, ..."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value


def test_the_log_has_each_step_in_json_and_in_events(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["call"] for row in rows] == list(range(50))
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert {type(value) for row in rows for value in row.values()} == {int, float}
    [path] = (folder / "events").iterdir()
    events = {(number, tag): value for number, tag, value in events_in(path)}
    expected = {
        (row["call"], name): value for row in rows for name, value in row.items() if name != "call"
    }
    assert events == pytest.approx(expected, rel=1e-6)


class OnDevice:
    """A number on a device, which tells when it is fetched."""

    def __init__(self, happened):
        self.happened = happened

    def __array__(self, dtype=None, copy=None):
        self.happened.append("fetched")
        return np.float32(1.0)


def test_the_log_fetches_many_steps_at_once(tmp_path, monkeypatch):
    happened = []

    def step(params, state, batch):
        happened.append("step")
        return params, state, {"loss": OnDevice(happened)}

    monkeypatch.setattr(jax, "jit", lambda function: step)
    with contextlib.chdir(tmp_path):
        exec(CELLS[LOG], {"jax": jax, "params": {}, "tx": gradtx.identity()})
    assert happened == (["step"] * 20 + ["fetched"] * 20) * 2 + ["step"] * 10 + ["fetched"] * 10
