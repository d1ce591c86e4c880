"""An optimizer's state in 8 bits per number learns as well as one in 32.

Adam keeps two numbers for each parameter, 8 bytes; often that is more than all else in training.
`quantize_state` keeps each in one byte: a code for its size in relation to the largest of its block
of 256 neighbours, and one scale for the block. What matters is the law of the codes. Equal steps
would make zeros of most second moments, and the update is divided by their roots. So the levels
are the eighth powers of equal steps for numbers that are never negative, and the fourth powers for
others. And codes are rounded at random: a second moment moves by a thousandth in a step, which is
less than the distance of two levels, and to nearest it would stand still.

Networks learn the digits, and a transformer with two layers learns to continue English text letter
by letter: the documentation that comes with Python. Both learn from the same start and the same
batches, once with the state in float32 and once in 8 bits. With one more way, "all narrow", the
parameters are in bfloat16 as well, rounded at random: AdamW in 4.1 bytes instead of 12.

Source:
    Dettmers et al. 2022, "8-bit optimizers via block-wise quantization".
"""

import functools
from collections.abc import Callable
from pydoc_data import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import apply_dense, cross_entropy, init_dense
from gradtx.initializers import lecun_normal
from gradtx.normalization import layer_norm

CLAIM = (
    "With its state in 8 bits per number, an optimizer ends at the loss that it ends at in "
    "float32, up to the differences between random starts."
)
WIDTHS = (64, 128, 128, 10)
WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 2, 32  # of the transformer
FULL, PACKED, NARROW = "float32", "8 bits", "all narrow"
BLACK, BLUE, VERMILION, *_ = COLORS

# The optimizers, by name: from a learning rate.
METHODS: dict[str, Callable[[Any], Any]] = {
    "adam": gradtx.adam,
    "adamw": gradtx.adamw,
    "lion": lambda rate: gradtx.lion(lambda step: 0.1 * rate(step)),
    "adafactor": lambda rate: gradtx.adafactor(
        rate, momentum=0.9, min_dim_size_to_factor=32, multiply_by_parameter_scale=False
    ),
    "muon": lambda rate: gradtx.muon(rate, adam_learning_rate=rate),
}


class Task(NamedTuple):
    """What is learned.

    Attributes:
        title: what the picture calls it.
        init: the parameters from a key.
        draw: a batch from a key.
        loss: the loss of a batch.
        test: the batch whose loss is measured.
        rate: the highest learning rate.
        steps: the number of steps.
        seeds: the number of networks.
    """

    title: str
    init: Callable[[jax.Array], Any]
    draw: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    test: Any
    rate: float
    steps: int
    seeds: int


class Training(NamedTuple):
    """The losses of shape (networks, stages), and the bytes of parameters and state."""

    loss: np.ndarray
    memory: float


Results = dict[tuple[str, str], Training]


def run(settings: Settings) -> Outcome:
    """Train networks on both tasks, with each optimizer and each form of its state."""
    methods = settings.choose(full=tuple(METHODS), quick=("adamw",))
    tasks = [
        digits_task(*settings.choose(full=(1000, 8), quick=(200, 3))),
        letters_task(*settings.choose(full=(300, 5), quick=(40, 3))),
    ]
    results: list[Results] = []
    for task in tasks:
        keys = jax.random.split(settings.key, task.seeds)
        ways = [(method, form) for method in methods for form in (FULL, PACKED)]
        results.append(
            {
                (name, form): train(task, name, form, keys)
                for name, form in [*ways, ("adamw", NARROW)]
            }
        )
    return Outcome(
        [
            check
            for task, found in zip(tasks, results, strict=True)
            for check in checks(task, found)
        ],
        _draw(tasks, results),
        "Above: each point is a network; bars are means with one standard deviation to each side. "
        "An optimizer ends at the same loss whether its state is in float32 or in 8 bits. Below: "
        "the curves of AdamW (means) lie on each other all the way.",
    )


def digits_task(steps: int, seeds: int) -> Task:
    """A dense network that classifies handwritten digits."""
    data = jax.tree.map(jnp.asarray, load_digits().train)

    def draw(key: jax.Array) -> Any:
        samples = jax.random.randint(key, (64,), 0, len(data["label"]))
        return data["image"][samples], data["label"][samples]

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        return cross_entropy(apply_dense(params, images), labels)

    init = functools.partial(init_dense, widths=WIDTHS)
    return Task("Digits", init, draw, loss, (data["image"], data["label"]), 3e-3, steps, seeds)


