"""Two minima that look separate, and the valley that connects them.

Two networks that start from different random weights end in different minima. On the straight line
between them, (1 - t) a + t b, the loss climbs over a barrier: the average of two good networks is a
bad one. Minima look like isolated hollows.

But there are thousands of directions to go around a barrier. A quadratic Bezier curve

    point(t) = (1 - t)^2 a + 2 t (1 - t) c + t^2 b

starts in a, ends in b and bends towards c. Gradient descent finds a good c: each step draws a
position t at random and lowers the loss there. Along the resulting curve the loss stays as low as
at its ends: the minima lie in one valley. The picture on the right is a section through weight
space, along the plane that contains a, b and c.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

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
from gradtx.diagnostics import ConnectingPath, connecting_path, interpolate_loss

CLAIM = (
    "Two networks trained from different seeds are connected by a curve on which the loss is as "
    "low as at its ends, although on the straight line between them it climbs over a barrier."
)

WIDTHS = (64, 64, 64, 64, 10)
BATCH_SIZE = 64
POINTS = 61
BLACK, BLUE, VERMILION, *_ = COLORS

Data = dict[str, jax.Array]


class Profile(NamedTuple):
    """The performance of a network, at one position or along a path.

    Attributes:
        loss: the cross-entropy, in nats.
        accuracy: the share of samples classified correctly.
    """

    loss: Any
    accuracy: Any

    @property
    def barrier(self) -> float:
        """How far the loss climbs above the higher one of the ends, in nats."""
        return float(self.loss.max() - max(self.loss[0], self.loss[-1]))

    @property
    def accuracy_lost(self) -> float:
        """How far the accuracy falls below the lower one of the ends, in percentage points."""
        return float(100 * (min(self.accuracy[0], self.accuracy[-1]) - self.accuracy.min()))


def run(settings: Settings) -> Outcome:
    """Train two networks, connect them by a line and by a curve, and walk along both."""
    train, test = (jax.tree.map(jnp.asarray, data) for data in load_digits())
    steps, curve_steps, grid = settings.choose(full=(1000, 2000, 61), quick=(500, 500, 21))
    *keys, curve_key = jax.random.split(settings.key, 3)
    start, end = train_networks(jnp.stack(keys), train, steps)
    batch_key, position_key = jax.random.split(curve_key)
    path = connecting_path(
        lambda params, batch: loss_fn(params, jax.tree.map(lambda x: x[batch], train)),
        start,
        end,
        shuffled_batches(batch_key, len(train["label"]), BATCH_SIZE, curve_steps),
        steps=curve_steps,
        key=position_key,
        tx=gradtx.adam(gradtx.cosine_decay_schedule(1e-2, curve_steps)),
    )
    data = {"training": train, "test": test}
    _, on_line = interpolate_loss(measure, start, end, data, points=POINTS)
    _, on_curve = path.losses(measure, data, points=POINTS)
    on_line, on_curve = jax.device_get((on_line, on_curve))
    return Outcome(
        _checks(on_line, on_curve),
        draw(on_line, on_curve, path, train, grid),
        "Left: the loss on the way from one trained network (t = 0) to another (t = 1). The "
        "straight line climbs over a barrier, the curve does not; the remaining test loss is there "
        "at the ends too. Right: the training loss in the plane through both networks and the "
        "point c that the curve bends towards; dark is low. The dashed line crosses a ridge, the "
        "curve follows the valley around it.",
    )


def _checks(on_line: dict[str, Profile], on_curve: dict[str, Profile]) -> list[Check]:
    line, curve = on_line["training"], on_curve["training"]
    lost = [on_line["test"].accuracy_lost, on_curve["test"].accuracy_lost]
    return [
        Check(
            "on the straight line the training loss climbs by at least 0.3 nats",
            f"by {line.barrier:.2f} nats",
            line.barrier >= 0.3,
        ),
        Check(
            "on the curve it climbs by at most a twentieth of that",
            f"by {curve.barrier:.4f} nats, {100 * curve.barrier / line.barrier:.1f} %",
            curve.barrier <= line.barrier / 20,
        ),
        Check(
            "on the straight line at least 10 percentage points of test accuracy are lost",
            f"{lost[0]:.1f} points",
            lost[0] >= 10,
        ),
        Check(
            "on the curve at most 2.5 points are lost",
            f"{lost[1]:.1f} points",
            lost[1] <= 2.5,
        ),
    ]


def loss_fn(params: Any, data: Data) -> jax.Array:
    """The mean cross-entropy, in nats."""
    return cross_entropy(apply_dense(params, data["image"]), data["label"])


def train_networks(keys: jax.Array, data: Data, steps: int) -> list[Any]:
    """One trained network for each key, which determines its initial weights and its batches."""
    tx = gradtx.adam(gradtx.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    @jax.vmap
    def train(key: jax.Array) -> Any:
        init_key, batch_key = jax.random.split(key)
        params = init_dense(init_key, WIDTHS)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[batch], data))
            updates, state = tx.update(gradient, state, params)
            return (gradtx.apply_updates(params, updates), state), None

        batches = shuffled_batches(batch_key, len(data["label"]), BATCH_SIZE, steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return params

    trained = train(keys)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], trained) for i in range(len(keys))]


def measure(params: Any, data: dict[str, Data]) -> dict[str, Profile]:
    """Loss and accuracy of one network on several sets of samples."""
    profiles = {}
    for name, samples in data.items():
        logits = apply_dense(params, samples["image"])
        labels = samples["label"]
        profiles[name] = Profile(cross_entropy(logits, labels), accuracy(logits, labels))
    return profiles


class Plane(NamedTuple):
    """The plane through three sets of parameters.

    Attributes:
        origin: the first of them, a vector.
        axes: two orthonormal vectors, the first of which points to the second set.
        unravel: converts a vector to parameters.
    """

    origin: jax.Array
    axes: jax.Array
    unravel: Callable[[jax.Array], Any]

    @classmethod
    def through(cls, first: Any, second: Any, third: Any) -> "Plane":
        """The plane that contains all three."""
        origin, unravel = ravel_pytree(first)
        offsets = jnp.stack([ravel_pytree(tree)[0] - origin for tree in (second, third)], axis=1)
        # The signs of a QR decomposition are arbitrary.
        axes, lengths = jnp.linalg.qr(offsets)
        return cls(origin, axes * jnp.sign(jnp.diagonal(lengths))[None], unravel)

    def coordinates(self, params: Any) -> np.ndarray:
        """Where parameters lie in the plane."""
        return np.asarray((ravel_pytree(params)[0] - self.origin) @ self.axes)

    def losses(self, x: np.ndarray, y: np.ndarray, data: Data) -> np.ndarray:
        """The losses on a grid, shape (len(y), len(x))."""

        @jax.jit
        def losses_at(points: jax.Array, data: Data) -> jax.Array:
            return jax.lax.map(
                lambda point: loss_fn(self.unravel(self.origin + self.axes @ point), data),
                points,
                batch_size=16,
            )

        points = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)
        return np.asarray(losses_at(points.reshape(-1, 2), data)).reshape(len(y), len(x))


def draw(
    on_line: dict[str, Profile],
    on_curve: dict[str, Profile],
    path: ConnectingPath,
    train: Data,
    grid: int,
) -> Any:
    """Plot the losses along both paths, and the plane that contains them."""
    figure, ((losses, plane),) = new_figure("Two trained networks and the paths between them")
    positions = np.linspace(0, 1, POINTS)
    for path_name, color, profiles in (
        ("straight line", VERMILION, on_line),
        ("curve", BLUE, on_curve),
    ):
        for which, style in (("training", "-"), ("test", ":")):
            label = f"{path_name}, {which} images"
            losses.plot(positions, profiles[which].loss, style, color=color, lw=2, label=label)
    describe(
        losses,
        "The loss along the paths",
        "position t",
        "cross-entropy / nats",
        xlim=(0, 1),
        ylim=(-0.05, 1.3 * on_line["test"].loss.max()),
    )
    losses.legend(fontsize="small", loc="upper center", ncols=2)
    draw_plane(figure, plane, path, train, grid)
    return figure


def draw_plane(figure: Any, panel: Any, path: ConnectingPath, data: Data, grid: int) -> None:
    """The training loss in the plane of the curve, as contours of its logarithm."""
    plane = Plane.through(path.start, path.end, path.midpoint)
    corners = [plane.coordinates(p) for p in (path.start, path.end, path.midpoint)]
    (left, bottom), (right, top) = np.min(corners, axis=0), np.max(corners, axis=0)
    margin = 0.25 * (right - left)
    x = np.linspace(left - margin, right + margin, grid)
    y = np.linspace(bottom - margin, top + margin, grid)
    losses = plane.losses(x, y, data)
    ticker = extras.load("matplotlib.ticker")
    levels = np.geomspace(max(losses.min(), 1e-4), 3, 15)
    scale = extras.load("matplotlib.colors").LogNorm()
    filled = panel.contourf(x, y, losses, levels, cmap="cividis", norm=scale, extend="both")
    bar = figure.colorbar(filled, ax=panel, label="training loss / nats")
    bar.set_ticks([level for level in (0.001, 0.01, 0.1, 1) if level >= levels[0]])
    bar.ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    bar.ax.yaxis.set_minor_locator(ticker.NullLocator())
    curve = np.array([plane.coordinates(path.point(t)) for t in np.linspace(0, 1, POINTS)])
    panel.plot(*np.transpose(corners[:2]), color="white", lw=2, ls="--", label="straight line")
    panel.plot(*curve.T, color="white", lw=2, label="curve")
    for name, corner in zip("abc", corners, strict=True):
        panel.plot(*corner, "o", ms=7, color="white", mec=BLACK)
        panel.annotate(
            name, corner, (6, 6), textcoords="offset points", color="white", weight="bold"
        )
    describe(
        panel,
        "The plane of the two networks and of c",
        "distance along a to b",
        "distance across",
        aspect="equal",
    )
    panel.legend(facecolor="0.4", labelcolor="white", fontsize="small", loc="upper left")
