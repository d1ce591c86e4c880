"""Parameters in half precision do not move, unless rounding is told how.

A number in bfloat16 has 8 significant bits. Around 1 its neighbours are 1 + 1/128 and 1 - 1/256, so
that adding -0.001, a usual update of AdamW, gives 1 again: the sum is rounded to nearest. This
happens to every parameter whose update is smaller than about 1/256 of it, and as learning rates
decay, in the end to all of them. float16 has 11 bits, and loses updates below 1/2048.

Three wrappers keep what would be lost, at different prices:

- `with_stochastic_rounding` rounds up or down at random, so that the mean is right;
- `with_kahan_sum` stores what rounding left over, in half precision too, and adds it next time;
- `with_master_weights` trains a copy in float32, and rounds that.

First, one parameter with a constant gradient. The update of AdamW is then -r in each step, and
-r w p for the weight decay w, so that after t steps

    p_t = -1/w + (1 + 1/w) (1 - r w)^t.

Then networks learn the digits, with AdamW and a rate that falls from 0.001 to 0.00001. Only the
parameters, their gradients and what a wrapper stores are in half precision; the networks calculate
in float32, so that the differences come from rounding parameters.

Source:
    Zamirai et al. 2020, "Revisiting BFloat16 training", for bfloat16, stochastic rounding and Kahan
    sums; Micikevicius et al. 2018, "Mixed precision training", for copies in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from examples.digits import load_digits
from examples.experiments.experiment import COLORS, Check, Outcome, Settings, describe, new_figure
from examples.experiments.networks import apply_dense, cross_entropy, init_dense, shuffled_batches

CLAIM = (
    "Parameters in half precision lose updates that are smaller than their last digit, and learn "
    "worse; with stochastic rounding, a Kahan sum or a copy in float32 they learn as well as in "
    "float32."
)
WIDTHS = (64, 128, 128, 10)
BATCH_SIZE = 64
RATE, DECAY = 1e-3, 1e-4
STEPS, ELEMENTS = 1000, 4096  # of the constant gradient
EVERY = 33  # steps between two measurements of the loss
BLACK, BLUE, VERMILION, GREEN, PURPLE, *_ = COLORS


class Way(NamedTuple):
    """A way to round: how to wrap an optimizer, and how to draw the result."""

    wrap: Callable[[Any, jax.Array], Any]
    color: str
    style: str
    marker: str


SINGLE, PLAIN = "float32", "nearest"
WRAPPED = ("stochastic", "Kahan sum", "master weights")
WAYS = {
    SINGLE: Way(lambda tx, key: tx, BLACK, "-", "o"),
    PLAIN: Way(lambda tx, key: tx, VERMILION, "-", "v"),
    "stochastic": Way(lambda tx, key: gradtx.with_stochastic_rounding(tx, key), BLUE, "-.", "s"),
    "Kahan sum": Way(lambda tx, key: gradtx.with_kahan_sum(tx), PURPLE, "--", "D"),
    "master weights": Way(lambda tx, key: gradtx.with_master_weights(tx), GREEN, ":", "^"),
}


class Training(NamedTuple):
    """The training of several networks, the arrays of which have shape (networks, stages).

    Attributes:
        loss: the loss on all training images, before each EVERY steps and at the end.
        lost: the share of updates that rounding lost, a mean over EVERY steps; zero for float32.
        memory: bytes of parameter and optimizer state per parameter.
    """

    loss: np.ndarray
    lost: np.ndarray
    memory: float


def run(settings: Settings) -> Outcome:
    """Follow one parameter, then train networks, with each way to round."""
    dtypes = settings.choose(full=(jnp.bfloat16, jnp.float16), quick=(jnp.bfloat16,))
    networks, steps = settings.choose(full=(6, 1320), quick=(3, 660))
    key = settings.key
    paths = {
        name: np.asarray(follow(name, jnp.bfloat16, key)).astype(np.float64)
        for name in (PLAIN, *WRAPPED)
    }
    data = jax.tree.map(jnp.asarray, load_digits().train)
    start = prepare(key, networks, steps, len(data["label"]))
    trained = {
        (name, dtype.__name__): train(name, dtype, start, data)
        for name in WAYS
        for dtype in ((jnp.float32,) if name == SINGLE else dtypes)
    }
    return Outcome(
        [*_path_checks(paths), *_training_checks(trained)],
        _draw(paths, trained),
        "Top left: a parameter of 1 in bfloat16 stays there when it is rounded to nearest. A Kahan "
        "sum and master weights are never more than half a step away from the exact line; "
        "stochastic rounding wanders around it (three elements, and the mean of all). Top right: "
        "so do networks; rounded to nearest they learn a while and stop, all others are as in "
        f"float32 (means of {networks} networks; bands extend from the lowest to the highest). "
        "Bottom left: the share of updates that rounding to nearest loses, as `with_metrics` "
        "measures it. Bottom right: each point is a network; the wrappers reach the loss of "
        "float32 with 10, 12 or 14 bytes per parameter, beside which their points are (filled: "
        "bfloat16, open: float16).",
    )


def closed_form(steps: Any) -> Any:
    """Where a parameter that began at 1 is after some steps with a constant gradient of 1."""
    return -1 / DECAY + (1 + 1 / DECAY) * (1 - RATE * DECAY) ** np.asarray(steps, np.float64)


def follow(name: str, dtype: Any, key: jax.Array) -> jax.Array:
    """Parameters that begin at 1 and have a constant gradient of 1, of shape (steps, elements)."""
    tx = WAYS[name].wrap(gradtx.adamw(RATE, weight_decay=DECAY), key)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(jnp.ones_like(params), state, params)
        params = gradtx.apply_updates(params, updates)
        return (params, state), params.astype(jnp.float32)

    start = jnp.ones(ELEMENTS, dtype)
    return jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), None, STEPS)[1])()


class Start(NamedTuple):
    """What all ways of rounding start from, one row for each network."""

    params: Any
    batches: jax.Array
    keys: jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def prepare(key: jax.Array, networks: int, steps: int, samples: int) -> Start:
    """The parameters in float32, the samples of each step, and the keys of random rounding."""

    def one(key: jax.Array) -> Start:
        init_key, order_key, rounding_key = jax.random.split(key, 3)
        batches = shuffled_batches(order_key, samples, BATCH_SIZE, steps)
        return Start(init_dense(init_key, WIDTHS), batches, rounding_key)

    return jax.vmap(one)(jax.random.split(key, networks))


def train(name: str, dtype: Any, start: Start, data: Any) -> Training:
    """Train networks whose parameters have a dtype, and are rounded in one of the ways."""
    schedule = gradtx.cosine_decay_schedule(RATE, start.batches.shape[1], alpha=0.01)

    def optimizer(key: jax.Array) -> Any:
        return WAYS[name].wrap(gradtx.adamw(schedule), key)

    params = jax.tree.map(lambda p: p.astype(dtype), start.params)
    stages = jax.jit(jax.vmap(functools.partial(_train, optimizer, data)))
    loss, lost = jax.device_get(stages(params, start.batches, start.keys))
    one = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params)
    state_bytes = gradtx.explain(optimizer(jax.random.key(0)), one).bytes_per_parameter
    return Training(loss, lost, state_bytes + jnp.dtype(dtype).itemsize)


def _train(
    optimizer: Callable[[jax.Array], Any],
    data: Any,
    params: Any,
    batches: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    tx = gradtx.with_metrics(optimizer(key))

    def loss_fn(params: Any, samples: Any) -> jax.Array:
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return cross_entropy(apply_dense(wide, data["image"][samples]), data["label"][samples])

    def step(carry: Any, batch: jax.Array) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
        lost = gradtx.metrics(state).get("lost_to_rounding", jnp.zeros([]))
        return (gradtx.apply_updates(params, updates), state), lost

    def stage(carry: Any, batches: jax.Array) -> Any:
        loss = loss_fn(carry[0], slice(None))
        carry, lost = jax.lax.scan(step, carry, batches)
        return carry, (loss, jnp.mean(lost))

    start = params, tx.init(params)
    (params, _), (loss, lost) = jax.lax.scan(stage, start, batches.reshape(-1, EVERY, BATCH_SIZE))
    return jnp.append(loss, loss_fn(params, slice(None))), lost


def _path_checks(paths: dict[str, np.ndarray]) -> list[Check]:
    """The checks of one parameter with a constant gradient."""
    exact = closed_form(np.arange(1, STEPS + 1))
    moved = np.abs(paths[PLAIN] - 1).max()
    errors = {name: np.abs(paths[name].mean(axis=1) - exact).max() for name in WRAPPED}
    return [
        Check(
            f"rounded to nearest, a parameter of 1 does not move in {STEPS:,} steps of {RATE:g}",
            f"moved by {moved:g}, in float32 by {1 - exact[-1]:.3f}",
            bool(moved == 0),
        ),
        Check(
            "with each wrapper its mean follows the exact line, up to half a step of bfloat16",
            ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
            # 2^-9 below 1; and the second digits of the Kahan sum are rounded too.
            bool(max(errors.values()) < 1.2 * 2.0**-9),
        ),
    ]


def _training_checks(trained: dict[tuple[str, str], Training]) -> list[Check]:
    """The checks of the networks."""
    dtypes = list(dict.fromkeys(dtype for name, dtype in trained if name == PLAIN))
    final = {key: training.loss[:, -1] for key, training in trained.items()}
    single = final[SINGLE, SINGLE]
    excess = {dtype: final[PLAIN, dtype].mean() / single.mean() for dtype in dtypes}
    shares = {dtype: trained[PLAIN, dtype].lost.mean(axis=0) for dtype in dtypes}
    means = {(name, dtype): final[name, dtype].mean() for name in WRAPPED for dtype in dtypes}
    distance = max(abs(mean - single.mean()) for mean in means.values())
    more = {
        name: trained[name, dtypes[0]].memory - trained[PLAIN, dtypes[0]].memory for name in WRAPPED
    }
    return [
        Check(
            "rounded to nearest, networks in bfloat16 end with twice the loss of float32 or more",
            ", ".join(f"{dtype} {ratio:.2f} times" for dtype, ratio in excess.items()),
            bool(excess["bfloat16"] > 2),
        ),
        Check(
            "as the learning rate falls, nearly all updates are lost",
            ", ".join(f"{dtype} {s[0]:.0%} to {s[-1]:.0%}" for dtype, s in shares.items()),
            bool(min(share[-1] for share in shares.values()) > 0.9),
        ),
        Check(
            "with each wrapper the mean loss is that of float32 to a standard deviation",
            f"{min(means.values()):.5f} to {max(means.values()):.5f}, float32 "
            f"{single.mean():.5f} ± {single.std(ddof=1):.5f}",
            bool(distance < single.std(ddof=1)),
        ),
        Check(
            "and no update is lost",
            f"{max(trained[key].lost.max() for key in means):.0%}",
            bool(max(trained[key].lost.max() for key in means) == 0),
        ),
        Check(
            "per parameter they take 0, 2 and 4 bytes more than rounding to nearest",
            ", ".join(f"{name} {number:.2f}" for name, number in more.items()),
            bool(np.allclose(list(more.values()), [0, 2, 4], atol=0.01)),
        ),
    ]


def _draw(paths: dict[str, np.ndarray], trained: dict[tuple[str, str], Training]) -> Any:
    figure, ((one, loss), (lost, memory)) = new_figure(
        "Does rounding stop parameters in half precision?", rows=2, columns=2
    )
    _draw_paths(one, paths)
    for (name, dtype), training in trained.items():
        way, is_open = WAYS[name], dtype == "float16"
        steps = EVERY * np.arange(training.loss.shape[1])
        line = {"color": way.color, "ls": way.style, "lw": 1.8}
        if not is_open:
            loss.plot(steps, training.loss.mean(axis=0), label=name, **line)
            band = training.loss.min(axis=0), training.loss.max(axis=0)
            loss.fill_between(steps, *band, color=way.color, alpha=0.12, lw=0)
        if name == PLAIN:
            middle = steps[:-1] + EVERY / 2
            line = {"color": VERMILION, "ls": "--" if is_open else "-", "lw": 1.8}
            lost.plot(middle, training.lost.mean(axis=0), label=dtype, **line)
        final = training.loss[:, -1]
        place = training.memory + (0.25 if is_open else -0.25 if name != SINGLE else -0.6)
        spread = np.linspace(-0.12, 0.12, len(final))
        fill = {"mfc": "none" if is_open else way.color, "mec": way.color}
        label = None if is_open else name
        memory.plot(place + spread, final, way.marker, ms=5, ls="", label=label, **fill)
    describe(
        loss,
        "Digits: AdamW with parameters in bfloat16",
        "step",
        "training loss (nats)",
        yscale="log",
    )
    describe(
        lost, "Digits: rounded to nearest", "step", "share of updates that are lost", ylim=(0, 1.02)
    )
    describe(
        memory,
        "Digits: loss at the end",
        "bytes per parameter, with the state of AdamW",
        "training loss (nats)",
        xticks=(10, 12, 14),
        xlim=(9, 15),
        ylim=(0, None),
    )
    return figure


def _draw_paths(axes: Any, paths: dict[str, np.ndarray]) -> None:
    shown = np.arange(31)
    axes.plot(shown, closed_form(shown), color=BLACK, lw=1, label="exact")
    for name, path in paths.items():
        way = WAYS[name]
        whole = np.concatenate([np.ones((1, path.shape[1])), path])[shown]
        line = {"color": way.color, "drawstyle": "steps-post"}
        if name == "stochastic":
            axes.plot(shown, whole[:, :3], lw=0.8, alpha=0.6, **line)
            axes.plot(shown, whole.mean(axis=1), color=way.color, ls=way.style, lw=2, label=name)
        else:
            axes.plot(shown, whole[:, 0], ls=way.style, lw=1.8, label=name, **line)
    describe(axes, "A constant gradient, in bfloat16", "step", "parameter")
