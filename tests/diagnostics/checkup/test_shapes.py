"""`check_shapes`: what broadcasts by mistake and what is taken over a wrong axis is named."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradtx import diagnostics

N, D, C, T = 12, 6, 4, 5


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, Y, WORDS = normal(N, D), normal(N, seed=1), normal(N, T, D, seed=2)
LABELS = jnp.arange(N) % C
CODES = jax.nn.one_hot(LABELS, C)


def squared(params, x, y):
    return jnp.mean((x @ params - y) ** 2)


def huber(params, x, y):
    return jnp.mean(optax.huber_loss(x @ params - y))


def binary(params, x, y):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ params, (y > 0).astype(x.dtype)))


def binary_by_hand(params, x, y):
    p, y = jax.nn.sigmoid(x @ params), (y > 0).astype(x.dtype)
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def column_of_targets(params, x, y):
    return jnp.mean(jnp.abs((x @ params)[:, 0] - y))


@pytest.mark.parametrize("loss_fn", [squared, huber, binary, binary_by_hand])
def test_pairs_instead_of_a_difference(loss_fn):
    (finding,) = diagnostics.check_shapes(loss_fn, normal(D, 1), X, Y)
    assert (finding.kind, finding.severity) == ("broadcast_difference", "error")
    assert set(finding.evidence["shapes"]) == {f"({N}, 1)", f"({N},)"}
    assert finding.evidence["result"] == f"({N}, {N})"
    assert finding.place == "argument args[1]"
    assert "test_shapes.py" in finding.source
    cured = diagnostics.check_shapes(lambda p, x, y: loss_fn(p[:, 0], x, y), normal(D, 1), X, Y)
    assert not cured


@pytest.mark.parametrize("is_column", [True, False])
def test_rewards_and_values_of_a_target_network(is_column):
    def loss_fn(params, target, x, rewards):
        goals = rewards + 0.9 * jnp.max(x @ target, axis=-1)
        return jnp.mean((jnp.max(x @ params, axis=-1) - jax.lax.stop_gradient(goals)) ** 2)

    rewards = Y[:, None] if is_column else Y
    found = diagnostics.check_shapes(loss_fn, normal(D, 3), normal(D, 3, seed=3), X, rewards)
    assert [one.kind for one in found] == ["broadcast_difference"] * is_column


def test_column_of_targets():
    (finding,) = diagnostics.check_shapes(column_of_targets, normal(D, 1), X, Y[:, None])
    assert (finding.kind, finding.place) == ("broadcast_difference", "argument args[1]")
    assert not diagnostics.check_shapes(column_of_targets, normal(D, 1), X, Y)


def test_weights_of_examples():
    def loss_fn(params, x, y, weight):
        return jnp.mean(weight * (x @ params - y[:, None]) ** 2)

    (finding,) = diagnostics.check_shapes(loss_fn, normal(D, 1), X, Y, jnp.exp(Y))
    assert (finding.kind, finding.place) == ("broadcast_difference", "argument args[2]")
    assert not diagnostics.check_shapes(loss_fn, normal(D, 1), X, Y, jnp.exp(Y)[:, None])


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(8)(x)))


def with_linen():
    variables = jax.jit(Linen().init)(jax.random.key(0), X)
    return variables, lambda variables, x: Linen().apply(variables, x)


def with_nnx():
    graph, state = nnx.split(nnx.Linear(D, 1, rngs=nnx.Rngs(0)), nnx.Param)
    return state, lambda state, x: nnx.merge(graph, state)(x)


def with_equinox():
    model = eqx.nn.MLP(D, 1, 8, 1, key=jax.random.key(0))
    return model, lambda model, x: jax.vmap(model)(x)


@pytest.mark.parametrize("make", [with_linen, with_nnx, with_equinox])
def test_networks_with_one_output(make):
    params, apply = make()

    def loss_fn(params, x, y):
        return jnp.mean((apply(params, x) - y) ** 2)

    (finding,) = diagnostics.check_shapes(loss_fn, params, X, Y)
    assert finding.kind == "broadcast_difference"
    assert not diagnostics.check_shapes(loss_fn, params, X, Y[:, None])


def test_pairs_under_vmap():
    def loss_fn(params, x, y, axis):
        def error(x, y):
            return jnp.mean((x @ params - y) ** 2)

        return jnp.mean(jax.vmap(error, (0, axis))(x, y))

    (finding,) = diagnostics.check_shapes(loss_fn, normal(D), X, Y, None)
    assert finding.kind == "broadcast_difference"
    assert not diagnostics.check_shapes(loss_fn, normal(D), X, Y, 0)


def test_targets_without_an_axis_for_the_examples():
    def loss_fn(params, x, center, y):
        return jnp.mean((x @ params - center) ** 2) + 0 * jnp.sum(y)

    (finding,) = diagnostics.check_shapes(loss_fn, normal(D, C), X, normal(C), Y)
    assert (finding.kind, finding.severity) == ("broadcast_target", "warning")

    def normalized(params, x, center, y):
        return jnp.mean((jnp.tanh(x @ params - center) @ params.T - y[:, None] * x) ** 2)

    assert not diagnostics.check_shapes(normalized, normal(D, C), X, normal(C), Y)


def test_all_pairs_on_purpose():
    def differences(params, x, y):
        z = x @ params
        return jnp.mean((z[:, None] - z) ** 2) + 0 * jnp.sum(y)

    def energy(params, x, y):
        z = x @ params
        return 2 * jnp.mean(jnp.abs(z[:, None] - y)) - jnp.mean(jnp.abs(z[:, None] - z))

    def transport(params, x, y):
        costs = ((x @ params)[:, None] - y) ** 2
        return jnp.sum(costs * jax.lax.stop_gradient(jax.nn.softmax(-costs)))

    def kernel(params, x, y):
        z = x @ params
        return jnp.mean(jnp.exp(-((z - z.T) ** 2))) - jnp.mean(jnp.exp(-((z - y[None]) ** 2)))

    for loss_fn in (differences, energy, transport):
        assert not diagnostics.check_shapes(loss_fn, normal(D), X, Y)
    assert not diagnostics.check_shapes(kernel, normal(D, 1), X, Y)


@pytest.mark.parametrize(
    ("outputs", "y", "severity"),
    [(C, Y[:, None], "warning"), (1, CODES, "warning"), (N, Y, "error")],
    ids=["several outputs", "several targets", "as many outputs as examples"],
)
def test_targets_of_another_shape(outputs, y, severity):
    (finding,) = diagnostics.check_shapes(squared, normal(D, outputs), X, y)
    assert (finding.kind, finding.severity) == ("broadcast_target", severity)
    assert finding.evidence["shapes"] == [str((N, outputs)), str(y.shape)]


def quantiles(params, x, y):
    error = y[:, None] - x @ params
    levels = jnp.linspace(0.1, 0.9, C)
    return jnp.mean(jnp.maximum(levels * error, (levels - 1) * error))


def mixture(params, x, y):
    return -jnp.mean(jax.nn.logsumexp(-0.5 * (y[:, None] - x @ params) ** 2, axis=-1))


def ensemble(params, x, y):
    return jnp.mean((jax.vmap(lambda w: x @ w, in_axes=1)(params) - y) ** 2)


def experts(params, x, y):
    gates = jax.nn.softmax(x @ params[:, ::-1])
    return jnp.mean(jnp.sum(gates * (x @ params - y[:, None]) ** 2, axis=-1))


def codebook(params, x, y):
    distances = jnp.sum((x[:, None, :] - params.T[None]) ** 2, axis=-1)
    return jnp.mean(jnp.min(distances, axis=-1) * y**2)


@pytest.mark.parametrize("loss_fn", [quantiles, mixture, ensemble, experts, codebook])
def test_one_target_for_several_outputs_on_purpose(loss_fn):
    assert not diagnostics.check_shapes(loss_fn, normal(D, C), X, Y)


def log_softmax_of_codes(params, x, axis):
    return -jnp.mean(jnp.sum(CODES * jax.nn.log_softmax(x @ params, axis=axis), axis=-1))


def one_hot_labels(params, x, axis):
    p = jax.nn.softmax(x @ params, axis=axis)
    return -jnp.mean(jnp.sum(jax.nn.one_hot(LABELS, C) * jnp.log(p + 1e-7), axis=-1))


def picked_labels(params, x, axis):
    log_p = jax.nn.log_softmax(x @ params, axis=axis)
    return -jnp.mean(jnp.take_along_axis(log_p, LABELS[:, None], axis=-1))


def indexed_labels(params, x, axis):
    return -jnp.mean(jax.nn.log_softmax(x @ params, axis=axis)[jnp.arange(N), LABELS])


@pytest.mark.parametrize(
    "entropy", [log_softmax_of_codes, one_hot_labels, picked_labels, indexed_labels]
)
def test_softmax_over_another_axis_than_the_classes(entropy):
    def loss_fn(params, x, y):
        return entropy(params, x, 0) + 0 * jnp.sum(y)

    (finding,) = diagnostics.check_shapes(loss_fn, normal(D, C), X, Y)
    assert (finding.kind, finding.severity) == ("wrong_axis", "error")
    assert (finding.evidence["axis"], finding.evidence["class_axis"]) == (0, 1)
    assert not diagnostics.check_shapes(lambda p, x, y: entropy(p, x, -1), normal(D, C), X, Y)


@pytest.mark.parametrize(("axis", "is_wrong"), [(-1, False), (1, True)])
def test_softmax_over_time(axis, is_wrong):
    def loss_fn(params, x, y):
        log_p = jax.nn.log_softmax(x @ params, axis=axis)
        return -jnp.mean(jnp.take_along_axis(log_p, y[..., None], axis=-1))

    y = jnp.arange(N * T).reshape(N, T) % C
    findings = diagnostics.check_shapes(loss_fn, normal(D, C), WORDS, y)
    assert [(one.kind, one.evidence["axis"]) for one in findings] == [("wrong_axis", 1)] * is_wrong


@pytest.mark.parametrize(("axis", "is_wrong"), [(-1, False), (-2, True), (0, True)])
def test_attention_that_is_normalized_over_the_queries(axis, is_wrong):
    def loss_fn(params, x, y):
        q, k, v = (x @ w for w in params)
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / D**0.5, axis=axis)
        return jnp.mean((jnp.mean(weights @ v, axis=(1, 2)) - y) ** 2)

    findings = diagnostics.check_shapes(loss_fn, normal(3, D, D), WORDS, Y)
    assert [one.kind for one in findings] == ["wrong_axis"] * is_wrong
    if is_wrong:
        assert findings[0].evidence["key_axis"] == 2


def test_slots_and_clusters_compete_on_purpose():
    def slots(params, x, y):
        weights = jax.nn.softmax(params["slots"] @ jnp.swapaxes(x, 1, 2), axis=1)
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return jnp.mean((jnp.mean(weights @ x, axis=(1, 2)) - y) ** 2)

    def clusters(params, x, y):
        assigned = jax.nn.softmax(x @ params["slots"].T, axis=-1)
        return jnp.mean((jnp.mean(jnp.swapaxes(assigned, 1, 2) @ x, axis=(1, 2)) - y) ** 2)

    params = {"slots": normal(3, D)}
    assert not diagnostics.check_shapes(slots, params, WORDS, Y)
    assert not diagnostics.check_shapes(clusters, params, WORDS, Y)


@pytest.mark.parametrize("is_right", [True, False])
def test_heads_that_are_split_by_a_reshape(is_right):
    def split(x):
        if is_right:
            return x.reshape(N, T, 2, D // 2).swapaxes(1, 2)
        return x.reshape(N, 2, T, D // 2)

    def loss_fn(params, x, y):
        q, k, v = (split(x @ w) for w in params)
        z = jax.nn.softmax(q @ jnp.swapaxes(k, 2, 3) / 3**0.5) @ v
        return jnp.mean((jnp.mean(z, axis=(1, 2, 3)) - y) ** 2)

    findings = diagnostics.check_shapes(loss_fn, normal(3, D, D), WORDS, Y)
    assert [one.kind for one in findings] == ["wrong_axis"] * (not is_right)
    if findings:
        assert findings[0].evidence["result"] == [N, 2, T, D // 2]


def test_softmax_of_a_single_output():
    def loss_fn(params, x, y):
        p = jax.nn.softmax(x @ params, axis=-1)[:, 0]
        return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p + 1e-7))

    (finding,) = diagnostics.check_shapes(loss_fn, normal(D, 1), X, (Y > 0).astype(jnp.float32))
    assert finding.kind == "wrong_axis"


def test_contrastive_logits():
    def loss_fn(params, x, y):
        logits = (x @ params) @ ((x + y[:, None]) @ params).T
        labels = jnp.arange(N)
        losses = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(losses(logits, labels) + losses(logits.T, labels))

    assert not diagnostics.check_shapes(loss_fn, normal(D, C), X, Y)
    assert not diagnostics.check_up(loss_fn, normal(D, C), X, Y).at_least("error")
