"""The sections of the benchmark, except those on methods and normalization."""

from __future__ import annotations

import compileall
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from gradtx.bench import programs
from gradtx.bench.measure import Figure, Settings, Subject, compared, in_turn, memory
from gradtx.bench.programs import LIBRARIES


def trace(settings: Settings) -> Iterator[Figure]:
    """Tracing and lowering a step, with empty caches."""
    for case, subjects in _to_compile(settings):
        tasks = {name: subject.trace for name, subject in subjects.items()}
        yield from compared("trace", case, in_turn(tasks, settings.slow_repeats))


def compile(settings: Settings) -> Iterator[Figure]:
    """Compiling a step, and the temporary memory that it needs."""
    for case, subjects in _to_compile(settings):
        tasks = {name: subject.compile for name, subject in subjects.items()}
        yield from compared("compile", case, in_turn(tasks, settings.slow_repeats))
        yield from memory("compile", case, subjects)


def step(settings: Settings) -> Iterator[Figure]:
    """A step; for one large leaf, also the time to read and write the same arrays once."""
    for number, (case, shapes) in enumerate(programs.trees(settings.quick).items()):
        subjects = {}
        gradient = programs.drawn(shapes, 0)
        for name in LIBRARIES:
            tx = programs.clipped_adamw(name)
            subjects[name] = programs.to_run(
                settings, programs.training_step(name, tx), tx, gradient
            )
        if number == 0:
            arrays = (*(programs.drawn(shapes[0], seed) for seed in (1, 2, 3)), gradient[0])
            subjects["bound"] = Subject(settings, programs.touch, arrays, 3)
        for subject in subjects.values():
            subject.warm_up()
        tasks = {name: subject.step for name, subject in subjects.items()}
        medians = in_turn(tasks, settings.repeats)
        bound = medians["bound"]["step"] if number == 0 else None
        yield from compared("step", case, medians, bound=bound)


def eager(settings: Settings) -> Iterator[Figure]:
    """An update that is not compiled as a whole."""
    count = 4 if settings.quick else 50
    gradient = programs.drawn([jax.ShapeDtypeStruct((64,), "float32")] * count, 0)
    tasks = {}
    for name in LIBRARIES:
        tx = programs.clipped_adamw(name)
        state = tx.init(gradient)
        function = functools.partial(tx.update, gradient, state, gradient)
        jax.block_until_ready(function())
        tasks[name] = functools.partial(_timed, settings, function, "update")
    yield from compared("eager", f"{count} leaves of 64", in_turn(tasks, settings.repeats))


def construction(settings: Settings) -> Iterator[Figure]:
    """Building a transformation."""
    for method in ("adamw", "muon"):
        tasks = {}
        for name in LIBRARIES:
            factory = functools.partial(programs.named(name, method), 1e-3)
            factory()
            calls = 1 if settings.quick else 100
            tasks[name] = functools.partial(_timed, settings, factory, "build", calls)
        yield from compared("construction", method, in_turn(tasks, settings.repeats))


def import_(settings: Settings) -> Iterator[Figure]:
    """Importing the library in a new process, after jax."""
    clock = "process_time" if settings.cpu_time else "perf_counter"
    with tempfile.TemporaryDirectory() as folder:
        # A compiled copy, like one that pip installs; the files imported here may not be compiled.
        for name in LIBRARIES:
            package = Path(sys.modules[name].__file__ or "").parent
            shutil.copytree(package, Path(folder, name))
        compileall.compile_dir(folder, quiet=1)
        paths = [folder, *filter(None, sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

        def run(name: str) -> dict[str, float]:
            program = (
                f"import time, jax; start = time.{clock}(); import {name}; "
                f"print(time.{clock}() - start)"
            )
            # Run in that folder, because Python searches the current one first.
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            return {"import": float(done.stdout)}

        tasks = {name: functools.partial(run, name) for name in LIBRARIES}
        yield from compared("import", "after jax", in_turn(tasks, settings.slow_repeats))


def _to_compile(settings: Settings) -> Iterator[tuple[str, dict[str, Subject]]]:
    """The step on each tree."""
    for case, params in programs.trees(settings.quick).items():
        subjects = {}
        for name in LIBRARIES:
            tx = programs.clipped_adamw(name)
            arguments = (params, jax.eval_shape(tx.init, params), params)
            function = programs.training_step(name, tx)
            subjects[name] = Subject(settings, function, arguments, 2)
        yield case, subjects


def _timed(
    settings: Settings, function: Callable[[], Any], measure: str, calls: int = 1
) -> dict[str, float]:
    result = None
    start = settings.clock()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return {measure: (settings.clock() - start) / calls}
