"""The verdict names the layer that is to blame, and not the one where the problem shows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics, initializers

from .remedies import (
    NUMBER,
    WIDTH,
    assert_healthy,
    assert_sick,
    inputs,
    loss_with,
    network,
)

STEPS = 30


def recurrent_params(scale):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "input": initializers.lecun_normal()(keys[0], (WIDTH, WIDTH)),
        "recurrent": scale * initializers.orthogonal()(keys[1], (WIDTH, WIDTH)),
    }


def recurrent_loss(params, x):
    def step(h, x):
        return jnp.tanh(0.1 * (x @ params["input"]) + h @ params["recurrent"]), None

    h, _ = lax.scan(step, jnp.zeros(x.shape[1:]), x)
    return jnp.mean(h**2)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_recurrent_weights_are_blamed_and_not_those_of_the_inputs(scale):
    x = inputs(samples=STEPS * 4).reshape(STEPS, 4, WIDTH)
    report = diagnostics.signal_report(recurrent_loss, recurrent_params(scale), x)
    is_recurrent = {layer.name: layer.is_recurrent for layer in report.layers}
    assert is_recurrent == {"input": False, "recurrent": True}
    assert report.kind in ({"vanishing"} if scale < 1 else {"exploding", "saturated"})
    if scale < 1:
        assert report.diagnosis.layers == ("recurrent",)
        assert report.diagnosis.factor == pytest.approx(scale, rel=0.2)
        assert "initialize the layer with orthogonal()" in report.verdict
    # The advice, applied: the orthogonal initializer.
    assert_healthy(diagnostics.signal_report(recurrent_loss, recurrent_params(1.0), x))


@pytest.mark.parametrize("scale", [1e-3, 1e2])
def test_factor_of_a_single_bad_layer_cures_it(scale):
    params = network(6, initializers.he_normal())
    params[3]["kernel"] *= scale
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "vanishing" if scale < 1 else "exploding")
    assert report.diagnosis.layers == ("3/kernel",)
    assert report.diagnosis.factor == pytest.approx(scale, rel=0.5)
    found = re.search(rf"multiply (?:its|their) weights by ({NUMBER})", report.verdict)
    params[3]["kernel"] *= float(found[1])
    assert_healthy(diagnostics.signal_report(loss_fn, params, inputs()))


def test_small_last_layer_is_not_a_problem():
    params = network(6, initializers.he_normal())
    params[-1]["kernel"] *= 0.02
    assert_healthy(diagnostics.signal_report(loss_with(jax.nn.relu), params, inputs()))


@pytest.mark.parametrize(
    "cut",
    [lax.stop_gradient, lambda z: jnp.argmax(z, -1).astype(jnp.float32), jnp.round],
    ids=["stop_gradient", "argmax", "round"],
)
def test_loss_without_a_gradient_is_not_healthy(cut):
    def loss_fn(params, x):
        return jnp.mean(cut(jax.nn.relu(x @ params["first"]) @ params["second"]) + 1)

    params = {"first": jnp.eye(WIDTH), "second": jnp.eye(WIDTH)}
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert (report.kind, report.diagnosis.factor) == ("blocked", 0.0)
    assert report.diagnosis.layers == ("first", "second")


def test_solved_problem_without_a_gradient_is_not_healthy():
    def loss_fn(params, x):
        return jnp.mean((x @ params - x) ** 2)

    report = diagnostics.signal_report(loss_fn, jnp.eye(WIDTH), inputs())
    assert report.kind == "zero_loss"
    assert "the problem is solved, or the labels are compared with themselves" in report.verdict


def test_large_inputs_are_mentioned():
    params = network(4, initializers.he_normal())
    report = diagnostics.signal_report(loss_with(jax.nn.relu), params, inputs(140.0))
    rms = np.sqrt(np.mean(np.asarray(inputs(140.0), np.float64) ** 2))
    assert report.kind == "unstandardized"
    assert report.diagnosis.layers == ("0/kernel",)
    assert f"(RMS {rms:.3g})" in report.verdict
    usual = diagnostics.signal_report(loss_with(jax.nn.relu), params, inputs())
    assert "standardize" not in usual.verdict


def test_parameters_with_nan_after_training():
    params = network(3, initializers.he_normal())
    params[1]["bias"] = jnp.full_like(params[1]["bias"], jnp.nan)
    report = diagnostics.signal_report(loss_with(jax.nn.relu), params, inputs())
    assert report.kind == "nan"
    assert "the parameter '1/bias' already contains NaN" in report.verdict
    assert "smaller learning rate" in report.verdict


def test_picture_of_a_recurrence_shows_its_steps():
    x = inputs(samples=STEPS * 4).reshape(STEPS, 4, WIDTH)
    report = diagnostics.signal_report(recurrent_loss, recurrent_params(0.1), x)
    figure = report.plot()
    (axes,) = (axes for axes in figure.axes if axes.get_xlabel() == "step")
    (curve,) = (line for line in axes.get_lines() if line.get_label() == "recurrent")
    np.testing.assert_allclose(curve.get_ydata(), report.layers[1].grad_rms_by_step)


def test_no_initializer_is_recommended_that_makes_it_worse():
    # Its slope is 1/4, and these weights have twice the variance of lecun_normal already.
    params = network(6, initializers.he_normal())
    loss_fn = loss_with(lambda z: jax.nn.sigmoid(z) - 0.5)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "vanishing")
    assert "initialize" not in report.verdict
    found = re.search(rf"multiply (?:its|their) weights by ({NUMBER})", report.verdict)
    assert float(found[1]) > 1
