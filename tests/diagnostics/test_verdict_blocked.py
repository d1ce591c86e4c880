"""Operations that pass no gradient on: found where they keep something from learning by mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

WIDTH, SAMPLES, CLASSES = 8, 16, 4
X = jax.random.normal(jax.random.key(1), (SAMPLES, WIDTH))
LABELS = jnp.arange(SAMPLES) % CLASSES


def weights(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) * (2 / shape[-2]) ** 0.5


def params(*names):
    shapes = {"head": (WIDTH, CLASSES), "codes": (CLASSES, WIDTH), "router": (WIDTH, 2)}
    shapes["experts"] = (2, WIDTH, WIDTH)
    return {name: weights(i, *shapes.get(name, (WIDTH, WIDTH))) for i, name in enumerate(names)}


def cross_entropy(logits):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(SAMPLES), LABELS])


def between_layers(cut):
    def loss_fn(p, x):
        hidden = jax.nn.relu(x @ p["first"])
        return jnp.mean((cut(hidden) @ p["head"]) ** 2)

    return loss_fn


def one_hot_of_argmax(h):
    return jax.nn.one_hot(jnp.argmax(h, -1), WIDTH)


BETWEEN_LAYERS = {
    "stop_gradient": (lax.stop_gradient, "stop_gradient"),
    "round": (jnp.round, "round"),
    "floor": (lambda h: jnp.floor(4 * h) / 4, "floor"),
    "sign": (lambda h: jnp.sign(h - 0.5), "sign"),
    "argmax": (one_hot_of_argmax, "argmax"),
    "argsort": (lambda h: jnp.argsort(h, -1).astype(jnp.float32), "argsort"),
    "top_k": (lambda h: lax.top_k(h, WIDTH)[1].astype(jnp.float32), "top_k"),
    "integer": (lambda h: h.astype(jnp.int32).astype(jnp.float32), "astype(int32)"),
    "comparison": (lambda h: (h > 0.5).astype(jnp.float32), ">"),
    "where": (lambda h: jnp.where(h < 0.5, 0.0, 1.0), "<"),
    "wrong straight-through": (lambda h: lax.stop_gradient(h + jnp.round(h) - h), "stop_gradient"),
    "two steps": (lambda h: jnp.round(lax.stop_gradient(h)), "stop_gradient"),
}


@pytest.mark.parametrize("name", BETWEEN_LAYERS)
def test_cut_between_layers_is_named_with_its_line(name):
    cut, operation = BETWEEN_LAYERS[name]
    report = diagnostics.signal_report(between_layers(cut), params("first", "head"), X)
    assert report.kind == "blocked", report.verdict
    assert report.diagnosis.layers == ("first",)
    (idle,) = report.idle_parameters
    assert (idle.name, idle.reason, idle.operation) == ("first", "blocked", operation)
    assert idle.source.startswith("test_verdict_blocked.py:")
    sentence, cure = report.verdict.split(" To fix it, ")
    assert f"no gradient passes through `{operation}` at test_verdict_blocked.py:" in sentence
    assert "'first' does not learn" in sentence
    assert "initialize" not in cure


def test_cure_makes_the_finding_go_away():
    straight_through = between_layers(lambda h: h + lax.stop_gradient(jnp.round(h) - h))
    report = diagnostics.signal_report(straight_through, params("first", "head"), X)
    assert (report.kind, report.idle_parameters) == ("healthy", ()), report.verdict


def test_loss_of_decisions_is_blocked_for_all_layers():
    def accuracy(p, x):
        logits = jax.nn.relu(x @ p["first"]) @ p["head"]
        return 1 - jnp.mean(jnp.argmax(logits, -1) == LABELS)

    report = diagnostics.signal_report(accuracy, params("first", "head"), X)
    assert (report.kind, report.learns) == ("blocked", False)
    assert report.diagnosis.layers == ("first", "head")
    assert "`argmax`" in report.verdict
    assert "softmax" in report.verdict


def test_one_of_two_branches_that_is_rounded_is_found():
    def loss_fn(p, x):
        left, right = jnp.round(jnp.tanh(x @ p["left"])), jnp.tanh(x @ p["right"])
        return cross_entropy((left + right) @ p["head"])

    report = diagnostics.signal_report(loss_fn, params("left", "right", "head"), X)
    assert (report.kind, report.diagnosis.layers) == ("blocked", ("left",))


def test_router_that_only_chooses_does_not_learn():
    """The weights of the choice must take part in the result."""

    def loss_fn(p, x, weighs):
        chances = jax.nn.softmax(x @ p["router"])
        choice = jnp.argmax(chances, -1)
        hidden = jnp.einsum("si,sio->so", x, p["experts"][choice])
        if weighs:
            hidden = hidden * jnp.max(chances, -1, keepdims=True)
        return cross_entropy(jax.nn.relu(hidden) @ p["head"])

    given = params("router", "experts", "head")
    report = diagnostics.signal_report(loss_fn, given, X, False)
    assert report.kind == "blocked"
    assert [one.name for one in report.idle_parameters] == ["router"]
    assert diagnostics.signal_report(loss_fn, given, X, True).idle_parameters == ()


def test_message_stays_short_for_many_parameters():
    given = {f"layer_{i:060}": weights(i, WIDTH, WIDTH) for i in range(16)}

    def loss_fn(p, x):
        for weight in p.values():
            x = jax.nn.relu(jnp.round(4 * x) / 4 @ weight)
        return jnp.mean(x**2)

    report = diagnostics.signal_report(loss_fn, given, X)
    assert report.kind == "blocked"
    assert len(report.idle_parameters) == 15
    assert len(str(report)) < 10 * 80
    assert "and 12 more" in report.verdict


# On purpose.


def teacher(p, x):
    """A moving average of the network itself, kept among the parameters."""
    target = lax.stop_gradient(jnp.tanh(x @ p["teacher"]))
    return jnp.mean((jnp.tanh(x @ p["online"]) @ p["last"] - target) ** 2)


def target_network(p, x):
    now, then = x[::2], x[1::2]
    target = 1 + 0.9 * jnp.max(jax.nn.relu(then @ lax.stop_gradient(p["target"])), -1)
    values = jax.nn.relu(now @ p["online"]) @ p["head"]
    return jnp.mean((values[:, 0] - target) ** 2)


def double_q_learning(p, x):
    now, then = x[::2], x[1::2]
    best = jnp.argmax(jax.nn.relu(then @ p["online"]), -1)
    future = lax.stop_gradient(jax.nn.relu(then @ p["target"]))
    value = jnp.max(jax.nn.relu(now @ p["online"]) @ p["last"], -1)
    return jnp.mean((value - future[jnp.arange(len(best)), best] - 1) ** 2)


def vector_quantization(p, x):
    z = x @ p["encoder"]
    distances = jnp.sum((z[:, None] - p["codes"][None]) ** 2, -1)
    code = p["codes"][jnp.argmin(distances, -1)]
    passed = z + lax.stop_gradient(code - z)
    commitment = jnp.mean((lax.stop_gradient(z) - code) ** 2)
    return jnp.mean((passed @ p["decoder"] - x) ** 2) + commitment


def averaged_codes(p, x):
    """The codes are averages of what they stand for, and not trained."""
    z = x @ p["encoder"]
    distances = jnp.sum((z[:, None] - p["codes"][None]) ** 2, -1)
    code = lax.stop_gradient(p["codes"][jnp.argmin(distances, -1)])
    passed = z + lax.stop_gradient(code - z)
    return jnp.mean((passed @ p["decoder"] - x) ** 2) + jnp.mean((z - code) ** 2)


def siamese(p, x):
    def embed(x):
        return jnp.tanh(x @ p["online"])

    one, other = embed(x), embed(x[::-1] * 0.9)
    return -jnp.mean(jnp.sum((one @ p["last"]) * lax.stop_gradient(other), -1))


def policy_gradient(p, x):
    trunk = jnp.tanh(x @ p["trunk"])
    value = jnp.mean(trunk @ p["critic"], -1)
    advantage = lax.stop_gradient(x[:, 0] - value)
    chosen = jax.nn.log_softmax(trunk @ p["head"])[jnp.arange(SAMPLES), LABELS]
    return -jnp.mean(chosen * advantage) + jnp.mean((value - x[:, 0]) ** 2)


def discriminator(p, x):
    fake = lax.stop_gradient(jnp.tanh(x[::-1] @ p["generator"]))
    both = jnp.concatenate([x, fake])
    score = jnp.mean(jax.nn.relu(both @ p["first"]) @ p["last"], -1)
    return jnp.mean(jax.nn.softplus(jnp.where(jnp.arange(2 * SAMPLES) < SAMPLES, -score, score)))


def frozen_weights(p, x):
    hidden = jax.nn.relu(x @ lax.stop_gradient(p["backbone"]))
    return cross_entropy(jax.nn.relu(hidden @ p["last"]) @ p["head"])


def frozen_embedding(p, x):
    del x
    embedded = lax.stop_gradient(p["embedding"])[LABELS]
    return cross_entropy(jax.nn.relu(embedded @ p["last"]) @ p["head"])


def straight_through(p, x):
    soft = jax.nn.softmax(x @ p["router"])
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), 2)
    gate = soft + lax.stop_gradient(hard - soft)
    return cross_entropy(jnp.einsum("se,si,eio->so", gate, x, p["experts"]) @ p["head"])


@jax.custom_vjp
def quantized(w):
    return jnp.round(8 * w) / 8


quantized.defvjp(lambda w: (quantized(w), None), lambda _, g: (g,))


def quantization_aware(p, x):
    hidden = jax.nn.relu(x @ quantized(p["first"]))
    return cross_entropy(hidden @ quantized(p["head"]))


def binary(p, x):
    signs = p["first"] + lax.stop_gradient(jnp.sign(p["first"]) - p["first"])
    return cross_entropy(jax.nn.relu(x @ signs / WIDTH**0.5) @ p["head"])


def masks(p, x):
    hidden = x @ p["first"]
    hidden = jnp.where(hidden > 0, hidden, 0.1 * hidden)
    keep = jax.random.bernoulli(jax.random.key(0), 0.9, hidden.shape)
    return cross_entropy(jnp.where(keep, hidden / 0.9, 0.0) @ p["head"])


def counter(p, x):
    warm = jnp.where(p["count"] > 10.0, 1.0, 0.1)
    return warm * cross_entropy(jax.nn.relu(x @ p["first"]) @ p["head"])


def pseudo_labels(p, x):
    """The teacher's choices are the labels."""
    labels = jnp.argmax(jax.nn.softmax(jnp.tanh(x @ p["teacher"])), -1)
    logits = jax.nn.relu(x @ p["online"]) @ p["last"]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(SAMPLES), labels])


