"""Leaves in groups: many small ones, and equal matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import optax

import gradtx
from gradtx.bench import programs
from gradtx.bench.measure import Figure, Settings, Subject, compared, in_turn, memory

_METHODS = ("muon", "soap", "shampoo")


def grouped(settings: Settings) -> Iterator[Figure]:
    """Small leaves: `grouped` compared with optax."""
    count, size = (20, 8) if settings.quick else (1000, 64)
    gradient = programs.drawn([jax.ShapeDtypeStruct((size,), "float32")] * count, 0)
    ours = gradtx.grouped(programs.clipped_adamw("gradtx"))
    subjects = {
        name: programs.to_run(settings, programs.training_step(name, tx), tx, gradient)
        for name, tx in {"optax": programs.clipped_adamw("optax"), "gradtx": ours}.items()
    }
    case = f"{count:,} leaves of {size}"
    tasks = {name: subject.trace for name, subject in subjects.items()}
    yield from compared("grouped", case, in_turn(tasks, settings.slow_repeats))
    yield from _run("grouped", case, settings, subjects, "optax")


def grouped_matrices(settings: Settings) -> Iterator[Figure]:
    """Equal matrices: `grouped` compared with the same method without it."""
    count, size = (4, 4) if settings.quick else (48, 64)
    gradient = programs.drawn([jax.ShapeDtypeStruct((size, size), "float32")] * count, 0)
    for method in _METHODS:
        plain = transformation(method)
        subjects = {
            name: programs.to_run(settings, programs.training_step("gradtx", tx), tx, gradient)
            for name, tx in {"ungrouped": plain, "gradtx": gradtx.grouped(plain)}.items()
        }
        case = f"{method}, {count} matrices of {size} by {size}"
        yield from _run("grouped-matrices", case, settings, subjects, "ungrouped")


def transformation(method: str) -> optax.GradientTransformation:
    """A method that works on matrices, without weight decay."""
    return programs.named("gradtx", method)(1e-3)


def _run(
    section: str, case: str, settings: Settings, subjects: Mapping[str, Subject], peer: str
) -> Iterator[Figure]:
    tasks = {name: subject.compile for name, subject in subjects.items()}
    yield from compared(section, case, in_turn(tasks, settings.slow_repeats), peer=peer)
    yield from memory(section, case, subjects, peer=peer)
    for subject in subjects.values():
        subject.warm_up()
    tasks = {name: subject.step for name, subject in subjects.items()}
    yield from compared(section, case, in_turn(tasks, settings.repeats), peer=peer)
