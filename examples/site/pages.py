"""The reference: a page for each public name, and a table of those that belong together.

A Sphinx extension, which also sets the equations of docstrings apart and adds what the catalogue
knows about a method. The pages are made anew for each build.
"""

import builtins
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gradtx
from gradtx import catalogue, kernel
from gradtx.testing.references import Equation

# The packages that have names of their own, with what their table is called.
PACKAGES = {
    "kernel": "Kernels",
    "lift": "Lift",
    "schedules": "Schedules",
    "initializers": "Initializers",
    "normalization": "Normalization",
    "training": "Training",
    "diagnostics": "Diagnostics",
    "sharding": "Sharding",
    "testing": "Testing",
    "testing.references": "Equations of the papers",
}
METHODS = {"optimizer": "Optimizers", "piece": "Pieces of optimizers", "wrapper": "Wrappers"}
INTRODUCTIONS = {
    "Optimizers": "Each is a whole optimizer: its updates are added to the parameters as they are.",
    "Pieces of optimizers": "What `gradtx.chain` makes an optimizer of.",
    "Wrappers": "Each takes a transformation, and gives one that behaves differently.",
    "Composition and use": "What puts transformations together, chooses leaves, and shows a run.",
    "Kernels": kernel.__doc__ or "",
    "States": "What `init` returns. The states of methods that optax has are optax's own classes.",
    "Functions of optax": "gradtx passes these on as they are; optax documents them.",
}
DEPENDS = {
    "element": "the update of an element depends on that element alone",
    "leaf": "the update of an element depends on its whole leaf",
    "tree": "the update of an element depends on the whole tree",
}
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Source|Example|Yields|Note)s?:$")
ARGUMENTS = re.compile(r" +\*+\w+: ")


@dataclass(frozen=True)
class Topic:
    """A page with a table, and the names in it.

    Attributes:
        title: its heading.
        home: the package that the names are imported from.
        names: the names.
    """

    title: str
    home: str
    names: tuple[str, ...]


def topics() -> list[Topic]:
    """All topics; together they have every public name once."""
    kinds = {title: tuple(row.name for row in rows(kind)) for kind, title in METHODS.items()}
    others = sorted(set(gradtx.__all__).difference(*kinds.values()) - set(PACKAGES), key=str.lower)
    for name in others:
        kinds.setdefault(_title(getattr(gradtx, name)), ())
        kinds[_title(getattr(gradtx, name))] += (name,)
    return [
        *(Topic(title, "gradtx", names) for title, names in kinds.items()),
        *(
            Topic(title, f"gradtx.{package}", _public(f"gradtx.{package}"))
            for package, title in PACKAGES.items()
        ),
    ]


def _public(package: str) -> tuple[str, ...]:
    module = importlib.import_module(package)
    return tuple(name for name in module.__all__ if not inspect.ismodule(getattr(module, name)))


def _title(thing: Any) -> str:
    if not _is_ours(thing):
        return "Functions of optax"
    is_state = inspect.isclass(thing) and thing.__name__.endswith("State")
    return "States" if is_state else "Composition and use"


def has_page(thing: Any) -> bool:
    """Whether something has a page of its own: what is not optax's, and more than a line."""
    return _is_ours(thing) and not isinstance(thing, kernel.Range)


def _is_ours(thing: Any) -> bool:
    return getattr(thing, "__module__", type(thing).__module__).startswith("gradtx")


@cache
def rows(kind: Any) -> list[catalogue.Method]:
    """The catalogue's rows of a kind."""
    return catalogue.methods(kind)


@cache
def facts() -> dict[str, catalogue.Method]:
    """The catalogue's row of each method."""
    return {row.name: row for kind in METHODS for row in rows(kind)}


