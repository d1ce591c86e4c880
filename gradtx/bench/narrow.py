"""Optimizer states in fewer bits, compared with those in float32."""

from __future__ import annotations

from collections.abc import Iterator

import jax

import gradtx
from gradtx.bench import programs
from gradtx.bench.measure import Figure, Settings, compared, in_turn, memory

_PEER = "float32"


def quantized(settings: Settings) -> Iterator[Figure]:
    """AdamW on a transformer: with `quantize_state` and `cast_state`, and without."""
    shapes = list(programs.trees(settings.quick).items())
    case, tree = shapes[-1]
    gradient = programs.drawn(tree, 0)
    adamw = gradtx.adamw(1e-3)
    for name, tx in {
        "8 bits": gradtx.quantize_state(adamw, min_size=64 if settings.quick else 4096),
        "bfloat16": gradtx.cast_state(adamw),
    }.items():
        subjects = {
            key: programs.to_run(settings, programs.training_step("gradtx", own), own, gradient)
            for key, own in {_PEER: adamw, "gradtx": tx}.items()
        }
        own_case = f"{case}, {name}"
        tasks = {key: subject.compile for key, subject in subjects.items()}
        yield from compared(
            "quantized", own_case, in_turn(tasks, settings.slow_repeats), peer=_PEER
        )
        yield from memory("quantized", own_case, subjects, peer=_PEER)
        states = {
            key: {"state": float(sum(x.nbytes for x in jax.tree.leaves(subject.carried[1])))}
            for key, subject in subjects.items()
        }
        yield from compared("quantized", own_case, states, unit="bytes", peer=_PEER)
        for subject in subjects.values():
            subject.warm_up()
        tasks = {key: subject.step for key, subject in subjects.items()}
        yield from compared("quantized", own_case, in_turn(tasks, settings.repeats), peer=_PEER)
