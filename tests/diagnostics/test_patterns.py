"""Softmax, sigmoid, one-hot and cross-entropy are recognized, whoever wrote them."""

import jax
import jax.numpy as jnp
import optax
import pytest

from gradtx.diagnostics.tracing.graph import Graph
from gradtx.diagnostics.tracing.patterns import sigmoids, softmaxes, source_of
from gradtx.diagnostics.tracing.targets import cross_entropies, one_hots

LOGITS = jnp.ones((5, 3))
LABELS = jnp.array([0, 1, 2, 0, 1])


def graph_of(function, *arguments):
    with jax.numpy_rank_promotion("allow"):
        return Graph(jax.make_jaxpr(function)(*arguments))


def by_hand(z):
    shares = jnp.exp(z - jnp.max(z, -1, keepdims=True))
    return shares / jnp.sum(shares, -1, keepdims=True)


def by_product(z):
    return jnp.exp(z) * (1 / jnp.sum(jnp.exp(z), -1, keepdims=True))


@pytest.mark.parametrize(
    ("function", "made"),
    [
        (jax.nn.softmax, "probabilities"),
        (lambda z: jnp.exp(z) / jnp.sum(jnp.exp(z), -1, keepdims=True), "probabilities"),
        (by_hand, "probabilities"),
        (by_product, "probabilities"),
        (lambda z: jax.nn.softmax(z, where=z > 0), "probabilities"),
        (jax.nn.log_softmax, "log_probabilities"),
        (lambda z: z - jax.nn.logsumexp(z, -1, keepdims=True), "log_probabilities"),
        (lambda z: jax.nn.logsumexp(z, -1), "normalizer"),
    ],
)
def test_softmax_is_found_with_its_logits(function, made):
    graph = graph_of(lambda z: function(2 * z), LOGITS)
    (softmax,) = softmaxes(graph)
    assert softmax.number == 3
    assert softmax.logits.producer.name in ("mul", "select_n")
    assert softmax.entry.inputs[0] is softmax.logits
    # A softmax with `where` ends with a mask.
    end = graph.output.producer
    result = end.inputs[2] if end.name == "select_n" else graph.output
    assert source_of(getattr(softmax, made)) is source_of(result)


def test_what_is_no_softmax():
    def function(z):
        shares = jnp.exp(z) / jnp.sum(jnp.exp(2 * z), -1, keepdims=True)
        return jnp.sum(shares) + jnp.sum(z / jnp.sum(jnp.abs(z), -1, keepdims=True))

    assert not softmaxes(graph_of(function, LOGITS))


@pytest.mark.parametrize(
    ("function", "is_logarithm"),
    [
        (jax.nn.sigmoid, False),
        (lambda z: 1 / (1 + jnp.exp(-z)), False),
        (jax.nn.softplus, True),
        (jax.nn.log_sigmoid, True),
        (lambda z: jnp.log1p(jnp.exp(-jnp.abs(z))), True),
        (lambda z: jnp.log(1 + jnp.exp(-z)), True),
    ],
)
def test_sigmoid_is_found_with_its_logits(function, is_logarithm):
    graph = graph_of(function, LOGITS)
    (sigmoid,) = sigmoids(graph)
    assert sigmoid.logits is graph.arguments[0]
    assert sigmoid.is_logarithm is is_logarithm


def test_what_is_no_sigmoid():
    assert not sigmoids(graph_of(lambda z: jnp.log(2 + jnp.exp(z)) / (1 + z), LOGITS))


def test_one_hot_is_found_with_its_labels():
    def function(labels):
        return jax.nn.one_hot(labels, 4, dtype=bool) | (jnp.arange(4)[None] == labels[:, None])

    graph = graph_of(function, LABELS)
    codes = one_hots(graph)
    assert [(code.labels, code.classes) for code in codes] == 2 * [(graph.arguments[0], 4)]
    assert [code.node.inputs[code.position].shape for code in codes] == 2 * [(5, 1)]
    # The identity, and pairs of the same class, are no codes.
    assert not one_hots(
        graph_of(lambda y: jnp.eye(3, dtype=bool) | (y[:3, None] == y[None, :3]), LABELS)
    )


def picked(weights, x, y):
    return jnp.mean(jax.nn.log_softmax(x @ weights)[jnp.arange(5), y])


def of_probabilities(weights, x, y):
    return jnp.sum(jnp.log(jax.nn.softmax(x @ weights) + 1e-8) * jax.nn.one_hot(y, 3))


def of_one(weights, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(x @ weights, y)


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, x, y: optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean(),
        lambda w, x, y: optax.softmax_cross_entropy(x @ w, jax.nn.one_hot(y, 3)).mean(),
        lambda w, x, y: jnp.mean(jax.vmap(of_one, (None, 0, 0))(w, x, y)),
        lambda w, x, y: jnp.einsum(
            "bc,bc->", jax.nn.log_softmax(x @ w), jax.nn.one_hot(y, 3, dtype=x.dtype)
        ),
        picked,
        of_probabilities,
    ],
)
def test_cross_entropy_is_found_with_its_labels(loss):
    graph = graph_of(loss, jnp.ones((4, 3)), jnp.ones((5, 4)), LABELS)
    softmax_and_others = softmaxes(graph)
    (entropy,) = cross_entropies(graph, lambda v: v.depends & 1 != 0, softmax_and_others)
    assert entropy.softmax.logits.shape == (5, 3)
    met = entropy.labels if entropy.labels is not None else entropy.targets
    assert met.depends == 0b100


def test_distance_of_two_predictions_is_no_cross_entropy():
    def loss(weights, x):
        return -jnp.sum(jax.nn.softmax(x @ weights) * jax.nn.log_softmax(2 * x @ weights))

    graph = graph_of(loss, jnp.ones((4, 3)), jnp.ones((5, 4)))
    assert not cross_entropies(graph, lambda v: v.depends & 1 != 0, softmaxes(graph))
