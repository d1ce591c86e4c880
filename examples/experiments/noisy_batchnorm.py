"""Batch normalization does not help by keeping the inputs of layers stable.

Batch normalization was designed to reduce "internal covariate shift": a layer has to learn while
the layers before it change its inputs. Santurkar et al. put this to the test: they reintroduced the
shift, by noise after the batch normalization, and the network learned all the same.

The same test here: between batch normalization and tanh the sums z of unit j and sample i become

    y_ij = s_j z_ij + m_j + 0.1 n_ij,    s_j ~ U(1/2, 2),  m_j ~ U(-1, 1),  n_ij ~ N(0, 1)

with new s_j and m_j at each step. The inputs of a layer then have a different mean and variance at
each step, drawn at random. Over the steps, for batches of B samples:

    standard deviation of the mean = sqrt(1/3 + 0.01 / B)
    mean of the variance = 7/4 + 0.01 (1 - 1/B)

Without noise, batch normalization has mean 0 and variance 1 at every step. A network without it is
in between: its means change because of sampling, and as it learns. The noise is for training only:
all networks are tested without it.

Source:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 2.2 and
    Figure 2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import (
    accuracy,
    batch_standardize,
    cross_entropy,
    init_dense,
    shuffled_batches,
    trace_dense,
)
from gradtx.initializers import glorot_uniform

CLAIM = (
    "Noise after batch normalization makes the inputs of all layers more unstable than they are "
    "without any normalization, and the network still learns about as well as with plain batch "
    "normalization, and faster than without."
)
WIDTHS = (64, *[128] * 6, 10)
BATCH_SIZE = 64
LEARNING_RATE = 0.1
STRETCH, SHIFT, OWN_NOISE = 2.0, 1.0, 0.1
EVERY = 5  # steps between two tests
NAMES = ("no normalization", "batch normalization", "with noise after it")
BLACK, BLUE, VERMILION, GREEN, *_ = COLORS
LINES = ((VERMILION, "--"), (BLUE, "-"), (GREEN, "-."))
# The unit whose inputs are drawn.
LAYER, UNIT = 3, 0


class Training(NamedTuple):
    """The training of several networks of the three kinds: arrays (networks, kinds, ...)."""

    means: Any  # of the inputs of each nonlinearity over the batch: (..., steps, layers, units)
    variances: Any
    loss: Any  # of the test images, before every EVERY steps
    accuracy: Any

    def instability(self) -> Any:
        """How much means and variances vary late in training, shape (2, networks, kinds, layers).

        This is their standard deviation over the steps, relative to the standard deviation within
        the batch (for means) or to the variance (for variances), averaged over a layer's units.
        """
        late = self.means.shape[2] // 2
        means, variances = self.means[:, :, late:], self.variances[:, :, late:]
        typical = variances.mean(axis=2)
        relative = (means.std(axis=2) / np.sqrt(typical), variances.std(axis=2) / typical)
        return np.stack(relative).mean(axis=-1)


def run(settings: Settings) -> Outcome:
    """Train the same networks without normalization, with it, and with noise after it."""
    data = jax.tree.map(jnp.asarray, load_digits())
    samples = len(data.train["label"])
    networks, steps = settings.choose(full=(6, 330), quick=(2, 70))
    init_key, order_key, noise_key = jax.random.split(settings.key, 3)
    params = jax.vmap(functools.partial(init_dense, widths=WIDTHS, kernel_init=glorot_uniform()))(
        jax.random.split(init_key, networks)
    )
    batches = shuffled_batches(order_key, samples, BATCH_SIZE, networks * steps)
    training = jax.device_get(
        train(
            params,
            batches.reshape(networks, -1, EVERY, BATCH_SIZE),
            jax.random.split(noise_key, (networks, steps // EVERY, EVERY)),
            data,
            jnp.array([False, True, True]),
            jnp.array([False, False, True]),
        )
    )
    unstable = training.instability().mean(axis=1)
    return Outcome(
        [*_noise_checks(training), *_result_checks(training, unstable)],
        _draw(training, unstable),
        f"Top: the inputs of tanh in one unit of layer {LAYER + 1}, batch by batch; the line is "
        "the mean, the band extends one standard deviation to each side. Without normalization the "
        "mean changes with the samples of the batch and as the network learns; with batch "
        "normalization nothing moves; noise moves it at every step. Bottom left: the same holds in "
        "all layers. Bottom middle and right: and yet the network with noise learns almost as if "
        "there were none, and faster than the one without normalization (medians of "
        f"{networks} networks; bands extend from the lowest to the highest).",
    )


def _noise_checks(training: Training) -> list[Check]:
    """The checks of means and variances with and without noise."""
    wandering = np.sqrt(np.mean(np.var(training.means[:, 2], axis=1, ddof=1)))
    variance = training.variances[:, 2].mean()
    expected_wandering = np.sqrt(SHIFT**2 / 3 + OWN_NOISE**2 / BATCH_SIZE)
    expected_variance = (STRETCH**3 - STRETCH**-3) / 3 / (STRETCH - 1 / STRETCH)
    expected_variance += OWN_NOISE**2 * (1 - 1 / BATCH_SIZE)
    stillness = np.abs(training.means[:, 1]).max()
    return [
        Check(
            f"noise makes a unit's mean vary by sqrt(1/3 + 0.01 / B) = {expected_wandering:.4f}",
            f"{wandering:.4f}",
            bool(abs(wandering / expected_wandering - 1) < 0.02),
        ),
        Check(
            f"noise makes its mean variance 7/4 + 0.01 (1 - 1/B) = {expected_variance:.4f}",
            f"{variance:.4f}",
            bool(abs(variance / expected_variance - 1) < 0.02),
        ),
        Check(
            "without noise batch normalization keeps the mean at 0",
            f"largest mean of a batch {stillness:.0e}",
            bool(stillness < 1e-4),
        ),
    ]


def _result_checks(training: Training, unstable: np.ndarray) -> list[Check]:
    """The checks of how unstable the inputs are, and of how well the networks learn."""
    loss = training.loss.mean(axis=(0, 2))
    last_quarter = training.accuracy.shape[-1] // 4
    right = training.accuracy[:, :, -last_quarter:].mean(axis=(0, 2))
    return [
        Check(
            "in every layer, noise makes means and variances less stable than no normalization",
            f"means at least {np.min(unstable[0, 2] / unstable[0, 0]):.1f} times, variances at "
            f"least {np.min(unstable[1, 2] / unstable[1, 0]):.1f} times",
            bool(np.all(unstable[:, 2] > 1.5 * unstable[:, 0])),
        ),
        Check(
            "with noise the final accuracy is about that of plain batch normalization",
            f"{right[2]:.1%} and {right[1]:.1%} of test images right, {right[0]:.1%} without any",
            bool(right[2] > right[1] - 0.015),
        ),
        Check(
            "with noise it learns nearly as fast, and faster than without normalization",
            f"mean test loss during training {loss[2]:.3f} and {loss[1]:.3f}, {loss[0]:.3f} "
            "without any",
            bool(loss[2] < (loss[0] + loss[1]) / 2),
        ),
    ]


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None, None))
@functools.partial(jax.vmap, in_axes=(None, None, None, None, 0, 0))
def train(
    params: Any,
    batches: jax.Array,
    keys: jax.Array,
    data: Any,
    normalized: jax.Array,
    noisy: jax.Array,
) -> Training:
    """Train networks of several kinds.

    Args:
        params: the networks before training.
        batches: for each network the samples of each step, (networks, steps / EVERY, EVERY, B).
        keys: for each network the PRNG keys of each step, (networks, steps / EVERY, EVERY).
        data: the digits.
        normalized: whether each kind has batch normalization.
        noisy: whether each kind has noise before its nonlinearities.
    """
    tx = gradtx.sgd(LEARNING_RATE)

    def normalize(layer: int, z: jax.Array) -> jax.Array:
        return jnp.where(normalized, batch_standardize(layer, z), z)

    def loss_fn(params: Any, batch: jax.Array, key: jax.Array) -> Any:
        def prepare(layer: int, z: jax.Array) -> jax.Array:
            z = normalize(layer, z)
            return jnp.where(noisy, add_noise(jax.random.fold_in(key, layer), z), z)

        logits, inputs = trace_dense(params, data.train["image"][batch], jnp.tanh, prepare)
        moments = [(jnp.mean(y, axis=0), jnp.var(y, axis=0)) for y in inputs]
        return cross_entropy(logits, data.train["label"][batch]), moments

    def step(params: Any, given: Any) -> Any:
        gradient, moments = jax.grad(loss_fn, has_aux=True)(params, *given)
        updates, _ = tx.update(gradient, tx.init(params), params)
        means, variances = zip(*moments, strict=True)
        return gradtx.apply_updates(params, updates), (jnp.stack(means), jnp.stack(variances))

    def stage(params: Any, given: Any) -> Any:
        logits, _ = trace_dense(params, data.test["image"], jnp.tanh, normalize)
        labels = data.test["label"]
        params, moments = jax.lax.scan(step, params, given)
        return params, (moments, cross_entropy(logits, labels), accuracy(logits, labels))

    _, ((means, variances), loss, right) = jax.lax.scan(stage, params, (batches, keys))
    by_step = (len(batches) * EVERY, *means.shape[2:])
    return Training(means.reshape(by_step), variances.reshape(by_step), loss, right)


def add_noise(key: jax.Array, z: jax.Array) -> jax.Array:
    """Apply the noise to sums of shape (samples, units)."""
    stretch_key, shift_key, own_key = jax.random.split(key, 3)
    unit = (1, z.shape[1])
    stretch = jax.random.uniform(stretch_key, unit, minval=1 / STRETCH, maxval=STRETCH)
    shift = jax.random.uniform(shift_key, unit, minval=-SHIFT, maxval=SHIFT)
    return stretch * z + shift + OWN_NOISE * jax.random.normal(own_key, z.shape)


def _draw(training: Training, unstable: np.ndarray) -> Any:
    figure, (units, (instability, loss, right)) = new_figure(
        "Does a layer learn better because its inputs are stable?", rows=2, columns=3
    )
    steps = np.arange(training.means.shape[2])
    for kind, (axes, name, (color, _)) in enumerate(zip(units, NAMES, LINES, strict=True)):
        mean = training.means[0, kind, :, LAYER, UNIT]
        deviation = np.sqrt(training.variances[0, kind, :, LAYER, UNIT])
        axes.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.25, lw=0)
        axes.plot(steps, mean, color=color, lw=1.2)
        describe(
            axes, f"One unit: {name}", "step", "input of tanh (mean ± deviation)", ylim=(-3.2, 3.2)
        )

    layers = np.arange(1, unstable.shape[-1] + 1)
    for kind, (name, (color, style)) in enumerate(zip(NAMES, LINES, strict=True)):
        line = {"color": color, "ls": style}
        instability.plot(layers, unstable[0, kind], marker="o", label=name, **line)
        instability.plot(layers, unstable[1, kind], marker="^", mfc="none", **line)
        every = EVERY * np.arange(training.loss.shape[-1])
        for axes, values in ((loss, training.loss), (right, training.accuracy)):
            axes.plot(every, np.median(values[:, kind], axis=0), label=name, lw=1.8, **line)
            band = values[:, kind].min(axis=0), values[:, kind].max(axis=0)
            axes.fill_between(every, *band, color=color, alpha=0.15, lw=0)
    describe(
        instability,
        "Instability of a layer's inputs",
        "layer",
        "variation over the steps: ● mean, △ variance",
        xticks=layers,
    )
    describe(loss, "Loss", "step", "loss of the test images (nats)", yscale="log")
    describe(right, "Accuracy", "step", "share of test images right", ylim=(0.75, 1))
    return figure
