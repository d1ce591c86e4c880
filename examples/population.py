"""Train one network with 32 learning rates at once, in one compiled step.

    python -m examples.population
    python -m examples.population --members 64 --epochs 20

`gradtx.with_hyperparams` keeps the learning rate in the optimizer's state, as an array. States with
different learning rates then run through the same program: stacked, they go through `jax.vmap`, and
a population needs one compilation. All members start from the same parameters and see the same
batches. The example checks that nothing else happens to them: the step is compiled once, and the
best member is trained again, alone and with an ordinary optimizer, which must give the same losses.
`gradtx.metrics` reads from the stacked states how long the steps are.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from examples import commands, digits, extras
from examples.experiments.experiment import COLORS, describe, new_figure
from gradtx.training import minibatches

LOWEST, HIGHEST = 1e-5, 1.0
# Only the first steps are compared: rounding errors grow, so later losses differ more and more.
FIRST = 20
BLACK, _, VERMILION, *_ = COLORS


class Network(NamedTuple):
    """A network in training; every array of a population has an additional leading axis."""

    params: Any
    stats: Any
    opt_state: Any


class Run(NamedTuple):
    """The training of a population.

    Attributes:
        rates: the learning rates, shape (members,).
        measured: name -> values at each step, shape (steps, members).
        accuracy: the accuracy of each member on the test images, shape (members,).
        compilations: the number of times that the step was compiled.
        seconds: the duration of the training, without the compilation.
    """

    rates: np.ndarray
    measured: dict[str, np.ndarray]
    accuracy: np.ndarray
    compilations: int
    seconds: float

    @property
    def final_loss(self) -> np.ndarray:
        """The mean loss over the last tenth of the steps; infinite where it is not finite."""
        losses = self.measured["loss"]
        mean = losses[-max(1, len(losses) // 10) :].mean(axis=0)
        return np.where(np.isfinite(mean), mean, np.inf)

    @property
    def best(self) -> int:
        """The member with the lowest final loss."""
        return int(np.argmin(self.final_loss))


def make_step(
    tx: optax.GradientTransformation,
) -> Callable[[Network, Any], tuple[Network, dict[str, jax.Array]]]:
    """One step of one network, which returns the loss and the optimizer's metrics."""

    def step(network: Network, batch: Any) -> tuple[Network, dict[str, jax.Array]]:
        value_and_grad = jax.value_and_grad(digits.loss_fn, has_aux=True)
        (loss, (stats, _)), gradient = value_and_grad(network.params, network.stats, batch)
        updates, opt_state = tx.update(gradient, network.opt_state, network.params)
        params = gradtx.apply_updates(network.params, updates)
        return Network(params, stats, opt_state), {"loss": loss, **gradtx.metrics(opt_state)}

    return step


def train_population(
    rates: np.ndarray, key: jax.Array, batches: Iterable[Any], test: digits.Dataset
) -> Run:
    """Train a network with each of the learning rates, all at once."""
    tx = gradtx.with_metrics(gradtx.with_hyperparams(gradtx.adamw, learning_rate=rates[0]))
    step, traces = make_step(tx), []

    def start(rate: jax.Array) -> Network:
        params, stats = digits.init_network(key)
        return Network(params, stats, optax.tree.set(tx.init(params), learning_rate=rate))

    @jax.jit
    def population_step(networks: Network, batch: Any) -> tuple[Network, dict[str, jax.Array]]:
        traces.append(batch)  # runs only when the step is compiled
        return jax.vmap(step, in_axes=(0, None))(networks, batch)

    networks = jax.jit(jax.vmap(start))(jnp.asarray(rates))
    networks, measured, seconds = _train(population_step, networks, batches)
    accuracy = jax.vmap(lambda n: digits.accuracy_of(n.params, n.stats, test))(networks)
    return Run(rates, measured, np.asarray(accuracy), len(traces), seconds)


def train_alone(
    rate: float, key: jax.Array, batches: Iterable[Any]
) -> tuple[dict[str, np.ndarray], float]:
    """Train one network with an ordinary optimizer; returns the measurements and the seconds."""
    tx = gradtx.adamw(rate)
    params, stats = digits.init_network(key)
    network = Network(params, stats, tx.init(params))
    _, measured, seconds = _train(jax.jit(make_step(tx)), network, batches)
    return measured, seconds


def _train(
    step: Callable[..., Any], networks: Network, batches: Iterable[Any]
) -> tuple[Network, dict[str, np.ndarray], float]:
    measured, start = [], 0.0
    for batch in batches:
        networks, now = step(networks, batch)
        measured.append(jax.block_until_ready(now))
        start = start or time.perf_counter()  # after the first step, which compiles
    seconds = time.perf_counter() - start
    rows = jax.device_get(measured)
    return networks, {name: np.stack([row[name] for row in rows]) for name in rows[0]}, seconds


def check(run: Run, alone: dict[str, np.ndarray]) -> float:
    """Check that a population was trained as it claims to be.

    Args:
        run: the population.
        alone: the measurements of its best member, trained alone.

    Returns:
        The largest relative difference of the best member's losses in the first steps.

    Raises:
        RuntimeError: if the step was compiled more than once, or the losses differ.
    """
    if run.compilations != 1:
        raise RuntimeError(f"the step was compiled {run.compilations} times, not once")
    together = run.measured["loss"][:FIRST, run.best]
    difference = float(np.max(np.abs(together / alone["loss"][:FIRST] - 1)))
    if not difference < 1e-3:
        raise RuntimeError(f"alone, the best member's losses differ by up to {difference:.1e}")
    return difference


