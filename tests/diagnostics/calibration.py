"""Measures how often `signal_report` calls a random healthy network sick.

    python -m tests.diagnostics.calibration --networks 350 --seed 0

Each network is drawn from a family of architectures with a depth, a width, a batch size, a
nonlinearity with the initializer that belongs to it, and a loss. The table has a line for each
family with the share of false alarms and its 95% interval (Wilson 1927, "Probable inference, the
law of succession, and statistical inference"). Each false alarm is printed with its verdict.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx import diagnostics

# A nonlinearity, the variance of its weights times fan_in, and the depth up to which these preserve
# a signal without normalization: for the last ones the variance is only approximately right.
ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], float, int]] = {
    "relu": (jax.nn.relu, 2.0, 100),
    "leaky_relu": (jax.nn.leaky_relu, 2.0, 100),
    "tanh": (jnp.tanh, 1.0, 100),
    "selu": (jax.nn.selu, 1.0, 100),
    "elu": (jax.nn.elu, 2.0, 5),
    "gelu": (jax.nn.gelu, 2.0, 5),
    "silu": (jax.nn.silu, 2.0, 5),
}


@dataclass(frozen=True)
class Network:
    """A random network, as arguments of `signal_report`."""

    description: str
    loss_fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]


class Draw:
    """Random choices, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def of(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def size(self, low: int, high: int) -> int:
        """A whole number between two others, uniform in its logarithm."""
        return round(math.exp(self.rng.uniform(math.log(low), math.log(high))))

    def normal(self, *shape: int, scale: float = 1.0) -> Any:
        return jnp.asarray(scale * self.rng.standard_normal(shape), jnp.float32)

    def weights(self, *shape: int, gain: float = 1.0) -> Any:
        """Normal weights with a variance of gain / fan_in; fan_in is the last axis but one."""
        return self.normal(*shape, scale=math.sqrt(gain / shape[-2]))

    def activation(self, depth: int = 1) -> tuple[str, Callable[[Any], Any], float]:
        names = [name for name, (_, _, deepest) in ACTIVATIONS.items() if depth <= deepest]
        name = self.of(*names)
        return name, *ACTIVATIONS[name][:2]

    def labels(self, number: int, classes: int) -> Any:
        return jax.nn.one_hot(self.rng.integers(classes, size=number), classes)


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))


def normalized(x, axes=-1, epsilon=1e-5):
    centered = x - jnp.mean(x, axis=axes, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis=axes, keepdims=True) + epsilon)


NORMALIZATIONS = {
    "layer_norm": normalized,
    "batch_norm": lambda x: normalized(x, tuple(range(x.ndim - 1))),
    "rms_norm": lambda x: x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6),
}


# The families.


def perceptron(draw: Draw) -> Network:
    """Layers of one width, without a normalization, at most as deep as they are wide."""
    width = draw.size(4, 512)
    depth = draw.size(1, min(100, width))
    name, f, gain = draw.activation(depth)
    features, classes, batch = draw.size(2, 256), draw.size(2, 20), draw.size(1, 256)
    params = {
        "first": draw.weights(features, width, gain=gain),
        "stack": draw.weights(depth, width, width, gain=gain),
        "bias": jnp.zeros((depth, width)),
        "last": draw.weights(width, classes),
    }

    def loss_fn(params, x, labels):
        def step(x, layer):
            return f(x @ layer[0] + layer[1][None]), None

        x, _ = lax.scan(step, f(x @ params["first"]), (params["stack"], params["bias"]))
        return cross_entropy(x @ params["last"], labels)

    args = draw.normal(batch, features), draw.labels(batch, classes)
    return Network(f"{depth} layers of {width} {name}, batch {batch}", loss_fn, params, args)


