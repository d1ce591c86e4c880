"""Units that are dead or saturated: the verdict, and that its advice helps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import diagnostics, initializers

from .remedies import (
    NORMALIZATIONS,
    NUMBER,
    WIDTH,
    assert_healthy,
    assert_sick,
    indices_of,
    inputs,
    loss_with,
    network,
    reinitialized,
    scaled,
)

# Dead units.


def test_advice_for_dead_units_cures():
    params = network(6, initializers.he_normal())
    params[1]["bias"] = params[1]["bias"] - 30.0
    params[4]["bias"] = params[4]["bias"] - 30.0
    # Some gradient arrives after the dead layers.
    params[2]["bias"] = params[2]["bias"] + 1.0
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "dead")
    assert indices_of(report.diagnosis.layers) == [1, 4]
    assert "100%" in report.verdict
    assert report.layers[1].dead_fraction == 1.0
    assert_healthy(diagnostics.signal_report(loss_fn, reinitialized(params, report), inputs()))


def test_share_of_dead_units_is_stated():
    params = network(4, initializers.he_normal())
    chosen = np.arange(WIDTH) < 28
    params[1]["bias"] = jnp.where(chosen, -100.0, params[1]["bias"])
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "dead")
    assert indices_of(report.diagnosis.layers) == [1]
    assert report.layers[1].dead_fraction == pytest.approx(28 / 32)
    assert "88%" in report.verdict
    assert "leaky_relu" in report.verdict
    # The other remedy in the sentence: every unit then has a gradient.
    leaky = loss_with(jax.nn.leaky_relu)
    assert diagnostics.signal_report(leaky, params, inputs()).kind != "dead"


def test_units_killed_by_a_large_learning_rate():
    """Training with much too large a step kills the network, and the report says so."""
    params, loss_fn = network(4, initializers.he_normal()), loss_with(jax.nn.relu)
    gradients = jax.jit(jax.grad(loss_fn))(params, inputs())
    broken = jax.tree.map(lambda p, g: p - 1e3 * g, params, gradients)
    report = diagnostics.signal_report(loss_fn, broken, inputs())
    assert_sick(report, "dead")
    assert "learning rate" in report.verdict


# Saturated units.


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_advice_for_saturated_units_cures(name):
    activation = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[name]
    params = network(4, initializers.glorot_normal())
    for i in (1, 2):
        params[i]["kernel"] = 40.0 * params[i]["kernel"]
    params[2]["bias"] = params[2]["bias"] + 3.0
    loss_fn = loss_with(activation)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "saturated")
    assert indices_of(report.diagnosis.layers) == [1, 2]
    assert name in report.verdict
    worst = max(layer.saturated_fraction for layer in report.layers)
    assert worst > 0.5
    assert f"{worst:.0%}" in report.verdict
    cured = diagnostics.signal_report(loss_fn, reinitialized(params, report), inputs())
    assert max(layer.saturated_fraction for layer in cured.layers) < 0.1
    if name == "tanh":
        assert_healthy(cured)
    else:
        # No initializer makes the slope of a sigmoid larger than 1/4.
        assert cured.kind in ("healthy", "vanishing")
    stated = re.search(rf"currently ({NUMBER}) / fan_in", report.verdict)
    assert 0.8 * 1600 < float(stated[1]) < 1.2 * 1600


def test_standardizing_the_inputs_cures_saturation():
    params, loss_fn = network(3, initializers.glorot_normal()), loss_with(jnp.tanh)
    x = 40.0 + inputs(100.0)
    report = diagnostics.signal_report(loss_fn, params, x)
    assert_sick(report, "unstandardized")
    assert 0 in indices_of(report.diagnosis.layers)
    assert "the tanh is flat" in report.verdict
    assert "standardize the inputs" in report.verdict
    stated = re.search(rf"large \(RMS ({NUMBER})\)", report.verdict)
    assert float(stated[1]) == pytest.approx(float(jnp.sqrt(jnp.mean(x**2))), rel=0.01)
    standardized = (x - x.mean()) / x.std()
    assert_healthy(diagnostics.signal_report(loss_fn, params, standardized))


@pytest.mark.parametrize("normalization_name", NORMALIZATIONS)
def test_normalization_cures_saturation(normalization_name):
    params = network(4, scaled(initializers.glorot_normal(), 20.0))
    report = diagnostics.signal_report(loss_with(jnp.tanh), params, inputs())
    assert_sick(report, "saturated")
    assert normalization_name in report.verdict
    assert "before the nonlinearity" in report.verdict
    normalized = loss_with(jnp.tanh, NORMALIZATIONS[normalization_name])
    assert_healthy(diagnostics.signal_report(normalized, params, inputs()))
