"""Train a small transformer on English text, character by character, and let it write.

    python -m examples.language_model
    python -m examples.language_model --optimizer soap --steps 1000
    python -m examples.language_model --resume

The text comes with Python. The optimizer is a chain: the gradient is clipped by its global norm,
Muon updates the matrices of the layers and AdamW everything else, with a learning rate that warms
up and then decays, and weight decay of the kernels; an average of the parameters is kept alongside.
Another optimizer takes Muon's place with --optimizer, or, unless it is one for matrices, trains all
parameters.

The folder --output gets the measurements of each step (metrics.jsonl, and events for TensorBoard),
checkpoints, a picture of the losses and a sample. With --resume, a run that was interrupted goes on
from its last checkpoint, and ends as if it had not been.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from examples import commands, extras, logs, recipes, report, transformer
from examples.experiments.experiment import COLORS, describe, new_figure
from examples.text import Text, load_text
from gradtx.training import Checkpoints, TrainState, make_train_step, minibatches

HEADS = 4
MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.1
# Optimizers for the matrices of the layers. With this root mean square, Muon's updates are as long
# as AdamW's, and one learning rate serves both.
FOR_MATRICES: dict[str, dict[str, Any]] = {"muon": {"consistent_rms": 0.2}, "soap": {}}
# The paths of those matrices.
MATRICES = "^layers/.*kernel"
# The best ones that which_optimizer found; others have the learning rates of the digits.
LEARNING_RATES = {
    "adamw": 0.00562,
    "lion": 0.00178,
    "momentum": 0.178,
    "muon": 0.0178,
    "prodigy": 1.0,
    "schedule_free_adamw": 0.00562,
    "soap": 0.01,
}


@dataclass(frozen=True)
class Settings:
    """What a run is started with, and compared with when it is resumed."""

    optimizer: str = "muon"
    learning_rate: float = LEARNING_RATES["muon"]
    steps: int = 600
    seed: int = 0
    layers: int = 2
    width: int = 64
    context: int = 64
    batch_size: int = 16
    every: int = 25


def names() -> list[str]:
    """The optimizers that can train the transformer: all that do not need the exact gradient."""
    return [name for name in recipes.names() if not recipes.settings_of(name).full_batch]


def rate_of(name: str) -> float:
    """The learning rate of an optimizer unless another is given."""
    return LEARNING_RATES.get(name, recipes.settings_of(name).learning_rate)


def schedule_of(name: str, peak: Any, steps: int) -> optax.Schedule:
    """The learning rate: a warm-up, then a cosine to a tenth, or none for schedule-free methods."""
    warmup = max(1, steps // 10)
    if name.startswith("schedule_free"):
        return gradtx.schedules.warmup_constant_schedule(0.0, peak, warmup)
    return gradtx.schedules.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak / 10)


def optimizer_of(
    name: str, schedule: optax.Schedule, weight_decay: float = WEIGHT_DECAY
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for all parameters, of which those for matrices leave the rest to AdamW."""
    if name not in FOR_MATRICES:
        # Those that decay have a mask there, which chooses the kernels.
        decays = "weight_decay" in recipes.settings_of(name).options
        options = {"weight_decay": weight_decay} if decays else {}
        return recipes.recipe(name)(learning_rate=schedule, **options)
    matrices = gradtx.make(
        name, learning_rate=schedule, weight_decay=weight_decay, **FOR_MATRICES[name]
    )
    others = gradtx.adamw(schedule, weight_decay=weight_decay, mask=gradtx.select("kernel"))
    return gradtx.partition(
        {"matrices": matrices, "others": others},
        gradtx.select.groups({"matrices": MATRICES}, rest="others"),
    )