def running_statistics(p, x):
    z = x @ p["first"]
    z = (z - jnp.mean(z, 0)[None]) / jnp.std(z, 0)[None]
    drift = jnp.mean(lax.stop_gradient(p["mean"]) - jnp.mean(x, 0))
    return cross_entropy(jax.nn.relu(z) @ p["head"]) + 0 * drift


def adapters(p, x):
    hidden = jax.nn.relu(x @ p["first"] + x @ p["down"] @ p["up"])
    return cross_entropy(hidden @ p["head"])


ON_PURPOSE = {
    teacher: ("teacher", "online", "last"),
    target_network: ("target", "online", "head"),
    double_q_learning: ("target", "online", "last"),
    vector_quantization: ("encoder", "codes", "decoder"),
    averaged_codes: ("encoder", "codes", "decoder"),
    siamese: ("online", "last"),
    policy_gradient: ("trunk", "critic", "head"),
    discriminator: ("generator", "first", "last"),
    frozen_weights: ("backbone", "last", "head"),
    frozen_embedding: ("embedding", "last", "head"),
    straight_through: ("router", "experts", "head"),
    quantization_aware: ("first", "head"),
    binary: ("first", "head"),
    masks: ("first", "head"),
    counter: ("first", "head"),
    pseudo_labels: ("teacher", "online", "last"),
    running_statistics: ("first", "head"),
    adapters: ("first", "down", "up", "head"),
}
IDLE = {
    teacher: {"teacher": "frozen"},
    target_network: {"target": "frozen"},
    double_q_learning: {"target": "frozen"},
    averaged_codes: {"codes": "frozen"},
    discriminator: {"generator": "frozen"},
    frozen_weights: {"backbone": "frozen"},
    frozen_embedding: {"embedding": "frozen"},
    counter: {"count": "frozen"},
    pseudo_labels: {"teacher": "frozen"},
    running_statistics: {"mean": "frozen"},
    adapters: {"down": "zero_gradient"},
}


