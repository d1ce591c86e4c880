"""Gates and outputs are not signals: they may be flat, and get advice of their own."""

import copy
import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics, initializers

from .remedies import WIDTH, assert_healthy, assert_sick, inputs, network

STEPS, CELLS = 40, 12


def sequences():
    return inputs(samples=8 * STEPS, width=5).reshape(8, STEPS, 5)


def cross_entropy(logits):
    labels = jax.nn.one_hot(jnp.arange(logits.shape[0]) % 3, 3)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))


def gates(report):
    return {layer.name: layer.is_gate for layer in report.layers}


# Gates of recurrent networks.


class FlaxNetwork(nn.Module):
    cell: str

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(getattr(nn, self.cell)(CELLS, name="cell"))(x)[:, -1])


@functools.cache
def initial(cell):
    return jax.jit(FlaxNetwork(cell).init)(jax.random.key(0), sequences())["params"]


def flax_report(cell, **biases):
    """The report of a flax LSTM with other biases of its gates."""
    model = FlaxNetwork(cell)
    params = copy.deepcopy(initial(cell))
    for gate, bias in biases.items():
        params["cell"][gate]["bias"] = jnp.asarray(bias, jnp.float32)

    def loss_fn(params, x):
        return cross_entropy(model.apply({"params": params}, x))

    return diagnostics.signal_report(loss_fn, params, sequences())


def test_chrono_initialization_is_healthy():
    """The forget gates stay open, and the input gates closed, for up to 2,000 steps."""
    bias = np.log(np.random.default_rng(0).uniform(1, 1999, CELLS))
    report = flax_report("LSTMCell", hf=bias, hi=-bias)
    assert_healthy(report)
    is_gate = {name.split("/")[1]: mine for name, mine in gates(report).items() if "/h" in name}
    assert is_gate == {"hi": True, "hf": True, "hg": False, "ho": True}
    flat = {layer.name.split("/")[1]: layer.saturated_fraction for layer in report.layers[:-1]}
    assert flat["hf"] > 0.9


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
def test_forgetful_lstm_is_told_to_raise_a_bias(cell):
    report = flax_report(cell, hf=np.full(CELLS, -6.0))
    assert_sick(report, "vanishing")
    assert "per step of the recurrence" in report.verdict
    assert "raise the bias of the forget gate" in report.verdict
    assert "LSTM" not in report.verdict.replace(report.diagnosis.layers[0], "")
    assert_healthy(flax_report(cell, hf=np.ones(CELLS)))


class EquinoxNetwork(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __call__(self, x):
        def step(state, signal):
            return self.cell(signal, state), None

        state, _ = lax.scan(step, (jnp.zeros(CELLS), jnp.zeros(CELLS)), x)
        return self.head(state[0])


def test_forgetful_lstm_of_equinox():
    keys = jax.random.split(jax.random.key(0))
    model = EquinoxNetwork(
        eqx.nn.LSTMCell(5, CELLS, key=keys[0]), eqx.nn.Linear(CELLS, 3, key=keys[1])
    )

    def report_with(bias):
        # The biases of all gates are in one array: input, forget, candidate, output.
        forgetful = eqx.tree_at(
            lambda model: model.cell.bias,
            model,
            model.cell.bias.at[CELLS : 2 * CELLS].set(bias),
        )
        return diagnostics.signal_report(
            lambda model, x: cross_entropy(jax.vmap(model)(x)), forgetful, sequences()
        )

    report = report_with(-6.0)
    assert_sick(report, "vanishing")
    assert gates(report) == {"cell/weight_ih": True, "cell/weight_hh": True, "head/weight": False}
    assert "raise the bias of the forget gate" in report.verdict
    assert_healthy(report_with(1.0))


# Gates of other networks.


@pytest.mark.parametrize("bias", [-2.0, -4.0])
def test_highway_network_is_healthy(bias):
    he = initializers.he_normal()
    keys = jax.random.split(jax.random.key(0), 6)
    params = [
        {"carry": he(one, (WIDTH, WIDTH)), "signal": he(other, (WIDTH, WIDTH))}
        for one, other in keys.reshape(3, 2)
    ]

    def loss_fn(params, x, bias):
        for layer in params:
            gate = jax.nn.sigmoid(x @ layer["carry"] + bias)
            x = gate * jax.nn.relu(x @ layer["signal"]) + (1 - gate) * x
        return jnp.mean(x**2)

    report = diagnostics.signal_report(loss_fn, params, inputs(), jnp.float32(bias))
    assert_healthy(report)
    assert {name.split("/")[1]: mine for name, mine in gates(report).items()} == {
        "carry": True,
        "signal": False,
    }


GATED = {
    "GLU": jax.nn.sigmoid,
    "SwiGLU": jax.nn.silu,
    "GEGLU": jax.nn.gelu,
    "written-out": lambda z: z * (1 / (1 + jnp.exp(-z))),
}


@pytest.mark.parametrize("name", GATED)
def test_gated_linear_unit_is_healthy_with_an_open_gate(name):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"gate": (WIDTH, 64), "value": (WIDTH, 64), "down": (64, WIDTH)}
    lecun = initializers.lecun_normal()
    params = {key: lecun(k, shape) for k, (key, shape) in zip(keys, shapes.items(), strict=True)}

    def loss_fn(params, x):
        gate = GATED[name](x @ params["gate"] + 5.0)
        return jnp.mean(((gate * (x @ params["value"])) @ params["down"]) ** 2)

    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert gates(report) == {"gate": True, "value": False, "down": False}
    assert_healthy(report)


