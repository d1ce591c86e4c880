"""What the batch size does to the noise of the updates, and to the descent.

Gradient descent can use the gradient of one sample (stochastic), of a batch of B samples, or of all
N (full). The gradient of a random batch is right on average, and how far it deviates is known: if
S is the covariance of the gradients of the N samples, an update u = -eta g scatters around the full
one by

    E ||u - E u||^2 = eta^2 tr(S) / B                            drawn independently
    E ||u - E u||^2 = eta^2 tr(S) / B * (1 - (B - 1) / (N - 1))  cut from shuffled samples

In a shuffled epoch no sample occurs twice; this is the reason for the factor, and the full gradient
has no noise at all. Where tr(S) / B = ||E g||^2, noise and gradient have the same length; this B is
the noise scale, and updates of much smaller batches are mostly noise.

But they are cheap: for the samples of one full update, an epoch makes N / B updates of batches, or
N stochastic ones. Batches are the compromise, with most of the progress per sample and little
noise, and a computer processes all samples of a batch at once.
"""

import functools
from collections.abc import Mapping, Sequence
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
    "The variance of an update falls as 1/B with the batch size B, faster if no sample is drawn "
    "twice, and vanishes for the full gradient; yet with the same learning rate noisy updates make "
    "more progress per epoch, because an epoch has more of them."
)

WIDTHS = (64, 32, 10)
LEARNING_RATE = 0.05
MINI = 32
# The number of updates that are shown one by one, and of orders of the samples.
FIRST, ORDERS = 120, 4
BLACK, BLUE, VERMILION, GREEN, PURPLE, *_ = COLORS

Data = dict[str, Any]


class Scatter(NamedTuple):
    """How the updates of batches scatter around the full one, `full`, at the same parameters.

    The variances have two rows: for samples drawn independently, and cut from a shuffled epoch.
    """

    sizes: np.ndarray
    measured: np.ndarray
    expected: np.ndarray
    full: np.ndarray
    updates: dict[int, np.ndarray]  # some of each size, cut from shuffled epochs


def run(settings: Settings) -> Outcome:
    """Draw many updates of several batch sizes, then descend with three of them."""
    data = jax.tree.map(jnp.asarray, load_digits().train)
    samples = len(data["label"])
    sizes = settings.choose(
        full=(1, 4, 16, MINI, 128, 512, 1024, samples), quick=(1, 8, MINI, 256, samples)
    )
    draws, epochs = settings.choose(full=(2048, 12), quick=(384, 3))
    rows = max(draws, ORDERS * FIRST)
    init_key, independent_key, order_key = jax.random.split(settings.key, 3)
    params = init_dense(init_key, WIDTHS)
    independent = np.asarray(jax.random.randint(independent_key, (draws, samples), 0, samples))
    shuffled = np.asarray(shuffled_batches(order_key, samples, samples, rows))

    scatter = scatter_of(params, data, sizes, independent, shuffled)
    noise = diagnostics.gradient_noise_scale(loss_fn, params, data)
    one_by_one, by_epoch = descents(params, data, shuffled, epochs)
    noise_scale = float(noise.noise_scale)
    return Outcome(
        [
            *_variance_checks(scatter, float(noise.noise_trace)),
            *_descent_checks(one_by_one, by_epoch, epochs),
        ],
        _draw(scatter, noise_scale, one_by_one, by_epoch, epochs),
        f"Top left: updates at the same parameters, along the full one and across it. One sample "
        f"points almost anywhere; {MINI} scatter {MINI**0.5:.1f} times less; all of them give a "
        "single point. Top right: the variance falls as 1/B, and faster for large batches that are "
        f"cut from a shuffled epoch. At the noise scale, B = {noise_scale:.0f}, noise and gradient "
        f"have the same length. Bottom: {ORDERS} descents of each kind, all with the learning rate "
        f"{LEARNING_RATE:g}. Per epoch small batches win by far; per update the full gradient is "
        "the steadiest, and single samples stagger.",
    )


