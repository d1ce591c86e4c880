"""Times one training step and its tracing, ours and optax's, in the same process.

    python -m gradtx.bench [--size N] [--leaves N] [--width N] [--repeats N]

The step is `chain(clip_by_global_norm(1.0), adamw(1e-3))` with the parameters and the state
donated. The bound is the time that the same arrays need only to be read and written once:
gradient, parameters and two moments in, parameters and moments out. "alone" repeats one program,
whose arrays may then stay in a large cache; "in turn" runs the three one after another, so that
each finds the cache filled by the others. Further methods take their steps on a tree of matrices
and vectors, in turn with optax's.
"""

import argparse
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import gradtx

LIBRARIES = {"optax": optax, "gradtx": gradtx}


def main() -> None:
    """Print the benchmark's tables."""
    parser = argparse.ArgumentParser(
        prog="python -m gradtx.bench",
        description="Compare the speed of gradtx and optax.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, default, what in (
        ("--size", 1 << 24, "elements of the one large leaf"),
        ("--leaves", 500, "leaves of the tree to trace"),
        ("--width", 512, "sides of the methods' matrices"),
        ("--repeats", 15, "measurements of each figure"),
    ):
        parser.add_argument(option, type=_count, default=default, help=what)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, optax {optax.__version__}, {device.device_kind}")
    _compare_steps(arguments.size, arguments.repeats)
    _compare_tracing(arguments.leaves, max(3, arguments.repeats // 3))
    _compare_methods(arguments.width, arguments.repeats)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _transformation(library: Any) -> optax.GradientTransformationExtraArgs:
    return library.chain(library.clip_by_global_norm(1.0), library.adamw(1e-3))


def _compare_steps(size: int, repeats: int) -> None:
    gradient = jax.random.normal(jax.random.key(0), (size,))
    compiled, carried = {}, {}
    for name, library in LIBRARIES.items():
        tx = _transformation(library)
        params = jax.random.normal(jax.random.key(1), (size,))
        carried[name] = (params, tx.init(params))
        compiled[name] = _compile(_step(library, tx), (0, 1), (*carried[name], gradient))
    arrays = [jnp.ones(size) for _ in range(3)]
    compiled["bound"] = _compile(_touch, (0, 1, 2), (*arrays, gradient))
    carried["bound"] = tuple(arrays)

    alone = {name: [] for name in compiled}
    in_turn = {name: [] for name in compiled}

    def run(name: str, times: dict[str, list[float]]) -> None:
        start = time.perf_counter()
        carried[name] = jax.block_until_ready(compiled[name](*carried[name], gradient))
        times[name].append(time.perf_counter() - start)

    for name in compiled:
        run(name, {name: []})  # the first run also fetches the pages of the outputs
        for _ in range(repeats):
            run(name, alone)
    for _ in range(repeats):
        for name in compiled:
            run(name, in_turn)
    print(f"\none step on one leaf of {size:,} elements")
    for label, times in (("alone", alone), ("in turn", in_turn)):
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, seconds in medians.items():
            print(
                f"  {label:8} {name:7} {seconds * 1e3:8.2f} ms   "
                f"{seconds / medians['optax']:5.2f} of optax   "
                f"{seconds / medians['bound']:5.2f} of the bound"
            )
    for name in LIBRARIES:
        temporary = compiled[name].memory_analysis().temp_size_in_bytes
        print(f"  {name:16} {temporary:>12,} bytes of temporary memory")


def _step(library: Any, tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return library.apply_updates(params, updates), state

    return step


def _touch(params: Any, mu: Any, nu: Any, gradient: Any) -> Any:
    return params + gradient, 0.9 * mu, 0.9 * nu


def _compile(function: Callable[..., Any], donated: tuple[int, ...], arguments: Any) -> Any:
    return jax.jit(function, donate_argnums=donated).lower(*arguments).compile()


def _compare_tracing(leaves: int, repeats: int) -> None:
    params = {f"layer{i}": jnp.ones((8, 8) if i % 2 else (8,)) for i in range(leaves)}
    transformations = {name: _transformation(library) for name, library in LIBRARIES.items()}
    times = {name: [] for name in LIBRARIES}
    for _ in range(repeats):
        for name, tx in transformations.items():
            state = tx.init(params)
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(tx.update).trace(params, state, params)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\ntracing the update of {leaves:,} leaves, with empty caches")
    for name, seconds in medians.items():
        print(f"  {name:7} {seconds * 1e3:8.1f} ms   {seconds / medians['optax']:5.2f} of optax")


# What the catalogue has most of: methods of elements, of leaves, of the whole tree, of matrices.
METHODS = ("adafactor", "adan", "lamb", "lion", "muon", "prodigy", "sm3")
MINI_STEPS = 4


def _compare_methods(width: int, repeats: int) -> None:
    params = {
        f"layer{i}": {"kernel": jnp.ones((width, width)), "bias": jnp.ones(width)} for i in range(8)
    }
    gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(2), p.shape), params)
    print(f"\none step of 8 layers with kernels of {width} by {width}, in turn")
    for method in (*METHODS, f"MultiSteps({MINI_STEPS}) of muon"):
        compiled, carried, times = {}, {}, {}
        for name, library in LIBRARIES.items():
            tx = _method(library, method)
            # Copies, because some states of optax share arrays with the parameters.
            carried[name] = jax.tree.map(jnp.copy, (params, tx.init(params)))
            times[name] = []
            compiled[name] = _compile(_step(library, tx), (0, 1), (*carried[name], gradient))
        for _ in range(repeats + 1):
            for name, step in compiled.items():
                start = time.perf_counter()
                for _ in range(MINI_STEPS):
                    carried[name] = step(*carried[name], gradient)
                jax.block_until_ready(carried[name])
                times[name].append((time.perf_counter() - start) / MINI_STEPS)
        optax_time, own_time = (statistics.median(values[1:]) for values in times.values())
        print(
            f"  {method:22} optax {optax_time * 1e3:8.2f} ms   gradtx {own_time * 1e3:8.2f} ms   "
            f"{own_time / optax_time:5.2f}"
        )


def _method(library: Any, method: str) -> optax.GradientTransformationExtraArgs:
    if method.startswith("MultiSteps"):
        inner = _method(library, "muon")
        return library.MultiSteps(inner, MINI_STEPS).gradient_transformation()
    factory = getattr(library, method, None) or getattr(optax.contrib, method)
    return factory(learning_rate=1e-3)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # ends without a word when piped into head
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
