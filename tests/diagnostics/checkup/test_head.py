"""`check_head`: what a network's last layer makes of its input, and what the loss wants of it."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradtx import diagnostics

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((64, 8)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, 64))
CODES = jax.nn.one_hot(LABELS, 5)


def weights(*shapes, scale=1.0):
    return {
        f"w{i}": jnp.asarray(scale * RNG.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)
        for i, shape in enumerate(shapes)
    }


def kinds(findings):
    return [(one.kind, one.severity) for one in findings]


# The loss at the start.


def of_integers(logits):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS))


def of_codes(logits):
    return jnp.mean(optax.softmax_cross_entropy(logits, CODES))


def of_probabilities(logits):
    return -jnp.mean(jnp.sum(CODES * jnp.log(jax.nn.softmax(logits) + 1e-30), -1))


@pytest.mark.parametrize("loss_of", [of_integers, of_codes, of_probabilities])
def test_large_logits(loss_of):
    def loss_fn(params, x):
        return loss_of(jnp.tanh(x @ params["w0"]) @ params["w1"])

    params = weights((8, 16), (16, 5))
    params["w1"] = 40 * params["w1"]
    (finding,) = diagnostics.check_head(loss_fn, params, X)
    assert kinds([finding]) == [("large_logits", "warning")]
    logits = np.asarray(jnp.tanh(X @ params["w0"]) @ params["w1"], np.float64)
    shares = logits - logits.max(-1, keepdims=True)
    shares -= np.log(np.sum(np.exp(shares), -1, keepdims=True))
    assert finding.evidence["loss"] == pytest.approx(
        -shares[np.arange(64), LABELS].mean(), rel=1e-3
    )
    assert finding.evidence["spread"] == pytest.approx(
        np.sqrt(np.mean((logits - logits.mean(-1, keepdims=True)) ** 2)), rel=1e-4
    )
    assert finding.evidence["log_classes"] == pytest.approx(np.log(5))
    # The cure, and a head of he_normal.
    for factor in (finding.evidence["spread"], 40 / np.sqrt(2)):
        cured = params | {"w1": params["w1"] / factor}
        assert not diagnostics.check_head(loss_fn, cured, X)


def test_large_logits_that_are_right_are_healthy():
    def loss_fn(params, x, labels):
        logits = x @ params["w"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    params = {"w": 40 * weights((8, 5))["w0"]}
    trained = jnp.argmax(X @ params["w"], -1)
    assert not diagnostics.check_head(loss_fn, params, X, trained)
    assert diagnostics.check_head(loss_fn, params, X, (trained + 1) % 5)


def test_large_logits_of_two_classes():
    def loss_fn(params, x, y):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ params["w"], y))

    y = jnp.asarray(RNG.integers(0, 2, 64), jnp.float32)
    (finding,) = diagnostics.check_head(loss_fn, {"w": jnp.full(8, 9.0)}, X, y)
    assert finding.kind == "large_logits"
    z = np.asarray(X @ jnp.full(8, 9.0), np.float64)
    losses = [np.mean(np.logaddexp(0, s * z) - np.asarray(y) * s * z) for s in (1, -1)]
    assert finding.evidence["loss"] == pytest.approx(min(losses), rel=1e-4)
    assert not diagnostics.check_head(loss_fn, {"w": jnp.full(8, 0.3)}, X, y)


# Applied twice.


def binary(logits):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, CODES))


def binary_by_hand(logits):
    p = jax.nn.sigmoid(logits)
    return -jnp.mean(CODES * jnp.log(p + 1e-7) + (1 - CODES) * jnp.log(1 - p + 1e-7))


@pytest.mark.parametrize(
    ("first", "loss_of"),
    [
        (jax.nn.softmax, of_integers),
        (jax.nn.softmax, of_codes),
        (jax.nn.softmax, of_probabilities),
        (lambda z: jnp.clip(jax.nn.softmax(z), 1e-7, 1), of_codes),
        (jax.nn.sigmoid, of_codes),
        (jax.nn.sigmoid, binary),
        (jax.nn.sigmoid, binary_by_hand),
        (jax.nn.softmax, binary),
    ],
)
def test_softmax_of_what_is_one_already(first, loss_of):
    def loss_fn(params, x):
        z = x @ params["w0"]
        outputs = first(z)
        return loss_of(outputs)

    (finding,) = diagnostics.check_head(loss_fn, weights((8, 5)), X)
    assert kinds([finding]) == [("double_softmax", "error")]
    assert "test_head.py" in finding.evidence["first_at"]
    assert "test_head.py" in finding.evidence["second_at"]
    assert finding.evidence["first_at"] != finding.evidence["second_at"]
    assert finding.source == finding.evidence["first_at"]


@pytest.mark.parametrize(
    "loss_of",
    [
        of_codes,
        binary,
        binary_by_hand,
        lambda z: of_codes(z / 0.07),
        lambda z: of_codes(jax.nn.log_softmax(z)),
        lambda z: of_codes(jnp.log(jax.nn.softmax(z) + 1e-8)),
        lambda z: jnp.mean((jax.nn.softmax(z) - CODES) ** 2),
        lambda z: jnp.mean(optax.sigmoid_focal_loss(z, CODES)),
    ],
)
def test_one_softmax_is_healthy(loss_of):
    params = weights((8, 5), scale=0.1)
    assert not diagnostics.check_head(lambda params, x: loss_of(x @ params["w0"]), params, X)


def test_softmax_inside_of_the_network_is_none_of_the_head():
    def loss_fn(params, x):
        gates = jax.nn.softmax(x @ params["w0"])
        experts = jnp.einsum("nd,edo->eno", x, params["w1"].reshape(5, 8, 5))
        return of_codes(jnp.einsum("ne,eno->no", gates, experts))

    assert not diagnostics.check_head(loss_fn, weights((8, 5), (8, 25)), X)


# Targets out of range.


@pytest.mark.parametrize(
    ("last", "targets", "ends"),
    [
        (jnp.tanh, 9 * X[:, :3], (-1, 1)),
        (jax.nn.sigmoid, X[:, :3], (0, 1)),
        (jax.nn.softmax, 3 * X[:, :3], (0, 1)),
        (jax.nn.relu, X[:, :3], (0, np.inf)),
        (jax.nn.relu6, 9 + X[:, :3], (0, 6)),
        (jax.nn.softplus, X[:, :3], (0, np.inf)),
        (lambda z: 2 * jax.nn.sigmoid(z) - 1, 5 * X[:, :3], (-1, 1)),
        (lambda z: jnp.exp(-z), X[:, :3], (0, np.inf)),
    ],
    ids=["tanh", "sigmoid", "softmax", "relu", "relu6", "softplus", "scaled", "exp"],
)
@pytest.mark.parametrize("distance", [jnp.square, jnp.abs, lambda d: optax.huber_loss(d)])
def test_targets_beyond_the_last_nonlinearity(last, targets, ends, distance):
    def loss_fn(params, x, y):
        return jnp.mean(distance(last(x @ params["w0"]) - y))

    params = weights((8, 3))
    (finding,) = diagnostics.check_head(loss_fn, params, X, targets)
    assert kinds([finding]) == [("target_out_of_range", "error")]
    assert finding.place == "argument args[1]"
    assert (finding.evidence["low"], finding.evidence["high"]) == pytest.approx(ends)
    assert finding.evidence["lowest_target"] == pytest.approx(float(jnp.min(targets)))
    # Both cures.
    low, high = max(ends[0], -1), min(ends[1], 9)
    inside = low + (high - low) * jax.nn.sigmoid(targets)
    assert not diagnostics.check_head(loss_fn, params, X, inside)

    def without(params, x, y):
        return jnp.mean(distance(x @ params["w0"] - y))

    assert not diagnostics.check_head(without, params, X, targets)


def test_targets_of_another_order_of_magnitude():
    def loss_fn(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["w0"]) @ params["w1"] - y) ** 2)

    params = weights((8, 16), (16, 1))
    prices = 200_000 + 50_000 * X[:, :1]
    (finding,) = diagnostics.check_head(loss_fn, params, X, prices)
    assert kinds([finding]) == [("target_out_of_range", "warning")]
    size = np.sqrt(np.mean(np.asarray(prices, np.float64) ** 2))
    assert finding.evidence["size_of_targets"] == pytest.approx(size, rel=1e-5)
    for healthy in ((prices - prices.mean()) / prices.std(), 30 * X[:, :1]):
        assert not diagnostics.check_head(loss_fn, params, X, healthy)


@pytest.mark.parametrize("loss_of", [optax.sigmoid_binary_cross_entropy])
def test_binary_targets_of_minus_one_and_one(loss_of):
    def loss_fn(params, x, y):
        return jnp.mean(loss_of(x @ params["w"], y))

    params, y = {"w": jnp.full(8, 0.1)}, jnp.sign(X[:, 0])
    (finding,) = diagnostics.check_head(loss_fn, params, X, y)
    assert kinds([finding]) == [("target_out_of_range", "error")]
    assert "(y + 1) / 2" in finding.cure
    assert not diagnostics.check_head(loss_fn, params, X, (y + 1) / 2)

    def for_signs(params, x, y):
        return jnp.mean(jax.nn.softplus(-y * (x @ params["w"])))

    assert not diagnostics.check_head(for_signs, params, X, y)


# Nothing between two layers.


def chain(between, *, end=1):
    def loss_fn(params, x):
        z = x
        for i in range(3):
            z = z @ params[f"w{i}"]
            z = between[i](z) if i < len(between) else z
        return jnp.mean((z - x[:, :end]) ** 2)

    return loss_fn


def biased(z):
    return z + 0.1


def test_no_nonlinearity_at_all():
    params = weights((8, 16), (16, 16), (16, 1))
    (finding,) = diagnostics.check_head(chain([biased, biased]), params, X)
    assert kinds([finding]) == [("no_nonlinearity", "error")]
    assert finding.place == "w0, w1, w2"
    assert dict(finding.evidence) == {"pairs": 2, "layers": 3}
    assert not diagnostics.check_head(chain([jax.nn.relu, jax.nn.relu]), params, X)


def test_no_nonlinearity_between_two_layers():
    params = weights((8, 16), (16, 16), (16, 1))
    (finding,) = diagnostics.check_head(chain([jax.nn.relu, biased]), params, X)
    assert kinds([finding]) == [("no_nonlinearity", "warning")]
    assert finding.place == "w1, w2"


def dropped(z):
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, z.shape), 2 * z, 0)


@pytest.mark.parametrize(
    ("between", "is_linear"),
    [
        (dropped, True),
        (lambda z: z.reshape(64, 4, 4).transpose(0, 2, 1).reshape(64, 16), True),
        (lambda z: (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True), False),
        (lambda z: z * jax.nn.sigmoid(z), False),
        (lambda z: jnp.concatenate([z[:, :8], X], 1), False),
    ],
    ids=["dropout", "views", "norm", "silu", "concatenated"],
)
def test_what_is_a_nonlinearity(between, is_linear):
    def loss_fn(params, x, y):
        z = between(x @ params["w0"]) if is_linear else between(y @ params["w0"])
        return jnp.mean((z @ params["w1"] - x[:, :1]) ** 2)

    found = diagnostics.check_head(loss_fn, weights((8, 16), (16, 1)), X, X)
    assert bool(found) == is_linear


def low_rank(params, x):
    return jnp.mean((x @ params["w0"] + (x @ params["w1"]) @ params["w2"] - 1) ** 2)


def residual(params, x):
    z = x + x @ params["w0"]
    return jnp.mean((z + z @ params["w1"] - 1) ** 2)


def several_heads(params, x):
    z = x @ params["w0"]
    return jnp.mean((z @ params["w1"]) ** 2) + jnp.mean((z @ params["w2"] - 1) ** 2)


def over_tokens(params, x):
    tokens = x.reshape(8, 8, 8) @ params["w0"]
    return jnp.mean((jnp.einsum("btd,ts->bsd", tokens, params["w1"]) - 1) ** 2)


@pytest.mark.parametrize(
    ("loss_fn", "shapes"),
    [
        (low_rank, [(8, 8), (8, 2), (2, 8)]),
        # The rank may be as large as the output.
        (low_rank, [(8, 4), (8, 4), (4, 4)]),
        (residual, [(8, 8), (8, 8)]),
        (several_heads, [(8, 8), (8, 2), (8, 3)]),
        (over_tokens, [(8, 8), (8, 8)]),
    ],
)
def test_linear_on_purpose(loss_fn, shapes):
    assert not diagnostics.check_head(loss_fn, weights(*shapes), X)


class Convolutions(linen.Module):
    act: bool

    @linen.compact
    def __call__(self, x):
        for _ in range(2):
            x = linen.Conv(8, (3, 3))(x)
            x = linen.relu(x) if self.act else x
        x = x.reshape(x.shape[0], -1)
        return linen.Dense(5)(x)


def test_networks_of_frameworks():
    images = X.reshape(8, 8, 8, 1)
    for act in (True, False):
        network = Convolutions(act)
        params = jax.jit(network.init)(jax.random.key(0), images)

        def of_linen(params, x, network=network):
            logits = network.apply(params, x)
            return jnp.mean(optax.softmax_cross_entropy(logits, CODES[:8]))

        assert kinds(diagnostics.check_head(of_linen, params, images)) == (
            [] if act else [("no_nonlinearity", "error")]
        )
    keys = jax.random.split(jax.random.key(0))
    module = [eqx.nn.Linear(8, 16, key=keys[0]), eqx.nn.Linear(16, 5, key=keys[1])]

    def of_equinox(module, x, act):
        logits = jax.vmap(lambda x: module[1](act(module[0](x))))(x)
        return jnp.mean(optax.softmax_cross_entropy(logits, CODES))

    assert not diagnostics.check_head(of_equinox, module, X, jax.nn.relu)
    found = diagnostics.check_head(of_equinox, module, X, lambda z: z)
    assert kinds(found) == [("no_nonlinearity", "error")]
    graph, state = nnx.split(nnx.Linear(8, 5, rngs=nnx.Rngs(0)))

    def of_nnx(state, x, act):
        return jnp.mean(optax.softmax_cross_entropy(act(nnx.merge(graph, state)(x)), CODES))

    assert not diagnostics.check_head(of_nnx, state, X, lambda z: z)
    found = diagnostics.check_head(of_nnx, state, X, jax.nn.softmax)
    assert kinds(found) == [("double_softmax", "error")]


def test_likelihood_that_is_minimized():
    params = weights((8, 5), scale=0.3)
    (finding,) = diagnostics.check_head(lambda p, x: -of_codes(x @ p["w0"]), params, X)
    assert kinds([finding]) == [("wrong_sign", "error")]
    assert finding.place == "w0"


@pytest.mark.parametrize("loss_of", [of_integers, of_codes, binary])
def test_logits_that_cannot_be_negative(loss_of):
    params = weights((8, 5), scale=0.3)
    for bound in (jax.nn.relu, jnp.tanh):
        found = diagnostics.check_head(lambda p, x, f=bound: loss_of(f(x @ p["w0"])), params, X)
        assert kinds(found) == [("target_out_of_range", "error")]
        assert found[0].place == "w0"

    def capped(params, x):
        return loss_of(30 * jnp.tanh(x @ params["w0"] / 30))

    assert not diagnostics.check_head(capped, params, X)


def test_temperature_of_a_contrast():
    def loss_fn(params, x, temperature, order):
        z = x @ params["w0"]
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        logits = z @ z[order].T / temperature
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))

    params = weights((8, 32))
    # Whether the nearest example is the right one or not.
    for order in (jnp.arange(64), jnp.arange(64)[::-1]):
        (finding,) = diagnostics.check_head(loss_fn, params, X, jnp.asarray(1e-3), order)
        assert kinds([finding]) == [("large_logits", "warning")]
        assert "temperature" in finding.cure
        assert not diagnostics.check_head(loss_fn, params, X, jnp.asarray(0.2), order)


def test_softmax_over_a_single_class():
    def loss_fn(params, x, y):
        shares = jax.nn.softmax(x @ params["w0"])
        return -jnp.mean(y * jnp.log(shares + 1e-9))

    params, y = weights((8, 1)), jnp.sign(jnp.abs(X[:, :1]))
    (finding,) = diagnostics.check_head(loss_fn, params, X, y)
    assert finding.kind in ("zero_loss", "constant_loss")
    assert finding.place == "w0"
    assert not diagnostics.check_head(loss_fn, weights((8, 2)), X, jnp.tile(y, 2) / 2)