def normalized_perceptron(draw: Draw) -> Network:
    """Layers of one width with a normalization before or after the nonlinearity."""
    width, depth = draw.size(8, 512), draw.size(1, 100)
    norm = draw.of("layer_norm", "rms_norm", "batch_norm")
    comes_first = bool(draw.of(True, False))
    name, f, gain = draw.activation()
    normalize = NORMALIZATIONS[norm]
    features, batch = draw.size(4, 256), draw.size(8 if norm == "batch_norm" else 1, 256)
    # Batch normalization makes the gradients of very deep plain networks explode (Yang et al. 2019,
    # "A mean field theory of batch normalization"), and so does a norm that takes away the mean of
    # relus: by 1 / sqrt(1 - 1 / pi) = 1.21 per layer.
    takes_mean_away = norm == "layer_norm" and not comes_first
    depth = min(depth, 8) if norm == "batch_norm" or takes_mean_away else depth
    # Deep in a network all samples are alike, so that all of a few relus are zero before long.
    depth = min(depth, width)
    params = {
        "first": draw.weights(features, width, gain=gain),
        "stack": draw.weights(depth, width, width, gain=gain),
        "last": draw.weights(width, 1),
    }

    def loss_fn(params, x, y):
        def step(x, kernel):
            z = x @ kernel
            return (f(normalize(z)) if comes_first else normalize(f(z))), None

        x, _ = lax.scan(step, f(normalize(x @ params["first"])), params["stack"])
        return jnp.mean((x @ params["last"] - y) ** 2)

    args = draw.normal(batch, features), draw.normal(batch, 1)
    place = "before" if comes_first else "after"
    description = f"{depth} layers of {width} {name}, {norm} {place}, batch {batch}"
    return Network(description, loss_fn, params, args)