def descents(
    params: Any, data: Data, shuffled: np.ndarray, epochs: int
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The losses of descents with batches of 1, MINI and all samples, after updates and epochs.

    Each of ORDERS descents uses a different order of the samples. With single samples, the losses
    by epoch are those after each tenth of an epoch.
    """
    samples = shuffled.shape[1]

    def losses(size: int, updates: int, every: int = 1) -> np.ndarray:
        batches = cut(shuffled, size).reshape(ORDERS, -1, size)
        return np.asarray(descend(params, data, batches[:, :updates], every))

    per_epoch, tenth = samples // MINI, samples // 10
    one_by_one = {
        1: losses(1, FIRST),
        MINI: losses(MINI, max(FIRST, epochs * per_epoch)),
        samples: losses(samples, FIRST),
    }
    by_epoch = {
        1: losses(1, 10 * epochs * tenth, tenth),
        MINI: one_by_one[MINI][:, : 1 + epochs * per_epoch],
        samples: one_by_one[samples][:, : 1 + epochs],
    }
    return one_by_one, by_epoch


def _variance_checks(scatter: Scatter, noise_trace: float) -> list[Check]:
    """The checks of the variance of updates."""
    sizes, samples = scatter.sizes, scatter.sizes[-1]
    trace = scatter.expected[0, 0]
    errors = np.abs(scatter.measured[:, :-1] / scatter.expected[:, :-1] - 1).max(axis=1)
    noise_ratio = LEARNING_RATE**2 * noise_trace / (trace * samples / (samples - 1))
    return [
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
            bool(abs(noise_ratio - 1) < 1e-4),
        ),
    ]


def _descent_checks(
    one_by_one: dict[int, np.ndarray], by_epoch: dict[int, np.ndarray], epochs: int
) -> list[Check]:
    """The checks of the losses on the descents."""
    samples = max(one_by_one)
    uphill = {
        size: np.mean(np.diff(losses[:, : 1 + FIRST]) > 0) for size, losses in one_by_one.items()
    }
    last = {size: losses[:, -1] for size, losses in by_epoch.items()}
    return [
        Check(
            f"after {epochs} epochs the loss is lowest with stochastic updates, highest with full",
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
    """Compute the gradient of each sample, and the updates of many batches.

    Args:
        params: the parameters, the same for all updates.
        data: the training samples.
        sizes: the batch sizes, the last of which is the number of all samples.
        independent: random indices of samples, of shape (draws, samples).
        shuffled: random orders of all samples, at least as many.
    """
    draws, samples = independent.shape
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
    """Rows of indices, cut into batches of a size; the remainder of each row is dropped."""
    whole = rows.shape[1] // size * size
    return rows[:, :whole].reshape(-1, size)


def update_of(params: Any, data: Data, batch: jax.Array) -> Any:
    """The update of gradient descent for the samples with the indices `batch`."""
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
        params: the initial parameters.
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
        "What the batch size does", rows=2
    )
    samples = int(scatter.sizes[-1])
    names = {1: "B = 1, stochastic", MINI: f"B = {MINI}, batches", samples: f"B = {samples}, full"}
    colors = dict(zip(names, (VERMILION, BLUE, BLACK), strict=True))
    _draw_clouds(clouds, scatter, names, colors)
    _draw_variances(variances, scatter, noise_scale)
    for size, name in names.items():
        for axes, losses, x in (
            (per_epoch, by_epoch[size], np.linspace(0, epochs, by_epoch[size].shape[1])),
            (per_update, one_by_one[size][:, : FIRST + 1], np.arange(FIRST + 1)),
        ):
            # The lines of batches coincide with that of the full gradient, drawn wide below them.
            width = {"lw": 5, "zorder": 1} if size == samples else {"lw": 1}
            axes.plot(x, losses.T, color=colors[size], **width)[0].set_label(name)
    loss = "loss of all training samples (nats)"
    describe(per_epoch, f"{ORDERS} descents each, per epoch", "epochs", loss, yscale="log")
    describe(per_update, f"The first {FIRST} updates of each", "updates", loss)
    return figure


def _draw_clouds(
    axes: Any, scatter: Scatter, names: Mapping[int, str], colors: Mapping[int, str]
) -> None:
    """Plot updates in the plane of the full one and the direction in which they scatter most."""
    length = np.linalg.norm(scatter.full)
    along = scatter.full / length
    across = scatter.updates[1][:300]
    across = across - np.outer(across @ along, along)
    widest = across.T @ np.linalg.eigh(across @ across.T)[1][:, -1]
    widest /= np.linalg.norm(widest)
    for size, (marker, width) in zip(names, ((".", 4), (".", 4), ("P", 10)), strict=True):
        seen = scatter.updates[size][:1000] @ np.stack([along, widest], axis=1) / length
        edge = {"mec": "white"} if size == scatter.sizes[-1] else {}
        axes.plot(*seen.T, marker, ms=width, color=colors[size], label=names[size], **edge)
    describe(
        axes,
        "Updates at the same parameters",
        "along the full update (in its lengths)",
        "across it, where they scatter most",
    )


def _draw_variances(axes: Any, scatter: Scatter, noise_scale: float) -> None:
    samples = int(scatter.sizes[-1])
    sizes = np.unique(np.geomspace(1, samples - 1, 200).round())
    formula = scatter.expected[0, 0] * variance_factors(sizes, samples)
    kinds = (
        ("independent samples", {"marker": "s", "color": GREEN, "ms": 9, "mfc": "none"}),
        ("cut from a shuffled epoch", {"marker": "o", "color": PURPLE, "ms": 5}),
    )
    for i, (name, dots) in enumerate(kinds):
        axes.plot(sizes, formula[i], color=dots["color"], lw=1)
        # The variance of a whole shuffled epoch is zero, which has no place on a logarithmic axis.
        shown = slice(len(scatter.sizes) - i)
        x, y = scatter.sizes[shown], scatter.measured[i, shown]
        axes.plot(x, y, ls="", label=name, **dots)
    full = np.sum(scatter.full**2)
    axes.axhline(full, color=BLACK, lw=1, ls=":", label="‖E u‖², the full update")
    axes.axvline(noise_scale, color="0.6", lw=1, ls="--", label="noise scale")
    describe(
        axes,
        "Variance of an update (lines: formulas)",
        "B: samples in a batch",
        "E‖u - E u‖², of parameters",
        xscale="log",
        yscale="log",
        ylim=(scatter.expected[0, -1] / 30, 3 * scatter.expected[0, 0]),
    )
