"""Builds thousands of optimizers in several threads, and measures what is left of them.

    python -m tests.leaks

Each optimizer is another one: another method, or other numbers, which are compiled in. Half of them
step eagerly, half are compiled by the caller. Memory must stay flat once the caches are full, the
last update of each must be that of its equation in NumPy, and of all optimizers, parameters, states
and functions that belong to a run nothing may be left when it is over.
"""

import argparse
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx.kernel import DECAY, Kernel, Slot
from gradtx.lift import lift
from gradtx.testing import references

# What is made of a number in (0, 1): the arguments of a factory that has a reference.
METHODS: dict[str, Callable[[float], dict[str, Any]]] = {
    "adam": lambda x: {"learning_rate": x, "b1": 0.9 * x, "eps": 1e-3},
    "sgd": lambda x: {"learning_rate": x, "momentum": 0.9 * x},
    "rmsprop": lambda x: {"learning_rate": x, "decay": 0.9 * x, "eps": 1e-3},
    "lion": lambda x: {"learning_rate": x, "b1": 0.9 * x},
    "adopt": lambda x: {"learning_rate": x, "eps": 0.5, "clip_value_fn": lambda count: x + count},
    "clip_by_global_norm": lambda x: {"max_norm": x},
    "momo": lambda x: {"learning_rate": x, "beta": 0.9 * x},
    "adagrad": lambda x: {"learning_rate": lambda count: x / (1 + count)},
}


class Trace(NamedTuple):
    """The state of a kernel of the caller's own.

    Attributes:
        trace: the momentum.
    """

    trace: Any


def own_kernel(x: float) -> tuple[Any, Callable[..., Any]]:
    """Momentum as a kernel of the caller's own, and its step, a function in a function."""

    def step(g: Any, *, trace: Any, decay: Any) -> Any:
        trace = decay * trace + x * g
        return trace, trace

    kernel = Kernel(
        "own", step, slots=(Slot("trace"),), hyperparameters={"decay": DECAY}, state=Trace
    )
    return lift(kernel, decay=0.5), step


@dataclass(frozen=True)
class Left:
    """What there is after some optimizers.

    Attributes:
        optimizers: how many have been.
        mebibytes: the resident memory.
        objects: the Python objects that the collector knows.
        arrays: the live arrays.
        alive: the objects of finished runs that are still there.
    """

    optimizers: int
    mebibytes: float
    objects: int
    arrays: int
    alive: int


def run_one(number: int, steps: int) -> list[weakref.ref[Any]]:
    """One optimizer; weak references to what belongs to its run.

    Args:
        number: which one.
        steps: how many steps it takes.

    Raises:
        AssertionError: if its last update is not that of its equation.
    """
    x = 0.25 + 0.5 * ((number * 0.6180339887) % 1)
    names = [*METHODS, "own"]
    name = names[number % len(names)]
    if name == "own":
        tx, step = own_kernel(x)
        functions, factor, reference = [step], x, references.trace(decay=0.5)
    else:
        arguments = METHODS[name](x)
        tx, reference = (getattr(library, name)(**arguments) for library in (gradtx, references))
        functions, factor = [value for value in arguments.values() if callable(value)], 1.0
    gradients = np.float32([[1.0, -2.0, 0.5 + x], [0.25, 4.0, -1.0]])
    params = {"w": jnp.asarray(gradients[0]), "b": jnp.asarray(gradients[1])}
    extra = {"value": jnp.float32(8.0)} if reference.given else {}
    update = jax.jit(tx.update) if number // len(names) % 2 else tx.update
    updates, state = params, tx.init(params)
    for _ in range(steps):
        updates, state = update(params, state, params, **extra)
    leaves = [[np.float64(gradients[1]), np.float64(gradients[0])]] * steps
    *_, (expected, _) = reference.run(leaves, leaves, [{"value": 8.0}] * steps if extra else ())
    for leaf, right in zip((updates["b"], updates["w"]), expected, strict=True):
        np.testing.assert_allclose(leaf, factor * right, rtol=1e-4, atol=1e-6, err_msg=name)
    arrays = jax.tree.leaves((params, updates, state))
    return [weakref.ref(thing) for thing in (tx.update, tx.init, *functions, *arrays)]


def run_many(optimizers: int, steps: int, threads: int, every: int) -> Iterator[Left]:
    """Run optimizers in threads, and measure now and then.

    Args:
        optimizers: how many.
        steps: the steps of each.
        threads: how many take their steps at once.
        every: after how many optimizers to measure.
    """
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, optimizers, every):
            numbers = range(first, min(first + every, optimizers))
            runs = list(pool.map(lambda number: run_one(number, steps), numbers))
            yield measured(numbers.stop, [ref for run in runs for ref in run])


def measured(optimizers: int, references: list[weakref.ref[Any]]) -> Left:
    """What is left now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Left(
        optimizers,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(gc.get_objects()),
        len(jax.live_arrays()),
        sum(ref() is not None for ref in references),
    )


def main() -> None:
    """Read the arguments and print a line for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m tests.leaks", description=__doc__)
    parser.add_argument("--optimizers", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=4, help="the steps of each optimizer")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--every", type=int, default=250)
    arguments = parser.parse_args()
    # How well programs are compiled is not the question.
    jax.config.update("jax_disable_most_optimizations", True)
    print("optimizers  MiB  objects  arrays  alive")
    for left in run_many(**vars(arguments)):
        print(
            f"{left.optimizers:10}  {left.mebibytes:.0f}  {left.objects}  {left.arrays}  "
            f"{left.alive}",
            flush=True,
        )
    print(f"threads at the end: {threading.active_count()}")


if __name__ == "__main__":
    main()
