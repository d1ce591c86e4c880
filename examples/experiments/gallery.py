"""Pages of the documentation site that show experiments, in Markdown, with pictures beside them."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from examples.experiments.experiment import Outcome

DOTS_PER_INCH = 150
# What Markdown, and the tables in it, would take for marks.
MARKS = re.compile(r"([\\*_<>\[\]|~$#])")
CODE = re.compile(r"(`[^`]+`)")


@dataclass(frozen=True)
class Exhibit:
    """An experiment that was run.

    Attributes:
        name: the experiment's name.
        claim: what it claims.
        explanation: the module's docstring, for students.
        outcome: its result.
        seconds: how long it took.
        picture: the figure as PNG.
        code: the module's source.
    """

    name: str
    claim: str
    explanation: str
    outcome: Outcome
    seconds: float
    picture: bytes
    code: str


def to_png(outcome: Outcome) -> bytes:
    """The figure of an outcome as PNG."""
    buffer = io.BytesIO()
    outcome.figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def verdict(holds: bool) -> str:
    """A verdict in words."""
    return "held" if holds else "did not hold"


def tally(exhibits: Sequence[Exhibit]) -> str:
    """How many of the claims held, in words."""
    held = sum(exhibit.outcome.holds for exhibit in exhibits)
    return f"{held} of {len(exhibits)} claims held"


def write(exhibits: Sequence[Exhibit], folder: Path, how: str) -> Path:
    """Write a page for each experiment, its picture, and a page that lists them.

    Args:
        exhibits: what to show, in this order.
        folder: where to write them; created if needed.
        how: how the experiments were run, in a sentence.

    Returns:
        The path of the page that lists them, index.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for exhibit in exhibits:
        (folder / f"{exhibit.name}.png").write_bytes(exhibit.picture)
        (folder / f"{exhibit.name}.md").write_text("\n".join(_page(exhibit, how)), encoding="utf-8")
    path = folder / "index.md"
    path.write_text("\n".join(_index(exhibits, how)), encoding="utf-8")
    return path


def _index(exhibits: Sequence[Exhibit], how: str) -> Iterator[str]:
    yield "# Experiments\n\nEach experiment states a claim, measures what it implies and draws a"
    yield f"picture. **{tally(exhibits)}.** {_plain(how)}\n"
    yield "| Experiment | Claim | |\n|-|-|-|"
    for exhibit in exhibits:
        words = verdict(exhibit.outcome.holds)
        yield f"| [{exhibit.name}]({exhibit.name}.md) | {_plain(exhibit.claim)} | {words} |"
    names = "\n".join(exhibit.name for exhibit in exhibits)
    yield f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def _page(exhibit: Exhibit, how: str) -> Iterator[str]:
    outcome = exhibit.outcome
    yield f"# {exhibit.name}\n\n**{_plain(exhibit.claim)}**\n"
    yield from _paragraphs(exhibit.explanation)
    yield f"## What was measured\n\nThe claim {verdict(outcome.holds)}.\n"
    yield "| What should hold | Measured | Held |\n|-|-|-|"
    for check in outcome.checks:
        held = "yes" if check.holds else "no"
        yield f"| {_plain(check.statement)} | {_plain(check.measured)} | {held} |"
    description = json.dumps(_alternative(outcome), ensure_ascii=False)
    yield f"\n```{{figure}} {exhibit.name}.png\n:alt: {description}\n"
    yield f"{_plain(outcome.caption)}\n```\n"
    yield f"{_plain(how)} This took {exhibit.seconds:.1f} seconds.\n"
    yield f"## The code\n\n{_fenced('python', exhibit.code)}"


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; indented ones are equations, whose lines are kept."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith(" "):
            yield _fenced("none", dedent(paragraph).rstrip(), "equation")
        else:
            yield "\n".join(_plain(line.strip()) for line in paragraph.splitlines()) + "\n"


def _fenced(language: str, code: str, style: str = "") -> str:
    """A block of code, between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    option = f":class: {style}\n\n" if style else ""
    return f"{fence}{{code-block}} {language}\n{option}{code.rstrip()}\n{fence}\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, apart from code between backticks."""
    return "".join(
        part if CODE.fullmatch(part) else MARKS.sub(r"\\\1", part) for part in CODE.split(text)
    )


def _alternative(outcome: Outcome) -> str:
    """A description of the picture for those who cannot see it, in addition to its caption."""
    figure = outcome.figure
    titles = [axes.get_title() for axes in figure.axes]
    panels = "; ".join(title for title in titles if title)
    return " ".join(f"{figure.get_suptitle()}. Panels: {panels}.".split())