@pytest.mark.parametrize("loss_fn", ON_PURPOSE, ids=lambda function: function.__name__)
def test_what_is_cut_off_on_purpose_is_no_finding(loss_fn):
    given = params(*ON_PURPOSE[loss_fn])
    if loss_fn is counter:
        given["count"] = jnp.array(3.0)
    if loss_fn is running_statistics:
        given["mean"] = jnp.zeros(WIDTH)
    if loss_fn is adapters:
        given["up"] = jnp.zeros((WIDTH, WIDTH))
    report = diagnostics.signal_report(loss_fn, given, X)
    assert report.kind == "healthy", report.verdict
    gradient = jax.jit(jax.grad(loss_fn))(given, X)
    without = {name for name, leaf in gradient.items() if not np.any(leaf)}
    found = {one.name: one.reason for one in report.idle_parameters}
    assert found == IDLE.get(loss_fn, {})
    assert found.keys() == without
    for name in without:
        assert f"No gradient reaches '{name}'" in report.verdict


# A loss without a gradient.


def compared_with_itself(p, x):
    del p
    return jnp.mean((x - x) ** 2)


def single_class(p, x):
    return -jnp.mean(jax.nn.log_softmax(jax.nn.relu(x @ p["first"]) @ p["head"][:, :1])[:, 0])


