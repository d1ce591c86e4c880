"""How the benchmarks measure: interleaved, several times, with medians as results."""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

# Takes one measurement, and returns seconds by the name of what was measured.
Task: TypeAlias = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """The command-line options that apply to all sections.

    Attributes:
        repeats: the number of measurements of each figure.
        cpu_time: whether to measure the CPU time of the process, which other programs hardly
            affect, instead of the wall-clock time.
        quick: whether everything is tiny and measured once, as a smoke test.
    """

    repeats: int
    cpu_time: bool = False
    quick: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """The seconds since some point in the past."""
        return time.process_time if self.cpu_time else time.perf_counter

    @property
    def slow_repeats(self) -> int:
        """The number of measurements of what is slow but varies little, such as compiling."""
        return 1 if self.quick else max(5, self.repeats // 3)

    @property
    def shortest(self) -> float:
        """The minimum duration of one measurement in seconds; faster calls are measured in bulk."""
        return 0.0 if self.quick else 0.01


@dataclass(frozen=True)
class Figure:
    """A row of the tables.

    Attributes:
        section: one of the names that `--only` takes.
        case: what was measured, such as a tree or a method.
        measure: which quantity: "trace", "compile", "step", "temporary", ...
        theirs: the median of the other library, in `unit`.
        ours: the median of gradtx.
        unit: "seconds" or "bytes".
        peer: the other library.
        bound: the seconds that the machine needs to read and write the same arrays once, if
            measured.
    """

    section: str
    case: str
    measure: str
    theirs: float
    ours: float
    unit: str = "seconds"
    peer: str = "optax"
    bound: float | None = None

    @property
    def ratio(self) -> float | None:
        """The quotient theirs / ours, larger is better for gradtx; None if ours is zero."""
        return self.theirs / self.ours if self.ours else None


def in_turn(tasks: Mapping[str, Task], repeats: int) -> dict[str, dict[str, float]]:
    """The medians of interleaved measurements of several tasks.

    Each round begins with a different task, so that no task always has the same predecessor.
    """
    names = list(tasks)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(tasks[name]())
    return {
        name: {measure: statistics.median(row[measure] for row in rows) for measure in rows[0]}
        for name, rows in found.items()
    }


def compared(
    section: str, case: str, medians: Mapping[str, Mapping[str, float]], **rest: Any
) -> Iterator[Figure]:
    """A figure for each measure in the result of `in_turn`, of "gradtx" and the other library."""
    theirs = next(values for name, values in medians.items() if name != "gradtx")
    for measure, value in theirs.items():
        yield Figure(section, case, measure, value, medians["gradtx"][measure], **rest)


class Subject:
    """A program that is traced, lowered, compiled and run, each as often as needed.

    Args:
        settings: the options of the command line.
        function: returns the new values of its first `donated` arguments, if there are any.
        arguments: arrays, or `jax.ShapeDtypeStruct` if the program is only compiled.
        donated: how many of the first arguments are donated.

    Attributes:
        carried: the current values of these arguments.
    """

    def __init__(
        self, settings: Settings, function: Callable[..., Any], arguments: Any, donated: int = 0
    ) -> None:
        self._settings, self._clock = settings, settings.clock
        self._function, self._donated = function, donated
        self.carried, self._rest = arguments[:donated], arguments[donated:]
        self._calls = 0
        self._lowered: Any = None
        self._compiled: Any = None

    def trace(self) -> dict[str, float]:
        """Trace and lower, as if in a new process."""
        jax.clear_caches()
        gc.collect()
        jitted = jax.jit(self._function, donate_argnums=range(self._donated))
        start = self._clock()
        traced = jitted.trace(*self.carried, *self._rest)
        between = self._clock()
        self._lowered = traced.lower()
        end = self._clock()
        return {"trace": between - start, "lower": end - between, "trace + lower": end - start}

    def compile(self) -> dict[str, float]:
        """Compile, after tracing and lowering, which are not measured here."""
        self.trace()
        start = self._clock()
        self._compiled = self._lowered.compile()
        return {"compile": self._clock() - start}

    def temporary_bytes(self) -> int | None:
        """The memory of the compiled program, without its arguments and results, if known."""
        analysis = self._compiled.memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes

    def warm_up(self, multiple: int = 1) -> None:
        """Compile if needed, and find how many calls to measure in bulk.

        Args:
            multiple: the number of calls is a multiple of this.
        """
        if self._compiled is None:
            self.compile()
        self.run(multiple)  # the first run also allocates the outputs
        seconds = self.run(multiple) * multiple
        self._calls = multiple * max(1, math.ceil(self._settings.shortest / max(seconds, 1e-9)))

    def step(self) -> dict[str, float]:
        """Run, after `warm_up`."""
        return {"step": self.run(self._calls)}

    def run(self, calls: int) -> float:
        """Run several times; the seconds of one call."""
        outputs = None
        start = self._clock()
        for _ in range(calls):
            outputs = self._compiled(*self.carried, *self._rest)
            if self._donated:
                self.carried = outputs
        jax.block_until_ready(outputs)
        return (self._clock() - start) / calls

    def kernels(self) -> int:
        """The operations that the compiled program launches; what a loop repeats counts once."""
        return launched(self._compiled.as_text())

    def waits(self) -> int:
        """The conditions and loops of unknown length, at which a GPU waits for the host."""
        return sum(
            bool(_BRANCH.search(line)) and "known_trip_count" not in line
            for line in self._compiled.as_text().splitlines()
        )


def launched(program: str) -> int:
    """The operations that a program in XLA's text form launches.

    What is inside of a fusion runs as part of it. The parts of loops and conditions count once.
    """
    bodies = {name: body.splitlines() for _, name, body in _COMPUTATION.findall(program)}
    reached = [name for entry, name, _ in _COMPUTATION.findall(program) if entry]
    for name in reached:
        calls = filter(_CALL.search, bodies[name])
        called = {part for line in calls for part in _NAME.findall(line)}
        reached += [part for part in called if part in bodies and part not in reached]
    lines = [line for name in reached for line in bodies[name]]
    return sum(not (_CALL.search(line) or _NO_KERNEL.search(line)) for line in lines)


# Whether it is where the program starts, the name, and the instructions of a part of a program.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)\n\}", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"[\w.-]+")
_CALL = re.compile(r" (?:while|conditional|call)\(")
_BRANCH = re.compile(r" (?:while|conditional)\(")
_NO_KERNEL = re.compile(r" (?:parameter|constant|tuple|get-tuple-element|bitcast)\(")


def memory(
    section: str,
    case: str,
    subjects: Mapping[str, Subject],
    measure: str = "temporary",
    peer: str = "optax",
) -> Iterator[Figure]:
    """A figure of the temporary memory of compiled programs, if the backend reports it."""
    found = {name: subject.temporary_bytes() for name, subject in subjects.items()}
    if None not in found.values():
        values = {name: {measure: float(size)} for name, size in found.items() if size is not None}
        yield from compared(section, case, values, unit="bytes", peer=peer)
