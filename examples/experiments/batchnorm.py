"""Why a network with batch normalization can learn with a large learning rate.

Batch normalization gives the pre-activations of each unit, its sums of weighted inputs before the
nonlinearity, mean 0 and variance 1 over the batch. A deep network of tanh units learns to read
digits by plain gradient descent, with and without it, with a small and a large learning rate.

Without it, the large rate makes the sums so large that tanh saturates and the loss rises. With it
the sums stay in place: at most 1/9 of them lie beyond 3, whatever the parameters are (Chebyshev's
inequality). And doubling the kernel of a unit has no effect any more. The gradient is therefore
perpendicular to the kernel, and so is every step u. By Pythagoras,

    ||W_t||^2 = ||W_0||^2 + sum of ||u||^2 over the steps

The loss differs, too, as one sees by following the gradient g for some distance:

    Lipschitz   max over s of |loss(x - s g) - loss(x)| / ||s g||
    curvature   max over s of ||grad loss(x - s g) - g|| / ||s g||

The loss is not smooth from the start: the first gradients with batch normalization are larger than
those without. But a few large steps lead to a region that is smooth, and stay in it.

Source:
    Ioffe & Szegedy 2015, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift"; Santurkar et al. 2018, "How does batch normalization help
    optimization?", section 3.1 and Figure 4.
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
from gradtx import diagnostics
from gradtx.initializers import glorot_uniform

CLAIM = (
    "With batch normalization a deep network learns with a learning rate of 0.5, at which the same "
    "network diverges without it; the sums before its nonlinearities stay in place, and along the "
    "gradient its loss is less steep and less curved, even compared with the network without batch "
    "normalization at a learning rate of 0.05, where that one learns."
)

WIDTHS = (64, *[128] * 6, 10)
BATCH_SIZE = 64
LARGE, SMALL = 0.5, 0.05
# How far to follow the gradient: from the small to the large learning rate.
STEP_SIZES = (0.05, 0.1, 0.2, 0.5)
EVERY = 11  # steps between two measurements along the gradient: half an epoch
WARM_UP = 2  # measurements before the network has left its random start
SATURATED = 3.0  # tanh has 1% of its slope left
CHANCE = float(np.log(10))
BLACK, BLUE, VERMILION, *_ = COLORS


class Training(NamedTuple):
    """The training of several networks: arrays of shape (networks, kinds, rates, ...)."""

    loss: Any  # at each step
    kernels: Any  # ||W||^2 of all hidden kernels, before each step
    steps: Any  # ||u||^2 of each step
    lipschitz: Any
    curvature: Any
    sums: Any  # of 256 samples, at the start and at the end: (..., 2, layers, samples, units)
    train_accuracy: Any
    test_accuracy: Any


def run(settings: Settings) -> Outcome:
    """Train the same networks with and without batch normalization, at both learning rates."""
    data = jax.tree.map(jnp.asarray, load_digits())
    samples = len(data.train["label"])
    networks, steps = settings.choose(full=(6, 440), quick=(2, 77))
    init_key, order_key = jax.random.split(settings.key)
    params = jax.vmap(functools.partial(init_dense, widths=WIDTHS, kernel_init=glorot_uniform()))(
        jax.random.split(init_key, networks)
    )
    batches = shuffled_batches(order_key, samples, BATCH_SIZE, networks * steps)
    batches = batches.reshape(networks, -1, EVERY, BATCH_SIZE)
    rates = jnp.array([LARGE, SMALL])
    both = jax.device_get(train(params, batches, jnp.array([False, True]), rates, data))
    plain, normalized = (Training(*(x[:, kind] for x in both)) for kind in (0, 1))
    formula = pythagoras(normalized)
    checks = [
        *_learning_checks(plain, normalized),
        *_sum_checks(plain, normalized, formula),
        *_smoothness_checks(plain, normalized),
    ]
    return Outcome(
        checks,
        _draw(plain, normalized, formula),
        f"Lines are medians of {networks} networks, bands extend from the lowest to the highest. "
        f"Top left: at the rate {LARGE:g} the network without batch normalization is thrown far "
        "above the loss of guessing. Top middle and right: the sums before each layer's tanh; "
        "without batch normalization they end up where tanh is flat. Bottom left and middle: up to "
        f"the step size {LARGE:g} along the gradient, the loss is smoothest with both batch "
        "normalization and large steps, though not at the first step. Bottom right: with batch "
        "normalization the kernels grow exactly as steps perpendicular to them imply.",
    )


def _learning_checks(plain: Training, normalized: Training) -> list[Check]:
    """The checks of which networks learn at which rate."""
    end = plain.loss[:, 0, -EVERY:].mean(axis=1)
    return [
        Check(
            f"without batch normalization the rate {LARGE:g} diverges: the loss rises far above "
            f"that of guessing, ln 10 = {CHANCE:.2f} nats",
            f"at the end {end.min():.1f} nats or more in all of {len(end)} networks",
            bool(end.min() > 2 * CHANCE),
        ),
        Check(
            f"the same networks learn without it at the rate {SMALL:g}",
            f"at least {plain.train_accuracy[:, 1].min():.1%} of training, "
            f"{plain.test_accuracy[:, 1].min():.1%} of test images right",
            bool(plain.test_accuracy[:, 1].min() > 0.8),
        ),
        Check(
            f"with batch normalization they learn at the rate {LARGE:g}",
            f"at least {normalized.train_accuracy[:, 0].min():.1%} of training, "
            f"{normalized.test_accuracy[:, 0].min():.1%} of test images right",
            bool(normalized.test_accuracy[:, 0].min() > 0.8),
        ),
    ]


def _sum_checks(plain: Training, normalized: Training, formula: np.ndarray) -> list[Check]:
    """The checks of the sums before the nonlinearities, and of the kernels' growth."""
    beyond = [saturated(t.sums[:, 0, 1]).max() for t in (normalized, plain)]
    lengths = np.abs(normalized.kernels / formula - 1).max()
    growth = normalized.kernels[:, 0, -1] / normalized.kernels[:, 0, 0]
    return [
        Check(
            f"with it at most 1/9 of a layer's sums lie beyond {SATURATED:g}, without it most do",
            f"at the end {beyond[0]:.1%} with, {beyond[1]:.0%} without, in the worst layer",
            bool(beyond[0] <= 1 / 9 and beyond[1] > 0.5),
        ),
        Check(
            "with it the kernels grow as Pythagoras' theorem says",
            f"||W||² grows {growth.mean():.3f} times, largest relative deviation {lengths:.0e}",
            bool(lengths < 1e-3),
        ),
    ]


