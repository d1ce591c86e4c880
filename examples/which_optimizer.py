"""Compare optimizers on three problems, each with its best learning rate and with three seeds.

    python -m examples.which_optimizer
    python -m examples.which_optimizer --problems digits --optimizers adamw muon

For each problem and optimizer, the learning rate is tuned, with other seeds than those of the
results: rates at a distance of a factor of 3.2, and more of them until the best one has a worse one
on each side, then its two neighbors at a factor of 1.8. Seeds 1, 2 and 3 train with the best one.
All optimizers get the same initial parameters, batches and warm-up, then a cosine decay unless they
are schedule-free, and no weight decay. Prodigy finds its own rate: it is not tuned.

At last, all optimizers take turns in one process, so that their times can be compared although the
machine does other things too. The results are written as JSON, after each problem.
"""

import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from examples import commands, comparison
from examples.candidates import CANDIDATES, make_optimizer
from examples.problems import PROBLEMS, Problem

SEEDS = (1, 2, 3)
COARSE, FINE = 10**0.5, 10**0.25
# After how many further rates the search gives up.
MOST_EXTENSIONS = 8
ROUNDS = 15
# How long an optimizer's turn takes at least, in seconds.
TURN = 0.2
QUICK = ("adamw", "schedule_free_adamw")


class Trainer:
    """Trains one problem with one optimizer at any learning rate, compiled once."""

    def __init__(self, name: str, problem: Problem) -> None:
        self.problem = problem

        def optimizer(rate: Any) -> optax.GradientTransformation:
            return make_optimizer(name, problem, rate)

        self._init = jax.jit(lambda rate, params: optimizer(rate).init(params))
        self._evaluate = jax.jit(problem.evaluate)
        self._advance = jax.jit(functools.partial(_advance, optimizer, problem.loss))

    def run(self, rate: float, seed: int) -> dict[str, list[float]]:
        """The mean training loss of each part, and the evaluation after it."""
        params, data = self.problem.start(seed)
        batches = _in_parts(self.problem.batches(seed), self.problem.parts)
        carry = (params, self._init(jnp.float32(rate), params))
        first, measured = self._evaluate(params, data), []
        for part in range(self.problem.parts):
            batch = jax.tree.map(lambda array, part=part: array[part], batches)
            carry, loss, evaluated = self._advance(jnp.float32(rate), carry, data, batch)
            measured.append((loss, self._evaluate(evaluated, data)))
        losses, evaluations = zip(*jax.device_get(measured), strict=True)
        return {"loss": _rounded(losses), "evaluation": _rounded([first, *evaluations])}

    def clock(self, rate: float, turn: float) -> Iterator[float]:
        """Without end: the seconds that a step takes, measured for at least `turn` seconds."""
        params, data = self.problem.start(SEEDS[0])
        batches = _in_parts(self.problem.batches(SEEDS[0]), self.problem.parts)
        carry = (params, self._init(jnp.float32(rate), params))
        batch = jax.tree.map(lambda array: array[0], batches)
        while True:
            start, passed, parts = time.perf_counter(), 0.0, 0
            while not parts or passed < turn:
                carry, *_ = jax.block_until_ready(
                    self._advance(jnp.float32(rate), carry, data, batch)
                )
                passed, parts = time.perf_counter() - start, parts + 1
            yield passed / (parts * self.problem.steps)

    def state_bytes(self) -> int:
        """The size of the optimizer's state."""
        params, _ = self.problem.start(SEEDS[0])
        state = jax.eval_shape(self._init, jnp.float32(1.0), params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _advance(
    optimizer: Callable[[Any], optax.GradientTransformation],
    loss: Callable[[Any, Any, Any], jax.Array],
    rate: jax.Array,
    carry: Any,
    data: Any,
    batches: Any,
) -> tuple[Any, jax.Array, Any]:
    """Take the steps of one part; returns the carry, the mean loss, the parameters to evaluate."""
    tx = optimizer(rate)

    def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, data, batch)
        return gradtx.update_and_apply(tx, gradient, state, params), value

    carry, losses = jax.lax.scan(step, carry, batches)
    params, state = carry
    return carry, jnp.mean(losses), gradtx.eval_params(state, params)


def _in_parts(batches: Any, parts: int) -> Any:
    return jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), batches)


