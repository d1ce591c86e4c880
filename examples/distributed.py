"""Train in two processes, and compare with one.

    python -m examples.distributed
    python -m examples.distributed --processes 4 --devices 1

On a cluster each machine runs one process of a program, and `jax.distributed` joins their devices.
Here the processes run on this machine, each with CPU devices of its own, and talk over its loopback
interface. The same network is trained once in a single process and on all devices in each of these
layouts, which differ in what a device keeps:

    data parallel   all parameters and their state; each device sees a part of the batch
    ZeRO-1          all parameters, and a part of their state
    FSDP            a part of the parameters and of their state

Halfway, the processes save the run together. A single process then goes on from what they saved,
and has to arrive where it would have arrived alone.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx
from examples import commands, digits, extras
from gradtx.sharding import zero
from gradtx.training import Checkpoints, TrainState, make_train_step, minibatches

STEPS, BATCH_SIZE = 20, 64
ALONE = "one process"
# Sums are added up in another order on several devices, so that their last digits differ.
TOLERANCE = 1e-5


def replicated(leaf: Any, mesh: Mesh) -> NamedSharding:
    """All of an array on each device."""
    return NamedSharding(mesh, P())


def divided(leaf: Any, mesh: Mesh) -> NamedSharding:
    """A part of an array on each device, along its first axis that can be divided."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
    return NamedSharding(mesh, P(*[None] * axes[0], "data") if axes else P())


class Layout(NamedTuple):
    """What is divided between the devices.

    Attributes:
        place: where a parameter lies, and its state with it.
        wrap: what is put around the transformation.
    """

    place: Callable[[Any, Mesh], NamedSharding]
    wrap: Callable[[Any, Mesh], Any] = lambda tx, mesh: tx


LAYOUTS = {
    "data parallel": Layout(replicated),
    "ZeRO-1": Layout(replicated, zero),
    "FSDP": Layout(divided),
}


def on_mesh(tree: Any, sharding: Callable[[Any, Mesh], NamedSharding], mesh: Mesh) -> Any:
    """Arrays that each process has in full, on the devices of all processes."""

    def one(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(
            array.shape, sharding(array, mesh), lambda index: array[index]
        )

    return jax.tree.map(one, tree)


def loss_fn(params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
    """The loss with noise on the images, which is the same wherever they lie."""
    noise = 0.1 * jax.random.normal(key, batch["image"].shape)
    return digits.loss_fn(params, stats, {**batch, "image": batch["image"] + noise})


class Training:
    """A training of `STEPS` steps on a mesh.

    Args:
        layout: where the parameters lie, a name in `LAYOUTS`.
        mesh: the devices, in a row that is called `data`.
    """

    def __init__(self, layout: str, mesh: Mesh) -> None:
        self.mesh = mesh
        self._layout = LAYOUTS[layout]
        tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(1e-3))
        self._tx = self._layout.wrap(tx, mesh)
        self._step = make_train_step(
            loss_fn, self._tx, has_model_state=True, has_aux=True, has_key=True
        )
        self._data = digits.load_digits().train

    def new_state(self) -> TrainState:
        """The state before the first step."""
        params, stats = jax.jit(digits.init_network)(jax.random.key(0))
        return TrainState.create(
            on_mesh(params, self._layout.place, self.mesh),
            self._tx,
            model_state=on_mesh(stats, replicated, self.mesh),
            key=jax.random.key(2),
        )

    def run(self, state: TrainState, checkpoints: Checkpoints | None = None) -> dict[str, Any]:
        """Train to the end; returns the last loss, the state's bytes and the parameters in full."""
        start, metrics = int(state.step), {}
        batches = minibatches(jax.random.key(1), self._data, BATCH_SIZE, epochs=None, start=start)
        for step, batch in zip(range(start + 1, STEPS + 1), batches, strict=False):
            state, metrics = self._step(state, on_mesh(batch, divided, self.mesh))
            if checkpoints is not None:
                checkpoints.save(state, step=step)
        in_full = jax.jit(lambda x: x, out_shardings=NamedSharding(self.mesh, P()))
        params, loss = in_full((state.params, metrics["loss"]))
        named, _ = jax.tree_util.tree_flatten_with_path(params)
        parts = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(state.opt_state)]
        return {
            "loss": np.asarray(loss),
            "bytes": np.asarray(sum(part.nbytes for part in parts)),
            **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named},
        }


