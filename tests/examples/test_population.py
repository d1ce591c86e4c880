"""The population: compiled once, each member as if trained alone, and a picture of it."""

import jax
import numpy as np
import pytest
from matplotlib import image

from examples import digits, population
from gradtx.training import minibatches

KEY = jax.random.key(3)
RATES = np.float32([1e-4, 1e-2])


def batches(data, steps=4):
    return list(minibatches(KEY, data.train, 64, epochs=1))[:steps]


def test_a_quick_run_finds_a_rate_that_learns_and_plots_it(tmp_path, capsys):
    path = tmp_path / "deeper" / "population.png"
    assert population.main(["--quick", "--members", "6", "--out", str(path)]) == 0
    output = capsys.readouterr().out
    assert "6 networks, 44 steps, compiled once" in output
    # Of 1e-5, 1e-4, ..., 1, of which the ends are known to be too small and too large.
    assert "Best learning rate 0.01:" in output
    assert str(path) in output
    assert image.imread(path).std() > 0.05


def test_a_member_is_as_if_alone():
    data = digits.load_digits()
    run = population.train_population(RATES, KEY, batches(data), data.test)
    assert run.compilations == 1
    assert run.measured["loss"].shape == (4, 2)
    alone, _ = population.train_alone(float(RATES[1]), KEY, batches(data))
    np.testing.assert_allclose(run.measured["loss"][:, 1], alone["loss"], rtol=1e-5)
    np.testing.assert_array_equal(run.measured["learning_rate"], [RATES] * 4)
    np.testing.assert_array_equal(run.measured["step"], [[t, t] for t in (1, 2, 3, 4)])


def run_of(losses, compilations=1):
    losses = np.array(losses)
    return population.Run(RATES, {"loss": losses}, np.ones(2), compilations, 1.0)


def test_the_best_member_has_the_lowest_loss_that_is_finite():
    assert run_of([[1.0, 2.0]] * 9 + [[3.0, 2.5]]).best == 1
    assert run_of([[1.0, 2.0]] * 9 + [[3.0, np.nan]]).best == 0


def test_a_population_that_is_not_what_it_claims_is_refused():
    alone = {"loss": np.ones(10)}
    assert population.check(run_of([[1.0, 2.0]] * 10), alone) == 0
    with pytest.raises(RuntimeError, match="compiled 2 times"):
        population.check(run_of([[1.0, 2.0]] * 10, compilations=2), alone)
    with pytest.raises(RuntimeError, match=r"losses differ by up to 5.0e-01"):
        population.check(run_of([[1.5, 2.0]] * 10), alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--members", "1"], "argument --members: must be a whole number >= 2, got '1'"),
        (["--epochs", "0"], "argument --epochs: must be a whole number >= 1, got '0'"),
        (["--out", "curves.txt"], "argument --out: must end in .pdf, .png or .svg"),
    ],
    ids=["members", "epochs", "out"],
)
def test_wrong_arguments_are_refused_before_the_training(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        population.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
