"""What the command lines share: defaults in the help, suggestions, pipes, existing files."""

import argparse
import subprocess
import sys

import pytest

from examples import commands, population, train_digits
from examples.experiments import __main__ as experiments


def parser():
    made = commands.Parser(prog="program")
    made.add_argument("--learning-rate", type=commands.positive_number, default=0.5, help="rate")
    made.add_argument("--seed", type=commands.whole_number(0), default=0, help="of the noise")
    made.add_argument("--quick", action="store_true", help="fast")
    made.add_argument("--out", type=commands.picture, help="picture")
    return made


def refusal(made, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        made.parse_args(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_help_shows_each_meaningful_default():
    text = parser().format_help()
    assert "rate (default: 0.5)" in text
    assert "of the noise (default: 0)" in text
    assert text.count("default") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rat3", "1"], "--learning-rat3 1; did you mean --learning-rate?"),
        (["--sede=1"], "--sede=1; did you mean --seed?"),
        (["--xyz"], "unrecognized arguments: --xyz\n"),
        (["--seed", "-1"], "must be a whole number >= 0, got '-1'"),
        (["--learning-rate", "inf"], "must be a number > 0, got 'inf'"),
        (["--out", "picture.txt"], "must end in .pdf, .png or .svg"),
    ],
)
def test_corrections_are_suggested(arguments, message, capsys):
    assert message in refusal(parser(), arguments, capsys)


def test_names_are_suggested_or_listed():
    name = commands.one_of("optimizer", ["sgd", "adam", "adamw"])
    assert name("adam") == "adam"
    with pytest.raises(argparse.ArgumentTypeError, match="'adma'; did you mean adam"):
        name("adma")
    with pytest.raises(argparse.ArgumentTypeError, match="'xyz'\nThe names are sgd, adam, adamw"):
        name("xyz")


@pytest.mark.parametrize(
    "program", [train_digits, population, experiments], ids=["digits", "population", "experiments"]
)
def test_every_program_suggests_its_options(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--quikc"])
    assert "did you mean --quick?" in capsys.readouterr().err


def test_a_batch_size_is_never_changed_silently(capsys):
    for arguments, message in (
        (["--batch-size", "5000"], "--batch-size: must be at most 1437, the number of images"),
        (["--optimizer", "newton", "--batch-size", "64"], "newton needs all 1437 images"),
    ):
        with pytest.raises(SystemExit):
            train_digits.main(arguments)
        assert message in capsys.readouterr().err


def test_files_that_will_be_replaced_are_named_before(tmp_path, capsys):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    commands.announce_overwriting(paths)
    assert capsys.readouterr().err == ""
    for path in paths[:5]:
        path.write_bytes(b"")
    commands.announce_overwriting(paths)
    message = capsys.readouterr().err
    assert message.startswith(f"Will replace {paths[0]}, ")
    assert message.endswith("and 2 more\n")


def test_a_file_that_cannot_be_written_is_named_before(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path, tmp_path / "file" / "results.json"):
        with pytest.raises(SystemExit, match=f"Cannot write {path}: "):
            commands.announce_overwriting([path])
    commands.announce_overwriting([tmp_path / "file", tmp_path / "new"])
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "new").exists()
    assert capsys.readouterr().err == f"Will replace {tmp_path / 'file'}\n"


@pytest.mark.parametrize("module", ["examples.experiments --list", "gradtx.catalogue"])
def test_no_traceback_when_the_reader_stops_reading(module):
    command = f"{sys.executable} -m {module} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
