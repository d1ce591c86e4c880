"""`check_parameters`: what does not learn is named, with the operation that keeps it from it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gradtx
from gradtx import diagnostics

X = jnp.asarray(np.random.default_rng(0).standard_normal((16, 4)), jnp.float32)


def weights(*shapes):
    rng = np.random.default_rng(1)
    return {
        f"w{i}": jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)
        for i, shape in enumerate(shapes)
    }


def two_layers(cut):
    def loss_fn(params, x):
        hidden = cut(jax.nn.relu(x @ params["w0"]))
        return jnp.mean((hidden @ params["w1"] - 1) ** 2)

    return loss_fn


def kinds(findings):
    return [finding.kind for finding in findings]


@pytest.mark.parametrize(
    ("cut", "operation", "severity"),
    [
        (lax.stop_gradient, "stop_gradient", "warning"),
        (jnp.round, "round", "error"),
        (lambda z: jnp.sign(z), "sign", "error"),
        (lambda z: z.astype(jnp.int32).astype(jnp.float32), "astype(int32)", "error"),
        (lambda z: (z > 0.5).astype(jnp.float32), ">", "error"),
        (lambda z: jax.nn.one_hot(jnp.argmax(z, -1), 8), "argmax", "error"),
    ],
    ids=["stop_gradient", "round", "sign", "astype", "gt", "argmax"],
)
def test_cut_is_named_with_its_line(cut, operation, severity):
    (finding,) = diagnostics.check_parameters(two_layers(cut), weights((4, 8), (8, 1)), X)
    assert (finding.kind, finding.severity, finding.place) == ("blocked", severity, "w0")
    assert finding.evidence["operation"] == operation
    assert finding.source.startswith("test_parameters.py:")
    assert f"`{operation}`" in finding.sentence


def test_straight_through_passes_a_gradient():
    def quantized(z):
        return z + lax.stop_gradient(jnp.round(z) - z)

    assert not diagnostics.check_parameters(two_layers(quantized), weights((4, 8), (8, 1)), X)

    @jax.custom_vjp
    def rounded(z):
        return jnp.round(z)

    rounded.defvjp(lambda z: (jnp.round(z), None), lambda _, g: (g,))
    assert not diagnostics.check_parameters(two_layers(rounded), weights((4, 8), (8, 1)), X)


def test_teacher_is_no_more_than_a_remark():
    def loss_fn(params, x):
        target = lax.stop_gradient(jnp.tanh(x @ params["w1"]))
        return jnp.mean((jnp.tanh(x @ params["w0"]) - target) ** 2)

    (finding,) = diagnostics.check_parameters(loss_fn, weights((4, 8), (4, 8)), X)
    assert (finding.kind, finding.severity, finding.place) == ("blocked", "remark", "w1")


def test_nothing_learns():
    def accuracy(params, x):
        return jnp.mean((x @ params["w0"] > 0).astype(jnp.float32))

    (finding,) = diagnostics.check_parameters(accuracy, weights((4, 8)), X)
    assert (finding.kind, finding.severity, finding.place) == ("blocked", "error", "w0")


def test_unused_parameters():
    params = weights((4, 8), (8, 1)) | {"old": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    (finding,) = diagnostics.check_parameters(two_layers(lambda z: z), params, X)
    assert (finding.kind, finding.place) == ("unused", "old/bias, old/kernel")
    assert finding.evidence["elements"] == 9, finding


def test_gradient_of_zero():
    def loss_fn(params, x):
        return jnp.mean((jnp.clip(x @ params["w0"], 50, 60) @ params["w1"]) ** 2)

    findings = diagnostics.check_parameters(loss_fn, weights((4, 8), (8, 1)), X)
    assert [(one.kind, one.place) for one in findings] == [("zero_gradient", "w0")]


@pytest.mark.parametrize("zero", ["w1", "gain"])
def test_what_begins_at_zero_and_learns_is_healthy(zero):
    def loss_fn(params, x):
        branch = jnp.tanh(x @ params["w0"]) @ params["w1"]
        return jnp.mean((x + params["gain"] * branch - 1) ** 2)

    params = weights((4, 8), (8, 4)) | {"gain": jnp.asarray(1.0)}
    params[zero] = jnp.zeros_like(params[zero])
    assert not diagnostics.check_parameters(loss_fn, params, X)


def test_bias_that_cancels_is_a_remark():
    def loss_fn(params, x):
        first, second = (z @ params["w0"] + params["b"][None] for z in (x[:8], x[8:]))
        return jnp.mean((first - second - 1) ** 2)

    params = weights((4, 8)) | {"b": jnp.ones(8)}
    (finding,) = diagnostics.check_parameters(loss_fn, params, X)
    assert (finding.kind, finding.severity, finding.place) == ("zero_gradient", "remark", "b")


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_identical_units(value):
    params = jax.tree.map(lambda w: jnp.full_like(w, value), weights((4, 8), (8, 8), (8, 1)))

    def loss_fn(params, x):
        hidden = jnp.tanh(jnp.tanh(x @ params["w0"]) @ params["w1"])
        return jnp.mean((hidden @ params["w2"] - x[:, :1]) ** 2)

    findings = diagnostics.check_parameters(loss_fn, params, X)
    finding = next(one for one in findings if one.kind == "identical_units")
    assert {"w0", "w1"} <= set(finding.evidence["parameters"])
    cured = diagnostics.check_parameters(loss_fn, weights((4, 8), (8, 8), (8, 1)), X)
    assert not cured


def test_experts_with_one_key_are_identical():
    one = weights((4, 8))["w0"]
    params = {"experts": jnp.stack([one, one, one]), **weights((8, 1))}

    def loss_fn(params, x):
        hidden = jnp.tanh(jnp.einsum("bi,eio->beo", x, params["experts"])).mean(1)
        return jnp.mean((hidden @ params["w0"] - x[:, :1]) ** 2)

    (finding,) = diagnostics.check_parameters(loss_fn, params, X)
    assert (finding.kind, finding.place) == ("identical_units", "experts")
    assert "PRNG key" in finding.cure
    params["experts"] = params["experts"] * jnp.array([1.0, -1.0, 0.5])[:, None, None]
    assert not diagnostics.check_parameters(loss_fn, params, X)


def test_head_that_begins_at_zero_has_units_of_its_own():
    params = weights((4, 8), (8, 3)) | {"w1": jnp.zeros((8, 3))}

    def loss_fn(params, x):
        logits = jnp.tanh(x @ params["w0"]) @ params["w1"]
        labels = jnp.arange(16) % 3
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    assert not diagnostics.check_parameters(loss_fn, params, X)


def test_integer_weights():
    params = weights((4, 8), (8, 1))
    params["w0"] = jnp.round(10 * params["w0"]).astype(jnp.int32)

    def loss_fn(params, x):
        hidden = jax.nn.relu(x @ params["w0"].astype(jnp.float32))
        return jnp.mean((hidden @ params["w1"]) ** 2)

    (finding,) = diagnostics.check_parameters(loss_fn, params, X)
    assert finding.kind == "integer_parameter"
    assert "w0" in finding.place


def test_integers_that_are_indices_are_no_weights():
    params = {"table": weights((6, 4))["w0"], "order": jnp.arange(6)}

    def loss_fn(params, x):
        return jnp.mean((x @ params["table"][params["order"]].T - 1) ** 2)

    assert not diagnostics.check_parameters(loss_fn, params, X)


@pytest.mark.parametrize("make", [optax.sgd, gradtx.sgd])
def test_update_below_the_spacing_of_the_dtype(make):
    params = {"scale": jnp.ones(8), **weights((4, 8))}
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)

    def loss_fn(params, x):
        z = (x[:8].astype(params["w0"].dtype) @ params["w0"]) * params["scale"][None]
        return jnp.mean((z - 1) ** 2).astype(jnp.float32)

    findings = diagnostics.check_parameters(loss_fn, params, X, tx=make(3e-3))
    (finding,) = (one for one in findings if one.kind == "lost_update")
    shares = {}
    for name, gradient in jax.grad(loss_fn)(params, X).items():
        old = np.asarray(params[name])
        step = np.float32(-3e-3) * np.asarray(gradient, np.float32)
        shares[name] = np.mean((old.astype(np.float32) + step).astype(old.dtype) == old)
    assert finding.evidence["shares"] == pytest.approx(shares)
    assert shares["scale"] == 1 > shares["w0"] > 0.5
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    assert "lost_update" not in kinds(diagnostics.check_parameters(loss_fn, wide, X, tx=make(3e-3)))


def test_decay_of_what_has_no_gradient_is_not_lost():
    params = {"table": jnp.ones((6, 4)), **weights((4, 1))}

    def loss_fn(params, x):
        return jnp.mean((params["table"][:2] @ params["w0"] - x[:2, :1]) ** 2)

    tx = gradtx.adamw(1e-4, weight_decay=1e-4)
    assert not diagnostics.check_parameters(loss_fn, params, X, tx=tx)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = nn.relu(nn.LayerNorm()(x))
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x[None], x[None])[0]
        return nn.Dense(3)(x)


def test_network_of_flax_is_healthy():
    variables = jax.jit(Network().init)(jax.random.key(0), X)

    def loss_fn(params, x):
        logits = Network().apply({"params": params}, x)
        labels = jnp.arange(16) % 3
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    assert not diagnostics.check_parameters(loss_fn, variables["params"], X)
