"""The experiments on averages and descent: their claims fail with wrong equations.

That they hold is what `python -m examples.experiments --quick` tells. The
formulas that the measurements are compared with are checked here against plain NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from examples.experiments import averages, experiment, lowpass, momentum, ravine
from examples.experiments.sequences import descend, filtered

NAMES = ["averages", "lowpass", "momentum", "ravine"]


@pytest.fixture
def clear_traces():
    """Clears what was traced with other equations, before and after a test."""

    def clear():
        for name in NAMES:
            for function in vars(experiment.load(name)).values():
                getattr(function, "clear_cache", lambda: None)()

    clear()
    yield
    clear()


@pytest.mark.usefixtures("clear_traces")
@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        ("averages", "ema", {"debias": True}),
        ("averages", "simple_moving_average", {"window": 18}),
        ("lowpass", "trace", {"nesterov": True}),
        ("lowpass", "trace", {"dampening": 0.5}),
        ("momentum", "sgd", {"nesterov": True}),
        ("momentum", "sgd", {"dampening": 0.01}),
        ("ravine", "sgd", {"momentum": 0.0}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_the_claim_does_not_hold_with_another_equation(name, function, arguments, monkeypatch):
    right = getattr(gradtx, function)

    def wrong(hyperparameter, **given):
        given = given | arguments
        return right(**given) if "window" in given else right(hyperparameter, **given)

    monkeypatch.setattr(gradtx, function, wrong)
    assert not experiment.load(name).run(experiment.Settings(quick=True)).holds


def test_what_is_filtered_is_the_sum_of_the_weighted_past():
    signal = np.random.default_rng(0).normal(size=(50, 3))
    out = filtered(gradtx.ema(0.8, debias=False), jnp.asarray(signal, jnp.float32))
    weights = 0.2 * 0.8 ** np.arange(50)
    expected = [np.convolve(column, weights)[:50] for column in signal.T]
    np.testing.assert_allclose(out, np.stack(expected, axis=1), rtol=2e-5, atol=1e-6)


def test_the_path_of_a_descent_has_the_start_and_each_step():
    path = descend(gradtx.sgd(0.25), lambda x: 2 * x, jnp.array([8.0, -4.0]), 3)
    np.testing.assert_array_equal(path, [[8, -4], [4, -2], [2, -1], [1, -0.5]])


def test_the_variance_left_is_the_sum_of_squared_weights():
    noise = averages.NOISE * jax.random.normal(jax.random.key(3), (averages.STEPS, 2048))
    measured = np.asarray(averages.variance_left(noise)) / averages.NOISE**2
    for decay, window, (exponential, box) in zip(
        averages.DECAYS, averages.WINDOWS, measured.T, strict=True
    ):
        expected = np.sum(((1 - decay) * decay ** np.arange(1000)) ** 2)
        assert exponential == pytest.approx(expected, rel=0.05)
        assert box == pytest.approx(window * (1 / window) ** 2, rel=0.05)
        assert expected == pytest.approx(1 / window)


def test_the_transfer_function_is_the_fourier_transform_of_the_weights():
    frequencies = np.array([0.001, 0.1, 2.0, np.pi])
    past = np.arange(5000)
    for decay in lowpass.DECAYS:
        weights = (1 - decay) * decay**past
        expected = np.exp(-1j * np.outer(frequencies, past)) @ weights
        np.testing.assert_allclose(lowpass.transfer(decay, frequencies), expected, rtol=1e-9)
        at_cutoff = np.exp(-1j * lowpass.cutoff(decay) * past) @ weights
        assert abs(at_cutoff) ** 2 == pytest.approx(0.5)


def test_the_predicted_rates_are_eigenvalues_of_the_recurrence():
    for learning_rate, decay in [(1.98, 0.0), (1.5, 0.7), (0.3, 0.95), (3.3, 0.67), (5.0, 0.2)]:
        expected = [
            np.abs(
                np.linalg.eigvals([[1 + decay - learning_rate * curvature, -decay], [1.0, 0.0]])
            ).max()
            for curvature in momentum.CURVATURES
        ]
        np.testing.assert_allclose(momentum.predicted_rates(learning_rate, decay), expected)


def test_the_best_settings_are_best():
    best = momentum.predicted_slowest(momentum.BEST_HB, momentum.BEST_MOMENTUM)
    assert best == pytest.approx(9 / 11)
    assert momentum.predicted_slowest(momentum.BEST_GD, 0.0) == pytest.approx(99 / 101)
    learning_rates = np.linspace(0.01, 5, 400)
    for decay in np.linspace(0, 0.99, 100):
        assert momentum.predicted_slowest(learning_rates, decay).min() >= best - 1e-12
    assert momentum.predicted_slowest(learning_rates, 0.0).min() >= 99 / 101 - 1e-12


def test_the_paths_of_momentum_follow_the_recurrence():
    start = np.array([1.0, -1.5, 2.0, 1.25, -1.0])
    learning_rate, decay = momentum.SHOWN
    (path,) = momentum.paths(jnp.asarray(start, jnp.float32), np.array([[learning_rate, decay]]))
    assert path.shape == (momentum.STEPS + 1, 5)
    x, v = start, np.zeros(5)
    for step in range(60):
        np.testing.assert_allclose(path[step], x, rtol=1e-3, atol=1e-6)
        v = decay * v + momentum.SINGULAR_VALUES**2 * x
        x = x - learning_rate * v


def test_rates_are_measured_on_any_kind_of_convergence():
    steps = np.arange(momentum.STEPS + 1.0)[:, None]
    path = np.concatenate(
        [
            3 * 0.97**steps,
            5 * (-0.6) ** steps,
            0.9**steps * np.cos(0.7 * steps + 1),
            np.where(steps == 0, 2.0, 0.0),
            np.where(steps < 200, 1.0, np.inf),
        ],
        axis=1,
    ).astype(np.float32)
    rates = momentum.measured_rates(path)
    np.testing.assert_allclose(rates[:3], [0.97, 0.6, 0.9], rtol=1e-3)
    np.testing.assert_array_equal(rates[3:], [0, np.inf])


def test_gradient_descent_in_a_ravine_has_a_closed_form():
    start = np.array([14.0, 1.0])
    descent = ravine.best_descent("gradient descent", start, 0.0, np.array([0.1]))
    assert descent.learning_rate == pytest.approx(2 / 201)
    steps = np.arange(ravine.STEPS + 1)[:, None]
    expected = start * (1 - 2 / 201 * np.array([1.0, 200.0])) ** steps
    np.testing.assert_allclose(descent.path, expected, rtol=1e-3)
    loss = expected**2 @ [1.0, 200.0]
    np.testing.assert_allclose(descent.loss, loss / loss[0], rtol=2e-3)
    assert ravine.predicted_steps() == np.argmax(loss < 0.01 * loss[0]) == descent.arrival


def test_each_optimizer_takes_its_best_learning_rate():
    rates = np.geomspace(1e-3, 3, 10)
    start = np.array([14.0, 1.0])
    found = ravine.best_descent("momentum", start, np.pi / 4, rates)
    arrivals = {}
    for rate in rates:
        x, v, last_above = start, np.zeros(2), -1
        for step in range(ravine.STEPS + 1):
            if not x**2 @ [1.0, 200.0] < 0.01 * (start**2 @ [1.0, 200.0]):
                last_above = step
            v = 0.9 * v + np.array([1.0, 200.0]) * x
            x = np.clip(x - rate * v, -1e100, 1e100)
        arrivals[rate] = last_above + 1
    assert found.arrival == min(arrivals.values())
    assert arrivals[found.learning_rate] == found.arrival


def test_arrivals_and_zigzags_are_counted():
    assert ravine.arrival(np.array([1, 0.005, 0.5, 0.009, 0.001])) == 3
    assert ravine.arrival(np.array([1, 0.005, np.nan])) == 3
    assert ravine.arrival(np.array([0.001, 0.001])) == 0
    assert ravine.zigzags(np.array([1, -0.5, -0.2, 0.1, 0.05])) == 2