def _smoothness_checks(plain: Training, normalized: Training) -> list[Check]:
    """The checks of the loss along the gradient."""
    steep, curved = (
        (np.median(seen(normalized)[:, 0, WARM_UP:]), np.median(seen(plain)[:, 1, WARM_UP:]))
        for seen in (lambda t: t.lipschitz, lambda t: t.curvature)
    )
    first = [t.lipschitz[..., 0].mean() for t in (normalized, plain)]
    return [
        Check(
            "along the gradient the loss changes less",
            f"median Lipschitz constant {steep[0]:.2f} with (rate {LARGE:g}), {steep[1]:.2f} "
            f"without (rate {SMALL:g}); at the very first step {first[0]:.1f} and {first[1]:.1f}",
            bool(steep[0] < steep[1]),
        ),
        Check(
            "along the gradient the gradient changes less",
            f"median curvature {curved[0]:.1f} with (rate {LARGE:g}), {curved[1]:.1f} without "
            f"(rate {SMALL:g})",
            bool(curved[0] < curved[1]),
        ),
    ]


def saturated(sums: np.ndarray) -> np.ndarray:
    """The share of sums beyond `SATURATED`, of shape (networks, layers)."""
    return np.mean(np.abs(sums) > SATURATED, axis=(-2, -1))


def pythagoras(training: Training) -> np.ndarray:
    """||W||^2 before each step, if all earlier steps had been perpendicular to W."""
    sums = np.cumsum(training.steps.astype(np.float64), axis=-1)
    return training.kernels[..., :1] + np.concatenate([0 * sums[..., :1], sums[..., :-1]], axis=-1)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None, None, None))