def make_optimizer(settings: Settings) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The whole chain, and its learning rate."""
    name = settings.optimizer
    schedule = schedule_of(name, settings.learning_rate, settings.steps)
    tx = gradtx.chain(gradtx.clip_by_global_norm(MAX_GRADIENT_NORM), optimizer_of(name, schedule))
    if name.startswith("schedule_free"):
        return tx, schedule  # it averages the parameters itself
    # The average covers about the last tenth of the run.
    return gradtx.average_params(tx, max(0.0, 1 - 10 / settings.steps)), schedule


def init_params(settings: Settings, vocabulary: int) -> Any:
    """The parameters before the first step."""
    shape = transformer.Shape(vocabulary, settings.context, settings.layers, settings.width, HEADS)
    return transformer.init_transformer(jax.random.key(settings.seed), shape)


loss_fn = functools.partial(transformer.loss_fn, heads=HEADS)


@jax.jit
def validation_losses(params: Any, opt_state: Any, sequences: jax.Array) -> dict[str, jax.Array]:
    """The losses of the raw and the averaged parameters on batches of sequences.

    Args:
        params: the parameters.
        opt_state: the state of the optimizer, which may keep an average.
        sequences: tokens, shape (batches, batch, length + 1).
    """
    both = jax.tree.map(lambda *p: jnp.stack(p), params, gradtx.eval_params(opt_state, params))
    raw, averaged = jax.lax.map(lambda p: mean_loss(p, sequences), both)
    return {"validation_loss": raw, "averaged_loss": averaged}


def mean_loss(params: Any, sequences: jax.Array) -> jax.Array:
    """The mean loss on batches of sequences, one batch after the other."""
    return jnp.mean(jax.lax.map(functools.partial(loss_fn, params), sequences))


def batches_of(sequences: np.ndarray, batch_size: int, most: int = 8) -> np.ndarray:
    """Up to so many batches of sequences, evenly spread, shape (batches, batch, length + 1)."""
    count = min(most, len(sequences) // batch_size)
    chosen = np.linspace(0, len(sequences) - 1, count * batch_size).round().astype(int)
    return sequences[chosen].reshape(count, batch_size, -1)


def train(
    settings: Settings,
    text: Text,
    folder: Path,
    *,
    resume: bool = False,
    on_row: Callable[[logs.Row], None] = lambda _: None,
) -> tuple[list[logs.Row], Any]:
    """Train a transformer from scratch, or from its last checkpoint.

    Args:
        settings: the settings of the run.
        text: its text.
        folder: where the log and the checkpoints are written.
        resume: whether to go on from the last checkpoint in the folder.
        on_row: called with each row of the log that has a validation loss.

    Returns:
        What was measured at each step, and the parameters to evaluate.

    Raises:
        SystemExit: there is no checkpoint to resume, or one that would be lost, or one of a run
            with other settings.
    """
    tx, schedule = make_optimizer(settings)
    train_step = make_train_step(loss_fn, tx, learning_rate=schedule)
    state = TrainState.create(init_params(settings, len(text.characters)), tx)
    held_out = jnp.asarray(batches_of(text.validation, settings.batch_size))
    with _checkpoints(settings, folder) as checkpoints:
        if resume:
            state = _restored(checkpoints, state)
        elif checkpoints.latest_step() is not None:
            raise SystemExit(f"{folder} has a run already: --resume it, or name another --output")
        with logs.Log(folder, start=int(state.step)) as log:
            for step, batch in _batches(settings, text, int(state.step)):
                state, metrics = train_step(state, batch)
                if step % settings.every == 0 or step == settings.steps:
                    metrics |= validation_losses(state.params, state.opt_state, held_out)
                    log.add(step, **metrics)
                    log.flush()
                    on_row(log.rows[-1])
                    checkpoints.save(state, step=step, force=True)
                else:
                    log.add(step, **metrics)
    return log.rows, gradtx.eval_params(state.opt_state, state.params)


def _batches(settings: Settings, text: Text, start: int) -> Iterable[tuple[int, Any]]:
    """The numbers of the steps that remain, and their batches."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    batches = minibatches(
        key, text.train, settings.batch_size, epochs=None, drop_remainder=True, start=start
    )
    return zip(range(start + 1, settings.steps + 1), batches, strict=False)


def _checkpoints(settings: Settings, folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep=2, settings=asdict(settings))


def _restored(checkpoints: Checkpoints, state: TrainState) -> TrainState:
    """The state of the last checkpoint; exits if that is one of a run with other settings."""
    try:
        state = checkpoints.restore(state).state
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"Going on after step {state.step} of {checkpoints.directory}", file=sys.stderr)
    return state


def write_sample(params: Any, text: Text, seed: int, length: int = 300) -> tuple[str, str]:
    """The beginning of the validation text, and how the network continues it."""
    context = params["embedding"]["positions"].shape[0]
    start = text.validation[0, :context]
    tokens = transformer.generate(
        params, jax.random.key(seed), jnp.asarray(start), heads=HEADS, length=length
    )
    return text.decode(start), text.decode(np.asarray(tokens))


