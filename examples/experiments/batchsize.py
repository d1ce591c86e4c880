"""What the size of a batch does to the noise of the updates, and to the way down.

Gradient descent can take the gradient of one sample (stochastic), of a batch of B samples, or of
all N (full). The gradient of a random batch is right on average, and how far it is off is known:
with S, the covariance of the gradients of the N samples, an update u = -eta g scatters around the
full one by

    E ||u - E u||^2 = eta^2 tr(S) / B                            drawn independently
    E ||u - E u||^2 = eta^2 tr(S) / B * (1 - (B - 1) / (N - 1))  cut from shuffled samples

In a shuffled epoch no sample comes twice: that is the factor, and it leaves the full gradient no
noise at all. Where tr(S) / B = ||E g||^2, noise and gradient are as long as each other; this B is
the noise scale, and updates of much smaller batches are mostly noise.

But they are cheap: for the samples of one full update an epoch makes N / B updates of batches, or
N stochastic ones. Batches are the compromise, with most of the progress per sample and little
noise, and a computer works on all samples of a batch at once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gradtx
from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import apply_dense, cross_entropy, init_dense, shuffled_batches
from gradtx import diagnostics

CLAIM = (
    "The variance of an update falls as 1/B with the batch size B, faster where no sample is drawn "
    "twice, and vanishes for the full gradient; yet with the same learning rate noisy updates get "
    "farther per epoch, because an epoch has more of them."
)

WIDTHS = (64, 32, 10)
LEARNING_RATE = 0.05
MINI = 32
# How many updates are looked at one by one, and how many orders of the samples are tried.
FIRST, ORDERS = 120, 4
BLACK, BLUE, VERMILION, GREEN, PURPLE, *_ = COLORS

Data = dict[str, Any]


class Scatter(NamedTuple):
    """How the updates of batches scatter around the full one, `full`, at the same parameters.

    The variances have two rows: of independently drawn samples, and cut from a shuffled epoch.
    """

    sizes: np.ndarray
    measured: np.ndarray
    expected: np.ndarray
    full: np.ndarray
    updates: dict[int, np.ndarray]  # some of each size, cut from shuffled epochs


def run(settings: Settings) -> Outcome:
    """Draw many updates of several batch sizes, then go down with three of them."""
    data = jax.tree.map(jnp.asarray, load_digits().train)
    samples = len(data["label"])
    sizes = settings.choose(
        full=(1, 4, 16, MINI, 128, 512, 1024, samples), quick=(1, 8, MINI, 256, samples)
    )
    draws, epochs = settings.choose(full=(2048, 12), quick=(512, 4))
    init_key, independent_key, order_key = jax.random.split(settings.key, 3)
    params = init_dense(init_key, WIDTHS)
    independent = np.asarray(jax.random.randint(independent_key, (draws, samples), 0, samples))
    shuffled = np.asarray(shuffled_batches(order_key, samples, samples, draws))

    scatter = scatter_of(params, data, sizes, independent, shuffled)
    trace = scatter.expected[0, 0]
    errors = np.abs(scatter.measured[:, :-1] / scatter.expected[:, :-1] - 1).max(axis=1)
    noise = diagnostics.gradient_noise_scale(loss_fn, params, data)
    noise_ratio = LEARNING_RATE**2 * float(noise.noise_trace) / (trace * samples / (samples - 1))

    def ways(size: int, updates: int, every: int = 1) -> np.ndarray:
        """The losses on several ways down, each with another order of the samples."""
        batches = cut(shuffled, size).reshape(ORDERS, -1, size)
        return np.asarray(descend(params, data, batches[:, :updates], every))

    per_epoch, tenth = samples // MINI, samples // 10
    one_by_one = {
        1: ways(1, FIRST),
        MINI: ways(MINI, max(FIRST, epochs * per_epoch)),
        samples: ways(samples, FIRST),
    }
    by_epoch = {
        1: ways(1, 10 * epochs * tenth, tenth),
        MINI: one_by_one[MINI][:, : 1 + epochs * per_epoch],
        samples: one_by_one[samples][:, : 1 + epochs],
    }
    uphill = {size: np.mean(np.diff(ways[:, : 1 + FIRST]) > 0) for size, ways in one_by_one.items()}
    last = {size: ways[:, -1] for size, ways in by_epoch.items()}
    checks = [
        Check(
            "the variance of updates of independent samples is eta² tr(S) / B",
            f"largest relative deviation {errors[0]:.1%}, up to B = {sizes[-2]}",
            bool(errors[0] < 0.1),
        ),
        Check(
            "the variance within a shuffled epoch is (1 - (B - 1) / (N - 1)) times that",
            f"largest relative deviation {errors[1]:.1%}, up to B = {sizes[-2]}",
            bool(errors[1] < 0.1),
        ),
        Check(
            "the update of all samples has no variance",
            f"{scatter.measured[1, -1] / trace:.0e} times that of one sample",
            bool(scatter.measured[1, -1] < 1e-9 * trace),
        ),
        Check(
            "gradient_noise_scale finds tr(S), with its unbiased factor N / (N - 1)",
            f"relative deviation {abs(noise_ratio - 1):.0e}",
            abs(noise_ratio - 1) < 1e-4,
        ),
        Check(
            f"after {epochs} epochs stochastic updates are lowest, full ones highest",
            f"training loss {last[1].mean():.3f} with B = 1, {last[MINI].mean():.3f} with "
            f"B = {MINI}, {last[samples].mean():.3f} with B = {samples} nats",
            bool(last[1].max() < last[MINI].min() and last[MINI].max() < last[samples].min()),
        ),
        Check(
            "update by update, stochastic descent often goes uphill, and the full gradient never",
            f"{uphill[1]:.0%} of the first {FIRST} with B = 1, {uphill[MINI]:.0%} with B = {MINI}, "
            f"{uphill[samples]:.0%} with B = {samples}",
            bool(uphill[1] > 0.2 and uphill[samples] == 0),
        ),
    ]
    return Outcome(
        checks,
        _draw(scatter, float(noise.noise_scale), one_by_one, by_epoch, epochs),
        f"Top left: updates at the same parameters, along the full one and across it. One sample "
        f"points almost anywhere; {MINI} scatter {MINI**0.5:.1f} times less; all give one point. "
        "Top right: the variance falls as 1/B. Cut from a shuffled epoch, large batches are better "
        f"still. At the noise scale, B = {noise.noise_scale:.0f}, noise and gradient are as long "
        f"as each other. Bottom: {ORDERS} descents of each kind, all with the learning rate "
        f"{LEARNING_RATE:g}. Per epoch small batches win by far; per update the full gradient is "
        "the steady one, and single samples stagger.",
    )


def loss_fn(params: Any, data: Data) -> jax.Array:
    """The mean cross-entropy, in nats."""
    return cross_entropy(apply_dense(params, data["image"]), data["label"])


@jax.jit
def sample_gradients(params: Any, data: Data) -> jax.Array:
    """The gradient of each sample's own loss, as rows of a matrix."""

    def gradient(image: jax.Array, label: jax.Array) -> jax.Array:
        one = {"image": image[None], "label": label[None]}
        return ravel_pytree(jax.grad(loss_fn)(params, one))[0]

    return jax.vmap(gradient)(data["image"], data["label"])