def always_clipped(p, x):
    return jnp.clip(1e4 * cross_entropy(jax.nn.relu(x @ p["first"]) @ p["head"]), 0, 1)


def forgets_the_output(p, x):
    output = jax.nn.relu(x @ p["first"]) @ p["head"]
    del output
    return jnp.mean(x**2)


@pytest.mark.parametrize(
    ("loss_fn", "kind"),
    [
        (compared_with_itself, "zero_loss"),
        (single_class, "zero_loss"),
        (always_clipped, "constant_loss"),
        (forgets_the_output, "constant_loss"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_loss_without_a_gradient(loss_fn, kind):
    report = diagnostics.signal_report(loss_fn, params("first", "head"), X)
    assert report.kind == kind, report.verdict
    assert not report.learns
    assert len(report.idle_parameters) == 2
    assert " To fix it, " in report.verdict


def test_integer_weights_are_listed():
    given = {"first": weights(0, WIDTH, WIDTH), "head": jnp.ones((WIDTH, CLASSES), jnp.int8)}
    report = diagnostics.signal_report(
        lambda p, x: jnp.mean((jax.nn.relu(x @ p["first"]) @ p["head"].astype(x.dtype)) ** 2),
        given,
        X,
    )
    assert [(one.name, one.reason) for one in report.idle_parameters] == [
        ("head", "integer_parameter")
    ]


def test_loss_without_layers_is_reported_if_nothing_learns():
    report = diagnostics.signal_report(lambda p: jnp.sum(jnp.round(p)), jnp.ones(3))
    assert (report.kind, report.layers) == ("blocked", ())
    assert "'params' does not learn" in report.verdict


# Inputs.


@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize("normalizes", [False, True])
def test_pixels_of_0_to_255_are_to_be_standardized(scale, normalizes):
    x = scale * jax.random.uniform(jax.random.key(0), (SAMPLES, WIDTH))

    def loss_fn(p, x):
        z = x @ p["first"]
        if normalizes:
            z = (z - jnp.mean(z, 0)[None]) / jnp.sqrt(jnp.var(z, 0)[None] + 1e-5)
        return cross_entropy(jax.nn.relu(z) @ p["head"])

    report = diagnostics.signal_report(loss_fn, params("first", "head"), x)
    assert report.kind == ("healthy" if scale == 1 else "unstandardized"), report.verdict
    if scale > 1:
        assert report.diagnosis.layers == ("first",)
        assert "standardize the inputs" in report.verdict


@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_units_that_pixels_saturate_are_blamed_on_the_pixels(factor):
    """Unless it is the weights that are too large."""
    x = 255 * jax.random.uniform(jax.random.key(0), (SAMPLES, WIDTH))

    def loss_fn(p, x):
        return cross_entropy(jnp.tanh(x @ p["first"]) @ p["head"])

    given = params("first", "head")
    given["first"] *= factor / 2**0.5
    report = diagnostics.signal_report(loss_fn, given, x)
    assert report.kind == ("unstandardized" if factor == 1 else "saturated"), report.verdict
    assert report.diagnosis.layers == ("first",)
    if factor == 1:
        assert "As a result, in layer 'first', the tanh is flat" in report.verdict
        assert report.verdict.count(" To fix it, ") == 1


def test_large_embeddings_are_not_inputs():
    """An embedding times the root of its width, as in the transformer."""

    def loss_fn(p, tokens):
        embedded = 100 * p["codes"][tokens]
        z = embedded @ p["first"]
        z = (z - jnp.mean(z, -1, keepdims=True)) / jnp.std(z, -1, keepdims=True)
        return cross_entropy(jax.nn.relu(z) @ p["head"])

    given = params("codes", "first", "head")
    assert diagnostics.signal_report(loss_fn, given, LABELS).kind == "healthy"
