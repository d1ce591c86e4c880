"""Penalties on the parameters that outweigh what depends on the data."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gradtx import adam, diagnostics
from gradtx.diagnostics.checkup.head import HEAD
from gradtx.diagnostics.checkup.subject import examine, subject_of
from gradtx.diagnostics.tracing.graph import Graph
from gradtx.diagnostics.tracing.partial import without

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((32, 6)), jnp.float32)
LABELS = jnp.arange(32) % 3


def network(params, x):
    return jnp.tanh(x @ params["w0"] + params["b0"]) @ params["w1"]


PARAMS = {
    "w0": jnp.asarray(0.4 * RNG.standard_normal((6, 16)), jnp.float32),
    "b0": jnp.zeros((1, 16)),
    "w1": jnp.asarray(0.25 * RNG.standard_normal((16, 3)), jnp.float32),
}


def entropies(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squares(params):
    return sum(jnp.sum(w**2) for w in jax.tree.leaves(params))


def absolutes(params):
    return sum(jnp.sum(jnp.abs(w)) for w in jax.tree.leaves(params))


def products(params):
    return sum(jnp.vdot(w, w) for w in jax.tree.leaves(params))


def norms(params):
    return optax.tree.norm(params) ** 2


def not_orthogonal(params):
    gram = params["w0"].T @ params["w0"]
    return jnp.sum((gram - jnp.eye(16)) ** 2)


PENALTIES = [squares, absolutes, products, norms, not_orthogonal]


def found(loss_fn, params, *batch):
    findings = examine(subject_of("check_head", loss_fn, params, batch, has_aux=False), HEAD)
    return [(f.kind, f.severity) for f in findings]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalty_that_outweighs_the_data(penalty):
    def loss_fn(params, x, y, factor):
        return jnp.mean(entropies(network(params, x), y)) + factor * penalty(params)

    def findings(factor):
        return diagnostics.check_head(loss_fn, PARAMS, X, LABELS, jnp.float32(factor))

    (finding,) = findings(10.0)
    assert (finding.kind, finding.severity) == ("dominant_penalty", "warning")
    assert f"({penalty.__name__}" in finding.source
    assert finding.place == ("w0" if penalty is not_orthogonal else "b0, w0, w1")
    terms = (
        lambda params: 10 * penalty(params),
        lambda params: jnp.mean(entropies(network(params, X), LABELS)),
    )

    @jax.jit
    def sizes_and_slopes(params):
        values, gradients = zip(*(jax.value_and_grad(term)(params) for term in terms), strict=True)
        return values, [optax.tree.norm(gradient) for gradient in gradients]

    (size, rest), (of_penalty, of_data) = sizes_and_slopes(PARAMS)
    assert finding.evidence["penalty"] == pytest.approx(float(size), rel=1e-4)
    assert finding.evidence["rest"] == pytest.approx(float(rest), rel=1e-2)
    steepness = float(of_penalty / of_data)
    assert finding.evidence["gradients"] == pytest.approx(steepness, rel=1e-2)
    # The cure, and a usual factor.
    assert not findings(1 / steepness)
    assert not findings(1e-4)


def test_a_penalty_inside_of_the_mean():
    model = linen.Sequential([linen.Dense(16), jnp.tanh, linen.Dense(3)])
    params = jax.jit(model.init)(jax.random.key(0), X)

    def loss_fn(params, x, y, factor):
        return jnp.mean(entropies(model.apply(params, x), y) + factor * squares(params))

    for factor, expected in ((10.0, [("dominant_penalty", "warning")]), (1e-3, [])):
        assert found(loss_fn, params, X, LABELS, jnp.float32(factor)) == expected


def test_a_penalty_of_a_module():
    model = eqx.nn.MLP(6, 3, 16, 1, key=jax.random.key(0))

    def loss_of(factor):
        def loss_fn(model, x, y):
            weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
            decay = factor * sum(jnp.sum(w**2) for w in weights)
            return {"loss": jnp.mean(entropies(jax.vmap(model)(x), y)), "decay": decay}

        return lambda *args: sum(loss_fn(*args).values())

    assert found(loss_of(5.0), model, X, LABELS) == [("dominant_penalty", "warning")]
    assert not found(loss_of(5e-4), model, X, LABELS)


def test_a_penalty_that_remains_when_the_batch_is_learned():
    """Its gradient is far larger than the other one by then, but it takes nothing away."""

    def of_data(params, x, y):
        return jnp.mean(entropies(network(params, x), y))

    def of_penalty(params):
        return 1e-4 * squares(params)

    params, tx = PARAMS, adam(0.1)
    state = tx.init(params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(of_data)(params, X, LABELS), state, params)
        return (optax.apply_updates(params, updates), state), None

    params, _ = jax.jit(lambda carry: lax.scan(step, carry, length=300)[0])((params, state))
    assert of_penalty(params) > 3 * of_data(params, X, LABELS)

    @jax.jit
    def steepness(params):
        slopes = jax.grad(of_penalty)(params), jax.grad(of_data)(params, X, LABELS)
        return optax.tree.norm(slopes[0]) / optax.tree.norm(slopes[1])

    assert steepness(params) > 3
    assert not found(lambda p, x, y: of_data(p, x, y) + of_penalty(p), params, X, LABELS)


# Terms that depend on the data, or that are no penalty.


def test_terms_that_depend_on_the_data():
    def elbo(params, x, key):
        mean, log_std = jnp.split(x @ params["encoder"], 2, axis=-1)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        divergence = jnp.sum(0.5 * (mean**2 + jnp.exp(2 * log_std) - 1) - log_std, -1)
        return jnp.mean(jnp.sum((z @ params["decoder"] - x) ** 2, -1) + 100 * divergence)

    def critic(params, x, y):
        def score(x):
            return (jnp.tanh(x @ params["w0"]) @ params["w1"])[0]

        slopes = jax.vmap(jax.grad(score))(x)
        penalty = jnp.mean((jnp.linalg.norm(slopes, axis=-1) - 1) ** 2)
        scores = jax.vmap(score)(x)
        return jnp.mean(jnp.where(y == 0, scores, -scores)) + 1000 * penalty

    params = {"encoder": PARAMS["w0"][:, :8], "decoder": PARAMS["w0"].T[:4]}
    kinds = {kind for kind, _ in found(elbo, params, X, jax.random.key(0))}
    kinds |= {kind for kind, _ in found(critic, PARAMS, X, LABELS)}
    assert "dominant_penalty" not in kinds


def test_weights_with_a_distribution():
    """Blundell et al. 2015: the divergence of the weights is divided by the number of examples."""

    def loss_fn(params, x, y, key):
        std = jax.nn.softplus(params["rho"])
        w = params["mean"] + std * jax.random.normal(key, std.shape)
        divergence = jnp.sum(0.5 * (params["mean"] ** 2 + std**2 - 1) - jnp.log(std))
        return jnp.mean(entropies(x @ w, y)) + divergence / 2000

    params = {"mean": PARAMS["w0"][:, :3], "rho": jnp.full((6, 3), -3.0)}
    assert not found(loss_fn, params, X, LABELS, jax.random.key(0))


def test_losses_with_learned_weights():
    """Kendall et al. 2018, and a Gaussian with one standard deviation for all."""

    def uncertain(params, x, y):
        z = x @ params["w"]
        losses = jnp.stack([jnp.mean(entropies(z, y)), jnp.mean(jnp.abs(z))])
        return jnp.sum(jnp.exp(-params["s"]) * losses + params["s"])

    def gaussian(params, x, y):
        residual = (x @ params["w"])[:, 0] - y
        return jnp.sum(0.5 * residual**2 * jnp.exp(-2 * params["s"][0]) + params["s"][0])

    params = {"w": PARAMS["w0"][:, :3], "s": jnp.array([2.0, 3.0])}
    assert not found(uncertain, params, X, LABELS)
    assert not found(gaussian, params, X, X[:, 1])


def test_a_loss_that_holds_its_data():
    """What seems to depend on parameters alone may hold points of its own."""
    points = jnp.linspace(0.0, 1.0, 16)[:, None]

    def loss_of(inside):
        def loss_fn(params, start):
            def u(x):
                return jnp.tanh(x @ params["in"]) @ params["out"]

            return jnp.mean((100 * u(inside()) - 300) ** 2) + jnp.mean(u(start) ** 2)

        return loss_fn

    params = {"in": PARAMS["w0"][:1], "out": PARAMS["w1"][:, :1]}
    for inside in (lambda: points, lambda: jnp.arange(16.0)[:, None] / 16):
        kinds = {kind for kind, _ in found(loss_of(inside), params, jnp.zeros((4, 1)))}
        assert "dominant_penalty" not in kinds


def test_a_part_of_a_graph():
    def loss_fn(w, x):
        return jnp.sum(jnp.tanh(x @ w)) - 3 * jnp.sum(w**2) / 2

    w, x = jnp.arange(4.0), jnp.ones((2, 4))
    graph = Graph(jax.make_jaxpr(loss_fn)(w, x))
    tanh = next(graph.named("tanh")).output
    evaluate = without(graph, [tanh])
    assert float(evaluate([w], [x])) == pytest.approx(-3 * 14 / 2)
    np.testing.assert_allclose(jax.grad(lambda w: evaluate([w], [x]))(w), -3 * np.arange(4.0))

    def looped(w, x):
        total, _ = jax.lax.scan(lambda carry, row: (carry + jnp.sum(row * w), None), 0.0, x)
        return total + jnp.sum(w**2)

    graph = Graph(jax.make_jaxpr(looped)(w, x))
    square = next(node for node in graph.nodes if node.name in ("square", "integer_pow")).output
    assert without(graph, [square]) is None
