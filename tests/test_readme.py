"""The README's Python blocks run, in order, as one program."""

import contextlib
import json
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
[LOG] = [block for block in BLOCKS if "SummaryWriter" in block]


def run(block, namespace, folder):
    # The guide to faults shows one that this setting of JAX would refuse.
    ranks = "allow" if "check_up" in block else jax.config.jax_numpy_rank_promotion
    with contextlib.chdir(folder), jax.numpy_rank_promotion(ranks):
        exec(compile(block, str(README), "exec"), namespace)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the blocks ran and left their files."""
    folder, namespace = tmp_path_factory.mktemp("readme"), {"__name__": "readme"}
    for block in BLOCKS:
        run(block, namespace, folder)
    return folder


def test_python_blocks_run(folder):
    assert len(BLOCKS) >= 5


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
    # The block before took the first step.
    assert [row["step"] for row in rows] == list(range(2, 52))
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
    run(LOG, {"jax": jax, "params": None, "state": None}, tmp_path)
    assert happened == (["step"] * 20 + ["fetched"] * 20) * 2 + ["step"] * 10 + ["fetched"] * 10