def _rounded(values: Sequence[Any]) -> list[Any]:
    """Numbers for JSON, which has no infinity and no NaN."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def tune(final: Callable[[float], float], guess: float) -> dict[float, float]:
    """The results of the learning rates that a search tries, in ascending order.

    Args:
        final: learning rate -> what is to be minimized; infinite if the run fails.
        guess: where to start.
    """
    results = {rate: final(rate) for rate in (guess / COARSE, guess, guess * COARSE)}
    for _ in range(MOST_EXTENSIONS):
        best, lowest, highest = min(results, key=results.__getitem__), min(results), max(results)
        if best not in (lowest, highest):
            break
        further = best / COARSE if best == lowest else best * COARSE
        results[further] = final(further)
    best = min(results, key=results.__getitem__)
    results |= {rate: final(rate) for rate in (best / FINE, best * FINE)}
    return dict(sorted(results.items()))


def compare(
    problem: Problem, names: Sequence[str], rounds: int = ROUNDS, turn: float = TURN
) -> dict[str, Any]:
    """Tune and train with each optimizer, then time all of them; progress goes to stderr.

    Args:
        problem: what they minimize.
        names: the candidates that take part.
        rounds: how often each is timed.
        turn: for how many seconds at least.
    """
    seeds = ", ".join(map(str, SEEDS))
    _report(f"{problem.title}: {problem.measure},")
    _report(f"at the end, with the best learning rate and the seeds {seeds}")
    trainers, found = {name: Trainer(name, problem) for name in names}, {}
    for number, (name, trainer) in enumerate(trainers.items(), start=1):
        found[name] = result = _trained(name, trainer)
        last = "  ".join(f"{end:<8.3g}" for end in comparison.ends(result))
        _report(f"{number}/{len(trainers)}  {name:20} rate {result['rate']:<8}  {last}")
    _report("Timing, in turns")
    clocks = {name: trainers[name].clock(found[name]["rate"], turn) for name in names}
    for name, times in timed(clocks, rounds).items():
        found[name] |= times
    params, _ = problem.start(SEEDS[0])
    return {
        "title": problem.title,
        "measure": problem.measure,
        "tuned_with": problem.tuned_with,
        "steps": [part * problem.steps for part in range(problem.parts + 1)],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "optimizers": found,
    }


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _trained(name: str, trainer: Trainer) -> dict[str, Any]:
    """The sweep of an optimizer, and its runs with the best learning rate."""
    candidate, seeds = CANDIDATES[name], trainer.problem.tuned_with

    def final(rate: float) -> float:
        ends = [trainer.run(rate, seed)["evaluation"][-1] for seed in seeds]
        return np.inf if None in ends else float(np.mean(ends))

    results = tune(final, candidate.guess) if candidate.tuned else {}
    rate = min(results, key=results.__getitem__, default=candidate.guess)
    runs = [trainer.run(rate, seed) for seed in SEEDS]
    return {
        "rate": float(f"{rate:.3g}"),
        "tuned": candidate.tuned,
        "sweep": [_rounded(pair) for pair in results.items()],
        "loss": [run["loss"] for run in runs],
        "evaluation": [run["evaluation"] for run in runs],
        "state_bytes": trainer.state_bytes(),
    }


def timed(clocks: dict[str, Iterator[float]], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds per step of each optimizer, and the quotient with those of `comparison.base_of`.

    They take turns, so that what else the machine does slows down all of them. The shortest turn
    was disturbed least; the ratios are the quartiles of those within each round.
    """
    for clock in clocks.values():
        next(clock)  # compiled before, but not in the caches yet
    turns = [{name: next(clock) for name, clock in clocks.items()} for _ in range(rounds)]
    base = comparison.base_of(clocks)
    found = {}
    for name in clocks:
        milliseconds = 1e3 * min(each[name] for each in turns)
        ratios = np.quantile([each[name] / each[base] for each in turns], [0.25, 0.5, 0.75])
        found[name] = {
            "milliseconds": float(f"{milliseconds:.3g}"),
            "ratios": [float(f"{ratio:.3g}") for ratio in ratios],
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison with the arguments of the command line."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    commands.announce_overwriting([arguments.output])
    names = arguments.optimizers or (QUICK if arguments.quick else tuple(CANDIDATES))
    rounds, turn = (1, 0.0) if arguments.quick else (ROUNDS, TURN)
    results = _without_problems(argv)
    try:
        for name in dict.fromkeys(arguments.problems or PROBLEMS):
            start, problem = time.perf_counter(), PROBLEMS[name](arguments.quick)
            found = compare(problem, list(dict.fromkeys(names)), rounds, turn)
            found["minutes"] = round((time.perf_counter() - start) / 60, 1)
            results["problems"][name] = found
            arguments.output.write_text(json.dumps(results) + "\n")
            print(f"\n{comparison.table(found)}\n", flush=True)
    except KeyboardInterrupt:
        saved = ", ".join(results["problems"])
        saved = f"In {arguments.output}: {saved}" if saved else "Nothing is saved."
        _report(f"Interrupted. {saved}")
        return 130
    if arguments.quick:
        print("A smoke test: the problems are tiny, and times are of a few steps.")
    print(f"Results: {arguments.output}")
    print(f"Pictures: python -m examples.comparison {arguments.output} --pictures FOLDER")
    return 0


def _without_problems(argv: Sequence[str]) -> dict[str, Any]:
    """The results before the first problem: how they came about."""
    packages = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")
    return {
        "command": " ".join(["python -m examples.which_optimizer", *argv]),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "cores": os.cpu_count(),
        "seeds": SEEDS,
        "problems": {},
    }


def _parser() -> commands.Parser:
    parser = commands.Parser(
        prog="python -m examples.which_optimizer",
        description="Compare optimizers on three problems.",
    )
    parser.add_argument(
        "--problems",
        metavar="NAME",
        nargs="+",
        type=commands.one_of("problem", PROBLEMS),
        help=f"which problems (all: {', '.join(PROBLEMS)})",
    )
    parser.add_argument(
        "--optimizers",
        metavar="NAME",
        nargs="+",
        type=commands.one_of("candidate", CANDIDATES),
        help=f"which optimizers (all: {', '.join(CANDIDATES)})",
    )
    parser.add_argument("--quick", action="store_true", help="tiny problems, as a smoke test")
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        default=Path("outputs/which_optimizer.json"),
        help="where to write the results, instead of earlier ones",
    )
    return parser


if __name__ == "__main__":
    commands.run(main)