def variance_factors(size: np.ndarray, samples: int) -> np.ndarray:
    """The variance of a batch's mean over that of one sample: drawn independently, and shuffled."""
    return np.stack([1 / size, 1 / size * (1 - (size - 1) / (samples - 1))])


def scatter_of(
    params: Any, data: Data, sizes: Sequence[int], independent: np.ndarray, shuffled: np.ndarray
) -> Scatter:
    """Take the gradients of all samples, one by one, and the updates of many batches.

    Args:
        params: the parameters, the same for all updates.
        data: the training samples.
        sizes: the numbers of samples in a batch; the last is that of all samples.
        independent: random indices of samples, of shape (draws, samples).
        shuffled: as many random orders of all samples.
    """
    draws, samples = shuffled.shape
    gradients = np.asarray(sample_gradients(params, data), np.float64)
    full = -LEARNING_RATE * gradients.mean(axis=0)
    trace = LEARNING_RATE**2 * gradients.var(axis=0).sum()
    measured, updates = np.zeros((2, len(sizes))), {}
    for i, size in enumerate(sizes):
        for j, source in enumerate((independent, shuffled)):
            batches = cut(source, size)[: max(draws, 8192 // size)]
            updates[size] = np.asarray(updates_of(params, data, batches))
            measured[j, i] = np.mean(np.sum((updates[size] - full) ** 2, axis=1))
    expected = trace * variance_factors(np.array(sizes), samples)
    return Scatter(np.array(sizes), measured, expected, full, updates)


def cut(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of indices, cut into batches of a size; what is left over of a row is dropped."""
    whole = rows.shape[1] // size * size
    return rows[:, :whole].reshape(-1, size)


def update_of(params: Any, data: Data, batch: jax.Array) -> Any:
    """The update that gradient descent makes of the samples with the indices `batch`."""
    tx = gradtx.sgd(LEARNING_RATE)
    gradient = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[batch], data))
    return tx.update(gradient, tx.init(params), params)[0]


@jax.jit
def updates_of(params: Any, data: Data, batches: jax.Array) -> jax.Array:
    """The update of each of the batches, as rows of a matrix."""
    return jax.lax.map(
        lambda batch: ravel_pytree(update_of(params, data, batch))[0], batches, batch_size=64
    )


@functools.partial(jax.jit, static_argnames="every")
@functools.partial(jax.vmap, in_axes=(None, None, 0, None))
def descend(params: Any, data: Data, batches: jax.Array, every: int) -> jax.Array:
    """The loss of all samples before a descent, and after each `every` of its updates.

    Args:
        params: where the descent begins.
        data: the training samples.
        batches: the indices of the samples of each update, of shape (descents, updates, size).
        every: a divisor of the number of updates.

    Returns:
        Losses of shape (descents, 1 + updates // every).
    """

    def step(params: Any, batch: jax.Array) -> tuple[Any, None]:
        return gradtx.apply_updates(params, update_of(params, data, batch)), None

    def stage(params: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        params, _ = jax.lax.scan(step, params, batches)
        return params, loss_fn(params, data)

    stages = batches.reshape(-1, every, batches.shape[-1])
    _, losses = jax.lax.scan(stage, params, stages)
    return jnp.concatenate([loss_fn(params, data)[None], losses])


def _draw(
    scatter: Scatter,
    noise_scale: float,
    one_by_one: dict[int, np.ndarray],
    by_epoch: dict[int, np.ndarray],
    epochs: int,
) -> Any:
    figure, ((clouds, variances), (per_epoch, per_update)) = new_figure(
        "What the size of a batch does", rows=2
    )
    samples = int(scatter.sizes[-1])
    names = {1: "B = 1, stochastic", MINI: f"B = {MINI}, batches", samples: f"B = {samples}, full"}
    colors = dict(zip(names, (VERMILION, BLUE, BLACK), strict=True))

    length = np.linalg.norm(scatter.full)
    along = scatter.full / length
    across = scatter.updates[1][:300]
    across = across - np.outer(across @ along, along)
    widest = across.T @ np.linalg.eigh(across @ across.T)[1][:, -1]
    widest /= np.linalg.norm(widest)
    for size, (marker, width) in zip(names, ((".", 4), (".", 4), ("P", 10)), strict=True):
        seen = scatter.updates[size][:1000] @ np.stack([along, widest], axis=1) / length
        edge = {"mec": "white"} if size == samples else {}
        clouds.plot(*seen.T, marker, ms=width, color=colors[size], label=names[size], **edge)
    describe(
        clouds,
        "Updates at the same parameters",
        "along the full update (in its lengths)",
        "across it, where they scatter most",
    )

    sizes = np.unique(np.geomspace(1, samples - 1, 200).round())
    formula = scatter.expected[0, 0] * variance_factors(sizes, samples)
    kinds = (
        ("independent samples", {"marker": "s", "color": GREEN, "ms": 9, "mfc": "none"}),
        ("cut from a shuffled epoch", {"marker": "o", "color": PURPLE, "ms": 5}),
    )
    for i, (name, dots) in enumerate(kinds):
        variances.plot(sizes, formula[i], color=dots["color"], lw=1)
        # A logarithmic scale has no place for the zero variance of a whole shuffled epoch.
        shown = slice(len(scatter.sizes) - i)
        x, y = scatter.sizes[shown], scatter.measured[i, shown]
        variances.plot(x, y, ls="", label=name, **dots)
    variances.axhline(length**2, color=BLACK, lw=1, ls=":", label="‖E u‖², the full update")
    variances.axvline(noise_scale, color="0.6", lw=1, ls="--", label="noise scale")
    describe(
        variances,
        "Variance of an update (lines: formulas)",
        "B: samples in a batch",
        "E‖u - E u‖², of parameters",
        xscale="log",
        yscale="log",
        ylim=(scatter.expected[0, -1] / 30, 3 * scatter.expected[0, 0]),
    )

    for size, name in names.items():
        for axes, losses, x in (
            (per_epoch, by_epoch[size], np.linspace(0, epochs, by_epoch[size].shape[1])),
            (per_update, one_by_one[size][:, : FIRST + 1], np.arange(FIRST + 1)),
        ):
            # The lines of batches lie on that of the full gradient, which is wide and below.
            width = {"lw": 5, "zorder": 1} if size == samples else {"lw": 1}
            axes.plot(x, losses.T, color=colors[size], **width)[0].set_label(name)
    loss = "loss of all training samples (nats)"
    describe(per_epoch, f"{ORDERS} descents each, per epoch", "epochs", loss, yscale="log")
    describe(per_update, f"The first {FIRST} updates of each", "updates", loss)
    return figure
