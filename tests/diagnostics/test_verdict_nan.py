"""NaN in the loss: the verdict names the operation, and its advice helps."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gradtx import diagnostics, initializers

from .remedies import (
    WIDTH,
    assert_healthy,
    assert_sick,
    inputs,
    loss_with,
    named_initializer,
    network,
    scaled,
)


def variance_scaled(x, epsilon):
    centered = x - jnp.mean(x, axis=0, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis=0, keepdims=True) + epsilon)


SICK_WITH_NAN = {
    # the mistake, the advice in the sentence, and the function that follows it
    "rsqrt": (
        lambda z: variance_scaled(z * jnp.asarray([1.0, 0.0] * (WIDTH // 2))[None], 0.0),
        "small epsilon under the root",
        lambda z: variance_scaled(z * jnp.asarray([1.0, 0.0] * (WIDTH // 2))[None], 1e-5),
    ),
    "log": (
        lambda z: jnp.log(jax.nn.softmax(100.0 * z)) / 100.0,
        "log_softmax",
        lambda z: jax.nn.log_softmax(100.0 * z) / 100.0,
    ),
    "div": (
        lambda z: z / jnp.max(jax.nn.relu(z) * 0, axis=-1, keepdims=True),
        "small epsilon to the denominator",
        lambda z: z / (jnp.max(jax.nn.relu(z) * 0, axis=-1, keepdims=True) + 1.0),
    ),
    "sqrt": (
        lambda z: z + jnp.sqrt(jnp.square(z - lax.stop_gradient(z))),
        "small epsilon under the root",
        lambda z: z + jnp.sqrt(jnp.square(z - lax.stop_gradient(z)) + 1e-6),
    ),
    "exp": (
        lambda z: jnp.exp(100.0 * z) / jnp.sum(jnp.exp(100.0 * z), axis=-1, keepdims=True),
        "subtract the largest",
        lambda z: (
            jnp.exp(100.0 * (z - lax.stop_gradient(jnp.max(z, -1, keepdims=True))))
            / jnp.sum(
                jnp.exp(100.0 * (z - lax.stop_gradient(jnp.max(z, -1, keepdims=True)))),
                axis=-1,
                keepdims=True,
            )
        ),
    ),
}


@pytest.mark.parametrize("operation", SICK_WITH_NAN)
def test_advice_for_nan_cures(operation):
    mistake, advice, remedy = SICK_WITH_NAN[operation]
    params = network(2, initializers.he_normal())

    def loss_with_function(f):
        def loss_fn(params, x):
            first, second = params
            hidden = jax.nn.relu(x @ first["kernel"])
            return jnp.mean(f(hidden @ second["kernel"]) ** 2)

        return loss_fn

    report = diagnostics.signal_report(loss_with_function(mistake), params, inputs())
    assert_sick(report, "nan")
    root = report.culprit.infinity or report.culprit
    assert operation in (root.operation, report.culprit.derivative_of)
    assert "1/kernel" in (root.layer, *report.diagnosis.layers)
    assert "'1/kernel'" in report.verdict
    assert f"`{operation}`" in report.verdict
    assert advice in report.verdict
    cured = jax.jit(jax.value_and_grad(loss_with_function(remedy)))(params, inputs())
    assert all(bool(jnp.all(jnp.isfinite(array))) for array in jax.tree.leaves(cured))


def test_overflow_of_an_exploding_network_is_traced_to_its_weights():
    params, loss_fn = network(6, scaled(initializers.he_normal(), 1e8)), loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "nan")
    assert "grows by a factor" in report.verdict
    assert report.diagnosis.factor == pytest.approx(1e8, rel=0.2)
    initializer = named_initializer(report.verdict)
    assert_healthy(diagnostics.signal_report(loss_fn, network(6, initializer), inputs()))
