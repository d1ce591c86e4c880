"""Numbers inside a module are settings: every diagnostic measures what equinox trains, arrays."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradtx
from gradtx import diagnostics
from gradtx.training import accumulate_grads

SAMPLES, WIDTH = 4, 8


class Scaled(eqx.Module):
    """A module with a user's own number, whose second derivative would dominate the Hessian."""

    linear: eqx.nn.Linear
    temperature: float
    table: np.ndarray

    def __call__(self, x):
        return self.linear(x) / self.temperature**2 + jnp.asarray(self.table)


def dropout(key):
    return eqx.nn.Sequential(
        [eqx.nn.Linear(WIDTH, WIDTH, key=key), eqx.nn.Dropout(0.5, inference=True)]
    )


def pooled(key):
    return eqx.nn.Sequential(
        [
            eqx.nn.Lambda(lambda x: x.reshape(1, 2, WIDTH // 2)),
            eqx.nn.Conv2d(1, 2, 1, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
        ]
    )


def scaled(key):
    return Scaled(eqx.nn.Linear(WIDTH, WIDTH, key=key), 0.1, np.ones(WIDTH, np.float32))


MODULES = {"dropout": dropout, "max_pool": pooled, "number": scaled}


def loss_of(model, x):
    return jnp.mean(jax.vmap(model)(x) ** 2)


# What equinox itself makes of a module, each compiled once.
compiled_loss = eqx.filter_jit(loss_of)
value_and_gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss_of))


@pytest.fixture(params=MODULES, ids=str, scope="module")
def model(request):
    return MODULES[request.param](jax.random.key(0))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (SAMPLES, WIDTH))


def flat_loss(model, x):
    """The loss as a function of the vector of what `eqx.filter_value_and_grad` trains."""
    trained, rest = eqx.partition(model, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(jax.tree.map(jnp.asarray, trained))
    return vector, lambda v: loss_of(eqx.combine(unravel(v), rest), x)


def test_sharpness_is_that_of_the_arrays(model, x):
    vector, loss = flat_loss(model, x)
    expected = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(loss))(vector), np.float64))[-1]
    found = eqx.filter_jit(lambda model, x: diagnostics.sharpness(loss_of, model, x))(model, x)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_step_along_the_gradient_moves_arrays_only(model, x):
    _, gradient = value_and_gradient(model, x)
    updates = jax.tree.map(lambda g: -0.1 * g, gradient)
    expected = compiled_loss(eqx.apply_updates(model, updates), x)
    measure = eqx.filter_jit(functools.partial(diagnostics.along_gradient, step_sizes=[0.1]))
    found = measure(loss_of, model, x)
    np.testing.assert_allclose(found.losses[0], expected, rtol=1e-4)
    norm = jnp.linalg.norm(ravel_pytree(gradient)[0])
    np.testing.assert_allclose(found.distances[0], 0.1 * norm, rtol=1e-5)


def test_noise_is_that_of_the_arrays(model, x):
    found = eqx.filter_jit(diagnostics.gradient_noise_scale)(loss_of, model, x)
    each = np.stack([ravel_pytree(value_and_gradient(model, one[None])[1])[0] for one in x]).astype(
        np.float64
    )
    expected = np.sum(np.var(each, axis=0, ddof=1))
    np.testing.assert_allclose(found.noise_trace, expected, rtol=1e-4)


def test_report_has_the_gradient_of_the_weights(model, x):
    report = diagnostics.signal_report(loss_of, model, x)
    _, gradient = value_and_gradient(model, x)
    named = jax.tree_util.tree_flatten_with_path(gradient)[0]
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.sqrt(
            np.mean(np.asarray(leaf, np.float64) ** 2)
        )
        for path, leaf in named
        if leaf.ndim > 1
    }
    measured = {layer.name: layer.weight_grad_rms for layer in report.layers}
    assert measured == pytest.approx({name: expected[name] for name in measured}, rel=1e-4)
    assert measured.keys() <= expected.keys()
    assert measured


def test_paths_between_modules_keep_their_numbers(model, x):
    other = jax.tree.map(lambda leaf: leaf * 2 if eqx.is_inexact_array(leaf) else leaf, model)
    _, losses = diagnostics.interpolate_loss(loss_of, model, other, x, points=3)
    middle = jax.tree.map(lambda leaf: leaf * 1.5 if eqx.is_inexact_array(leaf) else leaf, model)
    np.testing.assert_allclose(losses[1], compiled_loss(middle, x), rtol=1e-5)
    path = diagnostics.connecting_path(
        lambda model: loss_of(model, x), model, other, steps=2, key=jax.random.key(0)
    )
    assert sum(leaf is not None for leaf in jax.tree.leaves(path.midpoint)) == sum(
        map(eqx.is_inexact_array, jax.tree.leaves(model))
    )
    for leaf, own in zip(*map(jax.tree.leaves, (path.point(0.5), model)), strict=True):
        assert eqx.is_inexact_array(own) or leaf is own


def test_range_of_learning_rates_trains_arrays_only(model, x):
    found = diagnostics.learning_rate_range(
        loss_of, model, x, low=1e-4, high=1e-2, steps=3, smoothing=0.0
    )
    losses, now = [], model
    for rate in found.learning_rates:
        loss, gradient = value_and_gradient(now, x)
        losses.append(loss)
        updates = jax.tree.map(lambda g, rate=rate: -rate * g, gradient)
        now = eqx.apply_updates(now, updates)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)


def test_accumulated_gradient_is_that_of_the_arrays(model, x):
    loss, gradient = accumulate_grads(loss_of, micro_batches=2)(model, x)
    expected_loss, expected = value_and_gradient(model, x)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for mine, theirs in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_numbers_are_neither_pruned_nor_recorded():
    params = {"w": jnp.array([1.0, -2.0, 3.0]), "b": 0.0}
    mask = diagnostics.prune_by_magnitude(params, 0.4, select=lambda path, leaf: True)
    np.testing.assert_array_equal(mask["w"], [False, True, True])
    assert mask["b"] is True
    assert diagnostics.apply_mask({"w": params["w"], "b": 5.0}, {"w": mask["w"], "b": False}) == {
        "w": pytest.approx(np.array([0.0, -2.0, 3.0])),
        "b": 5.0,
    }
    assert diagnostics.update_ratio(params, params)["b"] is None
    recorder = diagnostics.record_history({"norm": gradtx.global_norm}, length=1)
    _, state = recorder.update({"w": params["w"], "b": 100.0}, recorder.init(params))
    np.testing.assert_allclose(diagnostics.history_of(state)["norm"], [np.sqrt(14)], rtol=1e-6)


@pytest.mark.parametrize(
    "measure",
    [
        lambda p: diagnostics.sharpness(lambda p: p["w"] ** 2, p),
        lambda p: diagnostics.signal_report(lambda p: p["w"] ** 2, p),
    ],
    ids=["sharpness", "signal_report"],
)
def test_numbers_alone_are_nothing_to_measure(measure):
    with pytest.raises(ValueError, match="inexact array"):
        measure({"w": 1.0})
