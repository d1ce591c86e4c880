"""What the command lines share: help with defaults, suggestions, checked values."""

import argparse
import difflib
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any


class _Help(argparse.HelpFormatter):
    """Help that shows each meaningful default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        is_trivial = default is None or default is False or default in (argparse.SUPPRESS, [])
        return text if is_trivial else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose help shows the defaults, and which suggests corrections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments of a command line; an unknown one ends the program with a suggestion."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            hints = [suggestion(text.partition("=")[0], options) for text in unknown]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{max(hints, key=len)}")
        return found


def suggestion(text: str, names: Iterable[str]) -> str:
    """The end of a message about a name that does not exist, possibly empty.

    Example:
        >>> from examples.commands import suggestion
        >>> suggestion("adamq", ["sgd", "adamw"])
        '; did you mean adamw?'
    """
    near = difflib.get_close_matches(text, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def one_of(what: str, names: Collection[str]) -> Callable[[str], str]:
    """The type of an argument that must be one of some names; messages call it `what`."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"there is no {what} {text!r}{suggestion(text, names)}\nThe names are "
                f"{', '.join(names)}."
            )
        return text

    return name


def whole_number(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number within a range."""
    span = f">= {smallest}" if largest is None else f"from {smallest} to {largest}"

    def number(text: str) -> int:
        digits = text.removeprefix("-")
        value = int(text) if digits.isdecimal() else smallest - 1
        if value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"must be a whole number {span}, got {text!r}")
        return value

    return number


def positive_number(text: str) -> float:
    """The type of an argument that is a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value


def picture(text: str) -> Path:
    """The type of an argument that names a picture file."""
    path = Path(text)
    if path.suffix not in (".pdf", ".png", ".svg"):
        raise argparse.ArgumentTypeError(f"must end in .pdf, .png or .svg, got {text!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, but {text!r} is a folder")
    return path


def folder(text: str) -> Path:
    """The type of an argument that names a folder, which need not exist."""
    path = Path(text)
    if any(part.exists() and not part.is_dir() for part in (path, *path.parents)):
        raise argparse.ArgumentTypeError(f"must be a folder, got {text!r}")
    return path


def announce_overwriting(paths: Iterable[Path]) -> None:
    """Announce which files will be replaced, or exit if they cannot be written."""
    paths = list(paths)
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            path.open("a").close()
            if is_new:
                path.unlink()
        except OSError as error:
            raise SystemExit(f"Cannot write {path}: {error.strerror}") from error
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        print(f"Will replace {', '.join(existing[:3])}{more}", file=sys.stderr)


def run(main: Callable[[], int]) -> None:
    """Run a program and exit with its status, silently if its output is closed (`| head`)."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
