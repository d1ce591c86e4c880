"""Signals that explode or vanish from layer to layer: the verdict, and that its advice helps."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

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
    multiplied,
    named_initializer,
    network,
    reinitialized,
    scaled,
)

# A factor of 2 per layer is notable, and each layer takes its time to compile.
DEPTH = 6


@pytest.mark.parametrize(("factor", "activation"), [(2.0, "relu"), (0.5, "linear")])
def test_multiples_of_the_identity(factor, activation):
    """The factor per layer is exactly known, and so is the remedy."""
    f = {"linear": lambda z: z, "relu": jax.nn.relu}[activation]
    params = network(DEPTH, lambda key, shape, dtype: factor * jnp.eye(*shape, dtype=dtype))
    x = jnp.abs(inputs())
    report = diagnostics.signal_report(loss_with(f), params, x)
    assert_sick(report, "exploding" if factor > 1 else "vanishing")
    assert report.diagnosis.factor == pytest.approx(factor, rel=1e-5)
    assert f"a factor of {factor:g} per layer" in report.verdict
    assert indices_of(report.diagnosis.layers) == list(range(DEPTH - 1))
    rms = [layer.rms for layer in report.layers]
    expected = [factor**i * float(jnp.sqrt(jnp.mean(x**2))) for i in range(1, DEPTH + 1)]
    np.testing.assert_allclose(rms, expected, rtol=1e-5)
    cured = diagnostics.signal_report(loss_with(f), multiplied(params, report), x)
    assert_healthy(cured)
    np.testing.assert_allclose(
        [layer.rms for layer in cured.layers[:-1]], rms[0] / factor, rtol=0.05
    )


SICK = {
    "exploding_relu": (jax.nn.relu, initializers.he_normal(), 2.0, "exploding"),
    "vanishing_tanh": (jnp.tanh, initializers.glorot_normal(), 0.3, "vanishing"),
    "exploding_linear": (lambda z: z, initializers.lecun_normal(), 2.0, "exploding"),
    "vanishing_gelu": (jax.nn.gelu, initializers.he_normal(), 0.4, "vanishing"),
}


@pytest.mark.parametrize("case", SICK)
def test_advice_against_a_changing_signal_cures(case):
    activation, initializer, factor, kind = SICK[case]
    params, loss_fn = network(DEPTH, scaled(initializer, factor)), loss_with(activation)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, kind)
    assert indices_of(report.diagnosis.layers) == list(range(DEPTH - 1))
    if case == "vanishing_gelu":
        # For a small argument z, gelu(z) is about z / 2.
        assert 0.5 * 0.4 < report.diagnosis.factor < math.sqrt(2) * 0.4
    else:
        assert report.diagnosis.factor == pytest.approx(factor, rel=0.15)
    fresh = reinitialized(params, report)
    assert_healthy(diagnostics.signal_report(loss_fn, fresh, inputs()))
    if case in ("vanishing_tanh", "exploding_linear"):
        rescaled = diagnostics.signal_report(loss_fn, multiplied(params, report), inputs())
        assert_healthy(rescaled)
    # The stated variance of the current weights.
    stated = re.search(rf"currently ({NUMBER}) / fan_in", report.verdict)
    variance = np.mean([np.mean(np.square(layer["kernel"])) for layer in params[:-1]])
    assert float(stated[1]) == pytest.approx(variance * WIDTH, rel=0.1)


@pytest.mark.parametrize(
    ("case", "normalization_name"),
    [("exploding_relu", "layer_norm"), ("vanishing_tanh", "batch_norm")],
)
def test_normalization_cures_a_changing_signal(case, normalization_name):
    activation, initializer, factor, kind = SICK[case]
    params = network(DEPTH, scaled(initializer, factor))
    report = diagnostics.signal_report(loss_with(activation), params, inputs())
    assert_sick(report, kind)
    assert f"{normalization_name}" in report.verdict
    assert "before the nonlinearities" in report.verdict
    normalized = loss_with(activation, NORMALIZATIONS[normalization_name])
    # Only hidden layers are normalized: the last one stays too large or too small.
    params[-1] = network(1, initializer)[0]
    assert_healthy(diagnostics.signal_report(normalized, params, inputs()))


def test_only_the_layers_that_are_wrong_are_named():
    params = network(8, initializers.he_normal())
    for i in (3, 4, 6):
        params[i]["kernel"] = 6.0 * params[i]["kernel"]
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "exploding")
    assert {3, 4, 6} <= set(indices_of(report.diagnosis.layers)) <= {2, 3, 4, 5, 6, 7}
    assert_healthy(diagnostics.signal_report(loss_fn, reinitialized(params, report), inputs()))


def test_stack_in_a_scan_is_diagnosed_like_a_list():
    params = {"kernel": jnp.stack([1.5 * jnp.eye(WIDTH)] * 8)}

    def loss_fn(params, x):
        def layer(x, kernel):
            return jax.nn.relu(x @ kernel), None

        return jnp.mean(lax.scan(layer, x, params["kernel"])[0])

    report = diagnostics.signal_report(loss_fn, params, jnp.abs(inputs()))
    assert_sick(report, "exploding")
    assert report.diagnosis.factor == pytest.approx(1.5, rel=1e-5)
    assert report.diagnosis.layers[0] == "kernel[0]"


def test_stack_in_nested_scans():
    params = {"kernel": jnp.stack([1.5 * jnp.eye(WIDTH)] * 8).reshape(4, 2, WIDTH, WIDTH)}

    def loss_fn(params, x):
        def layer(x, kernel):
            return jax.nn.relu(x @ kernel), None

        def pair(x, kernels):
            return lax.scan(layer, x, kernels)[0], None

        return jnp.mean(lax.scan(pair, x, params["kernel"])[0])

    report = diagnostics.signal_report(loss_fn, params, jnp.abs(inputs()))
    assert_sick(report, "exploding")
    assert report.diagnosis.factor == pytest.approx(1.5, rel=1e-5)


def test_gradient_that_vanishes_through_squashing_functions():
    """The slope of a sigmoid is at most 1/4, while its output stays at 1/2."""
    params = network(6, initializers.glorot_normal())
    report = diagnostics.signal_report(loss_with(jax.nn.sigmoid), params, inputs())
    assert_sick(report, "vanishing")
    assert "backpropagated gradient" in report.verdict
    gradients = [layer.grad_rms for layer in report.layers]
    per_layer = (gradients[0] / gradients[-1]) ** (1 / 5)
    assert report.diagnosis.factor == pytest.approx(per_layer, rel=0.2)
    assert 0.1 < report.diagnosis.factor < 0.35
    replacement = re.search(r"replace the sigmoid with a (\w+)", report.verdict)
    assert replacement, report.verdict
    cured = loss_with(getattr(jax.nn, replacement[1]))
    fresh = network(6, named_initializer(report.verdict))
    assert_healthy(diagnostics.signal_report(cured, fresh, inputs()))


def test_clipping_threshold_bounds_an_explosion():
    params = network(6, scaled(initializers.he_normal(), 2.0))
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    found = re.search(rf"clip_by_global_norm\(({NUMBER})\)", report.verdict)
    assert found, report.verdict
    norm = float(optax.tree.norm(jax.device_get(jax.jit(jax.grad(loss_fn))(params, inputs()))))
    assert 0 < float(found[1]) < norm


# Recurrences.


def recurrent_loss(activation):
    def loss_fn(params, x):
        def step(state, signal):
            return activation(state @ params["recurrent"] + signal @ params["input"]), None

        return jnp.mean(lax.scan(step, jnp.ones(x.shape[1:]), x)[0] ** 2)

    return loss_fn


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_gradient_through_time(factor):
    """In a linear recurrence the gradient changes by the factor at each backward step."""
    x = inputs(samples=20 * 4).reshape(20, 4, WIDTH)
    params = {"recurrent": factor * jnp.eye(WIDTH), "input": jnp.eye(WIDTH)}
    loss_fn = recurrent_loss(lambda z: z)
    report = diagnostics.signal_report(loss_fn, params, x)
    assert_sick(report, "exploding" if factor > 1 else "vanishing")
    assert report.diagnosis.factor == pytest.approx(factor, rel=0.1)
    assert "per step of the recurrence" in report.verdict
    assert report.diagnosis.layers == ("recurrent",)
    (layer,) = (one for one in report.layers if one.name == "recurrent")
    steps = np.asarray(layer.grad_rms_by_step)
    np.testing.assert_allclose(steps[1:] / steps[:-1], 1 / factor, rtol=1e-5)
    found = re.search(rf"multiply its weights by ({NUMBER})", report.verdict)
    assert found, report.verdict
    cured = {**params, "recurrent": float(found[1]) * params["recurrent"]}
    steps = next(
        one.grad_rms_by_step
        for one in diagnostics.signal_report(loss_fn, cured, x).layers
        if one.name == "recurrent"
    )
    assert steps[0] == pytest.approx(steps[-1], rel=0.5)
