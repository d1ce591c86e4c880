"""Layers in the branches of a conditional: `signal_report` measures those that are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

from .layer_reference import WIDTH, assert_layer, batch, loss_of
from .signal_statistics import rms

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_branch_not_taken_is_not_reported(is_first):
    def loss_fn(params, x, is_first):
        image = lax.cond(
            is_first,
            lambda x: jnp.tanh(x @ params["first"]),
            lambda x: jax.nn.relu(x @ params["second"] @ params["third"]),
            x,
        )
        return loss_of(image, params["head"])

    rng = np.random.default_rng(5)
    params = {
        name: jnp.asarray(rng.standard_normal((WIDTH, 2 if name == "head" else WIDTH)))
        for name in ("first", "second", "third", "head")
    }
    x = batch()
    report = diagnostics.signal_report(loss_fn, params, x, jnp.asarray(is_first))
    names = ["first", "head"] if is_first else ["second", "third", "head"]
    assert [layer.name for layer in report.layers] == names
    product = np.asarray(x) @ np.asarray(params["second"]) @ np.asarray(params["third"])
    image = np.tanh(x @ params["first"]) if is_first else np.maximum(product, 0)
    assert_layer(report.layers[-2], {"rms": rms(image)})
    assert_layer(report.layers[-1], {"input_rms": rms(image)})
    other = {"second", "third"} if is_first else {"first"}
    gradients = jax.jit(jax.grad(loss_fn))(params, x, jnp.asarray(is_first))
    for layer in report.layers:
        assert layer.name not in other
        assert_layer(layer, {"weight_grad_rms": rms(gradients[layer.name])})


def test_branch_taken_in_some_iterations_is_measured_there():
    def loss_fn(params, x):
        def step(x, i):
            return lax.cond(i % 2 == 0, lambda x: jnp.tanh(x @ params["w"]), lambda x: x, x), None

        return jnp.mean(lax.scan(step, x, jnp.arange(5))[0] ** 2)

    kernel = jnp.asarray(np.random.default_rng(6).standard_normal((WIDTH, WIDTH)))
    (layer,) = diagnostics.signal_report(loss_fn, {"w": kernel}, batch()).layers
    images = [batch()]
    for _ in range(3):
        images.append(np.tanh(np.asarray(images[-1]) @ np.asarray(kernel)))
    assert layer.rms_by_step == pytest.approx([rms(image) for image in images[1:]], rel=1e-9)
