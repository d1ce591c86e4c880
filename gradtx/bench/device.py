"""What steps cost on one device, in absolute numbers: time, bandwidth, kernels, memory.

Every case runs the same problem with several transformations, and fails if their results disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import gradtx
from gradtx.bench.device_cases import Case, cases
from gradtx.bench.measure import Settings, Subject, in_turn

# Steps in a row, as in training: the host prepares the next one while the device works.
_STEPS = 10


@dataclass(frozen=True)
class Run:
    """One transformation on one case.

    Attributes:
        case: the parameters.
        name: the library and what it does.
        seconds: the median time of a step, of several in a row.
        share: the time that the device would need to read the gradient, and to read and write
            parameters and state once, divided by that median.
        kernels: the number of operations that the compiled step launches, those of loops once.
        waits: its loops of unknown length and conditions: a GPU waits for the host at each.
        temporary: the bytes that the step needs in addition to its arguments and results.
        state: the bytes of the optimizer's state.
        trace: the seconds to trace and lower.
        compile: the seconds to compile.
        difference: how far its parameters are from those of the first run of the case after
            three steps, divided by how far these have moved.
        tolerance: the largest difference that is no failure.
    """

    case: str
    name: str
    seconds: float
    share: float
    kernels: int
    waits: int
    temporary: int | None
    state: int
    trace: float
    compile: float
    difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether its results are those of the first run."""
        return self.difference <= self.tolerance


def runs(settings: Settings, bandwidth: float, names: Sequence[str] = ()) -> Iterator[Run]:
    """The runs of all cases, those of a case as soon as they are measured.

    Args:
        settings: the options of the command line.
        bandwidth: what `bandwidth_of_device` measured.
        names: only cases whose name contains one of these; none: all.
    """
    for case in cases(settings.quick):
        if not names or any(name in case.name for name in names):
            yield from _runs(settings, case, bandwidth)


def bandwidth_of_device(settings: Settings) -> float:
    """The bytes per second at which a large array is read and written."""
    x = jnp.zeros(1 << (12 if settings.quick else 26), jnp.float32)
    copy = Subject(settings, lambda x: (x + 1,), (x,), 1)
    copy.warm_up()
    seconds = in_turn({"copy": copy.step}, settings.repeats)["copy"]["step"]
    return 2 * x.nbytes / seconds


def _runs(settings: Settings, case: Case, bandwidth: float) -> Iterator[Run]:
    """The runs of one case, interleaved."""
    subjects, costs, movements = {}, {}, []
    start, given = case.params(), case.given()
    for way in case.ways:
        name = f"{way.library} {way.note}".strip()
        own = jax.tree.map(lambda x, dtype=way.dtype: x.astype(dtype), start)
        subjects[name] = subject = way.subject(settings, way, own, given)
        costs[name] = subject.trace() | subject.compile()
        subject.run(3)
        movements.append(jax.tree.map(_minus, way.read(*subject.carried), own))
        subject.warm_up(1 if settings.quick else _STEPS)
    medians = in_turn({name: subject.step for name, subject in subjects.items()}, settings.repeats)
    size = float(gradtx.global_norm(movements[0]))
    for (name, subject), way, movement in zip(subjects.items(), case.ways, movements, strict=True):
        seconds = medians[name]["step"]
        carried, params = _bytes(subject.carried), _bytes(start) * way.dtype.itemsize // 4
        yield Run(
            case.name,
            name,
            seconds,
            (2 * carried + params) / bandwidth / seconds,
            subject.kernels(),
            subject.waits(),
            subject.temporary_bytes(),
            carried - params,
            costs[name]["trace + lower"],
            costs[name]["compile"],
            _distance(movement, movements[0]) / size,
            way.tolerance,
        )


def _minus(x: jax.Array, y: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) - y.astype(jnp.float32)


def _distance(x: Any, y: Any) -> float:
    return float(gradtx.global_norm(jax.tree.map(_minus, x, y)))


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
