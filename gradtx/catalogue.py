"""The table of all methods, from their kernels and docstrings: `python -m gradtx.catalogue`."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradtx
from gradtx.compose.parts import owner_of, parts_of
from gradtx.lift import kernel_of

# An argument means the same thing everywhere, so that one value serves all methods.
ARGUMENTS: dict[str, Any] = {
    "clipping": 0.1,
    "decay": 0.9,
    "eta": 0.01,
    "gamma": 0.55,
    "key": 0,
    "l2_norm_clip": 1.0,
    "learning_rate": 0.1,
    "max_delta": 1.0,
    "max_norm": 1.0,
    "noise_multiplier": 1.0,
    "seed": 0,
    "step_size": 0.1,
    "step_size_fn": optax.constant_schedule(0.1),
    "threshold": 1.0,
    "window": 4,
}
# Large enough that what a matrix keeps for its rows and columns does not count.
SIDE = 4096


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: the public name.
        summary: the first sentence of its docstring.
        papers: their authors and years.
        state_bytes: what it keeps for one float32 parameter of a large matrix, in bytes.
        locality: what an element's update depends on: that "element" alone, its whole "leaf", or
            the whole "tree", if only by its norm.
    """

    name: str
    summary: str
    papers: str
    state_bytes: float
    locality: str


def methods(package: str = "recipes") -> list[Method]:
    """The methods that the kernels and recipes define, by name.

    Args:
        package: "recipes" for the named optimizers, "kernels" for the pieces that they chain.

    Returns:
        One `Method` for each public factory of that package.

    Example:
        >>> from gradtx.catalogue import methods
        >>> adam = next(method for method in methods() if method.name == "adam")
        >>> adam.papers, adam.state_bytes, adam.locality
        ('Kingma & Ba 2015', 8.0, 'element')
    """
    return [
        _method(name, factory)
        for name, factory in inspect.getmembers(gradtx, inspect.isfunction)
        if factory.__module__.startswith(f"gradtx.{package}.") and _is_factory(factory)
    ]


def table(package: str = "recipes") -> str:
    """The methods as a table in Markdown."""
    rows = ["| Name | | Paper | State | Local to |", "|-|-|-|-|-|"]
    for method in methods(package):
        size = f"{method.state_bytes:.1f}".removesuffix(".0")
        cells = (f"`{method.name}`", method.summary, method.papers, size, method.locality)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _method(name: str, factory: Callable[..., Any]) -> Method:
    tx = factory(
        **{
            argument.name: ARGUMENTS[argument.name]
            for argument in inspect.signature(factory).parameters.values()
            if argument.name in ARGUMENTS and argument.default in (argument.empty, None)
        }
    )
    document = inspect.getdoc(factory) or ""
    parameter = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
    kept = jax.tree.leaves(jax.eval_shape(tx.init, parameter))
    return Method(
        name=name,
        summary=document.split("\n\n")[0].replace("\n", " ").removesuffix("."),
        papers=_papers(document),
        state_bytes=round(sum(x.size * x.dtype.itemsize for x in kept) / SIDE**2, 2),
        locality=_locality(tx),
    )


def _is_factory(function: Callable[..., Any]) -> bool:
    returned = inspect.signature(function).return_annotation
    return "GradientTransformation" in getattr(returned, "__name__", str(returned))


def _papers(document: str) -> str:
    """Authors and years from the section on sources."""
    found = re.search(r"\nSource:\n((?: .*\n|\n)*)", document + "\n")
    text = " ".join(found.group(1).split()) if found else ""
    # Titles may hold years too.
    text = re.sub(r'"[^"]*"', "", text)
    names = re.findall(r"((?:[A-Z][\w'-]+(?:, | & | and | et al\. | ))+\d{4})", text)
    return "; ".join(dict.fromkeys(name.replace(" and ", " & ") for name in names))


def _locality(tx: optax.GradientTransformation) -> str:
    kernel = kernel_of(tx)
    if kernel is None:
        # What is no kernel and has no known parts may do anything.
        found = {_locality(part.transformation) for part in parts_of(tx)}
        found |= set() if owner_of(tx) else {"tree"}
    elif kernel.elementwise:
        found = {"tree" if kernel.measures else "element"}
    else:
        found = {"leaf"}
    return next((each for each in ("tree", "leaf") if each in found), "element")


if __name__ == "__main__":
    print(table())
