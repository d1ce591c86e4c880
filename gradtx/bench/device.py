"""What steps cost on one device, in absolute numbers: time, bandwidth, kernels, memory.

Every case runs the same problem with several transformations, and fails if their results disagree.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import gradtx
from gradtx.bench import programs
from gradtx.bench.measure import Settings, Subject, in_turn

# The parameters that a step has trained, from what it returned.
_Read = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Run:
    """One transformation on one case.

    Attributes:
        case: the parameters.
        name: the library and what it does.
        seconds: the median time of a step.
        share: the time that the device would need to read and write the same arrays once, divided
            by that median.
        kernels: the number of operations that the compiled step launches, those of loops once.
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


@dataclass(frozen=True)
class _Way:
    """One way to train the parameters of a case."""

    library: str
    tx: Any
    tolerance: float = 1e-3
    dtype: Any = jnp.float32
    read: _Read = lambda params, state: params
    note: str = ""


@dataclass(frozen=True)
class _Case:
    name: str
    shapes: Any
    ways: tuple[_Way, ...]


def runs(settings: Settings, bandwidth: float) -> Iterator[Run]:
    """The runs of all cases, those of a case as soon as they are measured."""
    for case in _cases(settings.quick):
        yield from _runs(settings, case, bandwidth)


def bandwidth_of_device(settings: Settings) -> float:
    """The bytes per second at which a large array is read and written."""
    x = jnp.zeros(1 << (12 if settings.quick else 26), jnp.float32)
    copy = Subject(settings, lambda x: (x + 1,), (x,), 1)
    copy.warm_up()
    seconds = in_turn({"copy": copy.step}, settings.repeats)["copy"]["step"]
    return 2 * x.nbytes / seconds


def _cases(quick: bool) -> Iterator[_Case]:
    leaf = ("1 leaf of 4K", 1 << 12) if quick else ("1 leaf of 16M", 1 << 24)
    master_weights = _Way(
        "gradtx",
        gradtx.with_master_weights(programs.clipped_adamw("gradtx")),
        # Its gradients are rounded to bfloat16 too.
        tolerance=0.1,
        dtype=jnp.bfloat16,
        read=lambda params, state: state.master,
        note="bfloat16, master weights",
    )
    quantized = _Way(
        "gradtx",
        gradtx.quantize_state(programs.clipped_adamw("gradtx")),
        tolerance=0.1,
        note="8-bit state",
    )
    ways = (*_both(programs.clipped_adamw), master_weights, quantized)
    yield _Case(leaf[0], programs.leaves(1, leaf[1]), ways)

    gpt = ("GPT-like, 1 layer", (1, 8, 16)) if quick else (_GPT, (12, 768, 50257))
    in_8_bits = _Way(
        "gradtx",
        gradtx.quantize_state(programs.clipped_adamw("gradtx"), min_size=64 if quick else 4096),
        tolerance=0.1,
        note="state in 8 bits",
    )
    ways = (*_both(programs.clipped_adamw), in_8_bits)
    yield _Case(gpt[0], programs.gpt(*gpt[1]), ways)

    number = 4 if quick else 1000
    grouped = _Way("gradtx", gradtx.grouped(programs.clipped_adamw("gradtx")), note="grouped")
    ways = (*_both(programs.clipped_adamw), grouped)
    yield _Case(f"{number:,} leaves of 64", programs.leaves(number, 64), ways)

    # On a CPU, the products of larger matrices take minutes.
    rows = 8 if quick else 256 if jax.default_backend() == "cpu" else 1024
    name = f"muon, 12 matrices of {rows:,} x {4 * rows:,}"
    grouped = _Way("gradtx", gradtx.grouped(_muon("gradtx")), 0.05, note="grouped")
    ways = (*_both(_muon, tolerance=0.05), grouped)
    yield _Case(name, programs.matrices(12, rows, 4 * rows), ways)


_GPT = "GPT-like, 12 layers, 124M"


def _muon(library: str) -> Any:
    return programs.named(library, "muon")(1e-3)


def _both(tx: Callable[[str], Any], tolerance: float = 1e-3) -> tuple[_Way, ...]:
    """The same transformation of both libraries."""
    return tuple(_Way(library, tx(library), tolerance) for library in programs.LIBRARIES)


def _runs(settings: Settings, case: _Case, bandwidth: float) -> Iterator[Run]:
    """The runs of one case, interleaved."""
    subjects, costs, movements = {}, {}, []
    start = programs.drawn(case.shapes, 1)
    gradient = programs.drawn(case.shapes, 0)
    for way in case.ways:
        name = f"{way.library} {way.note}".strip()
        own, given = (_cast(tree, way.dtype) for tree in (start, gradient))
        step = programs.training_step(way.library, way.tx)
        subjects[name] = subject = programs.to_run(settings, step, way.tx, given, own)
        costs[name] = subject.trace() | subject.compile()
        subject.run(3)
        movements.append(jax.tree.map(_minus, way.read(*subject.carried), own))
        subject.warm_up()
    medians = in_turn({name: subject.step for name, subject in subjects.items()}, settings.repeats)
    for (name, subject), way, movement in zip(subjects.items(), case.ways, movements, strict=True):
        seconds = medians[name]["step"]
        params, state = subject.carried
        moved = 2 * (_bytes(params) + _bytes(state)) + _bytes(params)
        yield Run(
            case.name,
            name,
            seconds,
            moved / bandwidth / seconds,
            subject.kernels(),
            subject.temporary_bytes(),
            _bytes(state),
            costs[name]["trace + lower"],
            costs[name]["compile"],
            _distance(movement, movements[0]) / float(gradtx.global_norm(movements[0])),
            way.tolerance,
        )


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _minus(x: jax.Array, y: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) - y.astype(jnp.float32)


def _distance(x: Any, y: Any) -> float:
    return float(gradtx.global_norm(jax.tree.map(_minus, x, y)))


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
