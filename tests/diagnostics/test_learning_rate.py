"""The range test on losses with a known closed form."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.diagnostics import learning_rate_range


def quadratic(x, curvature):
    return jnp.sum(curvature * x**2) / 2


def course(rates, start, curvature):
    """The losses of gradient descent with these learning rates: x <- (1 - eta * curvature) x."""
    x, losses = np.asarray(start, np.float64), []
    for eta in rates:
        losses.append(np.sum(curvature * x**2) / 2)
        x = (1 - eta * curvature) * x
    return np.array(losses)


def smoothed(losses, decay):
    """The weighted mean of the losses so far, the last one with weight 1."""
    return np.array(
        [
            np.average(losses[: t + 1], weights=decay ** np.arange(t, -1, -1.0))
            for t in range(len(losses))
        ]
    )


@pytest.mark.parametrize("curvature", [0.5, 4.0, 300.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_losses_are_those_of_the_recursion(curvature, smoothing):
    with jax.enable_x64(True):
        found = learning_rate_range(
            quadratic,
            jnp.array([1.0, -2.0]),
            jnp.array([curvature, curvature / 10]),
            low=1e-4,
            high=2.0,
            steps=40,
            smoothing=smoothing,
        )
        rates = 1e-4 * (2.0 / 1e-4) ** (np.arange(40) / 39)
        np.testing.assert_allclose(found.learning_rates, rates, rtol=1e-12)
        expected = course(rates, [1.0, -2.0], np.array([curvature, curvature / 10]))
        np.testing.assert_allclose(found.losses, expected, rtol=1e-10)
        np.testing.assert_allclose(found.smoothed, smoothed(expected, smoothing), rtol=1e-10)


@pytest.mark.parametrize("curvature", [0.5, 4.0, 300.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.8, 0.9])
def test_stability_limit_of_gradient_descent_separates_suggestion_and_divergence(
    curvature, smoothing
):
    limit = 2 / curvature
    found = learning_rate_range(
        quadratic, jnp.array([1.0]), jnp.array(curvature), smoothing=smoothing, high=100 * limit
    )
    # Below the limit the loss decreases at every step.
    assert limit / 200 < found.suggestion < limit / 2
    assert found.steepest < limit
    # Above it the loss still has to rise back to its initial value.
    assert limit < found.diverges_at < 20 * limit
    assert found.suggestion == min(found.steepest, found.lowest / 10)


def test_without_smoothing_the_marks_are_those_of_the_losses():
    found = learning_rate_range(
        quadratic, jnp.array([1.0]), jnp.array(4.0), low=1e-3, smoothing=0.0, steps=60
    )
    losses = course(found.learning_rates, [1.0], 4.0)
    bottom = np.argmin(losses)
    assert found.lowest == found.learning_rates[bottom]
    first_above = next(t for t in range(bottom, 60) if losses[t] > losses[0])
    assert found.diverges_at == found.learning_rates[first_above]
    inner = range(1, bottom)
    steepest = min(inner, key=lambda t: losses[t + 1] - losses[t - 1])
    assert found.steepest == found.learning_rates[steepest]


def test_loss_that_overflows_ends_the_smoothed_curve():
    found = learning_rate_range(quadratic, jnp.array([1.0]), jnp.array(4.0), high=1e8)
    end = np.argmax(~np.isfinite(found.losses))
    assert end > 0
    assert np.isfinite(found.smoothed[:end]).all()
    assert np.isnan(found.smoothed[end:]).all()
    assert 2 / 4.0 < found.diverges_at <= found.learning_rates[end]
    found.plot().canvas.draw()


def test_loss_that_becomes_nan_diverges_there():
    # The logarithm is not defined below 0; the first step that leads there is known.
    found = learning_rate_range(
        lambda x, batch: batch * jnp.log(x), jnp.array(1.0), jnp.array(1.0), low=1e-3, steps=50
    )
    x, t = 1.0, 0
    while x > 0:
        x, t = x - found.learning_rates[t] / x, t + 1
    assert found.diverges_at == found.learning_rates[t]
    assert found.lowest == found.learning_rates[t - 1]
    assert found.suggestion <= found.lowest / 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_loss_that_is_never_finite(value):
    found = learning_rate_range(lambda x, batch: x * batch, jnp.array(1.0), jnp.array(value))
    assert found.diverges_at == found.learning_rates[0]
    assert math.isnan(found.suggestion)
    assert np.isnan(found.smoothed).all()
    found.plot().canvas.draw()


def test_loss_that_only_rises_has_no_suggestion():
    found = learning_rate_range(quadratic, jnp.array([1.0]), jnp.array(1.0), low=3.0, high=30.0)
    assert found.diverges_at == found.learning_rates[1]
    assert math.isnan(found.steepest)
    assert math.isnan(found.lowest)
    assert math.isnan(found.suggestion)
    found.plot().canvas.draw()


def test_loss_that_only_falls_does_not_diverge():
    found = learning_rate_range(quadratic, jnp.array([1.0]), jnp.array(1.0), high=0.5)
    assert found.diverges_at == math.inf
    assert found.lowest == 0.5
    assert found.suggestion <= 0.05
    found.plot().canvas.draw()


def test_noise_before_the_loss_falls_is_not_divergence():
    # Batches shift the loss up and down by far more than the first steps lower it.
    shifts = jnp.asarray(np.random.default_rng(0).normal(size=100) * 0.05, jnp.float32)
    found = learning_rate_range(
        lambda x, shift: 2 * x**2 + shift, jnp.array(1.0), shifts, stacked=True
    )
    assert 0.5 < found.diverges_at < 20 * 0.5
    assert found.suggestion < 0.5


def test_negative_losses_are_treated_alike():
    arguments = {"params": jnp.array([1.0]), "batch": jnp.array(4.0), "steps": 50}
    plain = learning_rate_range(quadratic, **arguments)
    shifted = learning_rate_range(lambda x, batch: quadratic(x, batch) - 64.0, **arguments)
    assert shifted.steepest == plain.steepest
    assert shifted.diverges_at == plain.diverges_at


def test_stacked_batches_take_turns():
    curvatures = np.array([1.0, 2.0, 3.0])
    with jax.enable_x64(True):
        found = learning_rate_range(
            quadratic,
            jnp.array([1.0]),
            jnp.asarray(curvatures),
            low=1e-2,
            high=0.3,
            steps=7,
            stacked=True,
        )
    x, expected = 1.0, []
    for t, eta in enumerate(found.learning_rates):
        curvature = curvatures[t % 3]
        expected.append(curvature * x**2 / 2)
        x -= eta * curvature * x
    np.testing.assert_allclose(found.losses, expected, rtol=1e-12)


def with_momentum(learning_rate):
    return gradtx.sgd(learning_rate, momentum=0.9)


@pytest.mark.parametrize(
    "factory",
    [gradtx.adam, optax.adam, optax.sgd, with_momentum, gradtx.lion],
    ids=["adam", "optax-adam", "optax-sgd", "momentum", "lion"],
)
def test_any_recipe_takes_the_learning_rates(factory):
    # optax's adam mixes integers and floats.
    with jax.numpy_dtype_promotion("standard" if factory is optax.adam else "strict"):
        found = learning_rate_range(
            quadratic, jnp.array([1.0]), jnp.array(4.0), factory, low=1e-3, high=1.0, steps=12
        )
    params, losses = jnp.array([1.0]), []
    state = None
    for t, eta in enumerate(found.learning_rates):
        losses.append(float(quadratic(params, jnp.array(4.0))))
        tx = factory(float(eta))
        state = tx.init(params) if t == 0 else state
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(4.0 * params, state, params)
        params = gradtx.apply_updates(params, updates)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4, atol=1e-7)


def test_model_state_key_and_metrics():
    def loss_fn(x, model_state, batch, key):
        noise = jax.random.normal(key) * 1e-3
        loss = quadratic(x, batch) + noise + model_state * 100.0
        return loss, (model_state + 1.0, {"noise": noise})

    found = learning_rate_range(
        loss_fn,
        jnp.array([1.0]),
        jnp.array(1.0),
        high=1e-4,
        steps=4,
        model_state=jnp.array(0.0),
        has_aux=True,
        key=jax.random.key(7),
    )
    keys = [jax.random.fold_in(jax.random.key(7), t) for t in range(4)]
    noise = [float(jax.random.normal(key)) * 1e-3 for key in keys]
    expected = [0.5 + noise[t] + 100 * t for t in range(4)]
    np.testing.assert_allclose(found.losses, expected, atol=2e-4)
    np.testing.assert_allclose(found.losses[0], expected[0], atol=1e-6)


def test_parameters_stay_as_they_are_and_trees_are_taken():
    params = {"x": jnp.array([1.0, 2.0]), "steps": jnp.array(3), "none": None}
    batch = {"curvature": np.float32(4.0), "key": jax.random.key(0)}
    found = learning_rate_range(
        lambda p, batch: quadratic(p["x"], batch["curvature"]), params, batch, steps=10
    )
    np.testing.assert_array_equal(params["x"], [1.0, 2.0])
    assert found.losses[0] == 10.0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    found = learning_rate_range(quadratic, jnp.array([1.0], dtype), jnp.array(4.0, dtype))
    assert found.losses.dtype == np.float64
    assert found.suggestion < 0.5 < found.diverges_at


def test_plot_marks_what_was_found():
    found = learning_rate_range(quadratic, jnp.array([1.0]), jnp.array(4.0))
    (axes,) = found.plot().axes
    assert axes.get_title() == "learning rate range test"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "loss")
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    assert list(lines) == [
        "loss",
        "smoothed loss",
        f"steepest {found.steepest:.2g}",
        f"suggestion {found.suggestion:.2g}",
        f"diverges at {found.diverges_at:.2g}",
    ]
    assert list(lines[f"suggestion {found.suggestion:.2g}"]) == [found.suggestion] * 2
    # A loss of 2 that fell to about 0 must be visible, even if it rose later.
    bottom, top = axes.get_ylim()
    assert -1.5 < bottom < 0 < 2 < top < 4


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    found = learning_rate_range(quadratic, jnp.array([1.0]), jnp.array(4.0), steps=3)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*gradtx\[diagnostics\]"):
        found.plot()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_fn": 3}, "loss_fn must be a function, got 3"),
        ({"tx_factory": gradtx.sgd(0.1)}, "tx_factory must be a function, got Gradient"),
        (
            {"tx_factory": lambda learning_rate: gradtx.MultiSteps(gradtx.sgd(learning_rate), 2)},
            "the result of tx_factory must take a step at each call",
        ),
        (
            {"tx_factory": lambda learning_rate: 3},
            "the result of tx_factory must be a gradient transformation, got 3",
        ),
        ({"low": 0.0}, "low must be > 0 and finite, got 0.0"),
        ({"low": math.nan}, "low must be > 0 and finite, got nan"),
        ({"high": 1e-6}, "high must be finite and > low, 1e-06, got 1e-06"),
        ({"high": math.inf}, "high must be finite and > low.*got inf"),
        ({"steps": 2}, "steps must be a whole number >= 3, got 2"),
        ({"steps": 10.5}, "steps must be a whole number >= 3, got 10.5"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
        ({"stacked": True}, r"batch must have arrays with a first axis.*\{'': \(\)\}"),
        (
            {"stacked": True, "batch": (np.ones(2), np.ones(3))},
            r"batch must have arrays with a first axis of the same length.*\(2,\).*\(3,\)",
        ),
        ({"loss_fn": lambda x, batch: x}, r"the loss must be a real scalar, .* shape \(1,\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses(arguments, message):
    given = {"loss_fn": quadratic, "params": jnp.array([1.0]), "batch": jnp.array(4.0)}
    with pytest.raises(ValueError, match=message):
        learning_rate_range(**{**given, **arguments})