@functools.partial(jax.vmap, in_axes=(None, None, 0, None, None))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, None))
def train(
    params: Any, batches: jax.Array, normalized: jax.Array, rate: jax.Array, data: Any
) -> Training:
    """Train networks with and without batch normalization at several learning rates.

    Args:
        params: the networks before training.
        batches: for each network the samples of each step, of shape (networks, stages, EVERY, B).
        normalized: whether to use batch normalization, of shape (kinds,).
        rate: the learning rates, of shape (rates,).
        data: the digits.
    """
    tx = gradtx.sgd(rate)

    def prepare(layer: int, z: jax.Array) -> jax.Array:
        return jnp.where(normalized, batch_standardize(layer, z), z)

    def network(params: Any, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        return trace_dense(params, images, jnp.tanh, prepare)

    def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
        logits, _ = network(params, data.train["image"][batch])
        return cross_entropy(logits, data.train["label"][batch])

    def step(params: Any, batch: jax.Array) -> tuple[Any, Any]:
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, _ = tx.update(gradient, tx.init(params), params)
        new_params = gradtx.apply_updates(params, updates)
        return new_params, (loss, squared_norm(params), squared_norm(updates))

    def stage(params: Any, batches: jax.Array) -> tuple[Any, Any]:
        lipschitz, curvature = smoothness(loss_fn, params, batches[0])
        params, (loss, kernels, steps) = jax.lax.scan(step, params, batches)
        return params, (loss, kernels, steps, lipschitz, curvature)

    def right(which: Any) -> jax.Array:
        """The share of right answers; batch normalization uses all of these images."""
        return accuracy(network(end, which["image"])[0], which["label"])

    end, (loss, kernels, steps, lipschitz, curvature) = jax.lax.scan(stage, params, batches)
    sums = [jnp.stack(network(p, data.train["image"][:256])[1]) for p in (params, end)]
    return Training(
        loss=loss.ravel(),
        kernels=kernels.ravel(),
        steps=steps.ravel(),
        lipschitz=lipschitz,
        curvature=curvature,
        sums=jnp.stack(sums),
        train_accuracy=right(data.train),
        test_accuracy=right(data.test),
    )


def smoothness(loss_fn: Any, params: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Lipschitz constant and the curvature of the loss along its gradient."""
    sizes = jnp.array(STEP_SIZES)
    lipschitz = diagnostics.lipschitz_along_gradient(loss_fn, params, batch, step_sizes=sizes)
    curvature = diagnostics.curvature_along_gradient(loss_fn, params, batch, step_sizes=sizes)
    return lipschitz, curvature


def squared_norm(layers: Any) -> jax.Array:
    """The sum of the squares of all hidden layers' kernels."""
    return jnp.sum(jnp.stack([jnp.sum(layer["kernel"] ** 2) for layer in layers[:-1]]))


def _draw(plain: Training, normalized: Training, formula: np.ndarray) -> Any:
    figure, ((loss, start, end), (lipschitz, curvature, kernels)) = new_figure(
        "Batch normalization and the learning rate", rows=2, columns=3
    )
    kinds = (("with", normalized, BLUE), ("without", plain, VERMILION))
    for axes, every, values_of in (
        (loss, 1, lambda t: t.loss),
        (lipschitz, EVERY, lambda t: t.lipschitz),
        (curvature, EVERY, lambda t: t.curvature),
        (kernels, 1, lambda t: t.kernels / t.kernels[..., :1]),
    ):
        for _, training, color in kinds:
            _draw_rates(axes, values_of(training), every, color)
    names = [
        f"{name} batch normalization, rate {rate:g}"
        for name, *_ in kinds
        for rate in (LARGE, SMALL)
    ]
    figure.legend(loss.lines, names, loc="outside lower center", ncols=len(names))
    loss.axhline(CHANCE, color=BLACK, lw=1, ls=":", label="guessing")
    relative = np.median(formula / normalized.kernels[..., :1], axis=0)[0]
    kernels.plot(relative, color=BLACK, lw=1, ls=":", label="Pythagoras")
    describe(loss, "Training loss", "step", "loss of the batch (nats)", yscale="log")
    describe(lipschitz, "Lipschitz constant", "step", "nats per unit of length", yscale="log")
    describe(curvature, "Curvature", "step", "nats per squared unit of length", ylim=(0, None))
    describe(
        kernels, "Squared length of the hidden kernels", "step", "||W||² / ||W||² at the start"
    )
    for j, (axes, when) in enumerate(
        ((start, "at the start"), (end, f"at the end, rate {LARGE:g}"))
    ):
        axes.axhspan(-SATURATED, SATURATED, color="0.93", lw=0, zorder=0)
        for (name, training, color), side in zip(kinds, ("low", "high"), strict=True):
            label = name if axes is end else None
            _draw_sums(axes, training.sums[0, 0, j], side, color, label)
        describe(axes, f"Sums before tanh {when}", "layer", "sum (gray: tanh still has slope)")
    return figure


def _draw_rates(axes: Any, values: np.ndarray, every: int, color: str) -> None:
    """Plot medians and ranges over networks, for the large (solid) and the small rate."""
    x = every * np.arange(values.shape[-1])
    for i, style in enumerate(("-", "--")):
        axes.plot(x, np.median(values[:, i], axis=0), lw=1.5, color=color, ls=style)
        band = values[:, i].min(axis=0), values[:, i].max(axis=0)
        axes.fill_between(x, *band, color=color, alpha=0.15, lw=0)


def _draw_sums(axes: Any, sums: np.ndarray, side: str, color: str, label: str | None) -> None:
    """Plot the distribution of each layer's sums, as one half of a violin."""
    layers = np.arange(1, len(sums) + 1)
    values = sums.reshape(len(sums), -1)[:, ::29].T
    parts = axes.violinplot(values, layers, widths=0.9, showextrema=False, side=side)
    for part in parts["bodies"]:
        part.set(facecolor=color, alpha=0.9, lw=0)
    parts["bodies"][0].set_label(label)
