"""The comparison of optimizers: how it tunes, what it measures, and what is stored of it."""

import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib import image

from examples import candidates, comparison, language_model, which_optimizer
from examples.problems import PROBLEMS

GRID = 10**0.25
NAME = "schedule_free_adamw"


def distance_from(best):
    """A loss that grows with the distance of the learning rate's logarithm from the best one."""
    return lambda rate: abs(np.log10(rate / best))


@pytest.mark.parametrize("best", [0.01, 0.01 * GRID, 1.0, 1e-4])
def test_a_search_finds_the_best_rate_of_its_grid(best):
    results = which_optimizer.tune(distance_from(best), guess=0.01)
    rates = list(results)
    place = rates.index(min(results, key=results.__getitem__))
    assert abs(np.log10(rates[place] / best)) < 1e-9
    # Its neighbors were tried, on both sides.
    np.testing.assert_allclose(rates[place - 1 : place + 2], best * GRID ** np.arange(-1, 2))


def test_a_search_turns_back_where_runs_fail_and_gives_up_somewhere():
    assert min(which_optimizer.tune(lambda rate: np.inf if rate > 0.02 else -rate, 0.01)) < 0.01
    assert len(which_optimizer.tune(lambda rate: -rate, 0.01)) == 3 + 8 + 2


def test_a_run_takes_the_steps_of_optax():
    problem = PROBLEMS["regression"](True)
    trainer = which_optimizer.Trainer("adamw", problem)
    run = trainer.run(0.1, seed=1)
    params, data = problem.start(1)
    x, y = np.asarray(data["x"]), np.asarray(data["y"])
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 1, 8, 0.01), weight_decay=0.0)
    state, evaluations = tx.init(params), []
    for step in range(9):
        kernel = np.asarray(params["kernel"])
        if step % 4 == 0:
            evaluations.append(np.mean((x @ kernel - y) ** 2))
        gradient = {"kernel": jnp.asarray(x.T @ (x @ kernel - y) / len(x))}
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(run["evaluation"], evaluations, rtol=1e-4)


def test_the_regression_has_its_condition_number():
    _, data = PROBLEMS["regression"](False).start(0)
    eigenvalues = np.linalg.eigvalsh(np.float64(data["x"]).T @ np.float64(data["x"]) / 128)
    np.testing.assert_allclose(eigenvalues[[0, -1]], [1e-4, 1], rtol=1e-3)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", which_optimizer.CANDIDATES)
def test_each_candidate_can_be_built_for_each_problem(name, problem):
    built = PROBLEMS[problem](True)
    params, _ = built.start(1)
    tx = candidates.make_optimizer(name, built, 0.125)
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.leaves(state)


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_states_are_those_of_the_stored_results(name):
    # So a candidate has the settings, and the parameters, that it had there.
    problem = PROBLEMS["language"](False)
    stored = comparison.load()["problems"]["language"]["optimizers"][name]
    assert which_optimizer.Trainer(name, problem).state_bytes() == stored["state_bytes"]


def test_the_problem_says_which_matrices_muon_gets():
    problem = PROBLEMS["language"](True)
    params, _ = problem.start(1)
    states = [
        str(jax.eval_shape(candidates.make_optimizer("muon", each, 0.1).init, params))
        for each in (problem, replace(problem, title="mine"), replace(problem, matrices=""))
    ]
    assert states[0] == states[1] != states[2]


def test_times_are_compared_within_each_round():
    # The machine is three times slower in every other round.
    def clock(seconds):
        return (seconds * slow for slow in itertools.cycle([1, 3]))

    times = which_optimizer.timed({"adamw": clock(0.001), "soap": clock(0.002)}, rounds=4)
    assert times["adamw"] == {"milliseconds": 1.0, "ratios": [1.0, 1.0, 1.0]}
    assert times["soap"] == {"milliseconds": 2.0, "ratios": [2.0, 2.0, 2.0]}


def test_times_are_compared_with_adamw_where_it_takes_part():
    def timed(**seconds):
        clocks = {name: itertools.repeat(value) for name, value in seconds.items()}
        return which_optimizer.timed(clocks, rounds=2)

    assert timed(lion=0.001, adamw=0.004)["lion"]["ratios"][1] == 0.25
    assert timed(lion=0.001, soap=0.004)["soap"]["ratios"][1] == 4.0


