"""What keeps a network from learning is seen in its first batch.

Most faults raise no error. Labels are counted from 1 and not from 0, a softmax is applied twice, a
column is subtracted from a row, images come as 0 to 255: the program runs, the loss is a number,
and it may even fall. What is learned is less, or something else, and the days are lost in looking
for the reason in the learning rate.

Each row of the picture is one fault in a small program that learns the digits. `check_up` sees the
program before its first step: the loss, the parameters and one batch. It follows what the program
does with them (which example changes which result, where a gradient ends, what range an index has),
and each column is one of its examinations.

Then both are trained, the program with the fault and the program without. Look at what the faults
have in common: hardly any of them stops the training.

Source:
    The faults are those of the lists by Humbatova et al. 2020, "Taxonomy of real faults in deep
    learning systems", and of Wardat et al. 2022, "DeepDiagnosis: automatically diagnosing faults
    and recommending actionable fixes in deep learning programs".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.digits import CLASSES, load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import init_dense, shuffled_batches
from gradtx import diagnostics

CLAIM = (
    "Faults that make a network learn less, or nothing, are found before its first step, each with "
    "its name; without the faults nothing is found."
)
WIDTHS = (64, 64, 64, CLASSES)
BATCH_SIZE, RATE = 50, 3e-3
_, _, VERMILION, GREEN, _, ORANGE, _ = COLORS
SHADES = {"error": VERMILION, "warning": ORANGE}

Array = jax.Array


class Program(NamedTuple):
    """A program that learns the digits; each fault replaces one of its parts.

    Attributes:
        white: the gray level of white in the images.
        gather: the training images and labels of some samples.
        init: the parameters, from a key.
        predict: the outputs, from parameters and images.
        loss: the loss, from outputs and labels.
        decide: the digits that the outputs stand for.
    """

    white: float
    gather: Callable[[Array, Array], tuple[Array, Array]]
    init: Callable[[Array], Any]
    predict: Callable[[Any, Array], Array]
    loss: Callable[[Array, Array], Array]
    decide: Callable[[Array], Array]


def predict(params: Any, x: Array, activation: Any = jax.nn.relu, inner: Any = None) -> Array:
    """The outputs of the network; `inner` is applied to the first hidden layer."""
    *hidden, head = params
    for i, layer in enumerate(hidden):
        x = activation(x @ layer["kernel"] + layer["bias"][None])
        x = inner(x) if inner is not None and i == 0 else x
    return x @ head["kernel"] + head["bias"][None]


def cross_entropy(logits: Array, labels: Array, shift: int = 0) -> Array:
    """The mean cross-entropy with one-hot labels, which are counted from `shift`."""
    targets = jax.nn.one_hot(labels + shift, CLASSES)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1))


def squared_error(outputs: Array, labels: Array) -> Array:
    """The mean squared error of a regression on the digit."""
    return jnp.mean((outputs[:, 0] - labels.astype(jnp.float32)) ** 2)


def nearest_digit(outputs: Array) -> Array:
    """The digit next to the output of a regression."""
    return jnp.round(outputs[:, 0]).astype(jnp.int32)


def scaled_by(factor: float, bias: float = 0.0) -> Callable[[Array], Any]:
    """Initial parameters whose hidden weights are multiplied, and whose biases are shifted."""

    def init(key: Array) -> Any:
        *hidden, head = init_dense(key, WIDTHS)
        layers = [{"kernel": factor * w["kernel"], "bias": w["bias"] + bias} for w in hidden]
        return [*layers, head]

    return init


HEALTHY = Program(
    white=1.0,
    gather=lambda images, labels: (images, labels),
    init=lambda key: init_dense(key, WIDTHS),
    predict=predict,
    loss=cross_entropy,
    decide=lambda outputs: jnp.argmax(outputs, -1),
)
# Learns the digit as a number.
REGRESSION = HEALTHY._replace(
    init=lambda key: init_dense(key, (*WIDTHS[:-1], 1)), loss=squared_error, decide=nearest_digit
)


def with_a_spare_layer(key: Array) -> Any:
    """Parameters with a layer that the network does not use, because the head comes before it."""
    return {"used": init_dense(key, WIDTHS), "spare": init_dense(key, (CLASSES, CLASSES))}


def looked_up(params: Any, images: Array) -> Array:
    """Each gray level, 0 to 16, is looked up in a table, which has 16 rows."""
    levels = jnp.round(16 * images).astype(jnp.int32)
    return predict(params["layers"], images + params["table"][levels])


def summed_cross_entropy(logits: Array, labels: Array) -> Array:
    """The cross-entropy of all examples together."""
    return -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, CLASSES))


def regression_on_columns(outputs: Array, labels: Array) -> Array:
    """The squared error of a column of outputs and a row of labels."""
    with jax.numpy_rank_promotion("allow"):
        return jnp.mean((outputs - labels.astype(jnp.float32)) ** 2)


class Fault(NamedTuple):
    """A fault: its name, the kind of finding that names it, and the program with and without it."""

    name: str
    kind: str
    sick: Program
    cured: Program = HEALTHY


FAULTS = (
    Fault(
        "labels counted from 1",
        "label_out_of_range",
        HEALTHY._replace(loss=lambda z, y: cross_entropy(z, y, shift=1)),
    ),
    Fault(
        "softmax applied twice",
        "double_softmax",
        HEALTHY._replace(loss=lambda z, y: cross_entropy(jax.nn.softmax(z), y)),
    ),
    Fault(
        "softmax over the batch",
        "wrong_axis",
        HEALTHY._replace(
            loss=lambda z, y: (
                -jnp.mean(
                    jnp.sum(jax.nn.log_softmax(z, axis=0) * jax.nn.one_hot(y, CLASSES), axis=-1)
                )
            )
        ),
    ),
    Fault(
        "column minus row",
        "broadcast_difference",
        REGRESSION._replace(loss=regression_on_columns),
        REGRESSION,
    ),
    Fault(
        "tanh at the output",
        "target_out_of_range",
        REGRESSION._replace(predict=lambda p, x: jnp.tanh(predict(p, x))),
        REGRESSION,
    ),
    Fault(
        "sum instead of mean",
        "sum_over_examples",
        HEALTHY._replace(loss=summed_cross_entropy),
    ),
    Fault(
        "images of 0 to 255",
        "unstandardized",
        HEALTHY._replace(white=255.0),
    ),
    Fault(
        "one image repeated",
        "identical_examples",
        HEALTHY._replace(gather=lambda x, y: (jnp.broadcast_to(x[:1], x.shape), y)),
    ),
    Fault(
        "table too short",
        "index_out_of_range",
        HEALTHY._replace(
            init=lambda key: {"layers": init_dense(key, WIDTHS), "table": jnp.zeros(16)},
            predict=looked_up,
        ),
    ),
    Fault("weights of zero", "identical_units", HEALTHY._replace(init=scaled_by(0.0))),
    Fault("weights too small", "vanishing", HEALTHY._replace(init=scaled_by(0.01))),
    Fault("weights too large", "exploding", HEALTHY._replace(init=scaled_by(30.0))),
    Fault("biases of -10", "dead", HEALTHY._replace(init=scaled_by(1.0, bias=-10.0))),
    Fault(
        "nonlinearity forgotten",
        "no_nonlinearity",
        HEALTHY._replace(predict=lambda p, x: predict(p, x, lambda z: z)),
    ),
    Fault(
        "rounded to integers",
        "blocked",
        HEALTHY._replace(predict=lambda p, x: predict(p, x, inner=jnp.round)),
    ),
    Fault(
        "gradient stopped",
        "blocked",
        HEALTHY._replace(predict=lambda p, x: predict(p, x, inner=jax.lax.stop_gradient)),
    ),
    Fault(
        "layer not used",
        "unused",
        HEALTHY._replace(init=with_a_spare_layer, predict=lambda p, x: predict(p["used"], x)),
    ),
)


class Result(NamedTuple):
    """What came of one fault: the check-up, and the accuracies with and without it."""

    checked: diagnostics.CheckUp
    sick: np.ndarray
    cured: np.ndarray


def run(settings: Settings) -> Outcome:
    """Check and train the program with each fault."""
    networks, steps = settings.choose(full=(5, 300), quick=(2, 60))
    faults = settings.choose(full=FAULTS, quick=FAULTS[::4])
    cures = dict.fromkeys(fault.cured for fault in faults)
    digits = load_digits()
    healthy = [check(program, settings.key, digits.train) for program in cures]
    accuracies = {
        program: train(program, settings.key, digits, networks, steps) for program in cures
    }
    results = {
        fault: Result(
            check(fault.sick, settings.key, digits.train),
            train(fault.sick, settings.key, digits, networks, steps),
            accuracies[fault.cured],
        )
        for fault in faults
    }
    return Outcome(
        _checks(results, healthy),
        _draw(results),
        "Left: what each examination finds in the first batch, before any training, and how bad it "
        "is. Findings that follow from another are not shown: the cause is. Right: the share of "
        f"test images that are recognized after {steps} steps, with the fault and without "
        f"(means of {networks} networks; the lines extend from the lowest to the highest).",
    )


def check(program: Program, key: Array, data: Any) -> diagnostics.CheckUp:
    """The check-up of a program with its first batch."""
    x, y = (jnp.asarray(data[name][:BATCH_SIZE]) for name in ("image", "label"))
    x, y = program.gather(program.white * x, y)

    def loss_fn(params: Any, x: Array, y: Array) -> Array:
        return program.loss(program.predict(params, x), y)

    return diagnostics.check_up(loss_fn, program.init(key), x, y)


def train(program: Program, key: Array, digits: Any, networks: int, steps: int) -> np.ndarray:
    """The test accuracy of several networks that were trained with Adam, each from its own key."""
    tx = gradtx.adam(RATE)
    train, test = (jax.tree.map(jnp.asarray, data) for data in digits)

    def one(key: Array) -> Array:
        init_key, order_key = jax.random.split(key)
        params = program.init(init_key)

        def step(carry: Any, batch: Array) -> Any:
            params, state = carry
            x, y = program.gather(program.white * train["image"][batch], train["label"][batch])
            gradient = jax.grad(lambda params: program.loss(program.predict(params, x), y))(params)
            updates, state = tx.update(gradient, state, params)
            return (gradtx.apply_updates(params, updates), state), None

        batches = shuffled_batches(order_key, len(train["label"]), BATCH_SIZE, steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        outputs = program.predict(params, program.white * test["image"])
        return jnp.mean(program.decide(outputs) == test["label"])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, networks)))


def _checks(results: dict[Fault, Result], healthy: list[diagnostics.CheckUp]) -> list[Check]:
    """The checks: what was named, what was found without a fault, and what a fault costs."""
    missed = [
        fault.name
        for fault, result in results.items()
        if fault.kind not in {one.kind for one in result.checked.at_least("warning")}
    ]
    # Two of the programs predict the digit as a number, which check_up rightly points out.
    alarms = [
        one.kind
        for checked in healthy
        for one in checked.at_least("warning")
        if one.kind != "class_as_number"
    ]
    losses = {fault.name: float(r.cured.mean() - r.sick.mean()) for fault, r in results.items()}
    worse = [name for name, loss in losses.items() if loss > 0.02]
    worst = max(losses, key=lambda name: losses[name])
    return [
        Check(
            f"each of the {len(results)} faults is named by its kind",
            f"not named: {', '.join(missed) or 'none'}",
            not missed,
        ),
        Check(
            "in the programs without a fault nothing is found but that a digit is no number",
            f"found: {', '.join(alarms) or 'nothing'}",
            not alarms,
        ),
        Check(
            "more than half of the faults cost more than 2% of the test images",
            f"{len(worse)} of {len(results)}; the worst, '{worst}', costs {losses[worst]:.0%}",
            2 * len(worse) > len(results),
        ),
    ]


def _draw(results: dict[Fault, Result]) -> Any:
    figure, ((matrix, bars),) = new_figure("Which examination finds which fault?", columns=2)
    figure.set_size_inches(15, 0.44 * len(results) + 2.5)
    _draw_findings(matrix, results)
    for row, result in enumerate(results.values()):
        for accuracy, color, label, offset in (
            (result.sick, VERMILION, "with the fault", -0.2),
            (result.cured, GREEN, "without it", 0.2),
        ):
            ends = 100 * np.array([accuracy.min(), accuracy.max()])
            style = {"color": color, "label": label if row == 0 else None}
            bars.barh(row + offset, 100 * accuracy.mean(), 0.36, **style)
            bars.plot(ends, [row + offset] * 2, color="black", lw=1)
    describe(bars, "After training", "test images that are recognized (%)", "", xlim=(0, 100))
    bars.set(ylim=(len(results) - 0.5, -0.5), yticks=[])
    for axes in (matrix, bars):
        axes.set_axisbelow(True)
        axes.legend(loc="upper right", bbox_to_anchor=(1, -0.08), ncols=2, fontsize="small")
    return figure


def _draw_findings(axes: Any, results: dict[Fault, Result]) -> None:
    """A cell for each fault and each examination that finds something."""
    found = {fault: result.checked.at_least("warning") for fault, result in results.items()}
    columns = sorted({one.examination for findings in found.values() for one in findings})
    for row, findings in enumerate(found.values()):
        for column, examination in enumerate(columns):
            mine = [one for one in findings if one.examination == examination]
            if mine:
                axes.barh(row, 0.94, 0.86, column - 0.47, color=SHADES[mine[0].severity])
                text = mine[0].kind.replace("_", " ")
                text = "\n".join(text.rsplit(" ", 1)) if len(text) > 14 else text
                axes.text(column, row, text, ha="center", va="center", fontsize=8.5)
    for severity, color in SHADES.items():
        axes.bar(0, 0, color=color, label=severity)
    describe(axes, "Before the first step", "examination", "")
    names = [fault.name for fault in found]
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(names)), names)