def draw(rows: Sequence[logs.Row], title: str) -> Any:
    """A figure of the losses, the learning rate and the norm of the gradient."""
    black, blue, vermilion, *_ = COLORS
    figure, ((losses, rates, norms),) = new_figure(title, columns=3)
    steps = [row["step"] for row in rows]
    evaluated = [row for row in rows if "validation_loss" in row]
    losses.plot(steps, [row["loss"] for row in rows], color="0.75", lw=0.8, label="mini-batches")
    for name, color, label in (
        ("validation_loss", blue, "held-out text"),
        ("averaged_loss", vermilion, "held-out text, averaged parameters"),
    ):
        x, y = zip(*((row["step"], row[name]) for row in evaluated), strict=True)
        losses.plot(x, y, ".-", color=color, label=label)
    describe(losses, "Loss", "step", "nats per character")
    rates.plot(steps, [row["learning_rate"] for row in rows], color=black)
    describe(rates, "Learning rate", "step", "learning rate")
    norms.plot(steps, [row["gradient_norm"] for row in rows], color=black, lw=0.8)
    norms.axhline(MAX_GRADIENT_NORM, color=vermilion, ls="--", label="clipped above")
    describe(norms, "Gradient", "step", "norm before clipping", yscale="log")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example with the arguments of the command line."""
    arguments = _parser().parse_args(argv)
    size = {"layers": 1, "width": 32, "context": 32, "every": 10} if arguments.quick else {}
    settings = Settings(
        arguments.optimizer,
        arguments.learning_rate or rate_of(arguments.optimizer),
        arguments.steps or (30 if arguments.quick else Settings.steps),
        arguments.seed,
        **size,
    )
    folder = arguments.output
    text = load_text(settings.context)
    with report.progress_bar() as bar:
        task = bar.add_task(settings.optimizer, total=settings.steps, summary="compiling")

        def on_row(row: logs.Row) -> None:
            summary = f"loss {row['loss']:.3f}, held out {row['averaged_loss']:.3f}"
            bar.update(task, completed=row["step"], summary=summary)

        rows, params = train(settings, text, folder, resume=arguments.resume, on_row=on_row)
    start, sample = write_sample(params, text, settings.seed)
    (folder / "sample.txt").write_text(start + sample, encoding="utf-8")
    figure = draw(rows, f"A transformer of {settings.width} features, {settings.optimizer}")
    figure.savefig(folder / "losses.png", dpi=150)
    print(_summary(rows[-1], params, text))
    panel = extras.load("rich.panel").Panel
    extras.load("rich").print(panel(extras.load("rich.text").Text(sample), title="It writes"))
    print(f"Measurements, checkpoints and picture: {folder}")
    return 0


def _summary(last: logs.Row, params: Any, text: Text) -> str:
    """What was learned, compared with what the frequencies of the characters alone would give."""
    shares = np.bincount(text.train.ravel()) / text.train.size
    entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-12)))
    return (
        f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, {last['step']} steps. "
        f"Nats per character of the held-out text: {last['validation_loss']:.3f}, with averaged "
        f"parameters {last['averaged_loss']:.3f}; from frequencies alone {entropy:.3f}"
    )


def _parser() -> commands.Parser:
    parser = commands.Parser(
        prog="python -m examples.language_model",
        description="Train a small transformer on the text of Python's language reference.",
        epilog=f"The names of the optimizers: {', '.join(names())}.",
    )
    parser.add_argument(
        "--optimizer",
        metavar="NAME",
        type=commands.one_of("optimizer", names()),
        default="muon",
        help="the optimizer",
    )
    parser.add_argument(
        "--learning-rate",
        type=commands.positive_number,
        help="peak learning rate (each optimizer has its own default)",
    )
    count = commands.whole_number(1)
    parser.add_argument("--steps", type=count, help=f"number of steps ({Settings.steps})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the network and the batches")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--quick", action="store_true", help="a tiny network, as a smoke test")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=commands.folder,
        default=Path("outputs/language_model"),
        help="where to write the run",
    )
    return parser


if __name__ == "__main__":
    commands.run(main)
