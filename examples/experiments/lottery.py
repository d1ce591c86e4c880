"""Lottery tickets: the few weights that were enough from the start.

A trained network can lose most of its weights, the smallest ones, and still work. Why, then, not
train the small network from the beginning? Because that usually fails: with a random choice of the
same number of weights the network learns more slowly and reaches less.

The lottery ticket hypothesis says that a large network contains small ones that do learn, and that
they are found as follows: train, prune the smallest weights, reset the remaining ones to their
values before training, and repeat. What remains is a winning ticket. Two comparisons show what
matters. A random mask keeps as many weights in each layer, but different ones. New values keep the
same weights, but start them from different random numbers. If tickets do better than both, it takes
the right weights, and the values with which they happened to start.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples import extras
from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import (
    accuracy,
    apply_dense,
    cross_entropy,
    init_dense,
    shuffled_batches,
)
from gradtx.diagnostics import apply_mask, freeze_pruned, prune_by_magnitude

CLAIM = (
    "With a quarter of its weights, those that end up largest, reset to their initial values, a "
    "network learns to read as many test images as the whole one; with a twentieth it reads "
    "clearly more than with random weights, or than with the same weights and new initial values."
)

WIDTHS = (64, 128, 64, 10)
BATCH_SIZE = 60
LEARNING_RATE = 2e-3
STAGES = 12
BLACK, BLUE, VERMILION, GREEN, *_ = COLORS
COLOR_OF = {"ticket": BLUE, "new values": GREEN, "random mask": VERMILION}

Data = dict[str, jax.Array]


class Learning(NamedTuple):
    """The progress of networks, after each stage of the training.

    Attributes:
        loss: the training loss in nats, shape (networks, STAGES).
        accuracy: the share of test images classified correctly, shape (networks, STAGES).
    """

    loss: Any
    accuracy: Any

    @property
    def mean_accuracy(self) -> float:
        """The mean accuracy of all networks after the last stage, in percent."""
        return float(100 * np.mean(self.accuracy[:, -1]))


def run(settings: Settings) -> Outcome:
    """Prune and rewind in rounds, and train what remains along with its two comparisons."""
    train_data, test_data = (jax.tree.map(jnp.asarray, data) for data in load_digits())
    fraction, rounds, quarter, twentieth, networks, steps = settings.choose(
        full=(0.3, 11, 4, 8, 6, 600), quick=(0.5, 5, 2, 4, 3, 300)
    )
    init_key, new_key, order_key, shuffle_key = jax.random.split(settings.key, 4)
    first, new = (init_networks(key, networks) for key in (init_key, new_key))
    order_keys = jax.random.split(order_key, networks)

    def learn(params: Any, mask: Any) -> tuple[Any, Learning]:
        trained, learning = train(params, mask, order_keys, train_data, test_data, steps)
        return trained, jax.device_get(learning)

    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), first)
    trained, whole = learn(first, mask)
    learned = {name: [whole] for name in COLOR_OF}
    left = [share_left(mask)]
    for key in jax.random.split(shuffle_key, rounds):
        mask = prune(trained, mask, fraction)
        other = shuffle(jax.random.split(key, networks), mask)
        trained, ticket = learn(first, mask)
        learned["ticket"].append(ticket)
        learned["new values"].append(learn(new, mask)[1])
        learned["random mask"].append(learn(first, other)[1])
        left.append(share_left(mask))
    return Outcome(
        _checks(left, learned, quarter, twentieth),
        draw(np.array(left), learned, twentieth, steps),
        f"Left: the share of test images that are read correctly after {steps} steps, as the mean "
        f"of {networks} networks with a band of one standard deviation. From left to right more "
        "and more weights are pruned; tickets lose accuracy much later than the two comparisons. "
        f"Right: training with {left[twentieth]:.1f} % of the weights, and with the whole "
        "networks: tickets are ahead from the first steps on. Biases are not pruned.",
    )


def _checks(
    left: list[float], learned: dict[str, list[Learning]], quarter: int, twentieth: int
) -> list[Check]:
    """The checks after the rounds in which a quarter and a twentieth of the weights are left."""
    right = {name: [each.mean_accuracy for each in every] for name, every in learned.items()}
    ticket = right["ticket"]
    return [
        Check(
            f"with {left[quarter]:.0f} % of the weights tickets lose at most 1 percentage point",
            f"{ticket[quarter]:.1f} % right, the whole networks {ticket[0]:.1f} %",
            ticket[quarter] >= ticket[0] - 1,
        ),
        *(
            Check(
                f"with {left[twentieth]:.1f} % tickets are more than {least} points better than "
                f"{comparison}",
                f"{ticket[twentieth]:.1f} %, {comparison} {right[name][twentieth]:.1f} %",
                ticket[twentieth] > right[name][twentieth] + least,
            )
            for name, comparison, least in (
                ("random mask", "random masks", 4),
                ("new values", "the same weights with new initial values", 1),
            )
        ),
    ]


def loss_fn(params: Any, data: Data) -> jax.Array:
    """The mean cross-entropy, in nats."""
    return cross_entropy(apply_dense(params, data["image"]), data["label"])


def init_networks(key: jax.Array, networks: int) -> Any:
    """The initial parameters of several networks, stacked along a first axis."""
    return jax.vmap(lambda key: init_dense(key, WIDTHS))(jax.random.split(key, networks))


@functools.partial(jax.jit, static_argnames="steps")
def train(
    params: Any, mask: Any, keys: jax.Array, train_data: Data, test_data: Data, steps: int
) -> tuple[Any, Learning]:
    """Train stacked networks on the weights that their masks keep.

    Args:
        params: the initial parameters, with a first axis of networks.
        mask: the masks, with a first axis of networks.
        keys: the PRNG key of each network's batches.
        train_data: the training images.
        test_data: the test images.
        steps: the number of steps.

    Returns:
        The trained networks, and their progress.
    """

    def train_one(params: Any, mask: Any, key: jax.Array) -> tuple[Any, Learning]:
        tx = freeze_pruned(gradtx.adam(LEARNING_RATE), mask)
        params = apply_mask(params, mask)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[batch], train_data))
            updates, state = tx.update(gradient, state, params)
            return (gradtx.apply_updates(params, updates), state), None

        def stage(carry: Any, batches: jax.Array) -> tuple[Any, Learning]:
            carry, _ = jax.lax.scan(step, carry, batches)
            params, _ = carry
            right = accuracy(apply_dense(params, test_data["image"]), test_data["label"])
            return carry, Learning(loss_fn(params, train_data), right)

        batches = shuffled_batches(key, len(train_data["label"]), BATCH_SIZE, steps)
        batches = batches.reshape(STAGES, -1, BATCH_SIZE)
        (params, _), learning = jax.lax.scan(stage, (params, tx.init(params)), batches)
        return params, learning

    return jax.vmap(train_one)(params, mask, keys)


@jax.jit
@jax.vmap
def shuffle(key: jax.Array, mask: Any) -> Any:
    """A random mask that keeps as many weights of each leaf."""
    leaves, treedef = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        jax.random.permutation(leaf_key, leaf.ravel()).reshape(leaf.shape)
        for leaf_key, leaf in zip(keys, leaves, strict=True)
    )


@functools.partial(jax.jit, static_argnames="fraction")
def prune(params: Any, mask: Any, fraction: float) -> Any:
    """Prune a fraction of each network's remaining weights."""
    return jax.vmap(lambda p, m: prune_by_magnitude(p, fraction, mask=m))(params, mask)


