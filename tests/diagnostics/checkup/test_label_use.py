"""Labels that enter a loss in another way than it is made for."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

from gradtx import diagnostics
from gradtx.diagnostics.checkup.label_use import _classes

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((48, 6)), jnp.float32)
LABELS = jnp.asarray(RNG.permutation(np.arange(48) % 4))
CODES = jax.nn.one_hot(LABELS, 4)
BINARY = (X[:, 0] > 0).astype(jnp.float32)
W = {"w": jnp.asarray(0.3 * RNG.standard_normal((6, 4)), jnp.float32)}
W1 = {"w": W["w"][:, :1]}


def found(loss_fn, params, *batch):
    return [
        (f.kind, f.severity, f.place) for f in diagnostics.check_labels(loss_fn, params, *batch)
    ]


# Predictions and labels that are swapped.


def written_out(labels, p):
    return -jnp.mean(jnp.sum(labels * jnp.log(p + 1e-8), -1))


def clipped(labels, p):
    return -jnp.mean(jnp.einsum("bc,bc->b", labels, jnp.log(jnp.clip(p, 1e-7, 1.0))))


def of_xlogy(labels, p):
    return -jnp.mean(jax.scipy.special.xlogy(labels, p + 1e-8))


@pytest.mark.parametrize("entropy", [written_out, clipped, of_xlogy])
def test_probabilities_and_labels_swapped(entropy):
    def loss_fn(params, x, codes):
        return entropy(jax.nn.softmax(x @ params["w"]), codes)

    def cured(params, x, codes):
        return entropy(codes, jax.nn.softmax(x @ params["w"]))

    (finding,) = diagnostics.check_labels(loss_fn, W, X, CODES)
    assert (finding.kind, finding.severity) == ("swapped_arguments", "error")
    assert finding.place == "argument args[1]"
    assert f"({entropy.__name__})" in finding.source
    assert finding.evidence["zeros"] == pytest.approx(0.75)
    assert not found(cured, W, X, CODES)


def test_logits_and_labels_swapped():
    def loss_fn(params, x, labels):
        return jnp.mean(optax.softmax_cross_entropy(jax.nn.one_hot(labels, 4), x @ params["w"]))

    def cured(params, x, labels):
        return jnp.mean(optax.softmax_cross_entropy(x @ params["w"], jax.nn.one_hot(labels, 4)))

    assert found(loss_fn, W, X, LABELS) == [("swapped_arguments", "error", "argument args[1]")]
    assert not found(cured, W, X, LABELS)


def binary(labels, p):
    return -jnp.mean(labels * jnp.log(p + 1e-7) + (1 - labels) * jnp.log(1 - p + 1e-7))


def clipped_binary(labels, p):
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    return -jnp.mean(labels * jnp.log(p) + (1 - labels) * jnp.log1p(-p))


@pytest.mark.parametrize("entropy", [binary, clipped_binary])
def test_binary_probabilities_and_labels_swapped(entropy):
    model = eqx.nn.MLP(6, "scalar", 8, 1, final_activation=jax.nn.sigmoid, key=jax.random.key(0))

    def loss_fn(model, x, y):
        return entropy(jax.vmap(model)(x), y)

    def cured(model, x, y):
        return entropy(y, jax.vmap(model)(x))

    assert found(loss_fn, model, X, BINARY) == [("swapped_arguments", "error", "argument args[1]")]
    assert not found(cured, model, X, BINARY)


def test_binary_logits_and_labels_swapped():
    model = linen.Dense(1)

    def loss_fn(params, x, y):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(y, model.apply(params, x)[:, 0]))

    def cured(params, x, y):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(model.apply(params, x)[:, 0], y))

    params = jax.jit(model.init)(jax.random.key(0), X)
    assert found(loss_fn, params, X, BINARY) == [("swapped_arguments", "error", "argument args[1]")]
    assert not found(cured, params, X, BINARY)


def test_both_directions_are_on_purpose():
    """Wang et al. 2019, symmetric cross-entropy for noisy labels."""

    def loss_fn(params, x, codes):
        p = jax.nn.softmax(x @ params["w"])
        return written_out(codes, p) + 0.1 * written_out(p, jnp.clip(codes, 1e-4, 1.0))

    assert not found(loss_fn, W, X, CODES)


def test_divergences_from_a_teacher():
    def forward(params, x, logits):
        log_p = jax.nn.log_softmax(x @ params["w"])
        return jnp.mean(optax.kl_divergence(log_p, jax.nn.softmax(logits)))

    def reverse(params, x, logits):
        z = x @ params["w"]
        difference = jax.nn.log_softmax(z) - jax.nn.log_softmax(logits)
        return jnp.mean(jnp.sum(jax.nn.softmax(z) * difference, -1))

    def written_apart(params, x, logits):
        p, q = jax.nn.softmax(x @ params["w"]), jax.nn.softmax(logits)
        return jnp.mean(jnp.sum(p * jnp.log(p), -1) - jnp.sum(p * jnp.log(q), -1))

    for loss_fn in (forward, reverse, written_apart):
        assert not found(loss_fn, W, X, 3 * X[:, :4])


def test_the_logarithm_of_a_feature():
    def loss_fn(params, x, y):
        features = jnp.log(jnp.clip(x, 1e-6, 1.0))
        return jnp.mean(optax.sigmoid_binary_cross_entropy((features @ params["w"])[:, 0], y))

    assert not found(loss_fn, W1, (X > 0).astype(jnp.float32), BINARY)


# Several labels at once.


def test_several_labels_in_a_softmax():
    def loss_fn(params, x, targets):
        return jnp.mean(optax.softmax_cross_entropy(x @ params["w"], targets))

    def cured(params, x, targets):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ params["w"], targets))

    targets = (X[:, :4] > 0).astype(jnp.float32)
    (finding,) = diagnostics.check_labels(loss_fn, W, X, targets)
    assert (finding.kind, finding.severity) == ("several_labels", "warning")
    assert finding.place == "argument args[1]"
    ones = np.sum(np.asarray(targets), 1)
    assert finding.evidence["share"] == pytest.approx(np.mean(ones > 1))
    assert finding.evidence["most"] == ones.max() > 2
    assert not found(cured, W, X, targets)
    assert not found(loss_fn, W, X, targets / np.maximum(ones, 1)[:, None])


def test_several_labels_in_flax():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)))

    def loss_fn(params, x, targets):
        log_p = jax.nn.log_softmax(nnx.merge(graph, params)(x))
        return -jnp.mean(jnp.einsum("bc,bc->b", targets, log_p))

    targets = (X[:, :4] > 0).astype(jnp.float32)
    assert found(loss_fn, params, X, targets) == [("several_labels", "warning", "argument args[1]")]
    assert not found(loss_fn, params, X, CODES)


def test_words_that_are_predicted_from_themselves():
    """Liang et al. 2018: a multinomial likelihood of what a user clicked on."""

    def loss_fn(params, clicks):
        logits = jnp.tanh(clicks @ params["in"]) @ params["out"]
        return -jnp.mean(jnp.sum(clicks * jax.nn.log_softmax(logits), -1))

    params = {"in": W["w"], "out": W["w"].T}
    assert not found(loss_fn, params, (X > 0).astype(jnp.float32))


def test_several_positives_of_a_contrastive_loss():
    """Khosla et al. 2020."""

    def loss_fn(params, x, labels):
        z = x @ params["w"]
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        positives = (labels[:, None] == labels[None]).astype(jnp.float32)
        log_p = jax.nn.log_softmax(z @ z.T / 0.2)
        return -jnp.mean(jnp.sum(positives * log_p, -1) / jnp.sum(positives, -1))

    assert not found(loss_fn, W, X, LABELS)


def test_soft_and_weighted_labels():
    def loss_fn(params, x, targets):
        return jnp.mean(optax.softmax_cross_entropy(x @ params["w"], targets))

    mixed = 0.3 * CODES + 0.7 * jnp.roll(CODES, 1, axis=0)
    weighted = CODES * jnp.array([[1.0, 2.0, 3.0, 1.0]])
    hidden = CODES * (X[:, :1] > 0).astype(jnp.float32)
    for targets in (mixed, weighted, hidden, optax.smooth_labels(CODES, 0.1)):
        assert not found(loss_fn, W, X, targets)


# Numbers of classes as targets of a regression.


def of_squares(params, x, y):
    return jnp.mean(((x @ params["w"])[:, 0] - y) ** 2)


def of_huber(params, x, y):
    return jnp.mean(optax.huber_loss((x @ params["w"])[:, 0], y.astype(jnp.float32)))


@pytest.mark.parametrize("loss_fn", [of_squares, of_huber])
def test_a_regression_on_numbers_of_classes(loss_fn):
    def cured(params, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y))

    with jax.numpy_dtype_promotion("standard"):
        (finding,) = diagnostics.check_labels(loss_fn, W1, X, LABELS)
        assert (finding.kind, finding.severity) == ("class_as_number", "warning")
        assert finding.place == "argument args[1]"
        assert finding.evidence["classes"] == 4
        as_floats = LABELS.astype(jnp.float32)
        assert found(loss_fn, W1, X, as_floats) == [
            ("class_as_number", "warning", "argument args[1]")
        ]
    assert not found(cured, W, X, LABELS)


def test_quantities_are_no_classes():
    counts = RNG.poisson(1.5, 48)
    grades = RNG.binomial(4, 0.6, 48)
    stars = np.asarray(LABELS) + 1
    halves = np.asarray(LABELS) / 2
    answers = np.asarray(BINARY)
    for y in (counts, grades, stars, halves, answers, np.asarray(X[:, 0] ** 2)):
        assert not found(of_squares, W1, X, jnp.asarray(y, jnp.float32))


def test_classes_are_equally_frequent():
    """The bound is the mean and the deviation of Pearson's statistic."""
    rng = np.random.default_rng(1)
    uniform = [_classes(rng.integers(0, 10, 200)) for _ in range(400)]
    expected = stats.chi2(9).cdf(9 + np.sqrt(18))
    assert np.mean([one == 10 for one in uniform]) == pytest.approx(expected, abs=0.06)
    counts = [_classes(rng.poisson(3.0, 200)) for _ in range(100)]
    assert counts == [None] * 100