def test_a_quick_run_writes_results_that_can_be_shown(tmp_path, capsys):
    path, quick = tmp_path / "deeper" / "results.json", ["--quick", "--optimizers", NAME]
    assert which_optimizer.main([*quick, "--output", str(path)]) == 0
    printed = capsys.readouterr()
    assert f"python -m examples.comparison {path} --pictures" in printed.out
    results = comparison.load(str(path))
    assert list(results["problems"]) == list(PROBLEMS)
    for problem in results["problems"].values():
        assert set(problem["optimizers"]) == {NAME}
        for result in problem["optimizers"].values():
            assert len(result["evaluation"]) == 3
            assert all(len(run) == len(problem["steps"]) for run in result["evaluation"])
            assert 8 <= result["state_bytes"] / problem["parameters"] < 12
            assert result["rate"] in [float(f"{rate:.3g}") for rate, _ in result["sweep"]]
        assert comparison.table(problem) in printed.out
        assert f"{problem['title']}: {problem['measure']},\n" in printed.err
        # The first that takes part: AdamW does not.
        assert f"relative to {NAME};" in comparison.table(problem)


def renamed(problem, **names):
    """The results of a problem with other names of the optimizers."""
    found = problem["optimizers"].items()
    return problem | {"optimizers": {names.get(name, name): result for name, result in found}}


def test_optimizers_that_are_not_known_have_a_color_of_their_own():
    problem = renamed(comparison.load()["problems"]["digits"], adamw="mine", lion="yours")
    by_step, by_time, _ = comparison.figure_of(problem).axes
    lines = {line.get_label(): line.get_color() for line in by_step.lines}
    assert set(lines) == set(problem["optimizers"])
    assert len(set(lines.values())) == 8
    assert by_time.get_xlabel() == "time, in steps of mine"


def test_the_axis_of_time_is_logarithmic_where_times_differ_much():
    for name, scale in (("digits", "log"), ("language", "linear")):
        _, by_time, _ = comparison.figure_of(comparison.load()["problems"][name]).axes
        assert by_time.get_xscale() == scale
        assert by_time.get_xlabel() == "time, in steps of adamw"


def test_results_are_shown_with_pictures(tmp_path, capsys):
    problem, path = comparison.load()["problems"]["digits"], tmp_path / "results.json"
    path.write_text(json.dumps({"problems": {"digits": problem}}))
    assert comparison.main([str(path), "--pictures", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert comparison.table(problem) in printed
    assert f"Picture: {tmp_path / 'new' / 'digits.png'}\n" in printed
    assert image.imread(tmp_path / "new" / "digits.png").std() > 0.05


def test_an_interrupted_run_says_what_is_saved(tmp_path, capsys, monkeypatch):
    stored, path = comparison.load()["problems"], tmp_path / "results.json"

    def compare(problem, *_):
        if problem.title == stored["digits"]["title"]:
            raise KeyboardInterrupt
        return dict(stored["regression"])

    monkeypatch.setattr(which_optimizer, "compare", compare)
    arguments = ["--quick", "--output", str(path), "--problems"]
    assert which_optimizer.main([*arguments, "regression", "digits"]) == 130
    assert capsys.readouterr().err == f"Interrupted. In {path}: regression\n"
    assert list(comparison.load(path)["problems"]) == ["regression"]
    assert which_optimizer.main([*arguments, "digits"]) == 130
    assert capsys.readouterr().err.endswith("Interrupted. Nothing is saved.\n")


def test_the_stored_results_are_those_of_the_command():
    results = comparison.load()
    assert comparison.STORED.stat().st_size < 100_000
    module, _, rest = results["command"].removeprefix("python -m ").partition(" ")
    assert module == "examples.which_optimizer"
    assert rest == "--output examples/site/results/which_optimizer.json"
    for name, problem in results["problems"].items():
        built = PROBLEMS[name](False)
        assert list(problem["optimizers"]) == list(which_optimizer.CANDIDATES)
        assert problem["steps"][-1] == built.total_steps
        assert problem["tuned_with"] == list(built.tuned_with)
        for result in problem["optimizers"].values():
            # The best rate has a worse one on each side.
            rates = [float(f"{rate:.3g}") for rate, _ in result["sweep"]]
            assert not result["tuned"] or min(rates) < result["rate"] < max(rates)
        assert not set(built.tuned_with) & set(results["seeds"])


def test_the_language_model_has_the_rates_that_were_found():
    found = comparison.load()["problems"]["language"]["optimizers"]
    stored = {name: found[name]["rate"] for name in language_model.LEARNING_RATES}
    assert stored == language_model.LEARNING_RATES


def test_a_wrong_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        which_optimizer.main(["--optimizers", "adamq"])
    assert "there is no candidate 'adamq'; did you mean adamw?" in capsys.readouterr().err