def share_left(mask: Any) -> float:
    """The share of the kernels' weights that masks keep, in percent."""
    kernels = [layer["kernel"] for layer in mask]
    return 100 * float(sum(k.sum() for k in kernels) / sum(k.size for k in kernels))


def draw(left: np.ndarray, learned: dict[str, list[Learning]], twentieth: int, steps: int) -> Any:
    """Plot the accuracy over the remaining weights, and the loss over the steps."""
    figure, ((sparsity, time),) = new_figure("Winning tickets and their comparisons")
    stages = np.arange(1, STAGES + 1) * (steps // STAGES)
    labels = {
        "ticket": "ticket: largest weights, initial values",
        "new values": "largest weights, new values",
        "random mask": "random weights, initial values",
    }
    for name, color in COLOR_OF.items():
        right = 100 * np.stack([learning.accuracy[:, -1] for learning in learned[name]], axis=1)
        draw_band(sparsity, left, right, color=color, marker="o", label=labels[name])
        draw_band(time, stages, learned[name][twentieth].loss, color=color, label=labels[name])
    whole = learned["ticket"][0]
    sparsity.axhline(whole.mean_accuracy, color=BLACK, ls=":", label="whole network")
    draw_band(time, stages, whole.loss, color=BLACK, ls=":", label="whole network")
    describe(
        sparsity,
        "After training, with fewer and fewer weights",
        "weights left / %",
        "test images read correctly / %",
        xscale="log",
        xlim=(110, left[-1] / 1.1),
    )
    sparsity.set_xticks([100, 50, 20, 10, 5, 2] if left[-1] < 3 else [100, 50, 20, 10, 5])
    ticker = extras.load("matplotlib.ticker")
    sparsity.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    sparsity.xaxis.set_minor_locator(ticker.NullLocator())
    describe(
        time,
        f"Training with {left[twentieth]:.1f} % of the weights",
        "step",
        "training loss / nats",
        yscale="log",
    )
    return figure


def draw_band(panel: Any, x: np.ndarray, values: np.ndarray, *, color: str, **style: Any) -> None:
    """Plot the mean of the rows, with a band of one standard deviation."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    panel.plot(x, mean, color=color, lw=2, ms=4, **style)
    panel.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.2, lw=0)
