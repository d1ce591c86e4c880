"""A page that shows experiments: a single HTML file, without JavaScript."""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from textwrap import dedent

from examples.experiments.experiment import Check, Outcome

DOTS_PER_INCH = 150


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
    """

    name: str
    claim: str
    explanation: str
    outcome: Outcome
    seconds: float
    picture: bytes


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
    """Write the page.

    Args:
        exhibits: what to show, in this order.
        folder: where to write index.html; created if needed.
        how: how the experiments were run, in a sentence.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page(exhibits, how), encoding="utf-8")
    return path


def page(exhibits: Sequence[Exhibit], how: str) -> str:
    """The page as HTML."""
    return _PAGE.substitute(
        style=_STYLE,
        tally=escape(tally(exhibits)),
        how=escape(how),
        contents="\n".join(
            f'<li><a href="#{escape(exhibit.name)}">{escape(exhibit.name)}</a> '
            f"{_badge(exhibit.outcome.holds)}</li>"
            for exhibit in exhibits
        ),
        cards="\n".join(_card(exhibit) for exhibit in exhibits),
    )


def _card(exhibit: Exhibit) -> str:
    width, height = _size(exhibit.picture)
    return _CARD.substitute(
        name=escape(exhibit.name),
        badge=_badge(exhibit.outcome.holds),
        claim=escape(exhibit.claim),
        explanation="\n".join(_paragraphs(exhibit.explanation)),
        rows="\n".join(_row(check) for check in exhibit.outcome.checks),
        picture=base64.b64encode(exhibit.picture).decode("ascii"),
        width=width,
        height=height,
        alt=escape(_alternative(exhibit.outcome)),
        caption=escape(exhibit.outcome.caption),
        seconds=f"{exhibit.seconds:.1f}",
    )


def _row(check: Check) -> str:
    return (
        f"<tr><td>{escape(check.statement)}</td><td>{escape(check.measured)}</td>"
        f"<td>{_badge(check.holds, yes='yes', no='no')}</td></tr>"
    )


def _badge(holds: bool, yes: str = verdict(True), no: str = verdict(False)) -> str:
    kind, text = ("held", yes) if holds else ("failed", no)
    return f'<span class="badge {kind}">{escape(text)}</span>'


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; indented ones are equations, whose lines are kept."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith(" "):
            yield f"<pre>{escape(dedent(paragraph).rstrip())}</pre>"
        else:
            yield f"<p>{escape(paragraph.strip())}</p>"


def _alternative(outcome: Outcome) -> str:
    """A description of the picture for those who cannot see it, in addition to its caption."""
    figure = outcome.figure
    titles = [axes.get_title() for axes in figure.axes]
    panels = "; ".join(title for title in titles if title)
    return f"{figure.get_suptitle()}. Panels: {panels}."


def _size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG picture, from its header."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradtx experiments: $tally</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>Experiments with gradtx</h1>
<p class="tally">$tally</p>
<p>Each experiment states a claim, measures what it implies and draws a picture. $how</p>
</header>
<nav aria-label="Experiments">
<ol>
$contents
</ol>
</nav>
<main>
$cards
</main>
</body>
</html>
""")

_CARD = Template("""\
<article id="$name" aria-labelledby="$name-title">
<h2 id="$name-title">$name $badge</h2>
<p class="claim">$claim</p>
<div class="explanation">
$explanation
</div>
<table>
<thead><tr><th scope="col">what should hold</th><th scope="col">measured</th>\
<th scope="col">held</th></tr></thead>
<tbody>
$rows
</tbody>
</table>
<figure>
<img src="data:image/png;base64,$picture" width="$width" height="$height" alt="$alt">
<figcaption>$caption</figcaption>
</figure>
<p class="note">$seconds seconds. <a href="#top">To the top</a></p>
</article>""")

_STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f3f4f6; --card: #ffffff; --text: #1b1f24; --soft: #4b5563; --line: #d5d9e0;
  --link: #0b57a4; --held: #17642e; --failed: #a81414;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1e232a; --text: #e6e9ee; --soft: #b0b8c4; --line: #3a424e;
    --link: #8cc2ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: clamp(0.5rem, 2vw, 1.5rem); max-width: 80rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0.5rem 0 0; line-height: 1.2; }
h2 { margin: 0; display: flex; flex-wrap: wrap; gap: 0.75rem; align-items: center; }
a { color: var(--link); }
p { margin: 0.6rem 0; }
.tally { font-size: 1.25rem; font-weight: 600; }
.claim { font-size: 1.1rem; font-weight: 600; }
.note { color: var(--soft); font-size: 0.9rem; margin-bottom: 0; }
.badge {
  padding: 0.05rem 0.6rem; border-radius: 1rem; color: #ffffff; white-space: nowrap;
  font-size: 0.8rem; font-weight: 600; line-height: 1.6;
}
.held { background: var(--held); }
.failed { background: var(--failed); }
nav ol {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: 0.3rem 1.5rem; padding-left: 2rem;
}
article {
  margin: 1.25rem 0; padding: clamp(0.9rem, 2.5vw, 2rem); border: 1px solid var(--line);
  border-radius: 0.75rem; background: var(--card);
}
.explanation { max-width: 56rem; }
pre {
  margin: 0.6rem 0; padding-left: 1rem; border-left: 0.2rem solid var(--line);
  font-size: 0.9rem; overflow-x: auto;
}
table {
  width: 100%; margin: 0.6rem 0; border-collapse: collapse; table-layout: fixed;
  align-self: start; font-size: 0.92rem; line-height: 1.4;
}
th, td {
  padding: 0.4rem 0.5rem 0.4rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-variant-numeric: tabular-nums;
}
th { color: var(--soft); font-weight: 600; }
th:first-child { width: 46%; }
th:last-child { width: 3.6rem; }
td:last-child, th:last-child { padding-right: 0; text-align: right; }
figure { margin: 1rem 0 0; }
img {
  display: block; width: 100%; max-width: 70rem; height: auto; margin: 0 auto; padding: 0.5rem;
  border: 1px solid var(--line); border-radius: 0.5rem; background: #ffffff;
}
figcaption { max-width: 70rem; margin: 0.6rem auto 0; color: var(--soft); }
@media print {
  :root {
    color-scheme: light;
    --page: #ffffff; --card: #ffffff; --text: #000000; --soft: #333333; --line: #999999;
    --link: #000000;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  article { border: 0; padding: 0; break-before: page; }
  figure, tr, pre { break-inside: avoid; }
  pre { white-space: pre-wrap; }
  .badge { color: #000000; background: none; border: 1px solid; }
  .note a { display: none; }
}
"""