def test_squeeze_and_excitation_with_a_saturated_gate_is_healthy():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
            squeezed = nn.relu(nn.Dense(4)(jnp.mean(x, axis=(1, 2))))
            gate = nn.sigmoid(
                nn.Dense(16, name="gate", bias_init=nn.initializers.constant(5.0))(squeezed)
            )
            return nn.Dense(3)(jnp.mean(x * gate[:, None, None], axis=(1, 2)))

    images = inputs(samples=8, width=64).reshape(8, 8, 8, 1)
    params = jax.jit(Network().init)(jax.random.key(0), images)
    report = diagnostics.signal_report(
        lambda params, x: cross_entropy(Network().apply(params, x)), params, images
    )
    assert [layer.name for layer in report.layers if layer.is_gate] == ["params/gate/kernel"]
    assert next(one for one in report.layers if one.is_gate).saturated_fraction > 0.9
    assert_healthy(report)


def test_neither_dropout_nor_a_swish_is_a_gate():
    def loss_fn(params, x, mask):
        x = jnp.tanh(x @ params["first"]) * mask
        z = x @ params["second"]
        return jnp.mean(((z * jax.nn.sigmoid(z)) @ params["third"]) ** 2)

    params = {name: 20 * jnp.eye(WIDTH) for name in ("first", "second", "third")}
    mask = jnp.where(inputs() > 0, 2.0, 0.0)
    report = diagnostics.signal_report(loss_fn, params, inputs(), mask)
    assert not any(gates(report).values())
    assert_sick(report, "saturated")


# Outputs.


@pytest.mark.parametrize("activation", [jax.nn.sigmoid, jnp.tanh])
def test_output_that_has_reached_its_targets_is_healthy(activation):
    params = network(3, initializers.he_normal())
    lowest = 0.0 if activation is jax.nn.sigmoid else -1.0
    targets = jnp.where(inputs() > 0, 1.0, lowest)
    # The outputs are those of a network that has learned to repeat the sign.
    params = [{"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)} for _ in params]
    params[-1]["kernel"] *= 100.0

    def loss_fn(params, x):
        *hidden, last = params
        for layer in hidden:
            x = x @ layer["kernel"] + layer["bias"][None]
        return jnp.mean((activation(x @ last["kernel"] + last["bias"][None]) - targets) ** 2)

    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert report.layers[-1].saturated_fraction > 0.9
    assert_healthy(report)


def test_dead_output_is_told_to_drop_the_relu():
    """With targets below zero, the outputs die whatever the initializer."""
    params = network(3, initializers.he_normal())
    params[-1]["bias"] -= 10.0

    def loss_with(output):
        def loss_fn(params, x, targets):
            for layer in params[:-1]:
                x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
            x = output(x @ params[-1]["kernel"] + params[-1]["bias"][None])
            return jnp.mean((x - targets) ** 2)

        return loss_fn

    targets = inputs() - 10.0
    report = diagnostics.signal_report(loss_with(jax.nn.relu), params, inputs(), targets)
    assert_sick(report, "dead")
    assert report.diagnosis.layers == ("2/kernel",)
    assert "drop the relu at the output" in report.verdict
    assert "he_normal" not in report.verdict
    cured = diagnostics.signal_report(loss_with(lambda z: z), params, inputs(), targets)
    assert cured.layers[-1].dead_fraction == 0
    assert_healthy(cured)


# Advice that does not contradict the measurements.


def test_units_that_die_of_their_biases_are_not_told_to_change_their_weights():
    params = network(4, initializers.he_normal())
    params[1]["bias"] -= 20.0

    def loss_fn(params, x):
        for layer in params:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
        return jnp.mean(x**2)

    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "dead")
    assert "initialize its biases with zeros" in report.verdict
    assert "fan_in" not in report.verdict
    params[1]["bias"] = jnp.zeros(WIDTH)
    assert_healthy(diagnostics.signal_report(loss_fn, params, inputs()))
