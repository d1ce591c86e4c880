"""`check_parameters`: codes, second derivatives, states and norms from which nothing is learned."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

from .batches import LABELS, WORDS, C, D, N, X, Y, entropy, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


def named(findings, kind):
    found = [one for one in findings if one.kind == kind and one.severity != "remark"]
    assert len(found) <= 1
    return found


# The nearest codes.

CODES = {
    "encoder": normal(D, 3),
    "codes": normal(7, 3, seed=1),
    "decoder": normal(3, D, seed=2),
}


def quantizing(commitment, is_passed):
    def loss_fn(params, x):
        z = jnp.tanh(x @ params["encoder"])
        index = jnp.argmin(jnp.sum((z[:, None] - params["codes"]) ** 2, -1), -1)
        code = params["codes"][index]
        loss = jnp.mean((lax.stop_gradient(z) - code) ** 2)
        if commitment:
            loss += commitment * jnp.mean((z - lax.stop_gradient(code)) ** 2)
        code = z + lax.stop_gradient(code - z) if is_passed else code
        return loss + jnp.mean((code @ params["decoder"] - x) ** 2)

    return loss_fn


@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_codes_pass_no_gradient_to_the_encoder(commitment):
    loss_fn = quantizing(commitment, is_passed=False)
    findings = diagnostics.check_parameters(loss_fn, CODES, X)
    (finding,) = named(findings, "blocked")
    assert (finding.severity, finding.place) == ("error", "encoder")
    assert finding.evidence["operation"] == "argmin"
    assert "stop_gradient(codes - z)" in finding.cure
    # The encoder gets the gradient of its own term, and nothing else.
    own = jax.jit(jax.grad(quantizing(commitment, is_passed=False)))(CODES, X)["encoder"]
    without = CODES | {"decoder": -CODES["decoder"]}
    np.testing.assert_allclose(own, jax.jit(jax.grad(loss_fn))(without, X)["encoder"], rtol=1e-6)
    assert not diagnostics.check_parameters(quantizing(commitment, is_passed=True), CODES, X)


# Second derivatives.


def residual(bend, order):
    def loss_fn(params, x, target):
        def u(x):
            return jnp.sum(bend(bend(x * params["w0"]) @ params["w1"]) * params["w2"])

        first = jax.vmap(jax.grad(u))(x)
        second = {
            1: lambda: first,
            2: lambda: jax.vmap(jax.grad(jax.grad(u)))(x),
            "jvp": lambda: jax.vmap(lambda x: jax.jvp(jax.grad(u), (x,), (jnp.ones_like(x),))[1])(
                x
            ),
            "hessian": lambda: jax.vmap(jax.hessian(u))(x),
        }[order]()
        return jnp.mean((first + second - target) ** 2) + jnp.mean(jax.vmap(u)(x) ** 2)

    return loss_fn


PDE = {"w0": normal(8), "w1": normal(8, 8), "w2": normal(8, seed=1)}


@pytest.mark.parametrize(
    ("bend", "order"),
    [
        (jax.nn.relu, 2),
        (jax.nn.relu, "hessian"),
        (jnp.abs, "jvp"),
        (jax.nn.leaky_relu, 2),
    ],
)
def test_second_derivative_of_a_piecewise_linear_network(bend, order):
    (finding,) = named(
        diagnostics.check_parameters(residual(bend, order), PDE, Y, X[:, 0]), "blocked"
    )
    assert finding.severity == "error"
    assert "second derivative" in finding.sentence
    assert finding.place.startswith("w0")


@pytest.mark.parametrize(
    ("bend", "order"),
    [(jax.nn.relu, 1), (jnp.tanh, 2), (jax.nn.softplus, "hessian"), (jnp.sin, "jvp")],
)
def test_derivatives_that_are_there(bend, order):
    assert not diagnostics.check_parameters(residual(bend, order), PDE, Y, X[:, 0])


def test_curvature_of_a_loss_may_be_that_of_its_last_function():
    def loss_fn(params, x, y):
        def inner(w):
            return entropy(jax.nn.relu(x @ w) @ params["w1"], y)

        w = params["w0"]
        product = jax.jvp(jax.grad(inner), (w,), (jnp.ones_like(w),))[1]
        return inner(w) + jnp.mean(product**2)

    params = {"w0": normal(D, 8), "w1": normal(8, C)}
    assert not diagnostics.check_parameters(loss_fn, params, X, LABELS)


# States.


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("is_unrolled", [False, True])
def test_a_state_that_is_never_replaced(is_replaced, is_unrolled):
    def loss_fn(params, x, y):
        def step(h, x):
            new = jnp.tanh(x @ params["in"] + h @ params["recurrent"])
            return (new if is_replaced else h), new

        h, x = jnp.zeros((N, 8)), x.swapaxes(0, 1)[:3]
        if is_unrolled:
            for one in x:
                h, out = step(h, one)
        else:
            h, outs = lax.scan(step, h, x)
            out = outs[-1]
        return entropy(out @ params["head"], y)

    params = {"in": normal(D, 8), "recurrent": normal(8, 8), "head": normal(8, C)}
    found = named(diagnostics.check_parameters(loss_fn, params, WORDS, LABELS), "constant_state")
    assert [one.place for one in found] == ([] if is_replaced else ["recurrent"])
    assert all("loss_fn" in one.evidence["loop"] or is_unrolled for one in found)
    assert (
        bool(np.any(jax.jit(jax.grad(loss_fn))(params, WORDS, LABELS)["recurrent"])) == is_replaced
    )


def test_zeros_outside_a_loop_are_no_state():
    def loss_fn(params, x, y):
        h = jnp.tanh(x @ params["in"]) * 0  # as dropout does that keeps nothing
        return entropy(jnp.zeros_like(h) @ params["hidden"] + params["bias"], y)

    params = {"in": normal(D, 8), "hidden": normal(8, C), "bias": jnp.ones(C)}
    assert not named(diagnostics.check_parameters(loss_fn, params, X, LABELS), "constant_state")


# Norms.


@pytest.mark.parametrize("axis", [-1, 0])
def test_layer_norm_of_single_numbers(axis):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(8)(x))[..., None]
            x = nn.LayerNorm(reduction_axes=axis)(x if axis else x[..., 0].T).reshape(len(x), -1)
            return nn.Dense(C)(x)

    def found(x, y, axis):
        model = Network()
        params = jax.jit(model.init)(jax.random.key(0), x)

        def loss_fn(params, x, y):
            return entropy(model.apply(params, x), y)

        return named(diagnostics.check_parameters(loss_fn, params, x, y), "constant_norm")

    assert [one.place for one in found(X, LABELS, axis)] == (
        ["params/Dense_0/kernel, params/Dense_0/bias"] if axis else []
    )


def length(x):
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


def centered(x):
    return x - x.mean(-1, keepdims=True)


@pytest.mark.parametrize("norm", [length, centered])
@pytest.mark.parametrize("width", [1, 2])
def test_embeddings_of_a_single_number(norm, width):
    def loss_fn(model, x, y):
        return jnp.mean((norm(jax.vmap(model)(x))[:, 0] - jnp.tanh(y)) ** 2)

    model = eqx.nn.MLP(D, width, 8, 1, key=jax.random.key(0))
    findings = named(diagnostics.check_parameters(loss_fn, model, X, Y), "constant_norm")
    assert len(findings) == (width == 1)
    outputs = eqx.filter_jit(lambda model: norm(jax.vmap(model)(X)))(model)
    assert bool(jnp.all((jnp.abs(outputs) < 1e-6) | (jnp.abs(outputs) > 0.999))) == (width == 1)


def test_batch_norm_needs_several_examples():
    def loss_fn(params, x, y):
        z = x @ params["w0"]
        z = (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)
        return entropy(jnp.tanh(z * params["scale"]) @ params["w1"], y)

    params = {"w0": normal(D, 8), "scale": jnp.ones(8), "w1": normal(8, C)}
    (finding,) = named(
        diagnostics.check_parameters(loss_fn, params, X[:1], LABELS[:1]), "constant_norm"
    )
    assert finding.place == "w0"
    assert finding.evidence["axes"] == [0]
    assert not named(diagnostics.check_parameters(loss_fn, params, X, LABELS), "constant_norm")