def letters_task(steps: int, seeds: int) -> Task:
    """A transformer that predicts the next letter of English text."""
    text = np.frombuffer("\n".join(topics.topics.values()).encode("ascii", "replace"), np.uint8)
    known, letters = np.unique(text, return_inverse=True)
    train = jnp.asarray(letters[: -len(letters) // 10], jnp.int32)
    held_out = letters[-len(letters) // 10 :]
    windows = LENGTH + 1
    test = jnp.asarray(held_out[: len(held_out) // windows * windows], jnp.int32)

    def draw(key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (16, 1), 0, len(train) - windows)
        return train[starts + jnp.arange(windows)[None]]

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = apply_transformer(params, batch[:, :-1])
        return cross_entropy(logits.reshape(-1, len(known)), batch[:, 1:].reshape(-1))

    init = functools.partial(init_transformer, letters=len(known))
    batch = test.reshape(-1, windows)[::6]
    return Task("Letters", init, draw, loss, batch, 3e-3, steps, seeds)


def init_transformer(key: jax.Array, letters: int) -> Any:
    """Random parameters."""
    keys = iter(jax.random.split(key, 3 + 4 * LAYERS))

    def dense(inputs: int, outputs: int) -> jax.Array:
        return lecun_normal()(next(keys), (inputs, outputs))

    def layer() -> Any:
        return {
            "qkv": dense(WIDTH, 3 * WIDTH),
            "out": dense(WIDTH, WIDTH),
            "up": dense(WIDTH, 4 * WIDTH),
            "down": dense(4 * WIDTH, WIDTH),
            "norms": {"attention": jnp.ones(WIDTH), "mlp": jnp.ones(WIDTH)},
        }

    return {
        "letters": 0.1 * jax.random.normal(next(keys), (letters, WIDTH)),
        "positions": 0.1 * jax.random.normal(next(keys), (LENGTH, WIDTH)),
        "layers": [layer() for _ in range(LAYERS)],
        "head": dense(WIDTH, letters),
    }


def apply_transformer(params: Any, letters: jax.Array) -> jax.Array:
    """The logits of the next letters, of shape (batch, LENGTH, number of letters)."""
    x = params["letters"][letters] + params["positions"][None]
    for layer in params["layers"]:
        q, k, v = (
            part.reshape(*x.shape[:2], HEADS, -1)
            for part in jnp.split(layer_norm(x, layer["norms"]["attention"]) @ layer["qkv"], 3, -1)
        )
        seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + seen.reshape(x.shape) @ layer["out"]
        x = x + jax.nn.gelu(layer_norm(x, layer["norms"]["mlp"]) @ layer["up"]) @ layer["down"]
    return layer_norm(x) @ params["head"]


def optimizer(name: str, form: str, task: Task, key: jax.Array) -> Any:
    """An optimizer, with its state in one of the forms."""
    tx = METHODS[name](gradtx.cosine_decay_schedule(task.rate, task.steps, alpha=0.05))
    tx = tx if form == FULL else gradtx.quantize_state(tx)
    return gradtx.with_stochastic_rounding(tx, key) if form == NARROW else tx


def train(task: Task, name: str, form: str, keys: jax.Array) -> Training:
    """Train a network from each key."""
    dtype = jnp.bfloat16 if form == NARROW else jnp.float32
    stage = -(-task.steps // 20)

    def one(key: jax.Array) -> jax.Array:
        init_key, order_key, rounding_key = jax.random.split(key, 3)
        tx = optimizer(name, form, task, rounding_key)
        params = jax.tree.map(lambda p: p.astype(dtype), task.init(init_key))

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            return task.loss(jax.tree.map(lambda p: p.astype(jnp.float32), params), batch)

        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            gradient = jax.grad(loss_fn)(params, task.draw(key))
            return gradtx.update_and_apply(tx, gradient, state, params), None

        def several(carry: Any, keys: jax.Array) -> Any:
            carry, _ = jax.lax.scan(step, carry, keys)
            return carry, loss_fn(carry[0], task.test)

        order = jax.random.split(order_key, (task.steps // stage, stage))
        return jax.lax.scan(several, (params, tx.init(params)), order)[1]

    loss = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys), np.float64)
    shapes = jax.eval_shape(
        lambda key: jax.tree.map(lambda p: p.astype(dtype), task.init(key)), keys[0]
    )
    tx = optimizer(name, form, task, jax.random.key(0))
    memory = gradtx.explain(tx, shapes).bytes_per_parameter + jnp.dtype(dtype).itemsize
    return Training(loss, memory)


def checks(task: Task, results: Results) -> list[Check]:
    """For each optimizer whether the mean loss at the end is that of float32."""
    found = []
    for (name, form), training in results.items():
        if form == FULL:
            continue
        full, own = (results[name, FULL].loss[:, -1], training.loss[:, -1])
        spread = full.std(ddof=1)
        found.append(
            Check(
                f"{task.title}, {name}, {form}: as in float32 to a standard deviation",
                f"{own.mean():.4g}, float32 {full.mean():.4g} ± {spread:.2g}; "
                f"{training.memory:.1f} bytes instead of {results[name, FULL].memory:.1f}",
                bool(abs(own.mean() - full.mean()) < spread),
            )
        )
    return found


def _draw(tasks: list[Task], results: list[Results]) -> Any:
    figure, panels = new_figure("Does a state in 8 bits cost anything?", rows=2, columns=2)
    colors = {FULL: BLACK, PACKED: BLUE, NARROW: VERMILION}
    bars = {}
    for column, (task, found) in enumerate(zip(tasks, results, strict=True)):
        names = list(dict.fromkeys(name for name, _ in found))
        ends, curves = panels[:, column]
        for (name, form), training in found.items():
            final = training.loss[:, -1]
            place = names.index(name) + 0.25 * (list(colors).index(form) - 1)
            spread = np.linspace(-0.06, 0.06, len(final))
            ends.plot(place + spread, final, ".", color=colors[form], alpha=0.6)
            bar = {"color": colors[form], "capsize": 3, "marker": "_", "ms": 12}
            bars[form] = ends.errorbar(place, final.mean(), final.std(ddof=1), **bar)
            if name == "adamw":
                steps = (
                    task.steps / training.loss.shape[1] * (1 + np.arange(training.loss.shape[1]))
                )
                style = {FULL: "-", PACKED: "--", NARROW: ":"}[form]
                text = f"{form}: {training.memory:.1f} bytes per parameter"
                line = {"color": colors[form], "ls": style, "lw": 2, "label": text}
                curves.plot(steps, training.loss.mean(axis=0), **line)
        describe(ends, f"{task.title}: loss at the end", "optimizer", "loss (nats)")
        ends.set_xticks(range(len(names)), names)
        scale = "log" if column == 0 else "linear"
        ends.set_yscale(scale)
        describe(curves, f"{task.title}: AdamW", "step", "loss (nats)", yscale=scale)
    figure.legend(bars.values(), bars, loc="outside lower center", ncols=len(bars))
    return figure