def work(folder: str, process: int, processes: int, devices: int, port: int) -> None:
    """What each of several processes does: it trains in each layout, and saves halfway."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    for layout in LAYOUTS:
        training = Training(layout, mesh)
        with Checkpoints(Path(folder, layout), every=STEPS // 2) as checkpoints:
            found = training.run(training.new_state(), checkpoints)
        if process == 0:
            np.savez(Path(folder, layout), **found)
    jax.distributed.shutdown()


def work_alone(folder: str) -> None:
    """What a single process does: it trains, and goes on from what the others have saved."""
    training = Training("data parallel", jax.make_mesh((1,), ("data",), (AxisType.Auto,)))
    for layout in LAYOUTS:
        saved = Checkpoints(Path(folder, layout)).restore(training.new_state(), step=STEPS // 2)
        np.savez(Path(folder, f"{layout}, then alone"), **training.run(saved.state))
    np.savez(Path(folder, ALONE), **training.run(training.new_state()))


@contextlib.contextmanager
def processes_of(works: Sequence[dict[str, Any]], log: Path) -> Iterator[list[subprocess.Popen]]:
    """Processes of this program, none of which outlives the context."""
    running = []
    command = [sys.executable, "-m", "examples.distributed", "--work"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    try:
        with log.open("wb") as output:
            for arguments in works:
                process = subprocess.Popen(
                    [*command, json.dumps(arguments)],
                    stdout=output,
                    stderr=output,
                    cwd=Path(__file__).parent.parent,
                    env=environment,
                )
                running.append(process)
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def finish(works: Sequence[dict[str, Any]], folder: str, end: float, stop: Event) -> None:
    """Run processes to their end.

    Raises:
        SystemExit: if one of them fails, they have not finished at the time `end`, or `stop` is
            set; all of them have been killed then.
    """
    log = Path(folder, "log")
    works = [{**arguments, "limit": end - time.monotonic()} for arguments in works]
    with processes_of(works, log) as running:
        while not stop.is_set():
            states = [process.poll() for process in running]
            failed = [status for status in states if status]
            if failed or time.monotonic() > end:
                reason = f"ended with status {failed[0]}" if failed else "took too long"
                last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise SystemExit(f"A process {reason}. The last lines of its output:\n{last}")
            if None not in states:
                return
            stop.wait(0.05)
    raise SystemExit("Interrupted")


def free_port() -> int:
    """A port of the loopback interface that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_everywhere(
    processes: int, devices: int, limit: float, stop: Event
) -> dict[str, dict[str, Any]]:
    """The results of all runs, by their names: those of several processes, then those of one."""
    end, port = time.monotonic() + limit, free_port()
    with tempfile.TemporaryDirectory(prefix="distributed-") as folder:
        shared = {"folder": folder, "processes": processes, "devices": devices, "port": port}
        finish([{**shared, "process": i} for i in range(processes)], folder, end, stop)
        finish([{"folder": folder}], folder, end, stop)
        names = [ALONE, *LAYOUTS, *(f"{layout}, then alone" for layout in LAYOUTS)]
        return {name: dict(np.load(Path(folder, f"{name}.npz"))) for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example with the arguments of the command line."""
    parser = commands.Parser(
        prog="python -m examples.distributed",
        description="Train in several processes on this machine, and compare with one.",
    )
    count = commands.whole_number(1, 8)
    parser.add_argument("--processes", type=count, default=2, help="how many processes")
    parser.add_argument("--devices", type=count, default=2, help="CPU devices of each")
    parser.add_argument(
        "--limit", metavar="SECONDS", type=commands.positive_number, default=180, help="time limit"
    )
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work is not None:
        if hasattr(signal, "alarm"):  # should nobody be left who ends this process
            signal.alarm(int(arguments.work.pop("limit")) + 2)
        (work if "port" in arguments.work else work_alone)(**arguments.work)
        return 0
    if BATCH_SIZE % (arguments.processes * arguments.devices):
        parser.error(f"the number of all devices must divide the batch size, {BATCH_SIZE}")
    # An exception could come between the start of a process and the note that it has started.
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    results = train_everywhere(arguments.processes, arguments.devices, arguments.limit, stop)
    return print_table(results, f"{arguments.processes} x {arguments.devices}")


def print_table(results: dict[str, dict[str, Any]], several: str) -> int:
    """Print how far the runs are from that of one process; returns 1 if one is too far."""
    table = extras.load("rich.table").Table(title=f"{STEPS} steps on handwritten digits")
    table.add_column("\nrun")
    for heading in (
        "processes\nx devices",
        "KB of state\nper device",
        "\nlast loss",
        "largest\ndifference",
    ):
        table.add_column(heading, justify="right")
    alone, worst = results[ALONE], np.float64(0)
    names = alone.keys() - {"bytes"}
    for name, found in results.items():
        # Unlike those of Python, these maxima do not lose a NaN.
        difference = np.max([np.abs(found[key] - alone[key]).max() for key in names])
        worst = np.maximum(worst, difference)
        table.add_row(
            name,
            several if name in LAYOUTS else "1 x 1",
            f"{found['bytes'] / 1000:.0f}",
            f"{found['loss']:.6f}",
            "" if name == ALONE else f"{difference:.1e}",
        )
    extras.load("rich.console").Console().print(table)
    print(f"A run must not differ by more than {TOLERANCE:g}.")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    commands.run(main)