def convolve(x, kernel, stride=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def kernel(draw: Draw, inputs: int, outputs: int, gain: float = 2.0) -> Any:
    return draw.normal(3, 3, inputs, outputs, scale=math.sqrt(gain / (9 * inputs)))


def convolutional(draw: Draw) -> Network:
    """Stages of convolutions with pooling or strides, and a head on all places or their mean."""
    depth, width = draw.size(2, 8), draw.size(8, 64)
    name, f, gain = draw.activation()
    has_norm, pool, head = draw.of(True, False), draw.of("max", "mean", "stride"), draw.of(0, 1)
    side, channels, batch = draw.of(8, 16, 32), draw.of(1, 3), draw.size(2, 16)
    stages = {depth // 3, 2 * depth // 3}
    widths = [channels, *[width] * depth]
    places = 1 if head else (side // 2 ** len(stages)) ** 2
    params = {
        "kernels": [kernel(draw, m, n, gain) for m, n in itertools.pairwise(widths)],
        "last": draw.weights(places * width, 10),
    }

    def loss_fn(params, x, labels):
        for i, weights in enumerate(params["kernels"]):
            x = convolve(x, weights, 2 if pool == "stride" and i in stages else 1)
            x = f(NORMALIZATIONS["batch_norm"](x) if has_norm else x)
            if i in stages and pool != "stride":
                start, operation = (-jnp.inf, lax.max) if pool == "max" else (0.0, lax.add)
                x = lax.reduce_window(x, start, operation, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
                x = x / 4 if pool == "mean" else x
        x = jnp.mean(x, axis=(1, 2)) if head else x.reshape(x.shape[0], -1)
        return cross_entropy(x @ params["last"], labels)

    args = draw.normal(batch, side, side, channels), draw.labels(batch, 10)
    description = (
        f"{depth} convolutions to {width} {name}, {side}x{side}, {pool} pooling, "
        f"{'batch_norm' if has_norm else 'no norm'}, {'mean' if head else 'all places'}"
    )
    return Network(description, loss_fn, params, args)


def residual(draw: Draw) -> Network:
    """Residual blocks with a norm at the start of each branch, or after each sum."""
    blocks, width = draw.size(1, 50), draw.size(8, 256)
    norm, is_pre = draw.of("layer_norm", "batch_norm", "rms_norm"), draw.of(True, False)
    normalize = NORMALIZATIONS[norm]
    name, f, gain = draw.activation()
    scale = draw.of(1.0, 1.0, 0.1, 1e-5, 0.0)
    # Networks with a norm after each sum need a warmup if they are deep.
    blocks = blocks if is_pre else min(blocks, 12)
    features, batch = draw.size(4, 128), draw.size(8, 128)
    params = {
        "first": draw.weights(features, width),
        "up": draw.weights(blocks, width, 2 * width, gain=gain),
        "down": draw.weights(blocks, 2 * width, width),
        "scale": jnp.full(blocks, scale),
        "last": draw.weights(width, 10),
    }

    def loss_fn(params, x, labels):
        def step(x, layer):
            up, down, scale = layer
            branch = f((normalize(x) if is_pre else x) @ up) @ down
            x = x + scale * branch
            return (x if is_pre else normalize(x)), None

        x, _ = lax.scan(step, x @ params["first"], (params["up"], params["down"], params["scale"]))
        return cross_entropy((normalize(x) if is_pre else x) @ params["last"], labels)

    args = draw.normal(batch, features), draw.labels(batch, 10)
    place = "first" if is_pre else "last"
    description = f"{blocks} blocks of {width} {name}, {norm} {place}, branches times {scale}"
    return Network(description, loss_fn, params, args)


def transformer(draw: Draw) -> Network:
    """A language model with causal attention."""
    heads, blocks, length = draw.of(1, 2, 4), draw.size(1, 48), draw.size(4, 64)
    width, words, batch = heads * draw.of(8, 16, 32), draw.size(10, 200), draw.size(1, 8)
    is_pre, is_gated = draw.of(True, True, False), draw.of(True, False)
    of_embedding, is_small = draw.of(1.0, 0.02, math.sqrt(width)), draw.of(True, False)
    blocks = blocks if is_pre else min(blocks, 6)
    name = draw.of("gelu", "relu", "silu")
    f = ACTIVATIONS[name][0]

    def weights(*shape):
        # GPT-2 has a standard deviation of 0.02 everywhere, with a width of 768.
        return draw.weights(*shape, gain=0.31 if is_small else 1.0)

    params = {
        "embedding": draw.normal(words, width, scale=of_embedding),
        "blocks": {
            "attention": weights(blocks, width, 3 * width),
            "projection": weights(blocks, width, width),
            "up": weights(blocks, width, 4 * width),
            "gate": weights(blocks, width, 4 * width),
            "down": weights(blocks, 4 * width, width),
        },
        "head": draw.weights(width, words, gain=0.31 if is_small else 1.0),
    }

    def attend(x, block):
        projected = (x @ block["attention"]).reshape(*x.shape[:2], 3, heads, -1)
        query, key, value = jnp.moveaxis(projected, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
        shares = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        attended = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
        return attended @ block["projection"]

    def expand(x, block):
        hidden = f(x @ block["up"])
        return (hidden * (x @ block["gate"]) if is_gated else hidden) @ block["down"]

    def loss_fn(params, tokens):
        def step(x, block):
            for branch in (attend, expand):
                x = x + branch(normalized(x) if is_pre else x, block)
                x = x if is_pre else normalized(x)
            return x, None

        x = params["embedding"][tokens[:, :-1]]
        x, _ = lax.scan(step, x if is_pre else normalized(x), params["blocks"])
        logits = (normalized(x) if is_pre else x) @ params["head"]
        return cross_entropy(logits, jax.nn.one_hot(tokens[:, 1:], words))

    tokens = jnp.asarray(draw.rng.integers(words, size=(batch, length + 1)))
    description = (
        f"{blocks} blocks of {width} {name}{' gated' if is_gated else ''}, norm "
        f"{'first' if is_pre else 'last'}, embedding {of_embedding:.3g}, "
        f"{'small' if is_small else 'usual'} weights"
    )
    return Network(description, loss_fn, params, (tokens,))


def recurrent(draw: Draw) -> Network:
    """A plain recurrence with orthogonal weights, an LSTM or a GRU; the loss is at the end."""
    cell, width, steps = draw.of("plain", "LSTM", "GRU"), draw.size(4, 128), draw.size(3, 100)
    features, batch, bias = draw.size(1, 32), draw.size(1, 64), draw.of(0.0, 1.0, 2.0)
    gates = {"plain": 1, "LSTM": 4, "GRU": 3}[cell]
    recurrent = [np.linalg.qr(draw.rng.standard_normal((width, width)))[0] for _ in range(gates)]
    params = {
        "input": draw.weights(features, gates * width),
        "recurrent": jnp.asarray(np.concatenate(recurrent, 1), jnp.float32),
        "last": draw.weights(width, 3),
    }

    def advance(state, x):
        h, c = state
        z, r = x @ params_of["input"], h @ params_of["recurrent"]
        if cell == "plain":
            return (jnp.tanh(z + r), c), None
        if cell == "LSTM":
            i, f, g, o = jnp.split(z + r, 4, axis=-1)
            c = jax.nn.sigmoid(f + bias) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None
        (z1, z2, z3), (r1, r2, r3) = (jnp.split(one, 3, axis=-1) for one in (z, r))
        update = jax.nn.sigmoid(z1 + r1 + bias)
        fresh = jnp.tanh(z3 + jax.nn.sigmoid(z2 + r2) * r3)
        return (update * h + (1 - update) * fresh, c), None

    params_of: Any = {}

    def loss_fn(params, x, labels):
        params_of.update(params)
        start = jnp.zeros((x.shape[1], width))
        (h, _), _ = lax.scan(advance, (start, start), x)
        return cross_entropy(h @ params["last"], labels)

    args = draw.normal(steps, batch, features), draw.labels(batch, 3)
    description = f"{cell} of {width}, {steps} steps, bias {bias}, batch {batch}"
    return Network(description, loss_fn, params, args)


def autoencoder(draw: Draw) -> Network:
    """Layers that become narrower and then wider again."""
    name, f, gain = draw.activation()
    width, depth, batch = draw.size(16, 512), draw.size(1, 4), draw.size(4, 256)
    narrowing = [max(width // 2**i, 4) for i in range(depth + 1)]
    widths = [*narrowing, *narrowing[-2::-1]]
    params = [
        draw.weights(m, n, gain=gain if i + 2 < len(widths) else 1.0)
        for i, (m, n) in enumerate(itertools.pairwise(widths))
    ]
    last = draw.of(lambda z: z, jax.nn.sigmoid)

    def loss_fn(params, x):
        hidden = x
        for weights in params[:-1]:
            hidden = f(hidden @ weights)
        return jnp.mean((last(hidden @ params[-1]) - x) ** 2)

    inputs = draw.normal(batch, width)
    return Network(f"{widths} {name}, batch {batch}", loss_fn, params, (inputs,))


FAMILIES = {
    "perceptron": perceptron,
    "perceptron with norms": normalized_perceptron,
    "convolutional": convolutional,
    "residual": residual,
    "transformer": transformer,
    "recurrent": recurrent,
    "autoencoder": autoencoder,
}


def wilson(alarms: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share."""
    share = alarms / number
    center = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = (
        z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    )
    return max(center - half, 0.0), min(center + half, 1.0)


def line(name: str, alarms: int, number: int) -> str:
    low, high = wilson(alarms, number)
    return f"{name:<22} {number:>8} {alarms:>7} {alarms / number:>7.1%}  {low:.1%} to {high:.1%}"


def main() -> None:
    """Draw the networks, print each false alarm and then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=350)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES)
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    families = [options.family] if options.family else list(FAMILIES)
    alarms, numbers = dict.fromkeys(families, 0), dict.fromkeys(families, 0)
    for i in range(options.networks):
        family = families[i % len(families)]
        network = FAMILIES[family](Draw(1000 * options.seed + i))
        report = diagnostics.signal_report(network.loss_fn, network.params, *network.args)
        numbers[family] += 1
        if sum(numbers.values()) % 50 == 0:
            print(f"{sum(numbers.values())} networks", flush=True)
        if report.kind != "healthy":
            alarms[family] += 1
            print(f"{i} {family}: {network.description}\n    {report.verdict}", flush=True)
    print(f"\n{'family':<22} {'networks':>8} {'alarms':>7} {'share':>7}  95% interval")
    for family in families:
        print(line(family, alarms[family], numbers[family]))
    print(line("all", sum(alarms.values()), sum(numbers.values())))


if __name__ == "__main__":
    main()