def write(folder: Path) -> None:
    """Write all pages of the reference into a folder, in place of those that are there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = topics()
    entries = "\n".join(slug(topic.title) for topic in found)
    (folder / "index.md").write_text(
        f"# Reference\n\n```{{toctree}}\n:titlesonly:\n\n{entries}\n```\n"
    )
    for topic in found:
        (folder / f"{slug(topic.title)}.md").write_text("\n".join(_topic_page(topic)))
        for name in topic.names:
            if has_page(getattr(importlib.import_module(topic.home), name)):
                (folder / f"{topic.home}.{name}.md").write_text(_page(topic, name))


def show_experiments(folder: Path) -> None:
    """Run all experiments, at their quick sizes, to make their pages, unless they are there."""
    if not (folder / "index.md").exists():
        command = [sys.executable, "-m", "examples.experiments", "--quick"]
        # What did not hold is said on the pages; without them the build fails.
        subprocess.run(
            [*command, "--out", folder, "--pages", folder],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            check=False,
        )


def aliases() -> dict[str, str]:
    """The names of types in signatures, which stand for themselves there."""
    things = (getattr(importlib.import_module(t.home), n) for t in topics() for n in t.names)
    signatures = "".join(str(inspect.signature(each)) for each in things if inspect.isroutine(each))
    names = set(re.findall(r"(?<![\w.'\"=])'?([A-Z]\w+)", signatures))
    names -= {*dir(typing), *dir(builtins)}
    return {name: name for name in names} | {"ExtraArgs": "GradientTransformationExtraArgs"}


def slug(title: str) -> str:
    """The name of a topic's page."""
    return title.lower().replace(" ", "-")


def _topic_page(topic: Topic) -> Iterator[str]:
    home = importlib.import_module(topic.home)
    introduction = INTRODUCTIONS.get(topic.title, (home.__doc__ or "").partition("\n")[0])
    yield f"# {topic.title}\n\n{introduction}\n"
    known = facts() if topic.home == "gradtx" else {}
    methods = all(name in known for name in topic.names)
    yield "| Name | | Paper | State | Local to |\n|-|-|-|-|-|" if methods else "| Name | |\n|-|-|"
    for name in topic.names:
        thing = getattr(home, name)
        cells = [f"`{name}`", _summary(thing)]
        if has_page(thing):
            cells[0] = f"[`{name}`]({topic.home}.{name}.md)"
        if methods:
            row = known[name]
            cells += [row.papers, f"{row.state_bytes:.2g}", row.locality]
        yield "| " + " | ".join(cells) + " |"
    if methods:
        yield "\n*State* is in bytes for each float32 parameter of a matrix of 1024 by 1024."


def _summary(thing: Any) -> str:
    if isinstance(thing, kernel.Range):
        return f"the range of a hyperparameter: {thing.description}"
    if not callable(thing) or not _is_documented(thing):
        return ""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _is_documented(thing: Any) -> bool:
    return inspect.isroutine(thing) or inspect.isclass(thing) or hasattr(thing, "__wrapped__")


def _page(topic: Topic, name: str) -> str:
    """A page outside the tree of contents, which every page repeats."""
    home = topic.home
    thing = getattr(importlib.import_module(home), name)
    kind, option = "function", ""
    if inspect.isclass(thing):
        kind, option = "class", "" if issubclass(thing, tuple) else "   :members:\n"
    elif isinstance(thing, Equation) or not callable(thing):
        kind, option = "data", "   :no-value:\n"
    return (
        f"---\norphan: true\n---\n\n# {name}\n\n[{topic.title}]({slug(topic.title)}.md)\n\n"
        f"```{{eval-rst}}\n.. currentmodule:: {home}\n\n"
        f".. auto{kind}:: {home}::{name}\n{option}```\n"
    )


def set_apart(lines: list[str]) -> Iterable[str]:
    """Mark the indented blocks of a docstring that stand under no section as equations."""
    section = block = False
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith(" "):
            section, block = bool(SECTION.match(line)), False
        elif line.startswith("    ") and not before.strip() and not (section or block):
            block = True
            yield from (".. code-block:: none", "   :class: equation", "")
        yield line if block or line.lstrip().startswith((">>>", "...")) else _plain(line)


def _plain(line: str) -> str:
    """Text in which bars and stars are what they are, and not the marks of reStructuredText."""
    return line if ARGUMENTS.match(line) else re.sub(r"([*|])", r"\\\1", line)


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    del app, options
    lines[:] = set_apart(lines)
    row = facts().get(name.removeprefix("gradtx."))
    if what in ("function", "class") and row:
        size = f"{row.state_bytes:.2g} bytes for each float32 parameter of a large matrix"
        lines[len(lines) :] = ["", "State:", f"    {size}; {DEPENDS[row.locality]}.", ""]


def _shorten(app: Any, what: str, name: str, thing: Any, options: Any, *texts: Any) -> Any:
    """Where a name of a type is part of a union, autodoc shows how it keeps it."""
    del app, what, name, thing, options
    return [text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in texts]


def setup(app: Any) -> dict[str, bool]:
    """Take part in a build."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-process-signature", _shorten)
    return {"parallel_read_safe": True}
