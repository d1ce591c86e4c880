"""Train a small network on handwritten digits, with any optimizer of gradtx.

    python -m examples.train_digits
    python -m examples.train_digits --optimizer lion
    python -m examples.train_digits --compare sgd momentum rmsprop adam
    python -m examples.train_digits --checkpoint outputs/digits

The optimizer is a chain: the gradient is clipped by its global norm, the recipe (AdamW unless
another is named) turns it into an update with a learning rate that warms up and then follows a
cosine decay, and an average of the parameters is kept alongside. At the end a table shows the
accuracy of the raw and of the averaged parameters on test images, and a picture shows the training.

With --checkpoint, a run that was interrupted goes on when the same command is given again, and ends
with the same numbers as if it had not been.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import gradtx
from examples import commands, digits, recipes, report
from gradtx.training import Checkpoints, TrainState, make_train_step, minibatches

MAX_GRADIENT_NORM = 1.0
BATCH_SIZE = 64


def make_optimizer(
    name: str, learning_rate: float, total_steps: int
) -> tuple[optax.GradientTransformationExtraArgs, optax.ScalarOrSchedule]:
    """The whole chain around a recipe, and its learning rate as a number or a schedule."""
    if recipes.settings_of(name).full_batch:
        rate = learning_rate
        chain = recipes.recipe(name)(learning_rate=rate)
    else:
        rate = gradtx.schedules.warmup_cosine_decay_schedule(
            init_value=learning_rate / 10,
            peak_value=learning_rate,
            warmup_steps=total_steps // 10,
            decay_steps=total_steps,
        )
        optimizer = recipes.recipe(name)(learning_rate=rate)
        chain = gradtx.chain(gradtx.clip_by_global_norm(MAX_GRADIENT_NORM), optimizer)
    # The average covers about the last tenth of the run.
    decay = max(0.0, 1 - 10 / total_steps)
    return gradtx.average_params(chain, decay), rate


def train(
    name: str,
    data: digits.Digits,
    *,
    epochs: int,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int,
    on_epoch: Callable[[report.Epoch], None],
    checkpoints: Checkpoints | None = None,
) -> report.Run:
    """Train one network from scratch, or from its last checkpoint.

    Args:
        name: the recipe.
        data: training and test samples.
        epochs: the number of passes over the training samples.
        batch_size: samples per step; None: 64, or all for a recipe that needs the exact gradient.
        learning_rate: the peak learning rate; None: the default of the recipe.
        seed: the seed of the initial parameters and of the order of the samples.
        on_epoch: called after each epoch.
        checkpoints: the checkpoints of this run; None: it has none.
    """
    settings = recipes.settings_of(name)
    samples = len(data.train["label"])
    batch_size = batch_size or (samples if settings.full_batch else BATCH_SIZE)
    steps_per_epoch = samples // batch_size
    rate = settings.learning_rate if learning_rate is None else learning_rate
    tx, schedule = make_optimizer(name, rate, epochs * steps_per_epoch)

    init_key, order_key = jax.random.split(jax.random.key(seed))
    params, stats = digits.init_network(init_key)
    state = TrainState.create(params, tx, model_state=stats)
    # The statistics of all samples need no long average.
    loss_fn = functools.partial(digits.loss_fn, momentum=0.5 if settings.full_batch else 0.9)
    train_step = make_train_step(
        loss_fn, tx, has_model_state=True, has_aux=True, learning_rate=schedule
    )
    log = report.Log(report.Run(name, rate, batch_size), on_epoch)
    if checkpoints is not None:
        state = last_state(checkpoints, state, log)
    start = int(state.step)
    batches = minibatches(
        order_key, data.train, batch_size, epochs=epochs, drop_remainder=True, start=start
    )
    for step, batch in enumerate(batches, start + 1):
        state, metrics = train_step(state, batch)
        if log.step(metrics) == steps_per_epoch:
            averaged = gradtx.averaged_params(state.opt_state, state.params)
            log.end_epoch(
                test_accuracy=digits.accuracy_of(state.params, state.model_state, data.test),
                averaged_accuracy=digits.accuracy_of(averaged, state.model_state, data.test),
            )
        is_last = step == epochs * steps_per_epoch
        if checkpoints is not None and (is_last or checkpoints.should_save(step)):
            checkpoints.save(state, log.saved(), step=step, force=True)
    return log.finished()


def last_state(checkpoints: Checkpoints, state: TrainState, log: report.Log) -> TrainState:
    """The state of the last checkpoint and its record, if there is one, and the given ones if not.

    Exits if the checkpoint is that of a run with other settings.
    """
    if checkpoints.latest_step() is None:
        return state
    try:
        state, record, _ = checkpoints.restore(state)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(f"Going on after step {state.step} of {checkpoints.directory}", file=sys.stderr)
    log.go_on_from(record)
    return state


def checkpoints_of(name: str, arguments: Any) -> Any:
    """The context of the checkpoints of a run; None in it if none were asked for."""
    if arguments.checkpoint is None:
        return contextlib.nullcontext()
    names = ("epochs", "batch_size", "learning_rate", "seed")
    return Checkpoints(
        arguments.checkpoint / name,
        every=arguments.checkpoint_every,
        keep=2,
        settings={setting: getattr(arguments, setting) for setting in names},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example with the arguments of the command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = arguments.compare or [arguments.optimizer]
    arguments.epochs = arguments.epochs or (2 if arguments.quick else 20)
    data = digits.load_digits()
    _check_batch_size(parser, arguments.batch_size, names, len(data.train["label"]))
    commands.announce_overwriting([arguments.out])
    runs = []
    with report.progress_bar() as bar:
        for name in names:
            with checkpoints_of(name, arguments) as checkpoints:
                run = train(
                    name,
                    data,
                    epochs=arguments.epochs,
                    batch_size=arguments.batch_size,
                    learning_rate=arguments.learning_rate,
                    seed=arguments.seed,
                    on_epoch=report.follow(bar, name, arguments.epochs),
                    checkpoints=checkpoints,
                )
            runs.append(run)
    report.print_table(runs, len(data.test["label"]))
    report.draw(runs, arguments.out)
    print(f"Picture: {arguments.out}")
    return 0


def _check_batch_size(
    parser: commands.Parser, batch_size: int | None, names: Sequence[str], samples: int
) -> None:
    """Exit if the requested batch size is not possible."""
    if batch_size is None:
        return
    if batch_size > samples:
        parser.error(f"argument --batch-size: must be at most {samples}, the number of images")
    exact = [name for name in names if recipes.settings_of(name).full_batch]
    if exact and batch_size != samples:
        parser.error(f"argument --batch-size: {exact[0]} needs all {samples} images at each step")


def _parser() -> commands.Parser:
    parser = commands.Parser(
        prog="python -m examples.train_digits",
        description="Train a small network on scikit-learn's handwritten digits.",
        epilog=f"The names of the optimizers: {', '.join(recipes.names())}.",
    )
    name = commands.one_of("optimizer", recipes.names())
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--optimizer", metavar="NAME", type=name, default="adamw", help="one optimizer"
    )
    which.add_argument(
        "--compare", metavar="NAME", type=name, nargs="+", help="several optimizers, in one picture"
    )
    count = commands.whole_number(1)
    parser.add_argument("--epochs", type=count, help="passes over the training images (20)")
    parser.add_argument(
        "--batch-size",
        type=count,
        help=f"images per step ({BATCH_SIZE}, or all for an optimizer that needs them)",
    )
    parser.add_argument(
        "--learning-rate",
        type=commands.positive_number,
        help="peak learning rate (each optimizer has its own default)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the network and the order of the images"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=commands.folder,
        help="where to save the run, and to go on from if it is there",
    )
    parser.add_argument(
        "--checkpoint-every", metavar="STEPS", type=count, default=20, help="how often to save it"
    )
    parser.add_argument("--quick", action="store_true", help="2 epochs, as a smoke test")
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=commands.picture,
        default=Path("outputs/train_digits.png"),
        help="where to write the picture",
    )
    return parser


if __name__ == "__main__":
    commands.run(main)
