"""`check_learning`: a loss that does not fall on one batch, and optimizers that do not suit it."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import gradtx
from gradtx import diagnostics

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((16, 4)), jnp.float32)
Y = jnp.sin(2 * X[:, :1])
PARAMS = {
    "w0": jnp.asarray(RNG.standard_normal((4, 8)) / 2, jnp.float32),
    "b0": jnp.zeros((1, 8)),
    "w1": jnp.asarray(RNG.standard_normal((8, 1)) / np.sqrt(8), jnp.float32),
}


def loss_fn(params, x, y, nonlinearity=jnp.tanh):
    hidden = nonlinearity(x @ params["w0"] + params["b0"])
    return jnp.mean((hidden @ params["w1"] - y) ** 2)


def found(tx=None, loss=loss_fn, params=PARAMS):
    # Some of the optimizers of optax need it.
    with jax.numpy_dtype_promotion("standard"):
        return diagnostics.check_learning(loss, params, X, Y, tx=tx)


def kinds(findings):
    return [(one.kind, one.severity) for one in findings if one.severity != "remark"]


@pytest.mark.parametrize(
    "tx",
    [
        *(
            None,
            gradtx.sgd(0.1, momentum=0.9),
            gradtx.adamw(1e-3),
            gradtx.lion(1e-4),
        ),
        *(optax.adamw(3e-3, weight_decay=0.1), optax.lamb(1e-3, weight_decay=0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.sgd(optax.warmup_constant_schedule(0, 0.1, 1000)),
        optax.adam(optax.warmup_cosine_decay_schedule(0, 1e-2, 10_000, 20_000)),
    ],
)
def test_healthy_optimizers(tx):
    assert not kinds(found(tx))


def test_learning_is_examined_on_demand():
    tx = gradtx.sgd(100.0)
    for learning in (False, True):
        checked = diagnostics.check_up(loss_fn, PARAMS, X, Y, tx=tx, learning=learning)
        assert checked.is_healthy != learning
    assert "learning_rate" in [one.kind for one in checked.findings]


def test_learning_rate_that_is_too_large():
    (finding,) = (one for one in found(optax.sgd(20.0)) if one.kind == "learning_rate")
    assert finding.severity == "error"
    cured = optax.sgd(20.0 * finding.evidence["factor"])
    assert not kinds(found(cured))


@jax.jit
def own_losses(rate):
    def step(params, _):
        loss, gradient = jax.value_and_grad(loss_fn)(params, X, Y)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), loss

    return lax.scan(step, PARAMS, length=41)[1]


def own_fall(rate):
    losses = np.asarray(own_losses(rate), float)
    return (losses[0] - np.mean(losses[-3:])) / losses[0]


@pytest.mark.parametrize("rate", [1e-6, 1e-4])
def test_learning_rate_that_is_too_small(rate):
    (finding,) = (one for one in found(optax.sgd(rate)) if one.kind == "learning_rate")
    assert (finding.severity, finding.place) == ("warning", "tx")
    assert finding.evidence["fall"] == pytest.approx(own_fall(rate), rel=0.1)
    factor = finding.evidence["factor"]
    assert finding.evidence["reached"] == pytest.approx(own_fall(factor * rate), rel=0.01)
    assert finding.evidence["reached"] > 10 * max(finding.evidence["fall"], 0.01)
    # The cure needs to be followed only once.
    assert not kinds(found(optax.sgd(factor * rate)))


@pytest.mark.parametrize("tx", [optax.adamw(3e-5), optax.sgd(1e-3, momentum=0.9)])
def test_learning_rates_of_fine_tuning(tx):
    assert not kinds(found(tx))


def test_optimizer_that_climbs():
    climbing = optax.chain(optax.scale_by_adam(), optax.scale(1e-3))
    (finding,) = (one for one in found(climbing) if one.kind == "learning_rate")
    assert (finding.severity, finding.evidence["factor"]) == ("error", -1)


def test_steps_longer_than_the_weights():
    findings = found(optax.adam(3.0))
    ratios = next(one for one in findings if one.kind == "update_ratio").evidence["ratios"]
    for name in ("w0", "w1"):
        expected = 3.0 / np.sqrt(np.mean(np.square(PARAMS[name], dtype=float)))
        assert ratios[name] == pytest.approx(expected, rel=1e-3)
    assert "b0" not in ratios


@pytest.mark.parametrize(
    "tx",
    [gradtx.sgd(0.0), optax.set_to_zero(), optax.MultiSteps(optax.sgd(0.1), 1000)],
    ids=["rate of zero", "frozen", "accumulates"],
)
def test_optimizer_that_changes_nothing(tx):
    (finding,) = (one for one in found(tx) if one.kind == "update_ratio")
    assert (finding.severity, finding.place) == ("error", "tx")
    assert finding.evidence["steps"] == 40


def test_steps_shorter_than_the_rounding():
    findings = found(optax.sgd(1e-9))
    (finding,) = (one for one in findings if one.kind == "update_ratio")
    gradient = np.asarray(jax.jit(jax.grad(loss_fn))(PARAMS, X, Y)["w0"], float)
    expected = 1e-9 * np.linalg.norm(gradient) / np.linalg.norm(np.asarray(PARAMS["w0"], float))
    assert finding.evidence["ratios"]["w0"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda decay: optax.adamw(1e-3, weight_decay=decay),
        lambda decay: optax.chain(optax.add_decayed_weights(decay / 10), optax.sgd(1e-2)),
    ],
    ids=["adamw", "sgd"],
)
def test_weight_decay_stronger_than_the_gradient(make):
    (finding,) = (one for one in found(make(30.0)) if one.kind == "weight_decay")
    assert finding.severity == "warning"
    assert "weight_decay" not in [one.kind for one in found(make(1e-2))]


def test_strength_of_the_weight_decay():
    (finding,) = (
        one for one in found(gradtx.adamw(1e-3, weight_decay=30.0)) if one.kind == "weight_decay"
    )
    matrices = [np.asarray(PARAMS[name], float) for name in ("w0", "w1")]
    # The first update of adam is the sign of the gradient.
    decay = 30 * np.sqrt(sum(np.sum(w**2) for w in matrices))
    expected = decay / np.sqrt(sum(w.size for w in matrices))
    assert finding.evidence["ratio"] == pytest.approx(expected, rel=1e-3)


def test_clipping_that_always_acts():
    def loss(params, x, y):
        return 1e3 * loss_fn(params, x, y)

    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))
    (finding,) = (one for one in found(tx, loss) if one.kind == "always_clipped")
    gradient = jax.jit(jax.grad(loss))(PARAMS, X, Y)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=float)) for g in jax.tree.leaves(gradient)))
    assert finding.evidence["max_norm"] == pytest.approx(0.1, rel=1e-3)
    assert finding.evidence["factor"] == pytest.approx(norm / 0.1, rel=1e-3)
    for healthy in (
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
        optax.chain(optax.clip_by_global_norm(1e4), optax.sgd(1e-4)),
    ):
        assert "always_clipped" not in [one.kind for one in found(healthy, loss)]


def test_loss_that_cannot_fall():
    def loss(params, x, y):
        # The parameters only scale what the loss does not see, apart from a little.
        return jnp.mean((y - 5) ** 2) + 1e-2 * loss_fn(params, x, y)

    (finding,) = found(None, loss)
    assert (finding.kind, finding.severity) == ("cannot_overfit", "warning")
    assert max(finding.evidence["falls"].values()) < 0.01


def test_labels_that_contradict_each_other():
    params = PARAMS | {"w1": jnp.asarray(RNG.standard_normal((8, 4)) / 3, jnp.float32)}

    def loss(params, x, y):
        logits = jnp.tanh(x @ params["w0"] + params["b0"]) @ params["w1"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    x, y = jnp.repeat(X[:4], 4, axis=0), jnp.arange(16) % 4
    (finding,) = diagnostics.check_learning(loss, params, x, y)
    assert (finding.kind, finding.severity) == ("cannot_overfit", "warning")
    # All that can be learned is that each label is as likely as the others.
    lowest = finding.evidence["loss"] * (1 - max(finding.evidence["falls"].values()))
    assert lowest == pytest.approx(np.log(4), rel=0.01)
    assert not diagnostics.check_learning(loss, params, X, y)


def test_game_of_two_networks_is_no_more_than_a_remark():
    def loss(params, x, y):
        # What one side gains, the other loses.
        score = jnp.mean(x @ params["w0"] @ params["w1"]) + 3
        frozen = lax.stop_gradient(score)
        return score - frozen + 0.0 * frozen + 3

    assert not kinds(found(None, loss))


@jax.custom_vjp
def half(z):
    return jnp.sin(z)


half.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (g * jnp.cos(z) / 2,))


@jax.custom_vjp
def right(z):
    return jnp.sin(z)


right.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (g * jnp.cos(z),))


@jax.custom_jvp
def other(z):
    return jnp.exp(-jnp.square(z))


@other.defjvp
def _(primals, tangents):
    (z,), (t,) = primals, tangents
    return other(z), 2 * z * other(z) * t


@jax.custom_vjp
def through(z):
    return jnp.round(z)


through.defvjp(lambda z: (jnp.round(z), None), lambda _, g: (g,))


@jax.custom_vjp
def reversed_gradient(z):
    return z


reversed_gradient.defvjp(lambda z: (z, None), lambda _, g: (-g,))


@jax.custom_vjp
def spike(z):
    return (z > 0).astype(z.dtype)


spike.defvjp(lambda z: ((z > 0).astype(z.dtype), z), lambda z, g: (g / (1 + jnp.square(z)),))


def in_a_scan(function):
    def nonlinearity(z):
        return lax.scan(lambda z, _: (function(0.5 + z), None), z, length=3)[0]

    return nonlinearity


@pytest.mark.parametrize(
    ("function", "ratio", "name"),
    [(half, 0.5, "half"), (other, -1, "other"), (in_a_scan(half), 0.5, "half")],
    ids=["half", "other", "scan"],
)
def test_wrong_derivative(function, ratio, name):
    findings = found(None, lambda params, x, y: loss_fn(params, x, y, function))
    (finding,) = (one for one in findings if one.kind == "wrong_gradient")
    assert finding.severity == "error"
    assert finding.evidence["ratio"] == pytest.approx(ratio, rel=0.05)
    assert finding.source.startswith("test_learning.py:")
    assert finding.source.endswith(f"({name})")


def test_right_derivatives_and_surrogates():
    functions = (right, through, reversed_gradient, spike, jax.nn.relu, in_a_scan(right))

    def all_of_them(z):
        return jax.nn.gelu(sum(function(z) for function in functions))

    findings = found(None, lambda params, x, y: loss_fn(params, x, y, all_of_them))
    assert "wrong_gradient" not in [one.kind for one in findings]


def networks():
    linen = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)])
    variables = jax.jit(linen.init)(jax.random.key(0), X)
    yield variables, linen.apply
    graph, state = nnx.split(nnx.Linear(4, 1, rngs=nnx.Rngs(0)))
    yield state, lambda state, x: nnx.merge(graph, state)(x)
    yield (
        eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0)),
        lambda net, x: jax.vmap(net)(x),
    )


@pytest.mark.parametrize(("params", "apply"), list(networks()), ids=["linen", "nnx", "equinox"])
def test_networks_of_flax_and_equinox(params, apply):
    def loss(params, x, y):
        return jnp.mean((apply(params, x) - y) ** 2)

    assert not kinds(found(gradtx.adamw(1e-2), loss, params))
    assert ("learning_rate", "error") in kinds(found(gradtx.sgd(30.0), loss, params))
