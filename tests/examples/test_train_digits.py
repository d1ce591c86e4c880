"""The main example: it learns to read digits with any optimizer, and reports how."""

import re
import runpy
import sys

import jax
import numpy as np
import pytest
from matplotlib import image

import gradtx
from examples import digits, extras, recipes, report, train_digits
from gradtx.catalogue import methods
from gradtx.training import make_train_step


def table_rows(output):
    """The rows of the closing table: name -> accuracy in percent, raw and averaged."""
    rows = re.findall(r"│ (\w+) .*? ([\d.]+)% │ +([\d.]+)% │", output)
    return {name: (float(raw), float(averaged)) for name, raw, averaged in rows}


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the example; returns the rows of its table and the pixels of its picture."""

    def run_with(*arguments):
        path = tmp_path / "deeper" / "curves.png"
        assert train_digits.main([*arguments, "--out", str(path)]) == 0
        output = capsys.readouterr().out
        assert str(path) in output
        return table_rows(output), image.imread(path)

    return run_with


def test_the_default_run_reads_97_percent_with_raw_and_averaged_parameters(run):
    rows, picture = run()
    assert list(rows) == ["adamw"]
    assert min(rows["adamw"]) >= 97
    assert picture.std() > 0.05


def test_a_comparison_trains_each_and_draws_one_picture(run):
    names = ["momentum", "rprop", "lion"]
    rows, picture = run("--quick", "--compare", *names)
    assert list(rows) == names
    # Two epochs are many steps with mini-batches, but only two steps for rprop.
    assert min(rows["momentum"]) > 90
    assert min(rows["lion"]) > 75
    assert picture.std() > 0.05


def test_an_interrupted_run_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setattr(report, "draw", lambda found, _: runs.extend(found))

    def interrupt_after(steps):
        def make(*arguments, **options):
            step, numbers = make_train_step(*arguments, **options), iter(range(steps))
            return lambda *x: step(*x) if next(numbers, None) is not None else stop()

        def stop():
            raise KeyboardInterrupt

        monkeypatch.setattr(train_digits, "make_train_step", make)

    saved = ["--quick", "--checkpoint", str(tmp_path), "--checkpoint-every", "7"]
    assert train_digits.main(["--quick"]) == 0
    for steps in (30, 5):
        interrupt_after(steps)
        with pytest.raises(KeyboardInterrupt):
            train_digits.main(saved)
    interrupt_after(16)  # 44 steps less the 28 before the last checkpoint
    assert train_digits.main(saved) == 0
    assert "Going on after step 28 of" in capsys.readouterr().err
    assert train_digits.main(saved) == 0
    assert "Going on after step 44 of" in capsys.readouterr().err
    uninterrupted, resumed, again = runs
    assert uninterrupted.epochs == resumed.epochs == again.epochs
    assert len(resumed.epochs) == 2
    with pytest.raises(SystemExit, match="'seed': 0 in the checkpoint, 1 now"):
        train_digits.main([*saved, "--seed", "1"])


def test_every_recipe_of_the_library_has_a_name_here():
    optimizers = {method.name for method in methods("optimizer")}
    left_out = {"dpsgd", "optimistic_adam", "polyak_sgd"}
    assert set(recipes.names()) == optimizers - left_out | {"lbfgs", "momentum"}


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_can_be_built(name):
    tx, rate = train_digits.make_optimizer(name, 0.125, total_steps=100)
    params, _ = digits.init_network(jax.random.key(0))
    assert isinstance(tx, gradtx.GradientTransformationExtraArgs)
    tx.init(params)
    assert rate == 0.125 if recipes.settings_of(name).full_batch else rate(10) == 0.125


def test_the_samples_are_split_once_and_for_all():
    data, again = digits.load_digits(), digits.load_digits()
    assert data.train["image"].shape == (1437, 64)
    assert data.test["image"].shape == (360, 64)
    np.testing.assert_array_equal(data.test["image"], again.test["image"])
    pixels = np.concatenate([data.train["image"], data.test["image"]])
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert len(np.unique(pixels, axis=0)) == 1797
    shares = np.bincount(data.test["label"]) / np.bincount(data.train["label"])
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


@pytest.mark.parametrize("option", ["--optimizer", "--compare"])
def test_a_wrong_name_lists_the_names(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_digits", option, "adma"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(train_digits.__file__, run_name="__main__")
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "there is no optimizer 'adma'" in message
    assert all(name in message for name in recipes.names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number >= 1, got '0'"),
        (["--batch-size", "1.5"], "argument --batch-size: must be a whole number >= 1, got '1.5'"),
        (["--learning-rate", "nan"], "argument --learning-rate: must be a number > 0, got 'nan'"),
        (["--learning-rate", "x"], "argument --learning-rate: must be a number > 0, got 'x'"),
        (["--out", "curves.txt"], "argument --out: must end in .pdf, .png or .svg"),
        (["--optimizer", "sgd", "--compare", "adam"], "not allowed with argument --optimizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_before_the_training(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        train_digits.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(SystemExit, match=r'need rich, .* pip install "gradtx\[examples\]"'):
        extras.load("rich.progress")
