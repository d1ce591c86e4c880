"""The documentation's tables of methods, from kernels, docstrings and differences.

`python -m gradtx.catalogue` prints them, and
`python -m gradtx.catalogue examples/site/methods.md examples/site/differences.md` updates those in
these files.
"""

from __future__ import annotations

import inspect
import re
import signal
import sys
import typing
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

import gradtx
from gradtx import differences
from gradtx.by_name import is_whole
from gradtx.compose.parts import Locality, locality_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.lift import kernel_of
from gradtx.wrappers.factory import members_of

Kind: TypeAlias = Literal["optimizer", "piece", "wrapper"]

_INNER = gradtx.sgd(0.1)


def _one(argument: Any) -> jax.Array:
    """A schedule, a measure, a factor for a path."""
    del argument
    return jnp.ones([])


# A value of each type that an argument without a default may have; the first match decides.
_VALUES: dict[Any, Any] = {
    optax.GradientTransformation: _INNER,
    int: 4,
    float: 0.5,
    str: "name",
    Callable: _one,
    Mapping: {"name": _one},
}
# Large enough that state for the rows and columns of a matrix hardly counts.
_MATRIX = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: the public name.
        kind: "optimizer" if it takes a learning rate or finds its own, "piece" if it is a part of a
            chain, "wrapper" if it takes another transformation.
        summary: the first sentence of its docstring.
        papers: their authors and years.
        state_bytes: the size of its state for each float32 parameter of a matrix of 1024 by 1024,
            in bytes.
        locality: what an element's update depends on: that "element" alone, its whole "leaf", or
            the whole "tree", if only through a norm.
    """

    name: str
    kind: Kind
    summary: str
    papers: str
    state_bytes: float
    locality: Locality


def methods(kind: Kind = "optimizer") -> list[Method]:
    """All public methods of a kind, sorted by name, with their default arguments.

    Args:
        kind: "optimizer", "piece" or "wrapper".

    Returns:
        One `Method` for each.

    Example:
        >>> from gradtx.catalogue import methods
        >>> adam = next(method for method in methods() if method.name == "adam")
        >>> adam.papers, adam.state_bytes, adam.locality
        ('Kingma & Ba 2015', 8.0, 'element')
    """
    factories: dict[str, Callable[..., Any]] = dict(inspect.getmembers(gradtx, inspect.isfunction))
    # A class, as in optax.
    factories["MultiSteps"] = gradtx.MultiSteps
    return [
        _method(name, factory, kind)
        for name, factory in sorted(factories.items(), key=lambda item: item[0].lower())
        if _kind(factory) == kind
    ]


def table(kind: Kind = "optimizer") -> str:
    """The methods of a kind as a table in Markdown."""
    rows = ["| Name | | Paper | State | Local to |", "|-|-|-|-|-|"]
    for method in methods(kind):
        size = f"{method.state_bytes:.1f}".removesuffix(".0")
        cells = (f"`{method.name}`", method.summary, method.papers, size, method.locality)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _kind(factory: Callable[..., Any]) -> Kind | None:
    signature = inspect.signature(factory, eval_str=True)
    returned = factory if inspect.isclass(factory) else signature.return_annotation
    if returned is gradtx.MultiSteps:
        return "wrapper"
    if "GradientTransformation" not in getattr(returned, "__name__", str(returned)):
        return None
    package = factory.__module__.split(".")[1]
    if any(argument.kind is argument.VAR_KEYWORD for argument in signature.parameters.values()):
        return None  # with_hyperparams, which is of the kind of its factory
    if package in ("wrappers", "precision"):
        wraps = any(
            optax.GradientTransformation in _types(argument)
            for argument in signature.parameters.values()
        )
        return "wrapper" if wraps else "piece"
    if package not in ("kernels", "recipes"):
        return None
    return "optimizer" if is_whole(factory) else "piece"


def made(
    factory: Callable[..., Any], inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """What a factory makes with its defaults, and valid values for arguments without one.

    Args:
        factory: the factory.
        inner: the transformation to wrap; None: its default, or `sgd` if it has none.
    """
    arguments = {}
    for argument in inspect.signature(factory, eval_str=True).parameters.values():
        if inner is not None and optax.GradientTransformation in _types(argument):
            arguments[argument.name] = inner
        elif argument.default is argument.empty:
            arguments[argument.name] = example_of(argument)
    # Of what is deprecated, and of noise that is drawn without a key.
    with warnings.catch_warnings(action="ignore"):
        tx = factory(**arguments)
    return as_transformation("catalogue", factory.__name__, tx)


def example_of(argument: inspect.Parameter) -> Any:
    """A value that the factories of this library accept for an argument, by its type.

    Raises:
        TypeError: if the annotation names no known type.
    """
    types = _types(argument)
    for kind, value in _VALUES.items():
        if kind in types:
            return value
    raise TypeError(f"catalogue: no value is known for {argument}")


def _types(argument: inspect.Parameter) -> set[Any]:
    """The types that an argument may have, without those of their contents."""
    return {typing.get_origin(kind) or kind for kind in members_of(argument.annotation)}


def _method(name: str, factory: Callable[..., Any], kind: Kind) -> Method:
    tx = made(factory)
    document = inspect.getdoc(factory) or ""
    kept = jax.tree.leaves(jax.eval_shape(tx.init, _MATRIX))
    return Method(
        name=name,
        kind=kind,
        summary=document.split("\n\n")[0].replace("\n", " ").removesuffix("."),
        papers=_papers(document),
        state_bytes=round(sum(x.size * x.dtype.itemsize for x in kept) / _MATRIX.size, 2),
        locality=_locality(tx),
    )


def _papers(document: str) -> str:
    """Authors and years from the section "Source"."""
    found = re.search(r"\nSource:\n((?: .*\n|\n)*)", document + "\n")
    text = " ".join(found.group(1).split()) if found else ""
    # Titles may contain years too.
    text = re.sub(r'"[^"]*"', "", text)
    name = r"[A-Z][\w']+(?:-[A-Z][\w']+)*"
    names = re.findall(rf"((?:{name}(?:, | & | and | et al\. | ))+\d{{4}})", text)
    return "; ".join(dict.fromkeys(found.replace(" and ", " & ") for found in names))


def _locality(tx: optax.GradientTransformation) -> Locality:
    kernel, own = kernel_of(tx), locality_of(tx)
    if kernel is not None:
        return "tree" if kernel.measures else "element" if kernel.elementwise else "leaf"
    # What is not a kernel and has no known parts may do anything.
    found = {own or "tree", *(_locality(part.transformation) for part in parts_of(tx))}
    return next(each for each in ("tree", "leaf", "element") if each in found)


def updated(text: str) -> str:
    """A text with its tables of methods and differences brought up to date, in the same order."""
    tables = defaultdict[str, list[str]](list)
    for new in (*map(table, get_args(Kind)), differences.table()):
        tables[new.split("\n")[0]].append(new)

    def replaced(found: re.Match[str]) -> str:
        old = found.group()
        rest = tables[old.split("\n")[0]]
        return f"{rest.pop(0)}\n" if rest else old

    return re.sub(r"(?:^\|.*\n)+", replaced, text, flags=re.MULTILINE)


if __name__ == "__main__":
    if sys.argv[1:]:
        for path in map(Path, sys.argv[1:]):
            path.write_text(updated(path.read_text()))
    else:
        if hasattr(signal, "SIGPIPE"):  # ends silently when piped into head
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print(*map(table, get_args(Kind)), differences.table(), sep="\n\n")
