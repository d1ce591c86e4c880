"""Does it matter how biases are initialized? Four rules, many seeds.

    Xavier      b ~ N(0, 1 / (d + 1)): the bias counts as one more of a unit's d inputs
    zero        b = 0
    constant    b = 0.01, so that a relu starts slightly more on than off
    small       b ~ N(0, 0.01^2)

Each rule trains the same small networks on handwritten digits: a seed means the same kernels and
the same order of the images under all four rules, so that rules can be compared seed by seed. The
differences between seeds are chance. As long as the means of the rules differ by less than that, no
single run can tell them apart. A permutation test says whether many runs together can: within each
seed the results are randomly assigned to the rules, and p is the share of such assignments in which
the means of the rules differ as much as they did.

At the start the rules do differ. A unit is dead if it is off on every training image; in the first
layer a positive bias can only revive units, never kill them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import accuracy, apply_dense, cross_entropy, init_dense
from gradtx.initializers import bias_normal, constant, he_normal, small_random, zeros

CLAIM = (
    "Whether biases start at zero, at 0.01, small and random, or with Xavier's variance has an "
    "effect in the first epochs, and hardly any later; after training on digits the rules differ "
    "by far less than seeds do."
)

WIDTHS = (64, 64, 64, 10)  # all units have 64 inputs
BATCH = 64
RULES = {
    "Xavier": bias_normal(64),
    "zero": zeros,
    "constant": constant(0.01),
    "small": small_random(0.01),
}
BLACK, BLUE, VERMILION, GREEN, *_ = COLORS
COLOR_OF = dict(zip(RULES, (BLUE, BLACK, VERMILION, GREEN), strict=True))

Samples = dict[str, jax.Array]


def networks(key: jax.Array, count: int) -> Any:
    """The initial parameters of networks under each rule, with the same kernels.

    All leaves have two leading axes, of the sizes count and len(RULES).
    """
    kernel_key, bias_key = jax.random.split(key)
    he = he_normal(batch_axis=0)
    layers = init_dense(kernel_key, WIDTHS, lambda key, shape: he(key, (count, *shape)))
    for layer, layer_key in zip(layers, jax.random.split(bias_key, len(layers)), strict=True):
        shape = (count, layer["kernel"].shape[-1])
        biases = [rule(layer_key, shape) for rule in RULES.values()]
        layer["bias"] = jnp.stack(biases, axis=1)
        layer["kernel"] = jnp.repeat(layer["kernel"][:, None], len(RULES), axis=1)
    return layers


def dead_units(params: Any, images: jax.Array) -> jax.Array:
    """The share of units in each hidden layer that are off on all images."""
    shares = []
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["kernel"] + layer["bias"][None])
        shares.append(jnp.mean(jnp.max(images, axis=0) == 0, dtype=jnp.float32))
    return jnp.stack(shares)


def train(params: Any, orders: jax.Array, data: Samples, test: Samples) -> Samples:
    """Train one network with Adam.

    Args:
        params: its initial parameters.
        orders: the indices of the training images in each batch, of shape (epochs, steps, BATCH).
        data: training images.
        test: test images.

    Returns:
        After each epoch the loss on the training images (its mean over the epoch), and the loss
        and the accuracy on the test images.
    """
    tx = gradtx.adam(3e-3)

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        return cross_entropy(apply_dense(params, data["image"][batch]), data["label"][batch])

    def step(carry: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), value

    def epoch(carry: Any, batches: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        carry, losses = jax.lax.scan(step, carry, batches)
        logits = apply_dense(carry[0], test["image"])
        return carry, {
            "training loss": jnp.mean(losses),
            "test loss": cross_entropy(logits, test["label"]),
            "test accuracy": accuracy(logits, test["label"]),
        }

    return jax.lax.scan(epoch, (params, tx.init(params)), orders)[1]


def run(settings: Settings) -> Outcome:
    """Train networks with each rule on digits, for many seeds."""
    seeds = settings.choose(full=64, quick=16)
    epochs = settings.choose(full=20, quick=8)
    data, test = (jax.tree.map(jnp.asarray, samples) for samples in load_digits())
    steps = len(data["label"]) // BATCH

    images = np.broadcast_to(np.arange(len(data["label"])), (seeds, epochs, len(data["label"])))
    orders = np.random.default_rng(settings.seed).permuted(images, axis=-1)
    orders = orders[..., : steps * BATCH].reshape(seeds, epochs, steps, BATCH)

    @jax.jit
    @jax.vmap
    def of_seed(params: Any, orders: jax.Array) -> tuple[Samples, jax.Array]:
        dead = jax.vmap(lambda params: dead_units(params, data["image"]))(params)
        return jax.vmap(lambda params: train(params, orders, data, test))(params), dead

    curves, dead = jax.device_get(of_seed(networks(settings.key, seeds), orders))
    checks = [
        *_early_checks(dead[:, :, 0], curves["training loss"][:, :, 0]),
        *(
            _check_of(name, curves[name][:, :, -1], settings.seed)
            for name in ("test loss", "test accuracy")
        ),
    ]
    figure, panels = new_figure("Four rules for the initial biases", rows=2)
    _draw_dead(panels[0, 0], dead)
    _draw_differences(panels[0, 1], curves["test loss"])
    for axes, name in zip(panels[1], ("test loss", "test accuracy"), strict=True):
        _draw_results(axes, name, curves[name][:, :, -1])
    caption = (
        f"Each rule trained the same {seeds} networks for {epochs} epochs. Top left: the rules "
        "differ slightly in how many units are dead before training. Top right: the test losses "
        "relative to the rule zero, seed by seed, with twice their standard error; 1 would be as "
        "much as seeds differ. Bottom: the results; each gray line is a seed, dots with bars are "
        "means and standard deviations over seeds. The seed matters, the rule does not."
    )
    return Outcome(checks, figure, caption)


def _early_checks(dead_first: np.ndarray, first_epoch: np.ndarray) -> list[Check]:
    """The checks of the start, from results of shape (seeds, rules).

    Args:
        dead_first: the share of dead units in the first layer.
        first_epoch: the training loss in the first epoch.
    """
    at_zero, at_constant = (list(RULES).index(name) for name in ("zero", "constant"))
    percent = 100 * dead_first
    lead = first_epoch[:, at_zero] - first_epoch[:, at_constant]
    return [
        Check(
            "in the first layer 0.01 leaves no more units dead than zero does, for any seed",
            f"{percent[:, at_constant].mean():.2f} % and {percent[:, at_zero].mean():.2f} % "
            "of the units on average",
            bool(np.all(percent[:, at_constant] <= percent[:, at_zero])),
        ),
        Check(
            "in the first epoch 0.01 is ahead of zero, by less than half the deviation of seeds",
            f"training loss {lead.mean():.4f} ± {lead.std(ddof=1) / len(lead) ** 0.5:.4f} lower, "
            f"standard deviation of seeds {first_epoch[:, at_zero].std(ddof=1):.4f}",
            bool(0 < lead.mean() < first_epoch[:, at_zero].std(ddof=1) / 2),
        ),
    ]


def _check_of(name: str, results: np.ndarray, seed: int) -> Check:
    """Whether results of shape (seeds, rules) differ less between rules than between seeds."""
    means, deviation = results.mean(axis=0), results.std(axis=0, ddof=1).mean()
    listed = ", ".join(f"{rule} {mean:.4f}" for rule, mean in zip(RULES, means, strict=True))
    return Check(
        f"{name} after training: the means of the rules differ by less than half the deviation of "
        "seeds",
        f"{listed}; largest difference {np.ptp(means):.4f}, standard deviation {deviation:.4f}, "
        f"p = {probability_by_chance(results, seed):.2g}",
        bool(np.ptp(means) < deviation / 2),
    )


def probability_by_chance(results: np.ndarray, seed: int) -> float:
    """The share of 4000 shuffles within seeds in which the means of the rules vary as much."""
    copies = np.broadcast_to(results.astype(np.float64), (4000, *results.shape))
    shuffled = np.random.default_rng(seed).permuted(copies, axis=-1)
    # Equal results may be summed in a different order.
    measured = results.astype(np.float64).mean(axis=0).var() * (1 - 1e-9)
    return float(np.mean(shuffled.mean(axis=1).var(axis=-1) >= measured))


def _draw_dead(axes: Any, dead: np.ndarray) -> None:
    places = np.arange(len(RULES))
    mean, error = dead.mean(axis=0), dead.std(axis=0) / np.sqrt(len(dead))
    for i, (color, hatch) in enumerate((("0.8", ""), ("0.5", "//"))):
        axes.bar(
            places + 0.4 * i - 0.2,
            100 * mean[:, i],
            0.4,
            yerr=100 * error[:, i],
            color=color,
            hatch=hatch,
            capsize=3,
            label=f"hidden layer {i + 1}",
        )
    axes.set_xticks(places, RULES)
    describe(axes, "Dead units before training", "rule", "mean and its standard error (%)")


def _draw_differences(axes: Any, losses: np.ndarray) -> None:
    zero = losses[:, list(RULES).index("zero")]
    epochs = np.arange(1, zero.shape[-1] + 1)
    for i, (name, color) in enumerate(COLOR_OF.items()):
        differences = (losses[:, i] - zero) / zero.std(axis=0, ddof=1)
        error = differences.std(axis=0, ddof=1) / np.sqrt(len(losses))
        axes.errorbar(
            epochs + 0.1 * i, differences.mean(axis=0), 2 * error, color=color, fmt=".-", label=name
        )
    describe(axes, "Test loss relative to zero", "epoch", "difference / deviation of seeds")
    axes.set_ylim(-1, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_results(axes: Any, name: str, results: np.ndarray) -> None:
    places = np.arange(len(RULES))
    axes.plot(places, results.T, color="0.75", lw=0.6)
    mean, deviation = results.mean(axis=0), results.std(axis=0, ddof=1)
    for i, color in enumerate(COLOR_OF.values()):
        axes.errorbar(
            places[i], mean[i], deviation[i], color=color, fmt="o", ms=8, capsize=6, lw=2, zorder=3
        )
    axes.set_xticks(places, RULES)
    unit = "cross-entropy (nats)" if name == "test loss" else "share of correct answers"
    describe(axes, name.capitalize(), "rule", unit, xlim=(-0.4, len(RULES) - 0.6))
