"""The command line of the experiments: what it prints and writes, and its exit status."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib import image
from matplotlib.figure import Figure

import examples.experiments
from examples.experiments import __main__ as command
from examples.experiments import experiment

ROOT = Path(examples.experiments.__path__[0]).parents[1]
LONG = "a statement [of some length] that a table of eighty columns would have to fold or to cut"


def run_python(code):
    """Runs code in a separate process, which has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120
    )


def made_up(name, holds):
    """An experiment that does nothing."""

    def run(settings):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        checks = [
            experiment.Check(LONG, f"seed {settings.seed}, quick {settings.quick}", True),
            experiment.Check("π² = 10", "9.87 /°C", holds),
        ]
        return experiment.Outcome(checks, figure, "A line.")

    return SimpleNamespace(
        CLAIM=f"The claim of {name}.", __doc__="Why.", __file__=__file__, run=run
    )


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the command with fake experiments, of which depth fails; returns status and output."""
    monkeypatch.setattr(experiment, "load", lambda name: made_up(name, name != "depth"))

    def run_with(*arguments):
        status = command.main([*arguments, "--out", str(tmp_path / "new" / "pictures")])
        return status, capsys.readouterr().out

    return run_with


def test_the_list_has_one_name_a_line_and_waits_for_nothing_heavy():
    code = (
        "import sys; from examples.experiments import __main__ as command; "
        "status = command.main(['--list']); "
        "heavy = {'jax', 'numpy', 'matplotlib', 'rich', 'gradtx'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else status)"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == list(experiment.NAMES)


def test_every_experiment_has_a_name_and_every_name_an_experiment():
    modules = [f"examples.experiments.{name.replace('-', '_')}" for name in experiment.NAMES]
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    claiming = {
        f"examples.experiments.{path.stem}"
        for path in (ROOT / "examples" / "experiments").glob("*.py")
        if re.search("^CLAIM = ", path.read_text(encoding="utf-8"), re.M)
    }
    assert claiming == set(modules)


def test_one_experiment_runs_without_the_others_even_into_a_pipe_of_ascii(tmp_path):
    code = (
        "import runpy, sys; sys.stdout.reconfigure(encoding='ascii')\n"
        f"sys.argv = ['x', 'lowpass', '--quick', '--out', {str(tmp_path)!r}]\n"
        "try: runpy.run_module('examples.experiments', run_name='__main__')\n"
        "finally: print('loaded', *(m for m in sys.modules if m.startswith('examples.exp')))"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 claims held" in done.stdout
    assert "cos w + b?)" in done.stdout
    assert "examples.experiments.lowpass" in done.stdout
    assert not {f"examples.experiments.{name}" for name in set(experiment.NAMES) - {"lowpass"}} & (
        set(done.stdout.split())
    )
    assert image.imread(tmp_path / "lowpass.png").std() > 0.05


def test_claims_that_held_give_the_status_0_a_table_and_pictures(run, tmp_path):
    status, output = run("ravine", "bias", "ravine", "--seed", "7", "--quick")
    assert status == 0
    assert re.findall("^The claim of (.*)\\.$", output, re.M) == ["ravine", "bias"]
    assert output.count("seed 7, quick True") == 2
    assert "2 of 2 claims held" in output
    assert re.search(r"│ bias +│ held +│ 2 of 2 │ +\d+\.\d │", output)
    for name in ("ravine", "bias"):
        path = tmp_path / "new" / "pictures" / f"{name}.png"
        assert str(path) in output
        assert image.imread(path).std() > 0.05


def test_a_claim_that_did_not_hold_gives_the_status_1(run):
    status, output = run("bias", "depth")
    assert status == 1
    assert "1 of 2 claims held" in output
    assert re.search(r"│ depth +│ did not hold +│ 1 of 2 │", output)
    assert re.search(r"^did not hold in \d+\.\d seconds$", output, re.M)
    assert re.search(r"│ π² = 10 +│ 9.87 /°C +│ no +│", output)


def test_without_names_everything_runs_at_full_size(run):
    status, output = run()
    assert status == 1
    assert re.findall("^The claim of (.*)\\.$", output, re.M) == list(experiment.NAMES)
    assert output.count("seed 0, quick False") == len(experiment.NAMES)


@pytest.mark.parametrize("columns", ["40", "80"])
def test_piped_output_is_whole_and_plain(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm-256color")
    _, output = run("bias")
    assert LONG in output
    assert "…" not in output
    assert all(character == "\n" or character.isprintable() for character in output)


def test_the_pages_are_written_where_asked(run, tmp_path):
    folder = tmp_path / "a" / "b"
    _, output = run("bias", "depth", "--seed", "3", "--pages", str(folder))
    assert f"Gallery: {folder / 'index.md'}\n" in output
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "The claim of bias." in page
    assert "Full sizes, seed 3" in page
    assert Path(__file__).read_text(encoding="utf-8") in (folder / "bias.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biass"], "argument NAME: there is no experiment 'biass'; did you mean bias?"),
        (
            ["--seed", "-1"],
            "argument --seed: must be a whole number from 0 to 4294967295",
        ),
        (["--seed", "4294967296"], "argument --seed: must be a whole number"),
        (["--out", __file__], "argument --out: must be a folder"),
        (["--pages", f"{__file__}/deeper"], "argument --pages: must be a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_arguments_exit_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_tells_the_exit_status(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "exit status is 0 if all claims held, 1 if some did not, and 2 if" in text