def draw(run: Run, path: Path) -> None:
    """Plot the losses and steps of all members, and the result of each learning rate."""
    figure, panels = new_figure(
        f"Handwritten digits, with {len(run.rates)} learning rates in one compiled step", 2, 2
    )
    (descents, steps), (losses, accuracies) = panels
    norm = extras.load("matplotlib.colors").LogNorm(run.rates[0], run.rates[-1])
    colors = extras.load("matplotlib.cm").ScalarMappable(norm, "viridis")
    best, rate = run.best, f"{run.rates[run.best]:.2g}"
    window = max(1, len(run.measured["loss"]) // 20)
    x, nats = f"step (mean of {window})", "mean cross-entropy in nats"
    _over_steps(descents, run, "loss", colors, window)
    describe(descents, "Training loss", x, nats, yscale="log")
    _over_steps(steps, run, "update_ratio", colors, window)
    steps.axhline(1e-3, color=BLACK, linestyle=":", label="rule of thumb: 1/1000")
    title = "Length of an update, relative to the parameters"
    describe(steps, title, x, "‖update‖ / ‖parameters‖", yscale="log")
    figure.colorbar(colors, ax=panels, label="learning rate", aspect=40)
    ends = run.final_loss
    _against_rate(losses, run, ends, colors, label=f"lowest: {ends[best]:.2g} at {rate}")
    title = "Training loss in the last tenth of the steps"
    describe(losses, title, "learning rate", nats, xscale="log", yscale="log")
    share = f"{run.accuracy[best]:.1%}"
    _against_rate(accuracies, run, run.accuracy, colors, label=f"lowest final loss: {share}")
    title = "Accuracy on the test images"
    describe(accuracies, title, "learning rate", "share of correct answers", xscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _over_steps(axes: Any, run: Run, name: str, colors: Any, window: int) -> None:
    """Plot what was measured of each member, and the best one on top."""
    curves = _smooth(run.measured[name], window)
    places = np.arange(len(curves)) + (window + 1) / 2
    for i in range(len(run.rates)):
        axes.plot(places, curves[:, i], color=colors.to_rgba(run.rates[i]), linewidth=1)
    best = curves[:, run.best]
    label = f"lowest final loss: {run.rates[run.best]:.2g}"
    axes.plot(places, best, color="white", linewidth=4)
    axes.plot(places, best, color=VERMILION, linewidth=2, label=label)


def _against_rate(axes: Any, run: Run, values: np.ndarray, colors: Any, label: str) -> None:
    axes.plot(run.rates, values, color="0.7", zorder=1)
    axes.scatter(run.rates, values, c=colors.to_rgba(run.rates), s=30, zorder=2)
    axes.scatter(
        run.rates[run.best],
        values[run.best],
        marker="*",
        s=260,
        color=VERMILION,
        edgecolor="white",
        zorder=3,
        label=label,
    )


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Means over windows of steps, shape (steps - window + 1, members)."""
    sums = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0, dtype=np.float64)
    return (sums[window:] - sums[:-window]) / window


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example with the arguments of the command line."""
    arguments = _parser().parse_args(argv)
    commands.announce_overwriting([arguments.out])
    epochs = arguments.epochs or (2 if arguments.quick else 10)
    rates = np.geomspace(LOWEST, HIGHEST, arguments.members).astype(np.float32)
    data = digits.load_digits()
    init_key, order_key = jax.random.split(jax.random.key(arguments.seed))

    def batches() -> Iterator[Any]:
        return minibatches(order_key, data.train, 64, epochs=epochs, drop_remainder=True)

    run = train_population(rates, init_key, batches(), data.test)
    alone, seconds = train_alone(float(rates[run.best]), init_key, batches())
    difference = check(run, alone)
    print(f"{len(rates)} networks, {len(alone['loss'])} steps, compiled once: {run.seconds:.1f} s")
    print(
        f"Best learning rate {rates[run.best]:.2g}: loss {run.final_loss[run.best]:.2g}, "
        f"accuracy {run.accuracy[run.best]:.1%} on the test images"
    )
    print(
        f"The best one alone: {seconds:.1f} s, the same losses to {difference:.0e} in the first "
        f"{FIRST} steps"
    )
    draw(run, arguments.out)
    print(f"Picture: {arguments.out}")
    return 0


def _parser() -> commands.Parser:
    parser = commands.Parser(
        prog="python -m examples.population",
        description="Train one network with many learning rates at once.",
    )
    parser.add_argument(
        "--members", type=commands.whole_number(2), default=32, help="number of learning rates"
    )
    parser.add_argument(
        "--epochs", type=commands.whole_number(1), help="passes over the training images (10)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the network and the order of the images"
    )
    parser.add_argument("--quick", action="store_true", help="2 epochs, as a smoke test")
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=commands.picture,
        default=Path("outputs/population.png"),
        help="where to write the picture",
    )
    return parser


if __name__ == "__main__":
    commands.run(main)
