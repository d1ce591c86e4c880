"""The experiments on saddles, walls and cliffs: their claims fail with other methods.

That they hold is what `python -m examples.experiments --quick` tells. Their
formulas and key figures are recomputed here in plain NumPy.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from examples.experiments import adagrad, amsgrad, clipping, experiment, saddle

# Its steps take longer than compiling them well.
LONG = ["amsgrad"]


OTHERS = {
    "saddle-sgd": lambda right: lambda rate: right(1.01 * rate),
    "saddle-add_noise": lambda right: lambda eta, **more: right(eta=1.5 * eta, **more),
    "adagrad-adagrad": lambda right: lambda rate, **_: right(rate),
    "adagrad-rmsprop": lambda right: lambda *given: right(*given, bias_correction=True),
    "amsgrad-adam": lambda _: lambda *given, **_more: gradtx.amsgrad(*given),
    "amsgrad-amsgrad": lambda right: lambda *given, **_: right(*given),
}


@pytest.mark.parametrize("which", OTHERS)
def test_the_claim_does_not_hold_with_another_optimizer(which, monkeypatch, request):
    name, function = which.split("-")
    if name in LONG:
        request.getfixturevalue("usual_compilation")
    monkeypatch.setattr(gradtx, function, OTHERS[which](getattr(gradtx, function)))
    assert not experiment.load(name).run(experiment.Settings(quick=True)).holds


@pytest.mark.parametrize("replaced", [clipping.NONE, clipping.VALUE, clipping.NORM])
def test_the_claim_does_not_hold_with_another_clipping(replaced, monkeypatch):
    other = clipping.NORM if replaced != clipping.NORM else clipping.VALUE
    monkeypatch.setitem(clipping.CLIPPINGS, replaced, clipping.CLIPPINGS[other])
    assert not clipping.run(experiment.Settings(quick=True)).holds


def test_the_wait_at_the_saddle_is_that_of_a_descent_in_float64():
    starts = (1e-3, 1e-7)
    for start in starts:
        points, losses = saddle.descend(gradtx.sgd(saddle.RATE), (1.0, start))
        x, y, path = 1.0, start, []
        for _ in range(saddle.STEPS):
            path.append((x, y, x**2 / 2 - saddle.L * y**2 / 2 + y**4 / 4))
            x, y = x - saddle.RATE * x, y - saddle.RATE * (y**3 - saddle.L * y)
        expected = np.array(path)
        np.testing.assert_allclose(points, expected[:, :2], rtol=1e-3, atol=1e-30)
        np.testing.assert_allclose(losses, expected[:, 2], atol=1e-6)
        wait = np.argmax(expected[:, 1] >= saddle.ESCAPED)
        assert saddle.escape_steps(np.asarray(points)[None, :, 1]) == wait


def test_a_run_that_stays_at_the_saddle_never_escapes():
    assert saddle.escape_steps(np.full((1, 10), 0.04)) == [np.inf]


def test_the_noise_at_the_saddle_adds_up_as_the_formula_says():
    variance, steps = 0.0, 60
    for _ in range(steps):
        variance = saddle.GROWTH**2 * variance + (saddle.RATE * saddle.NOISE) ** 2
    assert saddle.NOISE_FLOOR * (saddle.GROWTH ** (2 * steps) - 1) == pytest.approx(variance)


def test_adagrad_and_rmsprop_walk_as_their_equations_say():
    paths = adagrad.descend(adagrad.wall_then_slope, 300, adagrad.START)
    for name in (adagrad.ADAGRAD, adagrad.RMSPROP):
        x, squares = adagrad.START, 0.0
        for step in range(300):
            gradient = -adagrad.WALL if x < 0 else -adagrad.SLOPE
            if name == adagrad.ADAGRAD:
                squares += gradient**2
            else:
                squares = adagrad.DECAY * squares + (1 - adagrad.DECAY) * gradient**2
            x -= adagrad.RATE * gradient / np.sqrt(squares)
            assert paths[name].x[step] == pytest.approx(x, rel=1e-4, abs=1e-4)
            rate = adagrad.RATE / np.sqrt(squares)
            assert paths[name].rates[step] == pytest.approx(rate, rel=1e-4)


def test_where_adagrad_stalls_is_found_step_by_step():
    x, total = adagrad.START, 0.0
    for _ in range(adagrad.WALLED_STEPS):
        gradient = -adagrad.WALL if x < 0 else -adagrad.SLOPE
        total += gradient**2
        x -= adagrad.RATE * gradient / np.sqrt(total)
    assert adagrad.stall() == pytest.approx(x, rel=1e-9)


def test_adam_and_amsgrad_take_turns_as_in_the_paper():
    steps, b2 = 60, 1 / 17
    optimizers = amsgrad.optimizers(amsgrad.RATE, b1=0.0, b2=b2)
    for name, tx in optimizers.items():
        turns = amsgrad.take_turns(tx, steps)
        x, v, largest, regret = 1.0, 0.0, 0.0, 0.0
        for t in range(1, steps + 1):
            gradient = 4.0 if t % 3 == 1 else -1.0
            assert turns.x[t - 1] == pytest.approx(x, abs=1e-5)
            regret += gradient * x - gradient * -1.0
            assert turns.average_regret[t - 1] == pytest.approx(regret / t, abs=1e-5)
            v = b2 * v + (1 - b2) * gradient**2
            largest = max(largest, v)
            step = -gradient / np.sqrt(v if name == amsgrad.ADAM else largest)
            assert turns.steps[t - 1] == pytest.approx(step, rel=1e-5)
            x = min(max(x + amsgrad.RATE / np.sqrt(t) * step, -1.0), 1.0)
            if t > 57:
                assert amsgrad.cycle()[name][(t - 1) % 3] == pytest.approx(step, rel=1e-9)


def test_the_random_gradients_point_to_the_best_point_on_average():
    mean = amsgrad.PROBABILITY * amsgrad.RARE + (1 - amsgrad.PROBABILITY) * amsgrad.COMMON
    assert mean == pytest.approx(0.2)


@pytest.mark.parametrize("clip", [clipping.NONE, clipping.VALUE, clipping.NORM])
def test_clipped_descent_in_float64(clip):
    def h_and_slopes(w, b):
        h, dw, db = 0.5, 0.0, 0.0
        for _ in range(50):
            s = 1 / (1 + np.exp(-h))
            slope = w * s * (1 - s)
            h, dw, db = w * s + b, s + slope * dw, 1 + slope * db
        return h, np.array([dw, db])

    start = np.array([5.4, -2.3])
    paths = clipping.descend(clipping.CLIPPINGS[clip], jnp.asarray([start], jnp.float32))
    point, cut = start, 0
    # From the wall on, rounding decides where a run goes.
    for step in range(clipping.STEPS):
        h, slopes = h_and_slopes(*point)
        s = 1 / (1 + np.exp(-h))
        gradient = 2 * (s - 0.7) * s * (1 - s) * slopes
        norm = np.linalg.norm(gradient)
        limit = {
            clipping.NONE: gradient,
            clipping.VALUE: np.clip(gradient, -0.5 / 2**0.5, 0.5 / 2**0.5),
            clipping.NORM: gradient * min(1, 0.5 / norm),
        }[clip]
        cut += norm > 0.5
        np.testing.assert_allclose(paths.points[0, step], point, rtol=1e-3)
        np.testing.assert_allclose(paths.losses[0, step], (s - 0.7) ** 2, rtol=1e-2)
        np.testing.assert_allclose(paths.gradients[0, step], gradient, rtol=2e-2)
        cosine = gradient @ limit / norm / np.linalg.norm(limit)
        assert paths.cosines[0, step] == pytest.approx(cosine, abs=2e-3)
        if cut == 1:
            break
        point = point - clipping.RATE * limit
    assert cut == 1


def test_the_cosine_of_no_step_is_one():
    nothing = np.zeros((1, 1, 2))
    assert clipping.Paths(nothing, nothing[..., 0], nothing, nothing).cosines == 1
