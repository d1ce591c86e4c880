"""Units that are zero because of something else than their layer: the culprit is named."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from gradtx import diagnostics, initializers

from .remedies import WIDTH, assert_healthy, assert_sick, inputs, loss_with, network

HERE = "test_verdict_silence.py"


def plain_report(between=lambda x: x, *, params=None, x=None):
    """The report of a network with something between its first and its second layer."""
    params = network(3, initializers.he_normal()) if params is None else params

    def loss_fn(params, x):
        *hidden, last = params
        for i, layer in enumerate(hidden):
            x = jax.nn.relu((between(x) if i == 1 else x) @ layer["kernel"] + layer["bias"][None])
        return jnp.mean((x @ last["kernel"] + 1) ** 2)

    return diagnostics.signal_report(loss_fn, params, inputs() if x is None else x)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda x: jnp.where(jnp.zeros(x.shape, bool), x, 0.0), id="select"),
        pytest.param(lambda x: x * jnp.zeros(x.shape), id="multiply"),
    ],
)
def test_mask_that_keeps_nothing(mask):
    report = plain_report(mask)
    assert_sick(report, "dead")
    # The mask comes after the nonlinearity of the first layer.
    assert report.diagnosis.layers == ("0/kernel",)
    assert "all units of layer '0/kernel' are zero" in report.verdict
    assert "he_normal" not in report.verdict
    if "select" in report.verdict:
        assert f"`select_n` at {HERE}" in report.verdict
        assert "the dropout there, which keeps nothing" in report.verdict


def test_dropout_of_everything():
    key = jax.random.key(0)

    def dropout(rate):
        return lambda x: jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x, 0.0)

    report = plain_report(dropout(1.0))
    assert_sick(report, "dead")
    assert f"`select_n` at {HERE}" in report.verdict
    assert_healthy(plain_report(dropout(0.3)))


class FlaxNetwork(nn.Module):
    norm: type

    @nn.compact
    def __call__(self, x):
        options = {"use_running_average": False} if self.norm is nn.BatchNorm else {}
        x = nn.relu(self.norm(**options)(nn.Dense(WIDTH, name="first")(x)))
        return nn.Dense(3)(x)


def flax_report(norm, samples):
    model = FlaxNetwork(norm)
    x = inputs(samples=samples)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss_fn(params, x):
        outputs, _ = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.mean((outputs - 1) ** 2)

    return diagnostics.signal_report(loss_fn, variables["params"], x)


def test_batch_norm_of_one_example():
    report = flax_report(nn.BatchNorm, 1)
    assert_sick(report, "dead")
    assert report.diagnosis.layers == ("first/kernel",)
    assert f"`sub` at {HERE}" in report.verdict
    assert "a batch_norm of one example" in report.verdict
    assert "he_normal" not in report.verdict
    # The cures in the sentence.
    assert_healthy(flax_report(nn.BatchNorm, 16))
    assert_healthy(flax_report(nn.LayerNorm, 1))


def test_inputs_of_zeros():
    report = plain_report(x=jnp.zeros((8, WIDTH)))
    assert_sick(report, "dead")
    assert "the argument args[0] is zero" in report.verdict


class EquinoxNetwork(eqx.Module):
    layers: list

    def __init__(self, key):
        self.layers = [
            eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=one) for one in jax.random.split(key, 3)
        ]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def test_weights_of_zeros_in_equinox():
    model = EquinoxNetwork(jax.random.key(0))
    zeros = eqx.tree_at(
        lambda model: model.layers[0].weight, model, jnp.zeros_like(model.layers[0].weight)
    )

    def loss_fn(model, x):
        return jnp.mean((jax.vmap(model)(x) - 1) ** 2)

    report = diagnostics.signal_report(loss_fn, zeros, inputs())
    assert_sick(report, "dead")
    assert "the parameter 'layers/0/weight' is zero" in report.verdict
    assert "initialize it with random numbers" in report.verdict
    assert_healthy(diagnostics.signal_report(loss_fn, model, inputs()))


def test_units_that_die_by_themselves_have_no_other_culprit():
    params = network(3, initializers.he_normal())
    params[1]["bias"] -= 30.0
    for relu in (jax.nn.relu, lambda z: jnp.where(z > 0, z, 0.0), lambda z: z * (z > 0)):
        with jax.numpy_dtype_promotion("standard"):
            report = diagnostics.signal_report(loss_with(relu), params, inputs())
        assert report.silence is None
        assert_sick(report, "dead")


def test_branch_of_nnx_that_begins_at_zero_is_healthy():
    """A gelu of zero has a slope, so that its units learn."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            zeros = nnx.initializers.zeros_init()
            self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.branch = nnx.Linear(WIDTH, WIDTH, kernel_init=zeros, rngs=rngs)
            self.last = nnx.Linear(WIDTH, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.gelu(self.first(x))
            return self.last(x + nnx.gelu(self.branch(x)))

    graphdef, state = nnx.split(Network(nnx.Rngs(0)))

    def loss_fn(state, x):
        return jnp.mean((nnx.merge(graphdef, state)(x) - 1) ** 2)

    assert_healthy(diagnostics.signal_report(loss_fn, state, inputs()))


def test_stack_in_a_scan_that_is_silenced():
    def loss_fn(params, x):
        def step(x, kernel):
            return jax.nn.relu(x @ kernel), None

        x, _ = lax.scan(step, x * 0.0, params["stack"])
        return jnp.mean((x @ params["last"] - 1) ** 2)

    params = {"stack": jnp.stack([jnp.eye(WIDTH)] * 3), "last": jnp.eye(WIDTH)}
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "dead")
    assert f"`mul` at {HERE}" in report.verdict
