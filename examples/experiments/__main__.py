"""Run experiments from the command line.

    python -m examples.experiments --list
    python -m examples.experiments momentum ravine
    python -m examples.experiments --quick --pages outputs/gallery

Each experiment prints a table of what was measured and whether the claim held, and saves a picture.
Each is imported only when it runs.
"""

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import commands, extras
from examples.experiments import experiment, gallery

# The width of tables where there is no terminal, and of text.
PIPED_WIDTH = 180
TEXT_WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments that are named on the command line.

    Returns:
        The exit status: 0 if every claim held, otherwise 1.
    """
    arguments = _parser().parse_args(argv)
    if arguments.list:
        print(*experiment.NAMES, sep="\n")
        return 0
    console = _console()
    settings = experiment.Settings(seed=arguments.seed, quick=arguments.quick)
    names = list(dict.fromkeys(arguments.names)) or experiment.NAMES
    pages = [] if arguments.pages is None else [arguments.pages / "index.md"]
    commands.announce_overwriting([*(arguments.out / f"{name}.png" for name in names), *pages])
    exhibits = []
    for i, name in enumerate(names, start=1):
        with console.status(f"{i} of {len(names)}: {name}"):
            exhibits.append(run(name, settings))
        path = arguments.out / f"{name}.png"
        _save(path, exhibits[-1].picture)
        _print_exhibit(console, exhibits[-1], path)
    _print_summary(console, exhibits)
    if arguments.pages is not None:
        print(f"Gallery: {gallery.write(exhibits, arguments.pages, _how(settings))}")
    return 0 if all(exhibit.outcome.holds for exhibit in exhibits) else 1


def run(name: str, settings: experiment.Settings) -> gallery.Exhibit:
    """Run one experiment, and draw its picture."""
    start = time.perf_counter()
    module = experiment.load(name)
    outcome = module.run(settings)
    picture = gallery.to_png(outcome)
    seconds = time.perf_counter() - start
    explanation, code = module.__doc__ or "", Path(module.__file__).read_text(encoding="utf-8")
    return gallery.Exhibit(name, module.CLAIM, explanation, outcome, seconds, picture, code)


def _console() -> Any:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The encoding of a pipe may lack mathematical symbols.
        sys.stdout.reconfigure(errors="replace")
    make = extras.load("rich.console").Console
    console = make(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = make(markup=False, emoji=False, highlight=False, width=PIPED_WIDTH)
    return console


def _save(path: Path, picture: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)


def _print_exhibit(console: Any, exhibit: gallery.Exhibit, path: Path) -> None:
    outcome = exhibit.outcome
    console.print(exhibit.name, style="bold")
    console.print(exhibit.claim, width=min(console.width, TEXT_WIDTH))
    table = extras.load("rich.table").Table()
    table.add_column("what should hold", overflow="fold")
    table.add_column("measured", overflow="fold")
    table.add_column("held")
    for check in outcome.checks:
        table.add_row(
            check.statement, check.measured, _colored("yes" if check.holds else "no", check.holds)
        )
    console.print(table)
    console.print(
        _colored(gallery.verdict(outcome.holds), outcome.holds), f"in {exhibit.seconds:.1f} seconds"
    )
    print(f"Picture: {path}\n")


def _print_summary(console: Any, exhibits: Sequence[gallery.Exhibit]) -> None:
    table = extras.load("rich.table").Table(title=gallery.tally(exhibits))
    table.add_column("experiment", overflow="fold")
    table.add_column("verdict")
    table.add_column("checks", justify="right")
    table.add_column("seconds", justify="right")
    for exhibit in exhibits:
        outcome = exhibit.outcome
        held = sum(check.holds for check in outcome.checks)
        table.add_row(
            exhibit.name,
            _colored(gallery.verdict(outcome.holds), outcome.holds),
            f"{held} of {len(outcome.checks)}",
            f"{exhibit.seconds:.1f}",
        )
    console.print(table)


def _colored(text: str, holds: bool) -> Any:
    return extras.load("rich.text").Text(text, style="bold green" if holds else "bold red")


def _how(settings: experiment.Settings) -> str:
    import jax  # only here, because listing the names does not need jax

    import gradtx

    size = "Quick sizes" if settings.quick else "Full sizes"
    return f"{size}, seed {settings.seed}, gradtx {gradtx.__version__}, jax {jax.__version__}."


def _parser() -> commands.Parser:
    parser = commands.Parser(
        prog="python -m examples.experiments",
        description="Run the lecture notes' experiments: each states a claim, measures whether it "
        "holds and draws a picture.",
        epilog="The exit status is 0 if all claims held, 1 if some did not, and 2 if the command "
        f"line is wrong. The names: {', '.join(experiment.NAMES)}.",
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        type=commands.one_of("experiment", experiment.NAMES),
        help="which to run (all)",
    )
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=commands.folder,
        default=Path("outputs/experiments"),
        help="where to write the pictures",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: a few seconds each")
    parser.add_argument(
        "--seed", type=commands.whole_number(0, 2**32 - 1), default=0, help="seed of all randomness"
    )
    parser.add_argument(
        "--pages",
        metavar="DIR",
        type=commands.folder,
        help="also write pages for the documentation site, from DIR/index.md on",
    )
    return parser


if __name__ == "__main__":
    commands.run(main)
