"""The named optimizers of both libraries, on matrices and vectors."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from gradtx import catalogue
from gradtx.bench import programs
from gradtx.bench.measure import Figure, Settings, compared, in_turn
from gradtx.bench.programs import LIBRARIES

_ARGUMENTS = {"learning_rate": 1e-3, "l2_norm_clip": 1.0, "noise_multiplier": 1.0, "seed": 0}
# Takes per-example gradients.
_PER_EXAMPLE = "dpsgd"
_EXAMPLES = 2
# Enough for a quick run: the simplest, and those with special arguments.
_FEW = ("sgd", _PER_EXAMPLE, "sophia")
# One wrapper, because optax computes at each mini-step what only the last one needs.
ACCUMULATED = "MultiSteps(4) of muon"
_MINI_STEPS = 4


def methods(settings: Settings) -> Iterator[Figure]:
    """Compiling and running the step of each method that both libraries have."""
    shapes = _shapes(settings.quick)
    for method in (*(_FEW if settings.quick else names()), ACCUMULATED):
        params = programs.drawn(shapes, 1)
        gradient = programs.drawn(_with_examples(shapes) if method == _PER_EXAMPLE else shapes, 0)
        subjects = {}
        for name in LIBRARIES:
            tx = transformation(name, method)
            # Some methods need these arguments; the others ignore them.
            step = programs.training_step(name, tx, value=jnp.float32(1.0), obj_fn=_loss)
            subjects[name] = programs.to_run(settings, step, tx, gradient, params)
        tasks = {name: subject.compile for name, subject in subjects.items()}
        yield from compared("methods", method, in_turn(tasks, settings.slow_repeats))
        for subject in subjects.values():
            subject.warm_up(_MINI_STEPS)
        tasks = {name: subject.step for name, subject in subjects.items()}
        yield from compared("methods", method, in_turn(tasks, settings.repeats))


def names() -> list[str]:
    """The optimizers of the catalogue that optax has too."""
    theirs = {*dir(optax), *dir(optax.contrib)}
    return [method.name for method in catalogue.methods() if method.name in theirs]


def transformation(library: str, method: str) -> optax.GradientTransformation:
    """A method of a library, with its defaults and the same learning rate for all."""
    if method == ACCUMULATED:
        inner = transformation(library, "muon")
        return programs.named(library, "MultiSteps")(inner, _MINI_STEPS).gradient_transformation()
    factory = programs.named(library, method)
    taken = inspect.signature(factory).parameters
    arguments: dict[str, Any] = {name: x for name, x in _ARGUMENTS.items() if name in taken}
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return factory(**arguments)


def _shapes(quick: bool) -> Any:
    """12 layers with a matrix and two vectors each."""
    layers, width = (1, 8) if quick else (12, 256)
    matrix, vector = (jax.ShapeDtypeStruct((width,) * ndim, jnp.float32) for ndim in (2, 1))
    layer = {"kernel": matrix, "bias": vector, "scale": vector}
    return {f"layer{number}": layer for number in range(layers)}


def _with_examples(shapes: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((_EXAMPLES, *leaf.shape), leaf.dtype), shapes
    )


def _loss(params: Any) -> jax.Array:
    return sum((jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(params)), jnp.float32(0.0))
