"""What a new function still lacks, in the words of `.github/CONTRIBUTING.md`."""

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import gradtx
from gradtx import catalogue
from gradtx.inspection.effects import growth_of, unwrapped
from gradtx.inspection.routes import routes_of
from gradtx.wrappers.rates import learning_rates_of

PACKAGE = Path(gradtx.__file__).parent
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """What belongs to a function beside its own file.

    Attributes:
        places: where its name must be -> all names that are there.
        sections: what its docstring must have beside what every docstring has.
    """

    places: Mapping[str, Set[str]]
    sections: tuple[str, ...] = ()


def forgotten(name: str, function: Callable[..., Any], kind: Kind) -> list[str]:
    """What a function lacks, one line for each thing; nothing if it is complete."""
    absent = [place for place, names in kind.places.items() if name not in names]
    return [f"{name} is not in {place}" for place in absent] + [
        f"the docstring of {name} has no {part}" for part in _missing_parts(function, kind)
    ]


def _missing_parts(function: Callable[..., Any], kind: Kind) -> Iterator[str]:
    text = inspect.getdoc(function) or ""
    arguments = inspect.signature(function).parameters
    summary, *_ = text.split("\n\n")
    if "\n" in summary or not summary.endswith("."):
        yield "summary: one sentence in one line, with a period"
    if "equation" in kind.sections and not re.search(r"^    \S", text.split("\nArgs:")[0], re.M):
        yield "equation, indented by four spaces"
    sections = ("Args",) * bool(arguments) + ("Returns", *kind.sections, "Example")
    for section in sections:
        if section != "equation" and not re.search(rf"^{section}:$", text, re.M):
            yield f"section {section!r}"
    for argument in arguments:
        if not re.search(rf"^    \**{argument}: ", text, re.M):
            yield f"entry for the argument {argument!r}"
    if ">>> " not in text:
        yield "example that runs, with '>>>'"


def undeclared(factory: Callable[..., Any]) -> list[str]:
    """The parts of what a factory makes that do not say what they do to an update."""
    routes = routes_of(catalogue.made(factory), {"w": jnp.ones((4, 3))})
    rules = [rule for route in routes for rule in unwrapped(route)]
    # What is not this library's own is named with its package.
    silent = {rule.name for rule in rules if growth_of(rule, 0) == "unknown"}
    return [f"{name} has no degree" for name in sorted(silent) if "." not in name]


def misplaced(factory: Callable[..., Any]) -> list[str]:
    """Whether the state of what a wrapper wraps is not where the wrapper declares it."""
    tx = catalogue.made(factory, inner=gradtx.sgd(lambda count: 1 / (2 + count)))
    state = tx.init({"w": jnp.ones((4, 3))})
    try:
        is_found = any(rate == 0.5 for _, rate in learning_rates_of(tx, state))
    except (AttributeError, IndexError, KeyError, TypeError):
        is_found = False
    text = f"the effect of {factory.__name__} does not name the fields of the states inside"
    return [] if is_found else [text]


def functions_of(*rooms: str) -> dict[str, Callable[..., Any]]:
    """The functions in some rooms that have no underscore."""
    modules = [
        importlib.import_module(f"gradtx.{room}.{path.stem}")
        for room in rooms
        for path in sorted((PACKAGE / room).glob("[!_]*.py"))
    ]
    return {
        name: thing
        for module in modules
        for name, thing in vars(module).items()
        if inspect.isroutine(thing) and thing.__module__ == module.__name__ and name[0] != "_"
    }


def is_inner_part(function: Callable[..., Any]) -> bool:
    """Whether the example of a function imports it from its home, so that it is not public."""
    return f"from {function.__module__} import" in (function.__doc__ or "")


def is_used(function: Callable[..., Any]) -> bool:
    """Whether another module of the library reads a function."""
    home = Path(inspect.getfile(inspect.unwrap(function)))
    others = {*PACKAGE.rglob("*.py")} - {home, home.parent / "__init__.py"}
    return any(function.__name__ in names_in(path) for path in others)


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """The names that a module reads, other than those of functions that are to refuse something."""
    tree = ast.parse(path.read_text())
    refused = {id(inner) for node in ast.walk(tree) if _refuses(node) for inner in ast.walk(node)}
    nodes = [node for node in ast.walk(tree) if id(node) not in refused]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return frozenset(names | {node.attr for node in nodes if isinstance(node, ast.Attribute)})


def _refuses(node: ast.AST) -> bool:
    """Whether a node is a call of `wrong_arguments` or a block of `pytest.raises`."""
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
        return any(getattr(getattr(call, "func", None), "attr", "") == "raises" for call in calls)
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "wrong_arguments"


def names_in_tests(rooms: Iterable[str]) -> set[str]:
    """The names that the tests of some rooms read."""
    return {
        name
        for room in rooms
        for path in (TESTS / room).glob("test_*.py")
        for name in names_in(path)
    }
