"""`check_examples`: what the examples have in common and get back is named, a batch norm is not."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from gradtx import diagnostics

from .batches import HIDDEN, LABELS, WORDS, C, D, N, X, Y, entropy, kinds, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


SUSPECT = [("mixed_examples", "warning")]


def beside(h, pooled):
    return jnp.concatenate([h, jnp.broadcast_to(pooled, h.shape)], axis=-1)


# Each gets hidden features, and an axis along which it pools.
POOLINGS = {
    "centered": lambda h, axis: h - h.mean(axis, keepdims=True),
    "the largest": lambda h, axis: h + h.max(axis, keepdims=True),
    "the smallest": lambda h, axis: h * h.min(axis, keepdims=True),
    "excited": lambda h, axis: h * jax.nn.sigmoid(h.sum(axis, keepdims=True) / 10),
    "context": lambda h, axis: beside(h, h.mean(axis, keepdims=True)),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_features_of_all_examples_go_back_into_each(name):
    pool = POOLINGS[name]

    def loss_fn(params, x, y, axis=0):
        h = pool(jnp.tanh(x @ params["w0"]), axis)
        return entropy(jnp.tanh(h @ params["w1"]) @ params["w2"], y)

    width = pool(jnp.zeros((N, 8)), 0).shape[-1]
    params = {"w0": normal(D, 8), "w1": normal(width, 8), "w2": normal(8, C)}
    (finding,) = diagnostics.check_examples(loss_fn, params, X, LABELS)
    assert kinds([finding]) == SUSPECT
    assert (finding.place, finding.evidence["examples"]) == ("w0", N)
    # The prediction of an example depends on another one.
    gradient = jax.grad(lambda x: pool(jnp.tanh(x @ params["w0"]), 0)[0].sum())(X)
    assert bool(jnp.any(gradient[1:]))
    assert not diagnostics.check_examples(lambda *a: loss_fn(*a, axis=-1), params, X, LABELS)


class Pooling(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        context = nn.Dense(8)(jnp.max(x, axis=self.axis, keepdims=True))
        return nn.Dense(C)(jnp.mean(nn.relu(x + context), axis=1))


def test_pooling_in_flax_takes_the_wrong_axis():
    def found(axis):
        model = Pooling(axis)
        params = jax.jit(model.init)(jax.random.key(0), WORDS)

        def loss_fn(params, x, y):
            return entropy(model.apply(params, x), y)

        return diagnostics.check_examples(loss_fn, params, WORDS, LABELS)

    (finding,) = found(0)
    assert kinds([finding]) == [("mixed_examples", "error")]
    assert "Dense_0" in finding.place
    assert not found(1)


class Mapped(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self):
        a, b = jax.random.split(jax.random.key(0))
        self.first, self.last = eqx.nn.Linear(D, 8, key=a), eqx.nn.Linear(8, C, key=b)

    def __call__(self, x):
        h = jnp.tanh(self.first(x))
        return self.last(h - jax.lax.pmean(h, "batch"))


def test_a_mean_over_a_mapped_axis():
    def loss_fn(model, x, y):
        return entropy(jax.vmap(model, axis_name="batch")(x), y)

    assert kinds(diagnostics.check_examples(loss_fn, Mapped(), X, LABELS)) == SUSPECT


def test_a_maximum_of_the_batch_in_a_softmax_by_hand():
    def loss_fn(params, x, y, axis=0):
        logits = jnp.tanh(x @ params["w0"]) @ params["w1"]
        exponentials = jnp.exp(logits - logits.max(axis, keepdims=True))
        p = exponentials / exponentials.sum(-1, keepdims=True)
        return -jnp.mean(jnp.log(p)[jnp.arange(N), y])

    assert kinds(diagnostics.check_examples(loss_fn, HIDDEN, X, LABELS)) == SUSPECT
    for axis in (-1, None):
        assert not diagnostics.check_examples(
            lambda *a, axis=axis: loss_fn(*a, axis=axis), HIDDEN, X, LABELS
        )


# What compares examples on purpose.


def centered(h):
    return h - h.mean(0)


def written_batch_norm(params, h):
    variance = jnp.mean(h**2, 0) - jnp.mean(h, 0) ** 2
    return (h - jnp.mean(h, 0)) * jax.lax.rsqrt(variance + 1e-5) * params["scale"]


def mean_only_batch_norm(params, h):
    return centered(h) + params["shift"]


def whitened(params, h):
    z = centered(h)
    values, vectors = jnp.linalg.eigh(z.T @ z / N + 0.1 * jnp.eye(8))
    return z @ (vectors * values**-0.5) @ vectors.T


def minibatch_deviation(params, h):
    deviation = jnp.sqrt(jnp.mean(centered(h) ** 2, 0) + 1e-8).mean()
    return beside(h, deviation)[:, :8]


def minibatch_discrimination(params, h):
    distances = jnp.abs(h[:, None] - h[None]).sum(-1, keepdims=True)
    return h + jnp.exp(-distances).sum(1)


def quantized(params, h):
    scale = jnp.max(jnp.abs(h), axis=0) / 127
    return h + jax.lax.stop_gradient(jnp.round(h / scale) * scale - h)


LAYERS = (
    written_batch_norm,
    mean_only_batch_norm,
    whitened,
    minibatch_deviation,
    minibatch_discrimination,
    quantized,
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_layers_that_read_the_batch_on_purpose(layer):
    def loss_fn(params, x, y):
        return entropy(jnp.tanh(layer(params, jnp.tanh(x @ params["w0"]))) @ params["w1"], y)

    params = HIDDEN | {"scale": jnp.ones(8), "shift": jnp.zeros(8)}
    assert not diagnostics.check_examples(loss_fn, params, X, LABELS)


def barlow_twins(params, x, y):
    one, other = (centered(jnp.tanh(v @ params["w0"]) @ params["w1"]) for v in (x, x + y[:, None]))
    c = (one / one.std(0)).T @ (other / other.std(0)) / N
    return jnp.mean((c - jnp.eye(C)) ** 2)


def variance_and_covariance(params, x, y):
    z = centered(jnp.tanh(x @ params["w0"]) @ params["w1"])
    covariance = z.T @ z / (N - 1)
    return jnp.mean(jax.nn.relu(1 - z.std(0))) + jnp.sum(covariance**2) + jnp.mean(z[:, 0] * y)


def advantages(params, x, y):
    values = (jnp.tanh(x @ params["w0"]) @ params["w1"])[:, 0]
    advantage = y - values
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    return jnp.mean(values * jax.lax.stop_gradient(advantage)) + jnp.mean((values - y) ** 2)


def balanced_experts(params, x, y):
    gates = jax.nn.softmax(x @ params["w0"])
    shares = jnp.mean(jax.nn.one_hot(gates.argmax(-1), 8), axis=0)
    balance = 8 * jnp.sum(shares * gates.mean(0))
    return jnp.mean(((gates @ params["w1"])[:, 0] - y) ** 2) + 0.01 * balance


def relativistic(params, x, y):
    real, fake = ((jnp.tanh(v @ params["w0"]) @ params["w1"])[:, 0] for v in (x, x[::-1] * 2))
    scores = jnp.concatenate([real - fake.mean(), real.mean() - fake])
    return jnp.mean(jax.nn.softplus(-scores)) + 0 * jnp.sum(y)


def correlation(params, x, y):
    z = (jnp.tanh(x @ params["w0"]) @ params["w1"])[:, 0]
    z, y = z - z.mean(), y - y.mean()
    return -jnp.sum(z * y) / jnp.sqrt(jnp.sum(z**2) * jnp.sum(y**2))


def neural_process(params, x, y):
    points = jnp.concatenate([x, y[:, None]], axis=-1)
    summary = jnp.mean(jnp.tanh(points @ jnp.tile(params["w0"], (2, 1))[: D + 1]), axis=0)
    return jnp.mean(((summary + jnp.tanh(x @ params["w0"])) @ params["w1"][:, 0] - y) ** 2)


def one_task_of_maml(params, x, y):
    def inner(params, x, y):
        z = jnp.tanh(x @ params["w0"] + params["b0"])
        return jnp.mean(((z @ params["w1"])[:, 0] - y) ** 2)

    params = params | {"b0": jnp.zeros(8)}
    gradient = jax.jit(jax.grad(inner))(params, x, y)
    return inner(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), x, y)


OBJECTIVES = (
    barlow_twins,
    variance_and_covariance,
    advantages,
    balanced_experts,
    relativistic,
    correlation,
    neural_process,
    one_task_of_maml,
)


@pytest.mark.parametrize("loss_fn", OBJECTIVES, ids=lambda loss_fn: loss_fn.__name__)
def test_losses_that_compare_examples_on_purpose(loss_fn):
    assert not diagnostics.check_examples(loss_fn, HIDDEN, X, Y)


def test_a_set_is_one_example():
    def loss_fn(params, x, y):
        h = jnp.tanh(x @ params["w0"])
        h = jnp.tanh((h - h.mean(0)) @ params["w1"])
        return optax.softmax_cross_entropy_with_integer_labels(h.mean(0), y)

    assert not diagnostics.check_examples(loss_fn, HIDDEN, X, jnp.asarray(1))


def test_a_graph_has_neighbours():
    def loss_fn(params, adjacency, x, y):
        h = jnp.tanh(adjacency @ x @ params["w0"])
        return entropy((h + h.mean(0)) @ params["w1"], y)

    adjacency = jnp.eye(N) + jnp.roll(jnp.eye(N), 1, 0)
    assert not diagnostics.check_examples(loss_fn, HIDDEN, adjacency, X, LABELS)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(D, 8, rngs=rngs), nnx.Linear(8, C, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_bias=False, use_scale=False, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.relu(self.norm(self.first(x))))


def test_batch_norms_of_the_frameworks():
    graph, params, rest = nnx.split(Normed(nnx.Rngs(0)), nnx.Param, ...)

    def of_nnx(params, x, y):
        return entropy(nnx.merge(graph, params, rest, copy=True)(x), y)

    assert not diagnostics.check_examples(of_nnx, params, X, LABELS)
    layers = Mapped()
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(8, "batch", mode="batch")

    def of_equinox(model, state, x, y):
        def one(x, state):
            layers, norm = model
            h, state = norm(layers.first(x), state)
            return layers.last(jax.nn.relu(h)), state

        logits, _ = jax.vmap(one, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
            x, state
        )
        return entropy(logits, y)

    assert not diagnostics.check_examples(of_equinox, (layers, norm), state, X, LABELS)
