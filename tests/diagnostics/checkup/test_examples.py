"""`check_examples`: what mixes examples, or counts them unequally, is named."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from gradtx import diagnostics

from .batches import HIDDEN, LABELS, WORDS, C, D, N, T, X, Y, entropy, kinds, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


MIXED = [("mixed_examples", "error")]
SUSPECT = [("mixed_examples", "warning")]


@pytest.mark.parametrize(("axis", "expected"), [(-1, []), (0, MIXED)])
def test_gates_normalized_over_the_examples(axis, expected):
    def loss_fn(params, x, y):
        gates = jax.nn.softmax(x @ params["gate"], axis=axis)
        return entropy((gates * jnp.tanh(x @ params["w0"])) @ params["w1"], y)

    findings = diagnostics.check_examples(loss_fn, HIDDEN | {"gate": normal(D, 8)}, X, LABELS)
    assert kinds(findings) == expected
    assert all((one.place, one.evidence["examples"]) == ("gate", N) for one in findings)


def attention(params, x):
    q, k, v = (x @ params[name] for name in "qkv")
    return x + jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / D**0.5) @ v


ATTENTION = {name: normal(D, D, seed=i) for i, name in enumerate("qkv")} | {"head": normal(D, C)}


@pytest.mark.parametrize(("is_swapped", "expected"), [(False, []), (True, MIXED)])
def test_attention_among_the_examples(is_swapped, expected):
    def loss_fn(params, x, y):
        x = attention(params, jnp.swapaxes(x, 0, 1) if is_swapped else x)
        return entropy(jnp.mean(x, axis=0 if is_swapped else 1) @ params["head"], y)

    findings = diagnostics.check_examples(loss_fn, ATTENTION, WORDS, LABELS)
    assert kinds(findings) == expected
    assert all(set(one.place.split(", ")) == {"q", "k"} for one in findings)


def test_attention_in_one_set_may_be_on_purpose():
    def loss_fn(params, x, y):
        return entropy(attention(params, x[None])[0] @ params["head"], y)

    findings = diagnostics.check_examples(loss_fn, ATTENTION, X, LABELS)
    assert kinds(findings) == [("mixed_examples", "remark")]


class Attending(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self):
        a, b = jax.random.split(jax.random.key(0))
        self.attention = eqx.nn.MultiheadAttention(2, D, key=a)
        self.head = eqx.nn.Linear(D, C, key=b)


@pytest.mark.parametrize(("axis", "expected"), [(0, []), (1, MIXED)])
def test_attention_of_equinox_mapped_over_the_wrong_axis(axis, expected):
    def loss_fn(model, x, y):
        z = jax.vmap(model.attention, in_axes=axis, out_axes=axis)(x, x, x)
        return entropy(jax.vmap(model.head)(jnp.mean(z, axis=1)), y)

    assert kinds(diagnostics.check_examples(loss_fn, Attending(), WORDS, LABELS)) == expected


def steps(params, x):
    def step(h, x):
        h = jnp.tanh(x @ params["in"] + h @ params["recurrent"])
        return h, h

    return lax.scan(step, jnp.zeros((x.shape[1], 8)), x)[1]


RECURRENT = {"in": normal(D, 8), "recurrent": 0.3 * normal(8, 8), "head": normal(8, C)}


@pytest.mark.parametrize(
    ("arrange", "last", "expected"),
    [
        (lambda x: x.transpose(1, 0, 2), lambda h: h[-1], []),
        (lambda x: x.reshape(T, N, D), lambda h: h[-1], MIXED),
        (lambda x: x, lambda h: h[:, -1], MIXED),
    ],
    ids=["transpose", "reshape", "neither"],
)
def test_recurrence_over_time(arrange, last, expected):
    def loss_fn(params, x, y):
        return entropy(last(steps(params, arrange(x))) @ params["head"], y)

    findings = diagnostics.check_examples(loss_fn, RECURRENT, WORDS, LABELS)
    assert kinds(findings)[:1] == expected
    torn = [one.evidence["operation"] for one in findings if "several examples" in one.sentence]
    assert torn == ["reshape"] * (arrange(WORDS).shape != WORDS.shape and bool(expected))


def test_data_with_time_on_the_first_axis():
    def loss_fn(params, x, y):
        losses = (steps(params, x) @ params["head"] - y) ** 2
        return jnp.sum(losses) / x.shape[1]

    findings = diagnostics.check_examples(loss_fn, RECURRENT, WORDS, normal(N, T, C))
    assert not findings


def test_targets_rolled_through_the_batch():
    tokens = jnp.arange(N * T).reshape(N, T) % 7

    def loss_fn(params, tokens, axis):
        logits = jnp.tanh(params["table"][tokens]) @ params["head"]
        return entropy(logits, jnp.roll(tokens, -1, axis=axis))

    params = {"table": normal(7, 8), "head": normal(8, 7)}
    assert kinds(diagnostics.check_examples(loss_fn, params, tokens, None)) == MIXED
    assert not diagnostics.check_examples(loss_fn, params, tokens, 1)


@pytest.mark.parametrize(
    ("flatten", "expected"),
    [
        (lambda x: x.reshape(N, -1), []),
        (lambda x: x.reshape(T * D, N).T, MIXED),
        (lambda x: x.transpose(1, 2, 0).reshape(N, T * D), MIXED),
    ],
    ids=["examples first", "examples last", "axes moved"],
)
def test_flattened_examples(flatten, expected):
    def loss_fn(params, x, y):
        return entropy(flatten(x) @ params, y)

    findings = diagnostics.check_examples(loss_fn, normal(T * D, C), WORDS, LABELS)
    assert kinds(findings) == expected
    assert all(one.evidence["operation"] == "reshape" for one in findings)


@pytest.mark.parametrize(("axis", "expected"), [(0, SUSPECT), (1, [])])
def test_running_sums(axis, expected):
    def loss_fn(params, x, y):
        h = jnp.cumsum(jnp.tanh(x @ params["w0"]), axis=axis)
        return entropy(jnp.mean(h, axis=1) @ params["w1"], y)

    assert kinds(diagnostics.check_examples(loss_fn, HIDDEN, WORDS, LABELS)) == expected


@pytest.mark.parametrize(("axis", "expected"), [(0, SUSPECT), (-1, []), ((0, 1), [])])
def test_norms_of_sequences(axis, expected):
    def loss_fn(params, x, y):
        h = x @ params["w0"]
        h = (h - jnp.mean(h, axis, keepdims=True)) / jnp.std(h, axis, keepdims=True)
        h = jax.nn.relu(params["scale"] * h + params["shift"])
        return entropy(jnp.mean(h, axis=1) @ params["w1"], y)

    params = HIDDEN | {"scale": jnp.ones((1, 1, 8)), "shift": jnp.zeros((1, 1, 8))}
    assert kinds(diagnostics.check_examples(loss_fn, params, WORDS, LABELS)) == expected


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (lambda z: z / jnp.linalg.norm(z), SUSPECT),
        (lambda z: (z - jnp.mean(z)) / jnp.std(z), SUSPECT),
        (lambda z: z - jnp.mean(z, axis=0), SUSPECT),
        (lambda z: z / jnp.linalg.norm(z, axis=-1, keepdims=True), []),
        (lambda z: z - jnp.mean(z, axis=-1, keepdims=True), []),
        (lambda z: jax.nn.standardize(z, axis=-1), []),
    ],
    ids=["norm", "standard deviation", "mean", "norms", "means", "layer norm"],
)
def test_norms_over_the_batch(normalize, expected):
    def loss_fn(params, x, y):
        return entropy(jax.nn.gelu(normalize(x @ params["w0"])) @ params["w1"], y)

    assert kinds(diagnostics.check_examples(loss_fn, HIDDEN, X, LABELS)) == expected


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x)))
        return nn.Dense(C)(nn.BatchNorm(use_running_average=False, use_scale=False)(x))


def test_batch_norm_of_linen():
    variables = jax.jit(Normed().init)(jax.random.key(0), X)

    def loss_fn(params, statistics, x, y):
        both = {"params": params, "batch_stats": statistics}
        logits, statistics = Normed().apply(both, x, mutable=["batch_stats"])
        return entropy(logits, y), statistics

    batch = (variables["batch_stats"], X, LABELS)
    assert not diagnostics.check_examples(loss_fn, variables["params"], *batch, has_aux=True)


def test_batch_norm_of_nnx():
    images = normal(N, 6, 6, 3)

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, C, rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.mean(jax.nn.relu(self.norm(self.conv(x))), axis=(1, 2)))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, rest, x, y):
        return entropy(nnx.merge(graph, params, rest)(x), y)

    assert not diagnostics.check_examples(loss_fn, params, rest, images, LABELS)


def contrastive(params, x, y):
    z = jnp.concatenate([x, x + 0.1 * y[:, None]]) @ params["w0"]
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    logits = 5 * z @ z.T - 1e9 * jnp.eye(2 * N)
    return entropy(logits, (jnp.arange(2 * N) + N) % (2 * N))


def decorrelated(params, x, y):
    z = x @ params["w0"]
    z = (z - jnp.mean(z, axis=0)) / jnp.std(z, axis=0)
    correlation = z.T @ z / N
    return jnp.mean((correlation - jnp.eye(8)) ** 2) + 0 * jnp.sum(y)


def graph_attention(params, x, y):
    h = x @ params["w0"]
    scores = jnp.sum(h, -1, keepdims=True) + jnp.sum(h, -1, keepdims=True).T
    is_neighbour = jnp.abs(jnp.arange(N)[:, None] - jnp.arange(N)) < 3
    weights = jax.nn.softmax(jnp.where(is_neighbour, jax.nn.leaky_relu(scores), -1e9))
    return entropy(jax.nn.elu(weights @ h) @ params["w1"], y.astype(jnp.int32) % C)


def set_of_points(params, x, y):
    h = jax.nn.relu(x @ params["w0"])
    return jnp.mean((jnp.sum(jnp.max(h, axis=0) @ params["w1"]) - y) ** 2)


def critic(params, x, y):
    real, fake = (jnp.tanh(z @ params["w0"]) @ params["w1"] for z in (x, x * y[:, None]))
    return jnp.mean(fake) - jnp.mean(real)


def residual(params, x, y):
    def u(x):
        return jnp.sum(jnp.tanh(x @ params["w0"]) @ params["w1"])

    laplacian = jax.vmap(lambda x: jnp.trace(jax.hessian(u)(x)))(x)
    return jnp.mean((laplacian - y) ** 2)


def autoencoder(params, x, y):
    mean = x @ params["w0"]
    decoded = jnp.tanh(mean) @ params["w0"].T
    return jnp.mean(jnp.sum((decoded - x) ** 2, -1) + 0.5 * jnp.sum(mean**2, -1)) + 0 * jnp.sum(y)


def minibatch_deviation(params, x, y):
    h = jnp.tanh(x @ params["w0"])
    deviation = jnp.mean(jnp.std(h, axis=0))
    h = h.at[:, 0].set(deviation)
    return jnp.mean((jnp.sum(h @ params["w1"], -1) - y) ** 2)


@pytest.mark.parametrize(
    "loss_fn",
    [
        contrastive,
        decorrelated,
        graph_attention,
        set_of_points,
        critic,
        residual,
        autoencoder,
        minibatch_deviation,
    ],
)
def test_mixing_on_purpose(loss_fn):
    assert not diagnostics.check_examples(loss_fn, HIDDEN, X, Y)


class Convolving(nn.Module):
    has_channels: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,))(x[..., None] if self.has_channels else x))
        return nn.Dense(C)(x.reshape(len(x), -1))


@pytest.mark.parametrize(("has_channels", "expected"), [(False, SUSPECT), (True, [])])
def test_convolution_along_the_examples(has_channels, expected):
    model = Convolving(has_channels)
    params = jax.jit(model.init)(jax.random.key(0), X)

    def loss_fn(params, x, y):
        return entropy(model.apply(params, x), y)

    assert kinds(diagnostics.check_examples(loss_fn, params, X, LABELS)) == expected


# Sums over the batch.


def losses_of(params, x, y):
    return (jnp.tanh(x @ params["w0"]) @ params["w1"][:, 0] - y) ** 2


def added_in_a_scan(params, x, y):
    def add(total, xy):
        return total + losses_of(params, xy[0][None], xy[1][None])[0], None

    return lax.scan(add, jnp.zeros(()), (x, y))[0]


def scanned(params, x, y):
    losses = lax.map(lambda xy: losses_of(params, xy[0][None], xy[1][None]), (x, y))
    return jnp.sum(losses)


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda p, x, y: jnp.sum(losses_of(p, x, y)),
        lambda p, x, y: 0.5 * jnp.sum(losses_of(p, x, y)) + 1e-3 * jnp.sum(p["w0"] ** 2),
        lambda p, x, y: jnp.sum(jax.vmap(losses_of, (None, 0, 0))(p, x[:, None], y[:, None])),
        lambda p, x, y: -jnp.sum(jax.nn.log_softmax(x @ p["w0"])[:, 0]) + 0 * jnp.sum(y),
        lambda p, x, y: jnp.mean(jnp.sum((x @ p["w0"] - y[:, None]) ** 2, axis=0)),
        added_in_a_scan,
        scanned,
    ],
    ids=["sum", "half a sum", "vmap", "cross-entropy", "sum of columns", "scan", "map"],
)
def test_sum_over_examples(loss_fn):
    findings = diagnostics.check_examples(loss_fn, HIDDEN, X, Y)
    assert kinds(findings) == [("sum_over_examples", "warning")]
    assert findings[0].evidence["examples"] == N
    twice = [jnp.concatenate([data, data]) for data in (X, Y)]
    data_terms = [float(loss_fn(HIDDEN, *data)) for data in (twice, (X, Y))]
    assert data_terms[0] > 1.5 * data_terms[1]
    assert not diagnostics.check_examples(lambda p, x, y: loss_fn(p, x, y) / N, HIDDEN, X, Y)


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda p, x, y: 10 * jnp.mean(losses_of(p, x, y)) + jnp.sum(p["w0"] ** 2),
        lambda p, x, y: (
            jnp.sum(losses_of(p, x, y), where=y > 0) / jnp.sum(jnp.where(y > 0, 1.0, 0.0))
        ),
        lambda p, x, y: jnp.sum(losses_of(p, x, y)) * (1 / N),
        lambda p, x, y: jnp.mean(jnp.sum((x @ p["w0"]) ** 2, axis=-1)) + 0 * jnp.sum(y),
        lambda p, x, y: jnp.sum(losses_of(p, x, y) * jax.nn.softmax(y)),
        lambda p, x, y: jnp.average(losses_of(p, x, y), weights=jnp.exp(y)),
    ],
    ids=["mean", "masked mean", "factor", "sum of features", "shares", "weighted mean"],
)
def test_mean_over_examples(loss_fn):
    assert not diagnostics.check_examples(loss_fn, HIDDEN, X, Y)


def test_keys_among_the_data():
    def loss_fn(params, x, y, key, keys):
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0)
        noise = jax.vmap(lambda key: jax.random.normal(key, (D,)))(keys)
        return entropy(jnp.tanh((x + noise) @ params["w0"]) @ params["w1"], y)

    key = jax.random.key(0)
    batch = (X, LABELS, key, jax.random.split(key, N))
    assert not diagnostics.check_examples(loss_fn, HIDDEN, *batch)
    assert not diagnostics.check_shapes(loss_fn, HIDDEN, *batch)
    grid = jax.random.split(key, (N, T))
    assert not diagnostics.check_examples(
        lambda p, x, y, grid: loss_fn(p, x, y, grid[0, 0], grid[:, 0]), HIDDEN, X, LABELS, grid
    )


def test_wrong_arguments():
    with pytest.raises(ValueError, match="check_examples: loss_fn must be a function"):
        diagnostics.check_examples(3, {}, X)
    with pytest.raises(ValueError, match="check_shapes: loss_fn must be a function"):
        diagnostics.check_shapes(3, {}, X)
