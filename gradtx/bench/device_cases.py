"""The cases of `--device`: on which parameters which transformations are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.bench import programs
from gradtx.bench.measure import Settings, Subject
from gradtx.training import TrainState, make_train_step

_FLOAT32 = jnp.dtype(jnp.float32)

# From the options, the way itself, its parameters, and the gradient or batch the program to run.
_Prepare: TypeAlias = Callable[[Settings, Any, Any, Any], Subject]
# The parameters that a step has trained, from what it returned.
_Read: TypeAlias = Callable[..., Any]


def _update_alone(settings: Settings, way: Way, params: Any, gradient: Any) -> Subject:
    """The step of an optimizer on a constant gradient."""
    gradient = jax.tree.map(lambda x: x.astype(way.dtype), gradient)
    step = programs.training_step(way.library, way.tx)
    return programs.to_run(settings, step, way.tx, gradient, params)


@dataclass(frozen=True)
class Way:
    """One way to train the parameters of a case.

    Attributes:
        library: whose step it is.
        tx: the transformation.
        tolerance: how much of the movement of the first way it may differ by.
        dtype: that of parameters and gradients.
        read: the parameters from what the step carries.
        note: what distinguishes it from other ways of this library.
        subject: makes the program.
    """

    library: str
    tx: Any
    tolerance: float = 1e-3
    dtype: Any = _FLOAT32
    read: _Read = lambda params, state: params
    note: str = ""
    subject: _Prepare = _update_alone


@dataclass(frozen=True)
class Case:
    """Parameters, and the ways to train them, of which the first is compared with the others.

    Attributes:
        name: what the tables call it.
        shapes: the shapes of the parameters.
        ways: how they are trained.
        batch: what the loss is computed of; None if there is a constant gradient.
    """

    name: str
    shapes: Any
    ways: tuple[Way, ...]
    batch: Any = None

    def params(self) -> Any:
        """The parameters at the start, in float32."""
        return programs.drawn(self.shapes, 1)

    def given(self) -> Any:
        """The batch or the gradient."""
        return programs.drawn(self.shapes, 0) if self.batch is None else self.batch


def cases(quick: bool) -> Iterator[Case]:
    """All cases. On a CPU some are smaller, because they would take minutes."""
    is_cpu = jax.default_backend() == "cpu"
    size = 12 if quick else 24 if is_cpu else 26
    number = f"{1 << size - 20}M" if size > 20 else f"{1 << size - 10}K"
    yield Case(f"1 leaf of {number}", programs.leaves(1, 1 << size), _on_a_leaf())

    name, sizes = ("1 layer", (1, 8, 16)) if quick else ("12 layers, 124M", (12, 768, 50257))
    min_size = 64 if quick else 4096
    in_8_bits = gradtx.quantize_state(programs.clipped_adamw("gradtx"), min_size=min_size)
    ways = (*_both(programs.clipped_adamw), _ours(in_8_bits, "8-bit state", 0.1))
    yield Case(f"GPT-like, {name}", programs.gpt(*sizes), ways)

    for count, size in ((3, 8),) if quick else ((500, 1 << 15), (1000, 64)):
        grouped = _ours(gradtx.grouped(programs.clipped_adamw("gradtx")), "grouped", 1e-3)
        label = f"{size >> 10}K" if size >= 1 << 10 else str(size)
        ways = (*_both(programs.clipped_adamw), grouped)
        yield Case(f"{count:,} leaves of {label}", programs.leaves(count, size), ways)

    rows = 8 if quick else 256 if is_cpu else 1024
    yield from _on_matrices(rows, quick)
    sizes = (1, 8, 16) if quick else (4, 128, 512) if is_cpu else (8, 512, 8192)
    yield _training(*sizes)


def _on_a_leaf() -> tuple[Way, ...]:
    # Gradients are rounded to bfloat16 too.
    master_weights = Way(
        "gradtx",
        gradtx.with_master_weights(programs.clipped_adamw("gradtx")),
        tolerance=0.1,
        dtype=jnp.dtype(jnp.bfloat16),
        read=lambda params, state: state.master,
        note="bfloat16, master weights",
    )
    quantized = _ours(gradtx.quantize_state(programs.clipped_adamw("gradtx")), "8-bit state", 0.1)
    return (*_both(programs.clipped_adamw), master_weights, quantized)


def _on_matrices(rows: int, quick: bool) -> Iterator[Case]:
    """Methods on equal matrices."""
    shapes = programs.matrices(12, rows, 4 * rows)
    label = f"12 matrices of {rows:,} x {4 * rows:,}"

    def muon(library: str) -> Any:
        return programs.named(library, "muon")(1e-3)

    narrow = gradtx.muon(1e-3, ns_dtype=jnp.bfloat16)
    ways = (
        *_both(muon, tolerance=0.05),
        _ours(gradtx.grouped(muon("gradtx")), "grouped", 0.05),
        _ours(narrow, "bfloat16 products", 0.2),
        _ours(gradtx.grouped(narrow), "grouped, bfloat16 products", 0.2),
    )
    yield Case(f"muon, {label}", shapes, ways)
    for method in ("lion",) if quick else ("lion", "adafactor", "prodigy"):
        arguments = () if method == "prodigy" else (1e-3,)
        ways = tuple(
            Way(library, programs.named(library, method)(*arguments))
            for library in programs.LIBRARIES
        )
        yield Case(f"{method}, {label}", shapes, ways)
    shapes, label = programs.matrices(4, rows, rows), f"4 matrices of {rows:,} x {rows:,}"
    for method in ("soap", "shampoo"):
        tx = programs.named("gradtx", method)(1e-3)
        # Bases of equal singular values are arbitrary.
        ways = (_ours(tx, "", 0.0), _ours(gradtx.grouped(tx), "grouped", 0.1))
        yield Case(f"{method}, {label}", shapes, ways)


def _training(layers: int, width: int, vocabulary: int) -> Case:
    """The whole step on a small transformer, whose loss takes most of the time."""
    shapes = programs.gpt(layers, width, vocabulary)
    length = 256 if width > 128 else 32
    tokens = np.random.default_rng(0).integers(0, vocabulary, (8, length))
    batch = jnp.asarray(tokens, jnp.int32)

    def by_hand(settings: Settings, way: Way, params: Any, batch: Any) -> Subject:
        update = programs.training_step("optax", way.tx)

        def step(params: Any, state: Any, loss: Any, batch: Any) -> Any:
            loss, gradient = jax.value_and_grad(programs.loss_of_transformer)(params, batch)
            return *update(params, state, gradient), loss

        carried = jax.tree.map(jnp.copy, (params, way.tx.init(params), jnp.float32(0)))
        return Subject(settings, step, (*carried, batch), 3)

    def by_make_train_step(settings: Settings, way: Way, params: Any, batch: Any) -> Subject:
        train_step = make_train_step(programs.loss_of_transformer, way.tx)
        state = TrainState.create(jax.tree.map(jnp.copy, params), way.tx)

        def step(state: Any, loss: Any, batch: Any) -> Any:
            state, metrics = train_step(state, batch)
            return state, metrics["loss"]

        return Subject(settings, step, (state, jnp.float32(0), batch), 2)

    theirs, ours = (programs.clipped_adamw(library) for library in programs.LIBRARIES)
    ways = (
        Way(
            "optax",
            theirs,
            note="by hand",
            read=lambda params, state, loss: params,
            subject=by_hand,
        ),
        Way(
            "gradtx",
            ours,
            0.05,
            note="make_train_step",
            read=lambda state, loss: state.params,
            subject=by_make_train_step,
        ),
    )
    return Case(f"training, {layers} layers of {width}", shapes, ways, batch)


def _ours(tx: Any, note: str, tolerance: float) -> Way:
    return Way("gradtx", tx, tolerance, note=note)


def _both(tx: Callable[[str], Any], tolerance: float = 1e-3) -> tuple[Way, ...]:
    """The same transformation of both libraries."""
    return tuple(Way(library, tx(library), tolerance) for library in programs.LIBRARIES)
